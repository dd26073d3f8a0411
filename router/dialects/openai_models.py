"""OpenAI's model object, and beside its fields what an operator asks first; pure, used by ``openai``."""

from __future__ import annotations

import math
from typing import Final

import orjson

from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from emb_model_provider.modelmap import Task

#: Where OpenAI's clients have a word of their own for what ``EncoderInfo`` knows.
_PUBLIC_NAMES: Final = {"dimension": "dimensions"}
#: Mistral's client reads no list, and no model, without both. None of what its models may be capable of is done here.
_MISTRALS: Final[dict[str, object]] = {"type": "base", "capabilities": {}}
#: Xinference's words, by which its clients choose what a model can be asked for; all others embed.
_MODEL_TYPES: Final[dict[Task, str]] = {"rerank": "rerank", "classify": "classify"}


def render_models(statuses: list[ShardStatus]) -> bytes:
    """Return OpenAI's list of models."""
    return orjson.dumps({"object": "list", "data": [describe_model(status) for status in statuses]})


def render_model(status: ShardStatus) -> bytes:
    """Return one model."""
    return orjson.dumps(describe_model(status))


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
        **_MISTRALS,
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
    facts = {_PUBLIC_NAMES.get(name, name): name for name in EncoderInfo.__struct_fields__}
    model_type = _MODEL_TYPES.get(encoder.task, "embedding") if encoder else None
    return {
        "model_type": model_type,
        **{public: getattr(encoder, name) if encoder else None for public, name in facts.items()},
    }
