"""text-embeddings-inference's ``/info``: what a model is, and what one request may hold. Pure; used by ``tei``."""

from __future__ import annotations

import orjson

from emb_model_provider.messages.status import EncoderInfo, ShardStatus
from router.dialects.options import MAX_INPUTS
from router.dialects.version import our_version
from router.limits import RequestLimits


def render_info(status: ShardStatus, limits: RequestLimits) -> bytes:
    """Return the body of ``/info``."""
    encoder = status.info.encoder if status.info else None
    return orjson.dumps(
        {
            "model_id": status.name,
            "model_sha": status.info.revision if status.info else None,
            "model_dtype": encoder.compute_dtype if encoder else None,
            "model_type": _model_type(encoder) if encoder else None,
            "served_model_name": status.model_id,
            "max_concurrent_requests": None,
            "max_input_length": encoder.max_tokens if encoder else None,
            "max_batch_tokens": encoder.slice_tokens if encoder else None,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_inputs or MAX_INPUTS,
            "auto_truncate": status.overlong != "error",
            "tokenization_workers": 1,
            "version": our_version(),
            "sha": None,
            "docker_label": None,
        }
    )


def _model_type(encoder: EncoderInfo) -> dict[str, object]:
    if encoder.task in ("rerank", "classify"):
        id2label = {str(index): label for index, label in enumerate(encoder.labels)}
        kind = "reranker" if encoder.task == "rerank" else "classifier"
        return {kind: {"id2label": id2label, "label2id": {label: int(index) for index, label in id2label.items()}}}
    pooling = {"sparse": "splade", "lasttoken": "last_token"}
    return {"embedding": {"pooling": pooling.get(encoder.task) or pooling.get(encoder.pooling, encoder.pooling)}}
