"""Rows of the shard table for tests that have no shard."""

from emb_model_provider.messages.status import EncoderInfo, ModelInfo, ShardStatus

_STATUS = {
    "name": "owner/name",
    "source": "auto",
    "precision": "auto",
    "overlong": "truncate",
    "state": "ready",
    "reason": "",
    "detail": "",
    "done_bytes": 0,
    "total_bytes": 0,
    "generation": 1,
    "restarts": 0,
    "pid": 1,
    "socket_path": "",
    "expected_ready_s": 0.0,
    "created": 1_700_000_000,
    "info": None,
}

_INFO = {
    "dimension": 4,
    "max_tokens": 8,
    "pooling": "cls",
    "normalized": True,
    "device": "cpu",
    "precision": "fp32",
    "storage_dtype": "float32",
    "compute_dtype": "float32",
    "layout": "plain",
    "weights_bytes": 10,
    "vocabulary_size": 100,
    "prompts": (),
}


def make_info(**changes: object) -> ModelInfo:
    return ModelInfo(EncoderInfo(**(_INFO | changes)), source="local", revision=None)


def make_status(model_id: str, **changes: object) -> ShardStatus:
    return ShardStatus(model_id=model_id, **(_STATUS | changes))
