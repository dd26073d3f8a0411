"""What follows the transformer: pooling and its companions, in fp32. Called by both forward paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Protocol

import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn
from torch.nn import functional

from emb_model_provider.messages.link import Output
from emb_model_provider.modelmap import Task
from shard.encoder import Results, Tokenized
from shard.encoders.flat_pooling import find_flat_pooling

Features = dict[str, object]

#: MKL sums up the products of fewer rows in another order, also where that is what one of its threads gets.
BLOCK_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What a head gives. ``dimension`` is that of dense vectors, 0 where it makes none; ``labels`` name its scores."""

    outputs: tuple[Output, ...]
    pooling: str
    dimension: int = 0
    normalized: bool = False
    token_dimension: int = 0
    task: Task = "embed"
    labels: tuple[str, ...] = ()


class Head(Protocol):
    """Turns what the transformer makes of tokens into what the model is asked for; on the transformer's device."""

    @property
    def modules(self) -> nn.ModuleList:
        """Everything of it that has weights."""
        ...

    @property
    def facts(self) -> HeadFacts:
        """What it gives."""
        ...

    @property
    def takes_flat_output(self) -> bool:
        """Whether it reads nothing but the last hidden states, also of texts that lie end to end."""
        ...

    def group(self, one: Tokenized) -> int:
        """Return a number that is the same for texts which may share a pass."""
        ...

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        """Return the results of one pass over ``rows``, on the CPU.

        ``features`` are sentence-transformers': ``token_embeddings`` and, of padded texts, ``attention_mask``. Texts
        that lie end to end on a card come with ``cu_seq_lens_q``, their bounds; on the CPU these are made here.
        """
        ...


class Heads:
    """Implements ``Head`` with sentence-transformers' own modules, of which the first pools.

    ``dimension`` is what a transformer without any of them gives.
    """

    def __init__(self, modules: Sequence[nn.Module], dimension: int) -> None:
        self._hidden_size = dimension
        self.modules = nn.ModuleList(modules).eval().requires_grad_(requires_grad=False)
        self._pooling = next((module for module in modules if isinstance(module, Pooling)), None)
        self._flat = find_flat_pooling(modules)

    @property
    def facts(self) -> HeadFacts:
        mode = "none" if self._pooling is None else self._pooling.pooling_mode
        sizes = (measure_dimension(module) for module in reversed(self.modules))
        return HeadFacts(
            outputs=("dense",),
            # "none": a module of the model's own does it.
            pooling=mode if isinstance(mode, str) else "+".join(mode),
            dimension=next((size for size in sizes if size is not None), self._hidden_size),
            normalized=len(self.modules) > 0 and isinstance(self.modules[-1], Normalize),
        )

    @property
    def pools_prompt(self) -> bool:
        """Whether the tokens of a prompt count in pooling."""
        return self._pooling is None or self._pooling.include_prompt

    @property
    def takes_flat_output(self) -> bool:
        kinds = [type(module) for module in self.modules]
        return kinds[:1] == [Pooling] and set(kinds[1:]) <= {Normalize, Dense, LayerNorm, Dropout}

    def group(self, one: Tokenized) -> int:
        return 2 * (0 if self.pools_prompt else one.prompt_tokens) + one.raw

    @property
    def pools_without_asking(self) -> bool:
        """Whether pooling of texts end to end never asks the device for a number, which would have to be waited for."""
        return self._pooling is not None and "weightedmean" not in self._pooling.pooling_mode

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        hidden = features.get("token_embeddings")  # a model that pools by itself has none
        if "attention_mask" in features or not isinstance(hidden, torch.Tensor) or not hidden.is_cpu:
            return Results(self.pool(features, rows).cpu().numpy())
        lengths = [len(row.ids) for row in rows]
        if self._flat is not None:
            return Results(self._flat.run(hidden[0].float().numpy(), lengths, raw=rows[0].raw))
        features["cu_seq_lens_q"] = torch.tensor([0, *accumulate(lengths)])
        return Results(self.pool(features, rows).numpy())

    def pool(self, features: Features, rows: Sequence[Tokenized] = ()) -> torch.Tensor:
        """Return the sentence embeddings, shape (texts, dimension), fp32, on their device.

        ``rows`` are all of one group. Without them, texts are of group 0.
        """
        raw = bool(rows) and rows[0].raw
        features = {name: _widened(value) for name, value in features.items()}
        if rows and not self.pools_prompt and rows[0].prompt_tokens:
            features["prompt_length"] = rows[0].prompt_tokens
        last = len(self.modules) - 1
        for number, module in enumerate(self.modules):
            pooled = features.get("sentence_embedding")
            if isinstance(module, Dense) and isinstance(pooled, torch.Tensor):
                features["sentence_embedding"] = in_blocks(pooled)
            if not (raw and number == last and isinstance(module, Normalize)):
                features = module(features)
        embedding = features["sentence_embedding"]
        if not isinstance(embedding, torch.Tensor):
            raise TypeError("the model's modules made no sentence_embedding")
        return embedding[: len(rows) or None].float()


def measure_dimension(module: nn.Module) -> int | None:
    """Return the size of the vectors that a module makes, where it says so."""
    measure = getattr(module, "get_embedding_dimension", None)
    size = measure() if callable(measure) else None
    return None if size is None else int(size)


def in_blocks(rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows`` and, on the CPU, rows of zeros up to a full block: a linear layer then has one way to sum up."""
    spare = -len(rows) % BLOCK_ROWS if rows.is_cpu else 0
    return functional.pad(rows, (*[0] * (2 * rows.dim() - 1), spare)) if spare else rows


def hidden_states(features: Features, rows: Sequence[Tokenized]) -> list[torch.Tensor]:
    """Return the last hidden states of each text, shape (its tokens, size) each, fp32, on their device."""
    hidden = features["token_embeddings"]
    if not isinstance(hidden, torch.Tensor):
        raise TypeError("the model made no token_embeddings")
    lengths = [len(row.ids) for row in rows]
    if len(hidden) == len(rows):
        return [states[:length].float() for states, length in zip(hidden, lengths, strict=True)]
    flat = hidden[0].float()
    return [flat[start:end] for start, end in pairwise([0, *accumulate(lengths)])]


def _widened(value: object) -> object:
    """Bring the transformer's output to fp32: pooling and normalising in 16 bit loses what the model has."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    if isinstance(value, tuple):
        return tuple(_widened(one) for one in value)
    return value
