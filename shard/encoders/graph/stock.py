"""torch's own linear layer and what follows it, written over its output: no pass over fresh memory. Called by graphs.

Of a long pass a fifth of the time is steps like these, and most of theirs is memory that is not in the cache yet.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_gelu_ = torch.ops.aten.gelu_.default


def activated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, algorithm: str
) -> torch.Tensor:
    """Return ``activation(x @ weight.T + bias)``, shape (..., out); names are those of ``fusion.ACTIVATION``."""
    product = functional.linear(x, weight, bias)
    if activation == "none":
        return product
    if activation == "relu":
        return product.relu_()
    activated: torch.Tensor = _gelu_(product, approximate=algorithm)
    return activated


def summed_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> torch.Tensor:
    """Return ``x @ weight.T + bias + residual``, shape (..., out)."""
    return functional.linear(x, weight, bias).add_(residual)
