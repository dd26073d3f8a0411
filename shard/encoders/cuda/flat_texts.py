"""Texts end to end as one block of numbers, which crosses to a CUDA device in one copy. Called by ``packed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from shard.encoder import Tokenized
from shard.encoders.graph.varlen import Bounds
from shard.encoders.heads import Features
from shard.encoders.positions import padding_before, positions_around

Block = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """The form of a block: room for ``tokens`` and for ``texts``, none of which has more than ``longest`` tokens.

    A block has, one after the other: ids, positions and (``typed``) token types; of each token the number of its text;
    of each text its first token, and the end of the last. Spare texts are empty. Spare tokens lie behind the end of
    all texts and carry the number of the last one, which then must be spare itself.
    """

    tokens: int
    texts: int
    longest: int
    typed: bool

    @property
    def size(self) -> int:
        """How many numbers a block has."""
        return (3 + self.typed) * self.tokens + self.texts + 1

    def has_room_for(self, used: Layout) -> bool:
        """Tell whether texts of such an exact layout fit, with a token and a text to spare."""
        return self.tokens > used.tokens and self.texts > used.texts and self.longest >= used.longest

    def fill(self, block: Block, rows: Sequence[Tokenized], first_position: int) -> None:
        """Write ``rows`` into ``block``, shape (``size``,)."""
        lengths = np.array([len(row.ids) for row in rows])
        used, ends = int(lengths.sum()), np.cumsum(lengths)
        per_token = block[: -(self.texts + 1)].reshape(-1, self.tokens)
        per_token[0, :used] = np.fromiter(chain.from_iterable(row.ids for row in rows), np.int64, used)
        per_token[1, :used] = np.arange(first_position, first_position + used) - np.repeat(ends - lengths, lengths)
        padding = padding_before(first_position)
        if padding is not None and padding in per_token[0, :used]:
            for row, end in zip(rows, ends, strict=True):
                per_token[1, end - len(row.ids) : end] = positions_around(padding, row.ids)
        per_token[-1, :used] = np.repeat(np.arange(len(rows)), lengths)
        if self.typed:
            per_token[2, :used] = _types(rows, used)
        per_token[:-1, used:] = per_token[:-1, :1]
        per_token[-1, used:] = self.texts - 1
        starts = block[-(self.texts + 1) :]
        starts[0] = 0
        starts[1 : len(rows) + 1] = ends
        starts[len(rows) + 1 :] = used

    def read(self, block: torch.Tensor) -> FlatTexts:
        """Return the parts of a filled block, shape (``size``,), as views of it."""
        per_token = block[: -(self.texts + 1)].view(-1, 1, self.tokens)
        inputs = tuple(per_token[:-1].unbind(0))
        return FlatTexts(inputs, per_token[-1], block[-(self.texts + 1) :], self.longest)


@dataclass(frozen=True, slots=True)
class FlatTexts:
    """``inputs`` are those of a captured graph and like ``owners`` of shape (1, tokens); ``starts`` (texts + 1,)."""

    inputs: tuple[torch.Tensor, ...]
    owners: torch.Tensor
    starts: torch.Tensor
    longest: int

    def bounds(self, seen: torch.Tensor | None = None) -> Bounds:
        """Return what attention needs to know."""
        return Bounds(self.starts.int(), self.longest, seen)

    def features(self, hidden: torch.Tensor, tokens: int | None = None, texts: int | None = None) -> Features:
        """Return what heads need to know of the last hidden states; with numbers, of the first so many alone."""
        starts = self.starts if texts is None else self.starts[: texts + 1]
        return {
            "token_embeddings": hidden[:, :tokens],
            "cu_seq_lens_q": starts,
            "seq_idx": self.owners[:, :tokens],
        }


def exact_layout(rows: Sequence[Tokenized], *, typed: bool) -> Layout:
    """Return the layout without anything spare."""
    lengths = [len(row.ids) for row in rows]
    return Layout(sum(lengths), len(rows), max(lengths), typed)


def _types(rows: Sequence[Tokenized], used: int) -> Block | int:
    if all(row.type_ids is None for row in rows):
        return 0
    return np.fromiter(chain.from_iterable(row.type_ids or [0] * len(row.ids) for row in rows), np.int64, used)
