"""OpenAI's JSON, to and from our types; pure. The contract is that of the official clients.

Formats: https://platform.openai.com/docs/api-reference/embeddings. The official clients ask for base64 (little-endian
float32) unless told otherwise; unknown fields are ignored.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages import ShardStatus
from router.service import EmbeddingRequest, EmbeddingResult

EncodingFormat = Literal["float", "base64"]
MAX_INPUTS: Final = 2048
_MAX_TOKEN_ID: Final = 2**31


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """A parsed ``POST /v1/embeddings``."""

    request: EmbeddingRequest
    encoding_format: EncodingFormat


def parse_embeddings(body: bytes) -> EmbeddingsCall:
    """Read a request body; raise ``InvalidRequestError`` with the sentence and parameter that is wrong."""
    fields = _parse_object(body)
    texts, token_ids = _parse_input(fields.get("input"), given="input" in fields)
    return EmbeddingsCall(
        EmbeddingRequest(
            model=_parse_model(fields.get("model")),
            texts=texts,
            token_ids=token_ids,
            dimensions=_parse_dimensions(fields.get("dimensions")),
            prompt_name=_optional_string(fields, "prompt_name"),
        ),
        _parse_format(fields, _optional_string(fields, "user")),
    )


def _parse_object(body: bytes) -> dict[str, object]:
    try:
        # orjson refuses NaN, lone surrogates, invalid UTF-8 and deep nesting, all as JSONDecodeError.
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object with 'model' and 'input'.")
    return value


def _parse_model(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("'model' is required: the id of a served model, as a string.", param="model")
    return value


def _parse_input(value: object, *, given: bool) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    if not given or value is None:
        raise _bad_input("'input' is required: a string, a list of strings, or token ids.")
    if isinstance(value, str):
        return (_checked_text(value, ""),), ()
    if not isinstance(value, list):
        raise _bad_input("'input' must be a string, a list of strings, a list of token ids or a list of those lists.")
    if not value:
        raise _bad_input("'input' is empty: give at least one string or token id.")
    first = value[0]
    if type(first) is int:
        return (), (_checked_ids(value, "input"),)
    _check_count(value)
    if isinstance(first, str):
        return tuple(_checked_text(one, f"[{index}]") for index, one in enumerate(value)), ()
    if isinstance(first, list):
        return (), tuple(_checked_ids(one, f"input[{index}]") for index, one in enumerate(value))
    raise _bad_input(f"'input[0]' must be a string, a token id or a list of token ids, not {_name(first)}.")


def _check_count(value: list[object]) -> None:
    if len(value) > MAX_INPUTS:
        raise _bad_input(f"'input' holds {len(value)} items; at most {MAX_INPUTS} are taken in one request.")


def _checked_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _bad_input(f"'input{where}' must be a string like the items before it, not {_name(value)}.")
    if not value:
        raise _bad_input(f"'input{where}' is an empty string: leave it out or give it some text.")
    return value


def _checked_ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _bad_input(f"'{where}' must be a list of token ids like the items before it, not {_name(value)}.")
    if not value:
        raise _bad_input(f"'{where}' is an empty list of token ids.")
    for index, one in enumerate(value):
        if type(one) is not int or not 0 <= one < _MAX_TOKEN_ID:
            raise _bad_input(f"'{where}[{index}]' must be a token id, a whole number from 0, not {_name(one)}.")
    return tuple(value)


def _parse_dimensions(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InvalidRequestError("'dimensions' must be a whole number from 1.", param="dimensions")
    return value


def _parse_format(fields: dict[str, object], _user: str | None) -> EncodingFormat:
    value = fields.get("encoding_format")
    if value is None or value == "float":
        return "float"
    if value == "base64":
        return "base64"
    shown = orjson.dumps(value).decode()[:64]
    raise InvalidRequestError(
        f"Invalid value for 'encoding_format' = {shown}. Supported values: ['float', 'base64'].",
        param="encoding_format",
    )


def _optional_string(fields: dict[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequestError(f"'{name}' must be a string, not {_name(value)}.", param=name)
    return value


def _bad_input(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="input")


def _name(value: object) -> str:
    if value is None or isinstance(value, bool):
        return orjson.dumps(value).decode()
    return {
        str: "a string",
        int: "the number " + str(value)[:20],
        float: "a fraction",
        list: "a list",
        dict: "an object",
    }[type(value)]


def render_embeddings(result: EmbeddingResult, encoding_format: EncodingFormat) -> Iterator[bytes]:
    """Yield the answer's JSON in pieces of one slice each, so that a large one never holds the loop for long."""
    yield b'{"object":"list","data":['
    index = 0
    for part in result.parts:
        rows = np.frombuffer(part.vectors, dtype="<f4").reshape(len(part.tokens), part.dimension)
        items = [
            {
                "object": "embedding",
                "index": index + offset,
                "embedding": row if encoding_format == "float" else base64.b64encode(row.data).decode("ascii"),
            }
            for offset, row in enumerate(rows)
        ]
        piece = orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield b"," + piece if index else piece
        index += len(items)
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    yield b'],"model":' + orjson.dumps(result.model_id) + b',"usage":' + orjson.dumps(usage) + b"}"


def render_error(error: RequestError) -> bytes:
    """Return OpenAI's error body."""
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": body})


def render_models(statuses: list[ShardStatus]) -> bytes:
    """Return OpenAI's list of models."""
    return orjson.dumps({"object": "list", "data": [describe_model(status) for status in statuses]})


def describe_model(status: ShardStatus) -> dict[str, object]:
    """Return OpenAI's model object and beside it what an operator asks first.

    ``dimensions``, ``max_tokens`` and the rest of the measured facts are null until the model is loaded.
    """
    info = status.info
    encoder = info.encoder if info else None
    model: dict[str, object] = {
        "id": status.model_id,
        "object": "model",
        "created": status.created,
        "owned_by": status.name.split("/")[0] if "/" in status.name.strip("/") else "local",
        "name": status.name,
        "state": status.state,
        "source": info.source if info else status.source,
        "precision": encoder.precision if encoder else status.precision,
        "dimensions": encoder.dimension if encoder else None,
        "max_tokens": encoder.max_tokens if encoder else None,
        "pooling": encoder.pooling if encoder else None,
        "normalized": encoder.normalized if encoder else None,
        "device": encoder.device if encoder else None,
        "storage_dtype": encoder.storage_dtype if encoder else None,
        "compute_dtype": encoder.compute_dtype if encoder else None,
        "batching": encoder.batching if encoder else None,
        "weights_bytes": encoder.weights_bytes if encoder else None,
        "vocabulary_size": encoder.vocabulary_size if encoder else None,
        "revision": info.revision if info else None,
        "prompts": list(encoder.prompts) if encoder else None,
        "overlong": status.overlong,
        "restarts": status.restarts,
    }
    if status.reason:
        model["reason"], model["detail"] = status.reason, status.detail
    if status.state == "downloading":
        model["download"] = {"done_bytes": status.done_bytes, "total_bytes": status.total_bytes}
    if status.state not in ("ready", "failed"):
        model["expected_ready_s"] = math.ceil(status.expected_ready_s)
    return model
