"""Ollama's JSON, to and from our types; pure. Formats: https://github.com/ollama/ollama/blob/main/docs/api.md.

``keep_alive`` and ``options`` are accepted: models stay loaded here, and none of the options changes vectors. Nothing
to encode is no error there: clients load a model so, and pass on empty lists (see ``server/routes.go``). The answer
comes when the model is loaded.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Final

import orjson

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.messages.status import ShardStatus
from router.dialects.fields import Fields
from router.dialects.openai import parse_model
from router.dialects.options import has_prompt, read_options, read_texts
from router.dialects.seam import Answered, DescribeCall, Dialect, EncodeCall, ListCall, Route, at_once
from router.dialects.vectors import PLAIN, details_json, errors_json, rows_json, to_json
from router.dialects.version import our_version
from router.limits import RequestLimits

_NANOSECONDS: Final = 1_000_000_000
_BITS: Final = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
#: Models stay loaded; Ollama's word for that is a time far away.
_NEVER: Final = "9999-12-31T23:59:59Z"


def parse_embed(fields: Fields) -> EncodeCall | DescribeCall:
    """Read the body of ``/api/embed``."""
    if fields.values.get("input") in (None, "", []):
        return DescribeCall(parse_model(fields), _no_vectors, waits=True)
    options = read_options(fields, reads_prompt=has_prompt(fields, "input"))
    texts, holes = read_texts(fields, "input", options)
    request = options.request(parse_model(fields), texts=texts, holes=holes)
    return EncodeCall(request, partial(build_embed, options.details), role=options.role, holes=holes)


def build_embed(details: bool, answered: Answered) -> Iterator[bytes]:  # noqa: FBT001 - bound by position
    """Write vectors, and times in nanoseconds."""
    result = answered.result
    yield b'{"model":%b,"embeddings":[' % orjson.dumps(result.model_id)
    yield from rows_json(result, PLAIN)
    rest: dict[str, object] = {
        "total_duration": int(answered.took_s * _NANOSECONDS),
        "load_duration": 0,
        "prompt_eval_count": result.prompt_tokens,
    }
    if details:
        rest["usage_details"] = details_json(result)
    if errors := errors_json(result):
        rest["errors"] = errors
    if result.fingerprint:
        rest["system_fingerprint"] = result.fingerprint
    yield b"]," + to_json(rest)[1:]


def _no_vectors(status: ShardStatus, _limits: RequestLimits) -> bytes:
    empty = {"embeddings": [], "total_duration": 0, "load_duration": 0, "prompt_eval_count": 0}
    return orjson.dumps({"model": status.model_id, **empty})


def parse_embeddings(fields: Fields) -> EncodeCall | DescribeCall:
    """Read the body of ``/api/embeddings``, the older route with one text in ``prompt``."""
    if not fields.string("prompt"):
        return DescribeCall(parse_model(fields), lambda _status, _limits: b'{"embedding":[]}', waits=True)
    options = read_options(fields, reads_prompt=False)
    request = options.request(parse_model(fields), texts=(fields.text("prompt"),))
    return EncodeCall(request, build_embeddings, role=options.role)


def build_embeddings(answered: Answered) -> Iterator[bytes]:
    """Write the one vector."""
    result = answered.result
    yield b'{"embedding":'
    yield from rows_json(result, PLAIN)
    yield b"," + to_json({"system_fingerprint": result.fingerprint})[1:] if result.fingerprint else b"}"


def _list(statuses: list[ShardStatus]) -> bytes:
    return orjson.dumps({"models": [_row(status) for status in statuses if status.state != "failed"]})


def _running(statuses: list[ShardStatus]) -> bytes:
    ready = [status for status in statuses if status.info is not None and status.state == "ready"]
    return orjson.dumps(
        {"models": [_row(status) | {"expires_at": _NEVER, "size_vram": _vram(status)} for status in ready]}
    )


def _row(status: ShardStatus) -> dict[str, object]:
    encoder = status.info.encoder if status.info else None
    created = dt.datetime.fromtimestamp(status.created, dt.UTC)
    identity = (encoder.fingerprint if encoder else "") or status.name
    return {
        "name": status.model_id,
        "model": status.model_id,
        "modified_at": created.isoformat().replace("+00:00", "Z"),
        "size": encoder.weights_bytes if encoder else 0,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "details": _details(status),
    }


def _vram(status: ShardStatus) -> int:
    encoder = status.info.encoder if status.info else None
    return encoder.weights_bytes if encoder and encoder.device.startswith("cuda") else 0


def _details(status: ShardStatus) -> dict[str, object]:
    encoder = status.info.encoder if status.info else None
    family = encoder.layout if encoder else ""
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "",
        "quantization_level": _BITS.get(encoder.precision, "") if encoder else "",
    }


def parse_show(fields: Fields) -> DescribeCall:
    """Read the body of ``/api/show``."""
    return DescribeCall(_named(fields), lambda status, _limits: _show(status))


def parse_pull(fields: Fields) -> DescribeCall:
    """Read the body of ``/api/pull``: clients pull what they do not find in the list, where a model has one name only.

    The last line of Ollama's stream is the whole of the answer without one, so that it is right for both.
    """
    return DescribeCall(_named(fields), lambda _status, _limits: b'{"status":"success"}', waits=True)


def _named(fields: Fields) -> str:
    """Return the model's name; older clients say ``name``."""
    name = fields.string(fields.first_of("model", "name"))
    if not name:
        raise InvalidRequestError("'model' is required: the id of a served model, as a string.", param="model")
    return name


def _show(status: ShardStatus) -> bytes:
    encoder = status.info.encoder if status.info else None
    facts: dict[str, object] = {"general.basename": status.name}
    if encoder is not None:
        family = encoder.layout
        facts |= {
            "general.architecture": family,
            f"{family}.embedding_length": encoder.dimension,
            f"{family}.context_length": encoder.max_tokens,
            f"{family}.pooling_type": encoder.pooling,
            "tokenizer.ggml.tokens": None,
        }
    row = _row(status)
    return orjson.dumps(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "license": "",
            "modified_at": row["modified_at"],
            "details": row["details"],
            "model_info": facts,
            "capabilities": ["embedding"] if encoder is None or "dense" in encoder.outputs else [encoder.task],
        }
    )


def _version(_statuses: list[ShardStatus]) -> bytes:
    return orjson.dumps({"version": our_version()})


def render_error(error: RequestError) -> bytes:
    """Return Ollama's error body."""
    return orjson.dumps({"error": error.message})


OLLAMA: Final = Dialect(
    name="ollama",
    routes=(
        Route("/api/embed", at_once(parse_embed)),
        Route("/api/embeddings", at_once(parse_embeddings)),
        Route("/api/show", at_once(parse_show)),
        Route("/api/pull", at_once(parse_pull)),
        Route("/api/tags", at_once(lambda _fields: ListCall(_list)), method="GET"),
        Route("/api/ps", at_once(lambda _fields: ListCall(_running)), method="GET"),
        Route("/api/version", at_once(lambda _fields: ListCall(_version)), method="GET"),
    ),
    render_error=render_error,
    errors_below=("/api/",),
)
