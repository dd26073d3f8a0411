"""BGE-M3: dense, sparse and token vectors from one pass, by FlagEmbedding's definition. For ``modules`` and ``parts``.

Two small linear layers lie beside the XLM-RoBERTa, in ``sparse_linear.pt`` and ``colbert_linear.pt``. Of the last
hidden states h, FlagEmbedding's ``BGEM3FlagModel`` makes

* dense: h of the first token, normalised (what sentence-transformers' Pooling and Normalize do);
* sparse: relu(sparse_linear(h)) of every token, and for each id of the vocabulary the largest of them; those of
  ``<s>``, ``</s>``, ``<pad>`` and ``<unk>``, and what is not above 0, are left out;
* token vectors: colbert_linear(h) of every token but the first, normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import Ids, Results, SparseRow, Tokenized, Vectors
from shard.encoders.heads import Features, HeadFacts, Heads, hidden_states, in_blocks
from shard.hubs.snapshot import COLBERT_LINEAR, SPARSE_LINEAR
from shard.model_files.weights import check_whole, read_pickled


class TokenLinears(nn.Module):
    """The two layers beside the transformer."""

    def __init__(self, sparse: nn.Linear, colbert: nn.Linear) -> None:
        super().__init__()
        self.sparse = sparse
        self.colbert = colbert


def read_token_linears(directory: Path, hidden_size: int) -> TokenLinears:
    """Read both layers; raise ``LoadError`` for files that are not whole, hold code, or are of another model."""
    sparse = _read_linear(directory / SPARSE_LINEAR, hidden_size)
    colbert = _read_linear(directory / COLBERT_LINEAR, hidden_size)
    if sparse.out_features != 1:
        raise _wrong(directory / SPARSE_LINEAR, f"gives {sparse.out_features} numbers per token and not one")
    return TokenLinears(sparse, colbert)


class BgeM3Head:
    """Implements ``Head``; ``unused`` are the ids of which no sparse weight is kept."""

    def __init__(self, dense: Heads, linears: TokenLinears, unused: frozenset[int]) -> None:
        self._dense = dense
        self._linears = linears.eval().requires_grad_(requires_grad=False)
        self._unused = np.array(sorted(unused), dtype=np.uint32)
        self.modules = nn.ModuleList([*dense.modules, linears])

    @property
    def facts(self) -> HeadFacts:
        dense = self._dense.facts
        return HeadFacts(
            outputs=("dense", "sparse", "multi_vector"),
            pooling=dense.pooling,
            dimension=dense.dimension,
            normalized=dense.normalized,
            token_dimension=self._linears.colbert.out_features,
        )

    @property
    def takes_flat_output(self) -> bool:
        return self._dense.takes_flat_output

    def group(self, one: Tokenized) -> int:
        return self._dense.group(one)

    def run(self, features: Features, rows: Sequence[Tokenized]) -> Results:
        wanted = {output for row in rows for output in row.outputs}
        states = hidden_states(features, rows)  # first, because pooling may write into the features
        return Results(
            rows=self._dense.run(features, rows).rows if "dense" in wanted else None,
            sparse=self._weigh(states, rows) if "sparse" in wanted else None,
            tokens=self._project(states) if "multi_vector" in wanted else None,
        )

    def _weigh(self, states: Sequence[torch.Tensor], rows: Sequence[Tokenized]) -> list[SparseRow]:
        weights = self._linears.sparse(in_blocks(torch.cat(list(states)))).flatten().cpu().numpy()
        ends = [0, *accumulate(map(len, states))]
        return [
            largest_weights(np.array(row.ids, dtype=np.uint32), weights[start:end], self._unused)
            for row, (start, end) in zip(rows, pairwise(ends), strict=True)
        ]

    def _project(self, states: Sequence[torch.Tensor]) -> list[Vectors]:
        kept = [own[1:] for own in states]
        vectors = functional.normalize(self._linears.colbert(in_blocks(torch.cat(kept))), dim=-1).cpu().numpy()
        return np.split(vectors, list(accumulate(map(len, kept))))[:-1]


def largest_weights(ids: Ids, weights: Vectors, unused: Ids) -> SparseRow:
    """Return the largest weight of each id, where it is above 0 (or not a number) and the id not ``unused``."""
    kept = ~np.isin(ids, unused) & ~(weights <= 0)
    distinct, places = np.unique(ids[kept], return_inverse=True)
    largest = np.zeros(len(distinct), dtype=np.float32)
    with np.errstate(invalid="ignore"):  # what is not a number stays, to be found
        np.maximum.at(largest, places, weights[kept])
    return SparseRow(distinct, largest)


def _read_linear(path: Path, hidden_size: int) -> nn.Linear:
    check_whole(path)
    tensors: Mapping[str, torch.Tensor] = read_pickled(path)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or weight.ndim != 2 or weight.shape[1] != hidden_size:
        raise _wrong(path, f"is not a linear layer for hidden states of size {hidden_size}")
    layer = nn.Linear(hidden_size, weight.shape[0], bias=bias is not None)
    layer.load_state_dict(tensors)
    return layer


def _wrong(path: Path, finding: str) -> LoadError:
    return LoadError(LoadReason.WRONG_WEIGHTS, f"{path} {finding}: it does not belong to this model")
