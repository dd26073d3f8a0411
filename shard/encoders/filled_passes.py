"""Passes that are never small: libraries add up the products of a few tokens in another order than those of many.

Where that shows, a short text by itself would have another vector than among others. With copies of it beside it, as
many tokens are multiplied as it takes for the order to be that of larger passes. Chosen by ``paths``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shard.encoder import Results, Tokenized
from shard.encoders.sentence_transformer import ForwardPath

#: From so many tokens on MKL and torch's own loops hardly differ from any number; measured with AVX-512.
FULL_TOKENS: Final = 16


class FilledPasses:
    """Implements ``sentence_transformer.ForwardPath`` over another one."""

    def __init__(self, path: ForwardPath) -> None:
        self._path = path

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return self._path.split(batch)

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of ``rows``, which are encoded several times where they are short and few."""
        tokens = len(rows) * max(len(row.ids) for row in rows)
        copies = -(-FULL_TOKENS // tokens)
        return self._path.run([*rows] * copies).first(len(rows))
