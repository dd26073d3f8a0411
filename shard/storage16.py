"""Weights stored in 16 bit and computed in fp32, for CPUs whose 16-bit arithmetic is emulated.

``store_in_16_bit`` is called by ``parts`` on a model that is loaded in fp32 (mapped, so that the wide weights
are never in private memory at once). Large matrices become 16-bit; norms and biases keep their full width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class StoredLinear(nn.Linear):
    """``nn.Linear`` whose weight is widened to fp32 for the time of one product."""

    def __init__(self, linear: nn.Linear, weight: torch.Tensor) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate the wide weight once more
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # A buffer and not a parameter: models take the dtype of their masks from their first parameter.
        self.register_buffer("weight", weight)
        self.bias = None if linear.bias is None else _own(linear.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Return ``input @ weight.T + bias`` in fp32."""
        return functional.linear(input.float(), self.weight.float(), self.bias)


class StoredEmbedding(nn.Embedding):
    """``nn.Embedding`` whose rows are widened to fp32 after they are looked up."""

    def __init__(self, embedding: nn.Embedding, weight: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.max_norm = embedding.padding_idx, None
        self.register_buffer("weight", weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Embedding's own name for it
        """Return the rows of ``input``, shape (*input.shape, embedding_dim), in fp32."""
        return functional.embedding(input, self.weight).float()


def store_in_16_bit(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every plain linear layer and embedding below ``model``; the rest stays fp32, in memory of its own.

    Subclasses with a forward of their own are left as they are: correct before small.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    # Tied matrices stay one: T5's table of tokens is that of two modules.
    narrowed: dict[torch.Tensor, torch.Tensor] = {}

    def narrow(weight: torch.Tensor) -> torch.Tensor:
        if weight not in narrowed:
            narrowed[weight] = weight.detach().to(dtype)
        return narrowed[weight]

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in replaced:
                if type(child) is nn.Linear:
                    replaced[child] = StoredLinear(child, narrow(child.weight))
                elif type(child) is nn.Embedding and child.max_norm is None:
                    replaced[child] = StoredEmbedding(child, narrow(child.weight))
                else:
                    continue
            setattr(parent, name, replaced[child])
    # One remaining view of the mapped file would keep all of it mapped.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _own(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().float().clone(), requires_grad=False)
