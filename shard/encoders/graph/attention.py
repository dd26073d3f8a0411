"""Attention within each text of a packed sequence. Called by captured graphs.

A text attends by three plain steps (product, softmax, product) up to a length that ``kernels`` finds by measuring, and
by torch's fused attention beyond it, which does not hold all scores at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

_NOTHING_TO_ADD: Final = torch.empty(1)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one layer attends. ``scale`` ``None`` is ``size ** -0.5``.

    With a ``window`` a token sees those that are less than so far away. Texts of up to ``plain_tokens`` take the three
    plain steps.
    """

    scale: float | None
    causal: bool
    window: int | None
    plain_tokens: int


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` texts of ``length`` tokens each that stand next to each other from token ``start`` on."""

    start: int
    count: int
    length: int

    @property
    def end(self) -> int:
        """The first token behind it."""
        return self.start + self.count * self.length


def find_segments(lengths: Sequence[int]) -> list[Segment]:
    """Join neighbours of equal length: their attention is one batched product."""
    segments: list[Segment] = []
    start = 0
    for length in lengths:
        if segments and segments[-1].length == length:
            segments[-1] = Segment(segments[-1].start, segments[-1].count + 1, length)
        else:
            segments.append(Segment(start, 1, length))
        start += length
    return segments


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Attend within each text. Shapes: (1, heads, tokens, size) each, result (1, tokens, heads, size)."""

    def attend_within(segment: Segment) -> torch.Tensor:
        queries, keys, values = (_split(tensor, segment) for tensor in (query, key, value))
        return _attend(queries, keys, values, rule)

    return _gather(attend_within, segments, query.shape[2])


def attend_joint(
    joint: torch.Tensor,
    size: int,
    rule: Rule,
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Do what ``attend`` does where one layer has made query, key and value: shape (1, tokens, 3 * heads * size)."""
    _, tokens, width = joint.shape
    heads = width // (3 * size)
    rows = joint.view(tokens, 3, heads, size)

    def attend_within(segment: Segment) -> torch.Tensor:
        own = rows[segment.start : segment.end].view(segment.count, segment.length, 3, heads, size)
        queries, keys, values = own.permute(2, 0, 3, 1, 4)
        return _attend(queries, keys, values, rule)

    return _gather(attend_within, segments, tokens)


def _attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rule: Rule,
) -> torch.Tensor:
    length, grouped = queries.shape[2], keys.shape[1] != queries.shape[1]
    if rule.window is not None and length > rule.window:
        mask = _window_mask(length, rule.window, causal=rule.causal)
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=rule.scale, enable_gqa=grouped
        )
    if length <= rule.plain_tokens and not rule.causal and not grouped:
        return attend_plainly(queries, keys, values, rule.scale)
    return functional.scaled_dot_product_attention(
        queries, keys, values, scale=rule.scale, is_causal=rule.causal, enable_gqa=grouped
    )


def _window_mask(length: int, window: int, *, causal: bool) -> torch.Tensor:
    """Return what each token sees, shape (length, length): transformers' sliding windows, of both kinds."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def attend_plainly(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Attend without a mask, shapes (count, heads, length, size); ``scale`` ``None`` is ``size ** -0.5``."""
    count, heads, length, size = queries.shape
    query, key, value = (tensor.reshape(-1, length, tensor.shape[-1]) for tensor in (queries, keys, values))
    factor = size**-0.5 if scale is None else scale
    scores = torch.baddbmm(_NOTHING_TO_ADD.to(query.dtype), query, key.transpose(1, 2), beta=0, alpha=factor)
    return torch.bmm(torch.softmax(scores, -1), value).view(count, heads, length, -1)


def _gather(attend_within: Callable[[Segment], torch.Tensor], segments: Sequence[Segment], tokens: int) -> torch.Tensor:
    """Return what each segment has, (count, heads, length, size), one after the other: (1, tokens, heads, size)."""
    parts = [attend_within(segment).transpose(1, 2) for segment in segments]
    _, _, heads, size = parts[0].shape
    if len(parts) == 1:
        return parts[0].contiguous().view(1, tokens, heads, size)
    return torch.cat([part.reshape(-1, heads, size) for part in parts])[None]


def _split(tensor: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(1, heads, tokens, size) → (count, heads, length, size) of one segment."""
    _, heads, _, size = tensor.shape
    own = tensor[0, :, segment.start : segment.end]
    return own.reshape(heads, segment.count, segment.length, size).transpose(0, 1)
