"""Texts that may share no pass: all, where a model's own code lets them change each other's vectors, or long ones."""

from __future__ import annotations

from collections.abc import Sequence

from shard.encoder import Results, Tokenized
from shard.encoders.sentence_transformer import ForwardPath


class OneByOne:
    """Implements ``sentence_transformer.ForwardPath`` over another one, for each text by itself."""

    def __init__(self, path: ForwardPath) -> None:
        self._path = path

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return [[index] for index in range(len(batch))]

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of the one text."""
        return self._path.run(rows)


def is_long(rows: Sequence[Tokenized], most_shared: int) -> bool:
    """Tell whether a pass that ``split_long`` has made is one long text."""
    return len(rows[0].ids) > most_shared


def split_long(path: ForwardPath, batch: Sequence[Tokenized], most_shared: int) -> list[list[int]]:
    """Return which texts share a pass: of up to ``most_shared`` tokens as ``path`` has it, longer ones none."""
    short = [index for index, one in enumerate(batch) if len(one.ids) <= most_shared]
    shared = [[short[row] for row in rows] for rows in path.split([batch[index] for index in short])]
    return shared + [[index] for index, one in enumerate(batch) if len(one.ids) > most_shared]
