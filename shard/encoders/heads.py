"""What follows the transformer: pooling and its companions, in fp32. Called by both forward paths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn

from shard.encoder import Tokenized

Features = dict[str, object]


class Heads:
    """The modules behind the transformer, on its device; the first of them pools."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = nn.ModuleList(modules).eval().requires_grad_(requires_grad=False)

    @property
    def pools_prompt(self) -> bool:
        """Whether the tokens of a prompt count in pooling."""
        pooling = next((module for module in self.modules if isinstance(module, Pooling)), None)
        return pooling is None or pooling.include_prompt

    def group(self, one: Tokenized) -> int:
        """Return a number that is the same for texts which may share a pass."""
        return 2 * (0 if self.pools_prompt else one.prompt_tokens) + one.raw

    @property
    def takes_flat_output(self) -> bool:
        """Whether pooling comes first and reads nothing but the last hidden states."""
        kinds = [type(module) for module in self.modules]
        return kinds[:1] == [Pooling] and set(kinds[1:]) <= {Normalize, Dense, LayerNorm, Dropout}

    def run(self, features: Features, *, raw: bool = False) -> torch.Tensor:
        """Return the sentence embeddings, shape (texts, dimension), fp32, on the CPU.

        ``features`` are sentence-transformers': ``token_embeddings`` and ``attention_mask``, or, of texts end to end,
        ``cu_seq_lens_q``. ``raw`` leaves out a last step that normalises.
        """
        features = {name: _widened(value) for name, value in features.items()}
        last = len(self.modules) - 1
        for number, module in enumerate(self.modules):
            if not (raw and number == last and isinstance(module, Normalize)):
                features = module(features)
        embedding = features["sentence_embedding"]
        if not isinstance(embedding, torch.Tensor):
            raise TypeError("the model's modules made no sentence_embedding")
        return embedding.float().cpu()


def _widened(value: object) -> object:
    """Bring the transformer's output to fp32: pooling and normalising in 16 bit loses what the model has."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, tuple):
        return tuple(_widened(one) for one in value)
    return value
