"""Which tokens of a packed sequence attend to each other: made once for a pass, used by every layer's attention.

Texts of one length are one batched product. Short texts of nearly the same length share one too: within attention
alone they are padded, which is little work and saves a dozen calls for every further length and layer. What is padded
gets the weight 0, and the plain steps of attention then sum up the same numbers in the same order: a text's result is
that of the text alone, bit for bit. Torch's fused attention divides its work by the length, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Final

import numpy as np
import torch

#: A segment takes shorter texts as long as no more than so many of its tokens are padding.
_FREE_PADDING_TOKENS: Final = 64
#: Among fewer, MKL multiplies in another order, and torch takes a softmax a number at a time, which is another one too,
#: and eight times slower.
FEWEST_PLACES: Final = 16


@dataclass(frozen=True, slots=True)
class Padding:
    """How texts of several lengths are brought to one.

    ``gather`` picks the token of each place, shape (count · length,); ``bias`` is 0 for a text's tokens that are seen
    and -inf for the rest, shape (count, 1, length); ``places`` are those of the texts' own tokens, in order.
    """

    gather: torch.Tensor
    bias: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` neighbouring texts, each of ``length`` tokens or padded to that: tokens ``start`` to ``end``.

    Where they take the three plain steps, ``length`` is ``FEWEST_PLACES`` at least.
    """

    start: int
    end: int
    count: int
    length: int
    padding: Padding | None = None


def find_segments(lengths: Sequence[int], plain_tokens: int, unseen: Sequence[int] = ()) -> list[Segment]:
    """Join neighbours of equal or nearly equal length; most fall together when the longest comes first.

    Texts of up to ``plain_tokens`` (0, or ``FEWEST_PLACES`` and more) take the plain steps; longer ones share a segment
    with their equals alone.
    ``unseen`` is how many tokens at the end of each text no token attends to.
    """
    seen = [length - count for length, count in zip(lengths, unseen or [0] * len(lengths), strict=True)]
    if len(lengths) == 1:
        return [_segment_of_one(lengths[0], _count_places(lengths[0], plain_tokens), seen[0])]
    places = [_count_places(length, plain_tokens) for length in lengths]
    starts = [0, *accumulate(lengths)]
    segments: list[Segment] = []
    first = waste = 0
    for index, needed in enumerate(places):
        added = places[first] - needed
        free = _FREE_PADDING_TOKENS if places[first] <= plain_tokens else 0
        if added < 0 or waste + added > free:
            segments.append(_segment(starts[first], places[first], lengths[first:index], seen[first:index]))
            first, waste, added = index, 0, 0
        waste += added
    segments.append(_segment(starts[first], places[first], lengths[first:], seen[first:]))
    return segments


@lru_cache
def _segment_of_one(length: int, places: int, seen: int) -> Segment:
    """Return that of a text by itself: there are few, and what it holds takes longer to make than to use."""
    return _segment(0, places, [length], [seen])


def _count_places(length: int, plain_tokens: int) -> int:
    return max(length, FEWEST_PLACES) if length <= plain_tokens else length


def _segment(start: int, places: int, lengths: Sequence[int], seen: Sequence[int]) -> Segment:
    padding = _pad(start, places, lengths, seen) if min(seen) < places else None
    return Segment(start, start + sum(lengths), len(lengths), places, padding)


def _pad(start: int, count: int, lengths: Sequence[int], seen: Sequence[int]) -> Padding:
    own = np.array(lengths)[:, None]
    places = np.arange(count)
    firsts = start + np.cumsum(own, axis=0) - own
    is_own = places < own
    bias = np.where(places < np.array(seen)[:, None], np.float32(0), np.float32("-inf"))
    return Padding(
        torch.from_numpy((firsts + np.minimum(places, own - 1)).ravel()),
        torch.from_numpy(bias)[:, None],
        torch.from_numpy(np.flatnonzero(is_own)),
    )
