"""A failure in a batch falls on the input that caused it and on nobody else. Called by ``engine``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from shard.encoder import FatalDeviceError, Result, Results

Item = TypeVar("Item")
Encode = Callable[[Sequence[Item]], Results]


class NonFiniteVectorError(Exception):
    """The model returned NaN or infinity for this input, in its own precision and in fp32."""

    def __init__(self) -> None:
        super().__init__("the model's result for this input is not finite")


def encode_isolated(encode: Encode[Item], exactly: Encode[Item], batch: Sequence[Item]) -> list[Result | Exception]:
    """Return one result or one exception per item.

    When a batch raises, it is halved until the guilty item stands alone: log2(n) extra passes for one bad
    input, and its neighbours get their results. An item whose numbers are not all finite is encoded once more, alone
    and by ``exactly``. Both functions return as many results as they get items. Raises ``FatalDeviceError`` as it
    comes.
    """
    made = _attempt(encode, batch)
    if isinstance(made, Exception):
        if len(batch) == 1:
            return [made]
        middle = len(batch) // 2
        return encode_isolated(encode, exactly, batch[:middle]) + encode_isolated(encode, exactly, batch[middle:])
    results, each = made
    if results.is_finite:
        return [*each]
    return [
        result if _is_finite(result) else _once_more(exactly, item) for result, item in zip(each, batch, strict=True)
    ]


def _once_more(exactly: Encode[Item], item: Item) -> Result | Exception:
    made = _attempt(exactly, [item])
    if isinstance(made, Exception):
        return made
    (result,) = made[1]
    return result if _is_finite(result) else NonFiniteVectorError()


def _attempt(encode: Encode[Item], batch: Sequence[Item]) -> tuple[Results, list[Result]] | Exception:
    """Return what a pass makes, whole and one by one, or what it raises, which holds nothing of the pass any more."""
    try:
        results = encode(batch)
        each = results.each()
        if len(each) != len(batch):
            raise RuntimeError(f"the model made {len(each)} results of {len(batch)} inputs")  # noqa: TRY301 - as its own
    except FatalDeviceError:
        raise
    except Exception as error:  # noqa: BLE001 - model code may raise anything; it must not take the shard down
        return _without_frames(error)
    return results, each


def _without_frames(error: Exception) -> Exception:
    """Let go of the frames that raised it: they hold all tensors of the pass, and the next one needs their memory."""
    one: BaseException | None = error
    while one is not None:
        one.__traceback__ = one.__context__ = None
        one = one.__cause__
    return error


def _is_finite(result: Result) -> bool:
    parts = (result.row, None if result.sparse is None else result.sparse.values, result.tokens)
    return all(part is None or np.isfinite(part).all() for part in parts)
