"""OpenAI's JSON, to and from our types; pure. The contract is that of the official clients.

Formats: https://platform.openai.com/docs/api-reference/embeddings. The official clients ask for base64 (little-endian
float32) unless told otherwise; unknown fields are ignored.
"""

from __future__ import annotations

import dataclasses
import math
from binascii import b2a_base64
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages import Encoded, EncoderInfo, ShardStatus
from router import large_json
from router.requests import EncodeRequest, EncodeResult

EncodingFormat = Literal["float", "base64"]
MAX_INPUTS: Final = 2048
_MAX_TOKEN_ID: Final = 2**31
_IDS_A_STEP: Final = 16 * 1024
#: 32,768 numbers are some 0.7 ms of work as JSON. The library that writes them holds the interpreter's lock, as base64
#: does: another thread would keep the loop waiting just as long, so the loop does it itself, piece by piece.
_PIECE_BYTES: Final = 128 * 1024
#: Where OpenAI's clients have a word of their own for what ``EncoderInfo`` knows.
_PUBLIC_NAMES: Final = {"dimension": "dimensions"}


@dataclass(frozen=True, slots=True)
class EmbeddingsCall:
    """A parsed ``POST /v1/embeddings``."""

    request: EncodeRequest
    encoding_format: EncodingFormat


def parse_embeddings(body: bytes) -> EmbeddingsCall:
    """Read a request body; raise ``InvalidRequestError`` with the sentence and parameter that is wrong."""
    steps = parse_in_steps(body)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            call: EmbeddingsCall = done.value
            return call


def parse_in_steps(body: bytes) -> Generator[None, None, EmbeddingsCall]:
    """Do the same with a pause after each millisecond or so, for bodies that take several."""
    fields = yield from _parse_object(body)
    texts, token_ids = yield from _parse_input(fields.get("input"), given="input" in fields)
    return EmbeddingsCall(
        EncodeRequest(
            model=_parse_model(fields.get("model")),
            texts=texts,
            token_ids=token_ids,
            dimensions=_parse_dimensions(fields.get("dimensions")),
            prompt_name=_optional_string(fields, "prompt_name"),
        ),
        _parse_format(fields, _optional_string(fields, "user")),
    )


def _parse_object(body: bytes) -> Generator[None, None, dict[str, object]]:
    try:
        # orjson refuses NaN, lone surrogates, invalid UTF-8 and deep nesting, all as JSONDecodeError.
        value = yield from large_json.read(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object with 'model' and 'input'.")
    return value


def _parse_model(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError("'model' is required: the id of a served model, as a string.", param="model")
    return value


def _parse_input(
    value: object, *, given: bool
) -> Generator[None, None, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]]:
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
        return (), (yield from _checked_id_lists(value))
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


def _checked_id_lists(value: list[object]) -> Generator[None, None, tuple[tuple[int, ...], ...]]:
    checked: list[tuple[int, ...]] = []
    unpaused = 0
    for index, one in enumerate(value):
        checked.append(_checked_ids(one, f"input[{index}]"))
        unpaused += len(checked[-1])
        if unpaused >= _IDS_A_STEP:
            unpaused = 0
            yield
    return tuple(checked)


def _checked_ids(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _bad_input(f"'{where}' must be a list of token ids like the items before it, not {_name(value)}.")
    if not value:
        raise _bad_input(f"'{where}' is an empty list of token ids.")
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) < _MAX_TOKEN_ID:
        return tuple(value)
    for index, one in enumerate(value):  # one of them is wrong
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


def render_embeddings(result: EncodeResult, encoding_format: EncodingFormat) -> Iterator[bytes]:
    """Yield the answer's JSON in pieces, none of which takes much more than a millisecond to make."""
    write = _write_floats if encoding_format == "float" else _write_base64
    index = 0
    head = b'{"object":"list","data":['
    for part in result.parts:
        count, row_bytes = len(part.tokens), 4 * part.dimension
        rows = max(1, _PIECE_BYTES // row_bytes)
        for begin in range(0, count, rows):
            end = min(begin + rows, count)
            yield head + write(part, begin, end, index)
            head = b","
            index += end - begin
    yield b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
        orjson.dumps(result.model_id),
        result.prompt_tokens,
        result.prompt_tokens,
    )


def is_small(result: EncodeResult) -> bool:
    """Tell whether rendering the whole answer takes about as long as one piece of a large one."""
    return sum(len(part.vectors) for part in result.parts) <= _PIECE_BYTES


def _write_floats(part: Encoded, begin: int, end: int, index: int) -> bytes:
    rows = np.frombuffer(part.vectors, dtype="<f4").reshape(-1, part.dimension)[begin:end]
    items = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows, index)]
    return orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _write_base64(part: Encoded, begin: int, end: int, index: int) -> bytes:
    """Put the alphabet of base64 between quotes as it is: nothing in it needs escaping in JSON."""
    vectors, size = memoryview(part.vectors), 4 * part.dimension
    return b",".join(
        b'{"object":"embedding","index":%d,"embedding":"%b"}'
        % (index + row - begin, b2a_base64(vectors[row * size : (row + 1) * size], newline=False))
        for row in range(begin, end)
    )


def render_error(error: RequestError) -> bytes:
    """Return OpenAI's error body."""
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": body})


def render_models(statuses: list[ShardStatus]) -> bytes:
    """Return OpenAI's list of models."""
    return orjson.dumps({"object": "list", "data": [describe_model(status) for status in statuses]})


def describe_model(status: ShardStatus) -> dict[str, object]:
    """Return OpenAI's model object and beside it what an operator asks first.

    The facts of ``EncoderInfo`` stand here one by one and are null until the model is loaded.
    """
    info = status.info
    model: dict[str, object] = {
        "id": status.model_id,
        "object": "model",
        "created": status.created,
        "owned_by": status.name.split("/")[0] if "/" in status.name.strip("/") else "local",
        "name": status.name,
        "state": status.state,
        "source": info.source if info else status.source,
        "revision": info.revision if info else None,
        **_describe_encoder(info.encoder if info else None),
        "overlong": status.overlong,
        "restarts": status.restarts,
    }
    if info is None:
        model["precision"] = status.precision
    if status.reason:
        model["reason"], model["detail"] = status.reason, status.detail
    if status.state == "downloading":
        model["download"] = {"done_bytes": status.done_bytes, "total_bytes": status.total_bytes}
    if status.state not in ("ready", "failed"):
        model["expected_ready_s"] = math.ceil(status.expected_ready_s)
    return model


def _describe_encoder(encoder: EncoderInfo | None) -> dict[str, object]:
    """Return every fact about a loaded model under its own name, so that a new one needs nothing here."""
    facts = {_PUBLIC_NAMES.get(field.name, field.name): field.name for field in dataclasses.fields(EncoderInfo)}
    return {public: getattr(encoder, name) if encoder else None for public, name in facts.items()}
