"""Is the fast way the same as the plain one? Measured at every start, in both languages. Called by ``loader``."""

from __future__ import annotations

from typing import Final

import numpy as np

from emb_model_provider.logs import EventLog
from shard.encoders.sentence_transformer import SentenceTransformerEncoder

log = EventLog("shard.fidelity")

#: Of very different lengths, two pairs of equal length, one character, one over the length of short models.
_PROBES: Final = (
    "好",
    "a",
    "吃完海鲜可以喝牛奶吗？",
    "吃完牛奶可以喝海鲜吗？",
    "The weather is lovely today.",
    "用 Python 部署 embedding 服务，延迟 < 10 ms 🙂",
    "北京是中国的首都。" * 9,
    "It is a long way to the stadium, 但是值得。 " * 20,
)
#: Of a vector of length 1, the bound that our promise of equality allows in fp32.
_MAX_DEVIATION: Final = 1e-5


def choose_batching(encoder: SentenceTransformerEncoder) -> None:
    """Let ``encoder`` pack texts if its vectors then equal those of each text alone; else leave it padding."""
    inputs = encoder.tokenize(_PROBES, prompt=encoder.resolve_prompt(None))
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    try:
        encoder.pack(packed=True)
        packed = encoder.encode(inputs)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        # A model's code may dislike flat input in its own way; its reference path is unharmed.
        encoder.pack(packed=False)
        log.info("padded", reason=f"{type(error).__name__}: {error}")
        return
    scale = np.maximum(np.linalg.norm(alone, axis=1, keepdims=True), 1.0)
    deviation = float(np.max(np.abs(packed - alone) / scale))
    if not deviation <= _MAX_DEVIATION:  # also where it is NaN
        encoder.pack(packed=False)
        log.info("padded", reason="packed vectors differ from those of each text alone", deviation=deviation)
        return
    log.info("packed", deviation=deviation, bound=_MAX_DEVIATION)
