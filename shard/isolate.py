"""A failure in a batch falls on the input that caused it and on nobody else. Called by ``engine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from shard.encoder import FatalDeviceError, Vectors

Item = TypeVar("Item")
Encode = Callable[[Sequence[Item]], Vectors]


class NonFiniteVectorError(Exception):
    """The model returned NaN or infinity for this input, in its own precision and in fp32."""

    def __init__(self) -> None:
        super().__init__("the model's vector for this input is not finite")


def encode_isolated(encode: Encode[Item], exactly: Encode[Item], batch: Sequence[Item]) -> list[Vectors | Exception]:
    """Return one vector or one exception per item.

    When a batch raises, it is halved until the guilty item stands alone: log2(n) extra passes for one bad
    input, and its neighbours get their vectors. An item whose vector is not finite is encoded once more, alone and
    by ``exactly``. Both functions return shape (len(batch), dimension). Raises ``FatalDeviceError`` as it comes.
    """
    try:
        vectors = encode(batch)
    except FatalDeviceError:
        raise
    except Exception as error:  # noqa: BLE001 - model code may raise anything; it must not take the shard down
        if len(batch) == 1:
            return [error]
        middle = len(batch) // 2
        return encode_isolated(encode, exactly, batch[:middle]) + encode_isolated(encode, exactly, batch[middle:])
    if np.isfinite(vectors).all():
        return list(vectors)
    return [
        row if np.isfinite(row).all() else _once_more(exactly, item) for row, item in zip(vectors, batch, strict=True)
    ]


def _once_more(exactly: Encode[Item], item: Item) -> Vectors | Exception:
    try:
        vector: Vectors = exactly([item])[0]
    except FatalDeviceError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        return error
    return vector if np.isfinite(vector).all() else NonFiniteVectorError()
