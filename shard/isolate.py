"""A failure in a batch falls on the input that caused it and on nobody else. Called by ``engine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from shard.encoder import Vectors

Item = TypeVar("Item")


class NonFiniteVectorError(Exception):
    """The model returned NaN or infinity for this input."""

    def __init__(self) -> None:
        super().__init__("the model's vector for this input is not finite")


def encode_isolated(encode: Callable[[Sequence[Item]], Vectors], batch: Sequence[Item]) -> list[Vectors | Exception]:
    """Return one vector or one exception per item.

    When a batch raises, it is halved until the guilty item stands alone: log2(n) extra passes for one bad
    input, and its neighbours get their vectors. ``encode`` returns shape (len(batch), dimension).
    """
    try:
        vectors = encode(batch)
    except Exception as error:  # noqa: BLE001 - model code may raise anything; it must not take the shard down
        if len(batch) == 1:
            return [error]
        middle = len(batch) // 2
        return encode_isolated(encode, batch[:middle]) + encode_isolated(encode, batch[middle:])
    finite = [bool(np.isfinite(row).all()) for row in vectors]
    return [row if ok else NonFiniteVectorError() for row, ok in zip(vectors, finite, strict=True)]
