"""How near is one way of computing vectors to another? Measured at every start, in both languages. See ``paths``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from shard.encoder import Results, SparseRow, Vectors

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


#: Of logits.
_NO_SPREAD: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Nearness:
    """``cosine`` is the smallest of all probes; ``deviation`` the largest difference of one number.

    Deviation is relative to the length of a vector longer than 1, so that it means the same for models that do not
    normalise.
    """

    cosine: float
    deviation: float


def compare_results(found: Results, expected: Results) -> Nearness:
    """Compare every kind of result that there is; the farthest one counts."""
    parts = [compare(one, other) for one, other in _vectors(found, expected)]
    return Nearness(min((part.cosine for part in parts), default=1.0), max((p.deviation for p in parts), default=0.0))


def compare_scores(found: Results, expected: Results) -> Nearness:
    """Compare logits: a single one has no angle, so the cosine is that of each label's differences over all probes."""
    assert found.rows is not None
    assert expected.rows is not None
    nearness = compare(found.rows, expected.rows)
    if not np.isfinite(nearness.deviation):
        return nearness
    middle = expected.rows.mean(axis=0)
    spread = (expected.rows - middle).T
    if np.abs(spread).max() < _NO_SPREAD:  # a head that says the same of everything
        return Nearness(1.0, nearness.deviation)
    return Nearness(compare((found.rows - middle).T, spread).cosine, nearness.deviation)


def compare(found: Vectors, expected: Vectors) -> Nearness:
    """Compare row by row, shape (texts, dimension) each; a vector that is not finite is as far as can be."""
    if not np.isfinite(found).all():
        return Nearness(cosine=-1.0, deviation=float("inf"))
    lengths = np.linalg.norm(expected, axis=1)
    products = np.maximum(lengths * np.linalg.norm(found, axis=1), np.finfo(np.float32).tiny)
    cosines = (found.astype(np.float64) * expected).sum(axis=1) / products
    scale = np.maximum(lengths, 1.0)[:, None]
    return Nearness(float(min(cosines.min(), 1.0)), float(np.max(np.abs(found - expected) / scale)))


def _vectors(found: Results, expected: Results) -> Iterator[tuple[Vectors, Vectors]]:
    if expected.rows is not None:
        assert found.rows is not None
        yield found.rows, expected.rows
    for one, other in zip(found.sparse or (), expected.sparse or (), strict=True):
        if len(one.indices) or len(other.indices):  # two empty vectors have no angle
            yield _spread(one, other)
    for vectors, others in zip(found.tokens or (), expected.tokens or (), strict=True):
        if vectors.shape != others.shape:
            yield np.full_like(others, np.nan), others
        elif len(others):
            yield vectors, others


def _spread(one: SparseRow, other: SparseRow) -> tuple[Vectors, Vectors]:
    """Return two sparse vectors as dense ones over the indices that either has, shape (1, indices)."""
    indices = np.union1d(one.indices, other.indices)
    both = np.zeros((2, len(indices)), dtype=np.float32)
    both[0, np.searchsorted(indices, one.indices)] = one.values
    both[1, np.searchsorted(indices, other.indices)] = other.values
    return both[:1], both[1:]
