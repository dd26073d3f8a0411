"""How a batch is split so that little of it is padding; pure. Called by ``padded`` and ``batch_totals``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: The most of a batch that may be padding.
_MOST_WASTE: Final = 0.1
#: One forward pass costs about as much as this many padding tokens: below it, splitting further loses.
_FREE_PADDING_TOKENS: Final = 64


def padded_batches(lengths: Sequence[int], groups: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Return lists of indices into ``lengths``, longest first, that are to be padded to their own longest.

    Rows of different ``groups`` never share a batch. A batch of several rows holds at most ``max_tokens`` with its
    padding, of which at most a tenth (or a few tokens) is padding.
    """
    order = sorted(range(len(lengths)), key=lambda index: (groups[index], lengths[index]), reverse=True)
    batches: list[list[int]] = []
    width = used = 0
    for index in order:
        length = lengths[index]
        if batches and groups[batches[-1][0]] == groups[index]:
            total = width * (len(batches[-1]) + 1)
            wasted = total - used - length
            if total <= max_tokens and wasted <= max(total * _MOST_WASTE, _FREE_PADDING_TOKENS):
                batches[-1].append(index)
                used += length
                continue
        batches.append([index])
        width = used = length
    return batches
