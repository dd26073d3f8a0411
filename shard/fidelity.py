"""How near is one way of computing vectors to another? Measured at every start, in both languages. See ``paths``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from shard.encoder import Vectors

#: Of very different lengths, two pairs of equal length, one character, one over the length of short models.
PROBES: Final = (
    "好",
    "a",
    "吃完海鲜可以喝牛奶吗？",
    "吃完牛奶可以喝海鲜吗？",
    "The weather is lovely today.",
    "用 Python 部署 embedding 服务，延迟 < 10 ms 🙂",
    "北京是中国的首都。" * 9,
    "It is a long way to the stadium, 但是值得。 " * 20,
)


@dataclass(frozen=True, slots=True)
class Nearness:
    """``cosine`` is the smallest of all probes; ``deviation`` the largest difference of one number.

    Deviation is relative to the length of a vector longer than 1, so that it means the same for models that do not
    normalise.
    """

    cosine: float
    deviation: float


def compare(found: Vectors, expected: Vectors) -> Nearness:
    """Compare row by row, shape (texts, dimension) each; a vector that is not finite is as far as can be."""
    if not np.isfinite(found).all():
        return Nearness(cosine=-1.0, deviation=float("inf"))
    lengths = np.linalg.norm(expected, axis=1)
    products = np.maximum(lengths * np.linalg.norm(found, axis=1), np.finfo(np.float32).tiny)
    cosines = (found.astype(np.float64) * expected).sum(axis=1) / products
    scale = np.maximum(lengths, 1.0)[:, None]
    return Nearness(float(min(cosines.min(), 1.0)), float(np.max(np.abs(found - expected) / scale)))
