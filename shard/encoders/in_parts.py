"""A list of texts tokenised by several threads at once. Called by ``text_tokenizer``.

The Rust tokenizer has a pool of its own that wakes a thread for every few texts. With whole parts of a request, as long
as each other, the same cores tokenise a quarter more; and several requests at once do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Final, TypeVar

from emb_model_provider.logs import EventLog

log = EventLog("shard")

Encoded = TypeVar("Encoded")

#: More threads than this wait for the interpreter: it takes a tenth of the time to read what a tokenizer returns.
_MOST_THREADS: Final = 8
#: Handing over a part costs some 50 µs; so many characters take a slow core a millisecond or two.
_LEAST_CHARS: Final = 1024


class Helpers:
    """Threads that help whoever calls ``run``, which any thread may; without any (0) it does all by itself."""

    def __init__(self, count: int) -> None:
        self._count = count
        # It makes no thread before it has work for one.
        self._threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="tokenizer-helper")

    def run(self, encode: Callable[[list[str]], Sequence[Encoded]], texts: list[str]) -> list[Encoded]:
        """Return what ``encode``, which releases the interpreter, makes of each text; raise what it raises."""
        if len(texts) == 1 or not self._count:
            return list(encode(texts))
        own, *parts = cut_evenly([len(text) for text in texts], self._count + 1, _LEAST_CHARS)
        try:
            others = [self._threads.submit(encode, texts[part]) for part in parts]
        except RuntimeError:  # no thread can be had: who asked is served all the same
            self._count = 0
            log.warning("no_tokenizer_helpers", why="no thread could be started")
            return list(encode(texts))
        encoded = list(encode(texts[own]))
        for other in others:
            encoded += other.result()
        return encoded


#: No help.
ALONE: Final = Helpers(0)


def count_helpers(threads: int) -> int:
    """Return how many threads help beside the caller, where a model computes on so many (1 or more)."""
    return min(threads, _MOST_THREADS) - 1


def cut_evenly(sizes: Sequence[int], most: int, least_size: int) -> list[slice]:
    """Cut a list into at most ``most`` parts of nearly equal size, and into no more than it has ``least_size``.

    A part ends at the item that reaches its share of the whole, so none is larger than that by more than one item.
    """
    parts = max(1, min(most, sum(sizes) // least_size))
    share = sum(sizes) / parts
    slices: list[slice] = []
    begin = 0
    for index, total in enumerate(accumulate(sizes)):
        if total >= share * (len(slices) + 1) and len(slices) < parts - 1:
            slices.append(slice(begin, index + 1))
            begin = index + 1
    if begin < len(sizes) or not slices:
        slices.append(slice(begin, len(sizes)))
    return slices
