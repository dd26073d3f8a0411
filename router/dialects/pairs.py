"""Pairs of texts that are to be scored, and those that were wrong already in the body. Pure; used by ``ranking``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from emb_model_provider.errors import InvalidRequestError, RequestError
from emb_model_provider.value import Value
from router.dialects.fields import check_count, checked_texts, no_texts
from router.dialects.options import MAX_INPUTS, Options, find_holes
from router.requests import EncodeRequest


class Listed(NamedTuple):
    """A list as it stands in a body, and the name of its field."""

    name: str
    values: list[object]


class Pairs(Value, frozen=True):
    """What is scored: ``firsts[i]`` with ``seconds[i]``; one first goes with every second.

    A pair in ``holes`` was wrong already in the body; ``firsts`` and ``seconds`` hold only the others.
    """

    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    holes: Mapping[int, RequestError] = {}

    @property
    def count(self) -> int:
        return len(self.seconds) + len(self.holes)

    @property
    def distinct(self) -> list[str]:
        """The different firsts, which an embedding model reads once each."""
        return list(dict.fromkeys(self.firsts))

    def indexes(self) -> list[int]:
        """Return where the pairs without a hole stand in the request."""
        return [index for index in range(self.count) if index not in self.holes]

    def first_places(self) -> list[int]:
        """Return where the first text of each pair stands in ``distinct``."""
        if len(self.firsts) == 1:
            return [0] * len(self.seconds)
        places = {text: place for place, text in enumerate(self.distinct)}
        return [places[text] for text in self.firsts]

    def request(self, options: Options, model: str) -> EncodeRequest:
        """Return the request to score them."""
        texts = self.firsts * len(self.seconds) if len(self.firsts) == 1 else self.firsts
        return options.request(model, texts=texts, seconds=self.seconds, outputs=("scores",), holes=self.holes)


def read_pairs(first: Listed, second: Listed, *, partial: bool) -> Pairs:
    """Return the pairs of two lists, of which the first has one text or as many as the second.

    With ``partial`` a pair of which a text is wrong is a hole, but one first for all must be right.
    """
    if not partial:
        firsts = checked_texts(first.name, first.values, MAX_INPUTS)
        seconds = checked_texts(second.name, second.values, MAX_INPUTS)
        _check_counts(first, second)
        return Pairs(firsts, seconds)
    for listed in (first, second):
        if not listed.values:
            raise no_texts(listed.name)
        check_count(listed.name, listed.values, MAX_INPUTS)
    _check_counts(first, second)
    holes = find_holes(second.values, second.name)
    if len(first.values) == 1:
        firsts = checked_texts(first.name, first.values, 1)
    else:
        holes |= find_holes(first.values, first.name)
        firsts = tuple(str(one) for index, one in enumerate(first.values) if index not in holes)
    if len(holes) == len(second.values):
        raise holes[0]
    seconds = tuple(str(one) for index, one in enumerate(second.values) if index not in holes)
    return Pairs(firsts, seconds, holes)


def _check_counts(first: Listed, second: Listed) -> None:
    if len(first.values) not in (1, len(second.values)):
        raise InvalidRequestError(
            f"'{first.name}' has {len(first.values)} texts and '{second.name}' {len(second.values)}: give one "
            f"'{first.name}', or as many of both.",
            param=first.name,
        )
