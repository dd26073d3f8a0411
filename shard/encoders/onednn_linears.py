"""Linear layers of a model's own code, multiplied by oneDNN: for models that are padded, on processors where it pays.

MKL, which torch multiplies with, is less than half as fast on processors that are not Intel's. Put in by ``paths``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from shard.encoders.packed import round_up

_product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001


class OneDnnLinear(nn.Linear):
    """``nn.Linear`` by another library."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Return ``input @ weight.T + bias``, shape (..., out_features)."""
        if not input.numel():  # of an expert that nobody asks
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        count = len(rows)
        if spare := round_up(count) - count:  # by none it would be copied all the same
            rows = functional.pad(rows, (0, 0, 0, spare))
        product: torch.Tensor = _product(rows, self.weight, self.bias, "none", [], "")
        return product[:count].view(*input.shape[:-1], self.out_features)


def multiply_by_onednn(model: nn.Module) -> None:
    """Have every plain linear layer below ``model`` multiply so."""
    _exchange(model, nn.Linear, OneDnnLinear)


def multiply_by_torch(model: nn.Module) -> None:
    """Undo ``multiply_by_onednn``."""
    _exchange(model, OneDnnLinear, nn.Linear)


def _exchange(model: nn.Module, before: type[nn.Module], after: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is before:
            module.__class__ = after
