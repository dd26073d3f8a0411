"""GPT-2's linear layers, which it keeps transposed, as what they are. Called by ``parts``.

transformers has a class of its own for them, ``Conv1D``. Neither the graph nor int8 knows its product: the one would
multiply by stock kernels, and the other leave every matrix as it is.
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def use_linears(model: nn.Module) -> None:
    """Replace every ``Conv1D`` below ``model`` by an ``nn.Linear`` over the same memory."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, _linear(child))


def _linear(layer: Conv1D) -> nn.Linear:
    size, made = layer.weight.shape
    linear = nn.Linear(size, made, device="meta")
    linear.weight = nn.Parameter(layer.weight.t(), requires_grad=False)
    linear.bias = layer.bias
    return linear
