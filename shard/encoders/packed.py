"""The quick path: texts laid end to end through a captured graph, so that no padding is ever computed.

A vector computed so does not depend on its neighbours: every operation but attention works on each token by itself,
and attention stays within a text. oneDNN sums up a row's products in the same order however many rows there are, from
two on, and however many threads: where it makes all of a model's products, vectors are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final

import torch

from shard.encoder import Results, Tokenized
from shard.encoders.graph.segments import find_segments
from shard.encoders.heads import Head
from shard.encoders.positions import padding_before, positions_around

#: Tokens of one pass through the graph; more falls out of the processor's cache.
_MAX_TOKENS: Final = 2048

#: Above so many tokens, sizes are multiples of so many; a single row oneDNN would sum up in another order.
_STEPS: Final = ((256, 64), (128, 16), (32, 8), (16, 4), (4, 2), (2, 1), (0, 2))

#: (input_ids, position_ids[, token_type_ids], segments) → last hidden states, all but segments of shape (1, tokens, …).
PackedGraph = Callable[..., torch.Tensor]


def packed_batches(lengths: Sequence[int], groups: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Return lists of indices into ``lengths``, longest first, of at most ``max_tokens`` together or of one text.

    Texts of different ``groups`` never share a batch.
    """
    if len(lengths) == 1:
        return [[0]]
    order = sorted(range(len(lengths)), key=lambda index: (groups[index], lengths[index]), reverse=True)
    batches: list[list[int]] = []
    used = 0
    for index in order:
        fits = batches and groups[batches[-1][0]] == groups[index] and used + lengths[index] <= max_tokens
        if fits:
            batches[-1].append(index)
            used += lengths[index]
        else:
            batches.append([index])
            used = lengths[index]
    return batches


def round_up(tokens: int) -> int:
    """Return how many tokens a pass really takes: one of few sizes.

    oneDNN makes a kernel for every size and matrix, which takes it half a millisecond and half a megabyte. The spare
    tokens are of no text, and nobody reads them.
    """
    step = next(step for above, step in _STEPS if tokens > above)
    return -(-tokens // step) * step


def by_tokens(few: PackedGraph, many: PackedGraph, max_few: int) -> PackedGraph:
    """Return what runs ``few`` on passes of up to ``max_few`` tokens and ``many`` on longer ones."""

    def run(ids: torch.Tensor, *others: object) -> torch.Tensor:
        return (few if ids.shape[1] <= max_few else many)(ids, *others)

    return run


class PackedPath:
    """Implements ``sentence_transformer.ForwardPath`` on the CPU.

    A text's first token is at ``first_position``; a text has at most ``max_tokens``. ``graph`` was lowered with
    ``plain_tokens``.
    """

    def __init__(
        self,
        graph: PackedGraph,
        heads: Head,
        *,
        plain_tokens: int,
        first_position: int,
        max_tokens: int,
        wants_type_ids: bool,
    ) -> None:
        self._graph = graph
        self._heads = heads
        self._plain_tokens = plain_tokens
        self._positions = torch.arange(first_position, first_position + max_tokens)
        self._padding = padding_before(first_position)
        # Cut to each pass's length; a text that is no pair is of the first type throughout.
        most_tokens = round_up(max(_MAX_TOKENS, max_tokens))
        self._first_types = torch.zeros((1, most_tokens), dtype=torch.long) if wants_type_ids else None

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return packed_batches(
            [len(one.ids) for one in batch],
            [self._heads.group(one) for one in batch],
            max_tokens=_MAX_TOKENS,
        )

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of ``rows``, which ``split`` has put together: longest first, all of one group."""
        lengths = [len(row.ids) for row in rows]
        tokens = sum(lengths)
        spare = round_up(tokens) - tokens
        ids = torch.tensor([[*chain.from_iterable(row.ids for row in rows), *[rows[0].ids[0]] * spare]])
        positions = [self._place(row.ids) for row in rows]
        if spare:
            positions.append(self._positions[:1].expand(spare))
        at = (positions[0] if len(positions) == 1 else torch.cat(positions))[None]
        types = [] if self._first_types is None else [_type_ids(rows, self._first_types[:, : tokens + spare])]
        hidden = self._graph(
            ids, at, *types, find_segments(lengths, self._plain_tokens, [row.expanded for row in rows])
        )
        return self._heads.run({"token_embeddings": hidden[:, :tokens]}, rows)

    def _place(self, ids: Sequence[int]) -> torch.Tensor:
        if self._padding is not None and self._padding in ids:
            return torch.from_numpy(positions_around(self._padding, ids))
        return self._positions[: len(ids)]


def _type_ids(rows: Sequence[Tokenized], first_types: torch.Tensor) -> torch.Tensor:
    """Return the type of each token, ``first_types`` where no text has any of its own."""
    if all(row.type_ids is None for row in rows):
        return first_types
    own = [*chain.from_iterable(row.type_ids or [0] * len(row.ids) for row in rows)]
    return torch.tensor([own + [0] * (first_types.shape[1] - len(own))])
