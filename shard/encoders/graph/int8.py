"""Linear layers whose weights are 8-bit integers, in two kinds.

*dynamic*: one scale per output. The input becomes 8-bit too, each row with a scale of its own as it comes. Not one for
the whole batch: a vector then does not depend on its neighbours. Product and sum are exact in 32-bit integers, which
processors multiply several times as quickly as floats; what is lost is lost in rounding the two operands.
*weight-only*: one scale per 32 weights of an output; the weight is widened for the time of one product. Nearer to fp32,
about as quick, little more than a quarter of the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import nn
from torch.nn import functional

LARGEST: Final = 127.0
#: Without VNNI a processor adds two products of bytes in 16 bits, where sums of large ones are cut off: weights that
#: keep away from the ends lose less in rounding than they gain. Measured with all-MiniLM-L6-v2 on AVX2 (smallest cosine
#: of 124 texts): ±127 .983, ±110 .991, ±100 .991, ±80 .988, ±63 .989; of random models, ±107 and more loses to ±100.
_LARGEST_WITHOUT_VNNI: Final = 100.0
#: Weights that share a scale where they are widened. Measured with all-MiniLM-L6-v2 (mean and smallest cosine of 120
#: texts): all of an output .9993, .9982; 128 .9997, .9992; 64 .9997, .9994; 32 .9998, .9995; 16 .9998, .9996.
GROUP: Final = 32
_ALL_VALUES: Final = 255.0
_ZERO_POINT: Final = 128
#: GELU's least value is -0.16997, its tanh form's -0.17004, ReLU's 0.
FLOOR: Final = 0.1701
_HALF_A_STEP: Final = 0.5
#: Keeps a row of zeros from being divided by zero.
_SMALLEST_SCALE: Final = 1e-12

_onednn = torch.ops.onednn


@dataclass(frozen=True, slots=True)
class NarrowWeight:
    """A weight of shape (out, in): ``values`` in int8, ``scales`` of shape (out,) or, in groups, (out * groups,)."""

    values: torch.Tensor
    scales: torch.Tensor


def narrow(weight: torch.Tensor, largest: float = LARGEST) -> NarrowWeight:
    """Round a float weight of shape (out, in) to 8 bit, the largest value of each output to ``largest``."""
    wide = weight.detach().float().contiguous()  # oneDNN misreads one that lies transposed
    scales = (wide.abs().amax(dim=1) / largest).clamp_min_(_SMALLEST_SCALE)
    return NarrowWeight(torch.round(wide / scales[:, None]).to(torch.int8), scales)


def narrow_in_groups(weight: torch.Tensor) -> NarrowWeight:
    """Do the same with a scale for each ``GROUP`` weights of an output, where its width is a multiple of that."""
    groups = weight.reshape(-1, GROUP) if weight.shape[1] % GROUP == 0 else weight
    narrowed = narrow(groups)
    return NarrowWeight(narrowed.values.view(weight.shape), narrowed.scales)


def narrow_for_products(weight: torch.Tensor) -> NarrowWeight:
    """Do the same for a kernel that multiplies bytes on this processor."""
    return narrow(weight, largest_in_products())


def largest_in_products() -> float:
    """Return what the largest weight of each output becomes in such a kernel: it is a part of a vector's making."""
    return LARGEST if torch.cpu._is_vnni_supported() else _LARGEST_WITHOUT_VNNI  # noqa: SLF001


def pack(weight: NarrowWeight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what ``dynamic_linear`` takes: the weight in the kernel's own order, scales, zero points."""
    packed = _onednn.qlinear_prepack(weight.values, None)
    return packed, weight.scales, torch.zeros(len(weight.scales), dtype=torch.int64)


def dynamic_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, shape (..., out), fp32.

    The kernel takes unsigned bytes with one zero point, so a row is scaled to ±127 and moved up by 128; its own
    scale comes back in afterwards, in the same pass that adds the bias.
    """
    rows = x.reshape(-1, x.shape[-1])
    row_scales = rows.abs().amax(dim=1, keepdim=True).div_(LARGEST).clamp_min_(_SMALLEST_SCALE)
    # Cutting off the fraction of a positive number half a step up is rounding it, in one pass less.
    bytes_ = torch.addcmul(_half_a_step_up(rows.shape[1]), rows, row_scales.reciprocal()).to(torch.uint8)
    product = _onednn.qlinear_pointwise(
        bytes_, 1.0, _ZERO_POINT, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return _scaled(product, row_scales, bias).reshape(*x.shape[:-1], -1)


@cache
def _half_a_step_up(width: int) -> torch.Tensor:
    """Return the zero point and half a step, ``width`` times: torch reads one number for all a number at a time."""
    return torch.full((width,), _ZERO_POINT + _HALF_A_STEP)


def _scaled(product: torch.Tensor, row_scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return ``product * row_scales + bias``, written over ``product``: half the time of fresh memory."""
    if bias is None:
        return product.mul_(row_scales)
    return torch.addcmul(bias, product, row_scales, out=product)


def floor_of(weight: NarrowWeight) -> torch.Tensor:
    """Return what ``activated_dynamic_linear`` adds to its bias, shape (out,): it moves its input up by ``FLOOR``."""
    return weight.values.sum(dim=1).float() * weight.scales * -FLOOR


def activated_dynamic_linear(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, shape (..., out), fp32, for an ``x`` that is nowhere below ``-FLOOR``.

    What GELU or ReLU has made is moved up to 0 and takes all of the 256 values instead of little more than half.
    ``bias`` holds ``floor_of`` the weight, too.
    """
    rows = x.reshape(-1, x.shape[-1])
    row_scales = rows.amax(dim=1, keepdim=True).add_(FLOOR).div_(_ALL_VALUES)
    factors = row_scales.reciprocal()
    bytes_ = rows.mul(factors).add_(factors * FLOOR + _HALF_A_STEP).to(torch.uint8)
    product = _onednn.qlinear_pointwise(
        bytes_, 1.0, 0, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return _scaled(product, row_scales, bias).reshape(*x.shape[:-1], -1)


def widening_linear(
    x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, shape (..., out), fp32, with the weight widened for this one product."""
    groups = values.float().view(len(scales), -1).mul_(scales[:, None])
    return functional.linear(x, groups.view(values.shape), bias)


class WideningLinear(nn.Module):
    """A layer of the second kind, for models that cannot be captured."""

    weight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, weight: NarrowWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        # By the name that a linear layer has for it: T5 looks at its type, and leaves its input alone if that is int8.
        self.register_buffer("weight", weight.values)
        self.register_buffer("scales", weight.scales)
        self.bias = bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Return ``input @ weight.T + bias`` in fp32."""
        return widening_linear(input, self.weight, self.scales, self.bias)


def narrow_linears(model: nn.Module) -> None:
    """Replace every plain linear layer below ``model``, by whatever names it has. Those of one weight stay so."""
    narrowed: dict[torch.Tensor, NarrowWeight] = {}
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if type(layer) is nn.Linear:
            if layer.weight not in narrowed:
                narrowed[layer.weight] = narrow_in_groups(layer.weight)
            model.set_submodule(path, WideningLinear(narrowed[layer.weight], layer.bias))
