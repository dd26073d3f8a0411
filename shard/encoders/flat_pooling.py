"""Pooling of texts that lie end to end, on the CPU: what sentence-transformers' modules compute, in a few calls.

After a pass the caches are full of weights, and every further line of code has to come from memory first: for one short
text the modules themselves take 180 µs then, these lines half of that. Called by ``heads``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from shard.encoder import Vectors

#: As ``torch.nn.functional.normalize`` has it.
_LEAST_NORM: Final = 1e-12

#: (hidden states of all tokens, tokens of each text, each of one at least) → one row per text.
Pool = Callable[[Vectors, Sequence[int]], Vectors]


class FlatPooling:
    """A pooling, and whether its rows are brought to length 1."""

    def __init__(self, pool: Pool, *, normalizes: bool) -> None:
        self._pool = pool
        self._normalizes = normalizes

    def run(self, hidden: Vectors, lengths: Sequence[int], *, raw: bool) -> Vectors:
        """Return one row per text of ``hidden``, shape (tokens, size); ``raw`` leaves it as long as it is."""
        rows = self._pool(hidden, lengths)
        if self._normalizes and not raw:
            norms = np.sqrt(np.add.reduce(rows * rows, axis=1, keepdims=True))
            rows /= np.maximum(norms, _LEAST_NORM, out=norms)
        return rows


def find_flat_pooling(modules: Sequence[nn.Module]) -> FlatPooling | None:
    """Return what these modules compute of whole texts; ``None`` where this file does not know it."""
    pooling, *rest = modules or (None,)
    if not isinstance(pooling, Pooling) or not isinstance(pooling.pooling_mode, str) or not pooling.include_prompt:
        return None
    pool = _POOLS.get(pooling.pooling_mode)
    if pool is None or len(rest) > 1 or not all(type(module) is Normalize for module in rest):
        return None
    return FlatPooling(pool, normalizes=bool(rest))


def _mean(hidden: Vectors, lengths: Sequence[int]) -> Vectors:
    if len(lengths) == 1:
        rows: Vectors = np.add.reduce(hidden, axis=0, keepdims=True)
        rows /= lengths[0]
        return rows
    rows = np.empty((len(lengths), hidden.shape[1]), np.float32)
    for row, end, length in zip(rows, accumulate(lengths), lengths, strict=True):
        np.add.reduce(hidden[end - length : end], axis=0, out=row)
    rows /= np.array(lengths, np.float32)[:, None]
    return rows


def _first(hidden: Vectors, lengths: Sequence[int]) -> Vectors:
    return hidden[[0, *accumulate(lengths[:-1])]]


def _last(hidden: Vectors, lengths: Sequence[int]) -> Vectors:
    return hidden[[end - 1 for end in accumulate(lengths)]]


_POOLS: Final[dict[str, Pool]] = {"mean": _mean, "cls": _first, "lasttoken": _last}
