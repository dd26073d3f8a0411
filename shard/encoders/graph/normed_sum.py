"""The sum of two tensors and its layer norm in one pass over memory: what follows every part of a BERT layer.

Of a batch on a CUDA device torch's two calls took a seventh to a quarter of the time, one kernel of Triton's a third of
that (docs/performance.md). Called by graphs that ``lowering`` has made for such a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import torch

from emb_model_provider.logs import EventLog

log = EventLog("shard.normed_sum")

#: (left, right, shape, weight, bias, eps) → layer norm of left + right over the last dimension, whose size is shape's.
NormedSum = Callable[[torch.Tensor, torch.Tensor, Sequence[int], torch.Tensor, torch.Tensor, float], torch.Tensor]

_TRIED_SIZE: Final = 8


@cache
def find_normed_sum() -> NormedSum | None:
    """Return Triton's if it works here: it wants a card that it knows, a C compiler and a place for its cache."""
    try:
        from shard.encoders.graph.normed_sum_triton import triton_normed_sum  # noqa: PLC0415 - no CPU build has Triton

        rows, ones = (torch.ones(shape, device="cuda") for shape in ((1, _TRIED_SIZE), (_TRIED_SIZE,)))
        triton_normed_sum(rows, rows, [_TRIED_SIZE], ones, ones, 1e-5)
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way, and torch's own operations always work
        log.info("without_triton", error=f"{type(error).__name__}: {str(error)[:200]}")
        return None
    return triton_normed_sum
