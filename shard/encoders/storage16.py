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

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Return ``input @ weight.T + bias`` in fp32, shape (..., out_features)."""
        # T5 and its kin bring what they hand to some layers to the format of the weight.
        return functional.linear(input.float(), self.weight.float(), self.bias)


class StoredEmbedding(nn.Embedding):
    """``nn.Embedding`` whose rows are widened to fp32 after they are looked up."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Embedding's own name for it
        """Return the rows of ``input``, shape (*input.shape, embedding_dim), in fp32."""
        return functional.embedding(input, self.weight).float()


def store_in_16_bit(model: nn.Module, dtype: torch.dtype) -> None:
    """Narrow every linear layer and embedding below ``model``; the rest stays fp32, in memory of its own.

    Subclasses with a forward of their own are left as they are, correct before small, but for embeddings that are
    scaled: Gemma's is most of the model. In fp16 so are layers that transformers keeps in fp32 for their range.
    """
    wide = _kept_wide(model) if dtype == torch.float16 else set()
    # Tied matrices stay one: T5's table of tokens is that of two modules.
    narrowed: dict[torch.Tensor, torch.Tensor] = {}
    for name, module in model.named_modules():
        if (kind := _stored_kind(module)) is not None and wide.isdisjoint(name.split(".")):
            weight = module.get_parameter("weight")
            del module.weight
            if weight not in narrowed:
                narrowed[weight] = weight.detach().to(dtype)
            module.__class__ = kind
            # A buffer and not a parameter: models take the dtype of their masks from their first parameter.
            module.register_buffer("weight", narrowed[weight])
    # One remaining view of the mapped file would keep all of it mapped.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _kept_wide(model: nn.Module) -> set[str]:
    """Return the names of parts that overflow in fp16, as their classes have them: T5's ``wo``."""
    said = (getattr(module, "_keep_in_fp32_modules", None) for module in model.modules())
    return {name for names in said for name in names or ()}


def _stored_kind(module: nn.Module) -> type[nn.Module] | None:
    kind = type(module)
    if kind is nn.Linear:
        return StoredLinear
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        return None
    if kind is nn.Embedding:
        return StoredEmbedding
    # Transformers' copies of one class: ``super().forward(ids) * scale``, where super is ours from now on.
    is_scaled = kind.__name__.endswith("ScaledWordEmbedding")
    return type(f"Stored{kind.__name__}", (kind, StoredEmbedding), {}) if is_scaled else None
