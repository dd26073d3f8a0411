"""The last resort: a model whose own code lets texts change each other's vectors is given one text at a time."""

from __future__ import annotations

from collections.abc import Sequence

from shard.encoder import Results, Tokenized
from shard.encoders.sentence_transformer import ForwardPath


class OneByOne:
    """Implements ``sentence_transformer.ForwardPath`` over another one."""

    def __init__(self, path: ForwardPath) -> None:
        self._path = path

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return [[index] for index in range(len(batch))]

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of the one text."""
        return self._path.run(rows)
