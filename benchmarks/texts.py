"""The texts that are measured with: prose in Chinese, English and both, of very different lengths.

They stand in ``data/texts.jsonl``, written for this purpose: questions, product titles, passages as retrieval cuts
them, notices, news. 627 pieces from 2 to 2,000 characters; all-MiniLM-L6-v2 reads 51 tokens of each on average, and
32 in the median. Every selection is the same in every run, and no text stands in one twice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal

Language = Literal["zh", "en", "mixed"]

_FILE: Final = Path(__file__).parent / "data" / "texts.jsonl"
#: About sixteen tokens in either language: a Chinese character is about one, an English word a little more.
_SHORT_CHARACTERS: Final = {"zh": 16, "en": 60, "mixed": 30}


@cache
def _all() -> tuple[tuple[Language, str], ...]:
    with _FILE.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple((row["language"], row["text"]) for row in rows)


def mixed(count: int | None = None) -> list[str]:
    """Return ``count`` texts of every language and length (all by default)."""
    return _take([text for _, text in _all()], count)


def zh(count: int | None = None) -> list[str]:
    """Return ``count`` Chinese texts of every length."""
    return _take([text for language, text in _all() if language == "zh"], count)


def en(count: int | None = None) -> list[str]:
    """Return ``count`` English texts of every length."""
    return _take([text for language, text in _all() if language == "en"], count)


def short(count: int | None = None) -> list[str]:
    """Return ``count`` texts of every language as people type them into a search box."""
    return _take([text for language, text in _all() if len(text) <= _SHORT_CHARACTERS[language]], count)


def repeated(selection: Sequence[str], times: int) -> list[str]:
    """Return the texts so many times over, each time behind another number: still no text stands there twice."""
    return [f"{number} {text}" for number in range(times) for text in selection]


def sized(count: int, shortest: int, longest: int) -> list[str]:
    """Return ``count`` distinct texts whose lengths in characters run evenly from ``shortest`` to ``longest``.

    They are cut from all texts laid end to end, so that Chinese, English and both occur at every length; long and
    short ones alternate.
    """
    prose = " ".join(mixed())
    # The golden ratio visits the range evenly in every stretch of the list; the stride keeps the starts apart.
    lengths = [shortest + round((longest - shortest) * (index * 0.6180339887 % 1)) for index in range(count)]
    starts = [index * 7919 % (len(prose) - longest) for index in range(count)]
    return [prose[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def requests(texts: Sequence[str], per_request: int) -> list[list[str]]:
    """Cut texts into requests of ``per_request``; the last one may be smaller."""
    iterator = iter(texts)
    return list(iter(lambda: list(itertools.islice(iterator, per_request)), []))


def balanced(texts: Sequence[str], per_request: int) -> list[list[str]]:
    """Deal texts out to requests of about equal work, each with short and long ones; the same texts, none left out.

    For loads whose rate is measured within a window: there it must not matter which requests fall into it.
    """
    count = max(1, round(len(texts) / per_request))
    room = -(-len(texts) // count)
    hands: list[list[str]] = [[] for _ in range(count)]
    works = [0] * count
    for text in sorted(texts, key=_work, reverse=True):
        least = min((index for index in range(count) if len(hands[index]) < room), key=works.__getitem__)
        hands[least].append(text)
        works[least] += _work(text)
    place = {text: index for index, text in enumerate(texts)}
    return [sorted(hand, key=place.__getitem__) for hand in hands]


def _work(text: str) -> int:
    """Return about as many tokens as the model reads: a Chinese character is one, four others are one."""
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
    return min(256, chinese + (len(text) - chinese) // 4)


def _take(texts: list[str], count: int | None) -> list[str]:
    if count is not None and count > len(texts):
        raise ValueError(f"{count} texts are asked for, but there are only {len(texts)}")
    return texts[:count]
