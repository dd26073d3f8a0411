"""``normed_sum`` as a kernel of Triton's, one program a row. Imported only where there is a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_MOST_WARPS = 8
_NUMBERS_PER_WARP = 256


@triton.jit  # type: ignore[untyped-decorator]
def _normed_sum(left, right, weight, bias, found, size, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    start = tl.program_id(0).to(tl.int64) * size
    places = tl.arange(0, BLOCK)
    is_own = places < size
    one = tl.load(left + start + places, mask=is_own, other=0.0).to(tl.float32)
    other = tl.load(right + start + places, mask=is_own, other=0.0).to(tl.float32)
    # Rounded as it would be in memory, so that the result is the one of two operations.
    total = (one + other).to(found.dtype.element_ty).to(tl.float32)
    centered = tl.where(is_own, total - tl.sum(total, 0) / size, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / size + eps)
    gain = tl.load(weight + places, mask=is_own, other=0.0).to(tl.float32)
    shift = tl.load(bias + places, mask=is_own, other=0.0).to(tl.float32)
    normed = centered * scale * gain + shift
    tl.store(found + start + places, normed.to(found.dtype.element_ty), mask=is_own)


def triton_normed_sum(
    left: torch.Tensor, right: torch.Tensor, shape: Sequence[int], weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Do what ``NormedSum`` says, for tensors of one form and type on a CUDA device."""
    (size,) = shape
    left, right = left.contiguous(), right.contiguous()
    found = torch.empty_like(left)
    block = triton.next_power_of_2(size)
    warps = min(_MOST_WARPS, max(1, block // _NUMBERS_PER_WARP))
    rows = left.numel() // size
    _normed_sum[(rows,)](left, right, weight, bias, found, size, eps, BLOCK=block, num_warps=warps)
    return found
