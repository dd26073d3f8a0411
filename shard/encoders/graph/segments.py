"""Which tokens of a packed sequence attend to each other: made once for a pass, used by every layer's attention.

Texts of one length are one batched product. Short texts of nearly the same length share one too: within attention
alone they are padded, which is little work and saves a dozen calls for every further length and layer. What is padded
gets the weight 0, so a text's result is that of the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import torch

#: A segment takes shorter texts as long as no more than so many of its tokens are padding.
_FREE_PADDING_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Padding:
    """How texts of several lengths are brought to one.

    ``gather`` picks the token of each place, shape (count · length,); ``bias`` is 0 for a text's tokens that are seen
    and -inf for the rest, shape (count, 1, 1, length); ``places`` are those of the texts' own tokens, in order.
    """

    gather: torch.Tensor
    bias: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` neighbouring texts, each of ``length`` tokens or padded to that: tokens ``start`` to ``end``."""

    start: int
    end: int
    count: int
    length: int
    padding: Padding | None = None


def find_segments(lengths: Sequence[int], unseen: Sequence[int] = ()) -> list[Segment]:
    """Join neighbours of equal or nearly equal length; most fall together when the longest comes first.

    ``unseen`` is how many tokens at the end of each text no token attends to.
    """
    seen = [length - count for length, count in zip(lengths, unseen or [0] * len(lengths), strict=True)]
    starts = [0, *accumulate(lengths)]
    segments: list[Segment] = []
    first = waste = 0
    for index, length in enumerate(lengths):
        added = lengths[first] - length
        if added < 0 or waste + added > _FREE_PADDING_TOKENS:
            segments.append(_segment(starts[first], lengths[first:index], seen[first:index]))
            first, waste, added = index, 0, 0
        waste += added
    segments.append(_segment(starts[first], lengths[first:], seen[first:]))
    return segments


def is_one_text(segments: Sequence[Segment]) -> bool:
    """Tell whether these are one text from the first token on, of which each token is seen."""
    return len(segments) == 1 and segments[0].count == 1 and segments[0].padding is None


def _segment(start: int, lengths: Sequence[int], seen: Sequence[int]) -> Segment:
    longest = lengths[0]
    padding = _pad(start, lengths, seen) if min(seen) < longest else None
    return Segment(start, start + sum(lengths), len(lengths), longest, padding)


def _pad(start: int, lengths: Sequence[int], seen: Sequence[int]) -> Padding:
    own = np.array(lengths)[:, None]
    places = np.arange(lengths[0])
    firsts = start + np.cumsum(own, axis=0) - own
    is_own = places < own
    bias = np.where(places < np.array(seen)[:, None], np.float32(0), np.float32("-inf"))
    return Padding(
        torch.from_numpy((firsts + np.minimum(places, own - 1)).ravel()),
        torch.from_numpy(bias)[:, None, None],
        torch.from_numpy(np.flatnonzero(is_own)),
    )
