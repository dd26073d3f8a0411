"""The results of one request as they come in, and the message that they become. Called by ``jobs``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emb_model_provider.messages.link import Encode, Encoded, InputError, SparseRows, Timing, TokenVectors
from shard.encoder import NO_ROW, Ids, Result, SparseRow, Tokenized, Vectors, cut, cut_raw, normalized


class Answer:
    """Where the results of a request come together. ``dimension`` is that of the model's rows, 0 if it makes none."""

    __slots__ = ("_rows", "_sparse", "_tokens", "errors")

    def __init__(self, request: Encode, dimension: int) -> None:
        self.errors: list[InputError] = []
        wants_rows = "dense" in request.outputs or "scores" in request.outputs
        make = np.zeros if request.partial else np.empty
        self._rows: Vectors | None = make((request.count, dimension), dtype="<f4") if wants_rows else None
        self._sparse: dict[int, SparseRow] | None = {} if "sparse" in request.outputs else None
        self._tokens: dict[int, Vectors] | None = {} if "multi_vector" in request.outputs else None

    def take(self, index: int, result: Result) -> None:
        """Keep the results of one input."""
        if self._rows is not None:
            self._rows[index] = result.row
        if self._sparse is not None and result.sparse is not None:
            self._sparse[index] = result.sparse
        if self._tokens is not None and result.tokens is not None:
            self._tokens[index] = result.tokens

    def encoded(self, request: Encode, inputs: Sequence[Tokenized | InputError], timing: Timing) -> Encoded:
        """Return the answer, once every input has either its results or its error."""
        read = [None if isinstance(one, InputError) else one for one in inputs]
        rows = self._finished_rows(request)
        return Encoded(
            vectors=b"" if rows is None else rows.tobytes(),
            dimension=0 if rows is None else rows.shape[1],
            tokens=tuple(0 if one is None else len(one.ids) for one in read),
            truncated=tuple(index for index, one in enumerate(read) if one is not None and one.truncated),
            original_tokens=tuple(0 if one is None else one.original_tokens for one in read),
            sparse=None if self._sparse is None else pack_sparse(self._sparse, request.count),
            token_vectors=None if self._tokens is None else pack_token_vectors(self._tokens, request.count),
            errors=tuple(sorted(self.errors, key=lambda error: error.index)),
            timing=timing,
        )

    def _finished_rows(self, request: Encode) -> Vectors | None:
        rows = self._rows
        if rows is None or "dense" not in request.outputs:
            return rows
        if request.dimensions is not None:
            return (cut_raw if request.normalize is False else cut)(rows, request.dimensions)
        return normalized(rows) if request.normalize else rows


def pack_sparse(rows: dict[int, SparseRow], count: int) -> SparseRows:
    """Return the sparse rows of ``count`` inputs end to end; an input without one has an empty row."""
    ordered = [rows.get(index, NO_ROW) for index in range(count)]
    offsets = np.zeros(count + 1, dtype="<u4")
    np.cumsum([len(row.indices) for row in ordered], out=offsets[1:])
    indices: Ids = np.concatenate([row.indices for row in ordered]).astype("<u4", copy=False)
    values: Vectors = np.concatenate([row.values for row in ordered]).astype("<f4", copy=False)
    return SparseRows(offsets.tobytes(), indices.tobytes(), values.tobytes())


def pack_token_vectors(vectors: dict[int, Vectors], count: int) -> TokenVectors:
    """Return the vectors of all tokens of ``count`` inputs end to end; an input may have none."""
    dimension = next((one.shape[1] for one in vectors.values()), 0)
    nothing = np.empty((0, dimension), np.float32)
    ordered = [vectors.get(index, nothing) for index in range(count)]
    blob: Vectors = np.concatenate(ordered).astype("<f4", copy=False)
    return TokenVectors(blob.tobytes(), dimension, tuple(len(one) for one in ordered))
