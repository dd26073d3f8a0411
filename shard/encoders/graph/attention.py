"""Attention within each text of a packed sequence. Called by captured graphs.

A text attends by three plain steps (product, softmax, product) up to a length that ``kernels`` knows, and by torch's
fused attention beyond it, which does not hold all scores at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from shard.encoders.graph.segments import Padding, Segment


@dataclass(frozen=True, slots=True)
class Rule:
    """How one layer attends. ``scale`` ``None`` is ``size ** -0.5``.

    With a ``window`` a token sees those that are less than so far away. Texts of up to ``plain_tokens`` take the three
    plain steps, as far as this layer lets them.
    """

    scale: float | None
    causal: bool
    window: int | None
    plain_tokens: int

    def is_plain(self, length: int) -> bool:
        """Tell whether texts of this length take the three plain steps."""
        return length <= self.plain_tokens and not self.causal and not self.cuts(length)

    def cuts(self, length: int) -> bool:
        """Tell whether some of a text's tokens do not see all of it."""
        return self.window is not None and length > self.window


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Attend within each text. Shapes: (1, heads, tokens, size) each, result (1, tokens, heads, size).

    Tokens behind the last segment belong to no text; what they get is finite and nobody reads it.
    """

    def attend_within(segment: Segment) -> torch.Tensor:
        queries, keys, values = (_split(tensor, segment) for tensor in (query, key, value))
        return _attend(queries, keys, values, rule, segment.padding)

    return _join(attend_within, segments, query.shape[2])


def attend_joint(
    joint: torch.Tensor,
    size: int,
    rule: Rule,
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Do what ``attend`` does where one layer has made query, key and value: shape (1, tokens, 3 * heads * size)."""
    _, tokens, width = joint.shape
    heads = width // (3 * size)
    if len(segments) == 1 and segments[0].count == 1 and rule.is_plain(segments[0].length):
        return _attend_one(joint, segments[0], rule, heads, size)
    rows = joint.view(tokens, width)

    def attend_within(segment: Segment) -> torch.Tensor:
        count, length = segment.count, segment.length
        own = _take(rows, segment).view(count, length, 3, heads, size).permute(2, 0, 3, 1, 4)
        if not rule.is_plain(length):
            return _attend(own[0], own[1], own[2], rule, segment.padding)
        # Of short texts every call counts: one copy for all three, and none for a text by itself.
        queries, keys, values = own.reshape(3, count * heads, length, size).unbind(0)
        bias = None if segment.padding is None else segment.padding.bias.to(own.dtype).repeat_interleave(heads, 0)
        return attend_plainly(queries, keys, values, rule.scale, bias).view(count, heads, length, size)

    return _join(attend_within, segments, tokens)


def _attend_one(joint: torch.Tensor, text: Segment, rule: Rule, heads: int, size: int) -> torch.Tensor:
    """Do what ``attend_joint`` does for one short text, of which every call counts, and every copy."""
    tokens, places, padding = joint.shape[1], text.length, text.padding
    own = joint[:, :places] if padding is None else joint.index_select(1, padding.gather)
    bias = None if padding is None else padding.bias.to(own.dtype)
    queries, keys, values = own.view(places, 3, heads, size).permute(1, 2, 0, 3).unbind(0)
    attended = attend_plainly(queries, keys, values, rule.scale, bias).transpose(0, 1)
    if places < tokens:
        attended = functional.pad(attended, (0, 0, 0, 0, 0, tokens - places))
    return attended[None, :tokens].contiguous()


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: Rule, padding: Padding | None
) -> torch.Tensor:
    count, heads, length, _ = queries.shape
    grouped = keys.shape[1] != heads
    mask = None if padding is None else padding.bias[:, None].to(queries.dtype)
    if rule.is_plain(length) and not grouped:
        query, key, value = (tensor.reshape(-1, length, tensor.shape[-1]) for tensor in (queries, keys, values))
        bias = None if mask is None else mask[:, 0].repeat_interleave(heads, 0)
        return attend_plainly(query, key, value, rule.scale, bias).view(count, heads, length, -1)
    causal = rule.causal
    if rule.cuts(length) or (rule.causal and mask is not None):
        window = _window_mask(length, rule.window or length, causal=rule.causal)
        mask = window if mask is None else mask.masked_fill(~window, -torch.inf)
        causal = False
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=rule.scale, is_causal=causal, enable_gqa=grouped
    )


def _window_mask(length: int, window: int, *, causal: bool) -> torch.Tensor:
    """Return what each token sees, shape (length, length): transformers' sliding windows, of both kinds."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def attend_plainly(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend to all keys, shapes (texts · heads, length, size); ``scale`` ``None`` is ``size ** -0.5``.

    ``bias`` of shape (texts · heads or 1, 1, length) is added to the scores.
    """
    factor = queries.shape[2] ** -0.5 if scale is None else scale
    keys = keys.transpose(1, 2)
    if bias is None:
        scores = torch.baddbmm(_nothing(queries.dtype), queries, keys, beta=0, alpha=factor)
    else:
        scores = torch.baddbmm(bias, queries, keys, alpha=factor)
    return torch.bmm(torch.softmax(scores, -1), values)


@cache
def _nothing(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(1, dtype=dtype)


def _join(attend_within: Callable[[Segment], torch.Tensor], segments: Sequence[Segment], tokens: int) -> torch.Tensor:
    """Return what each segment has, (count, heads, length, size), one after the other: (1, tokens, heads, size)."""
    parts = [_flatten(attend_within(segment), segment) for segment in segments]
    if segments[-1].end < tokens:
        parts.append(parts[0].new_zeros((tokens - segments[-1].end, *parts[0].shape[1:])))
    return (parts[0].contiguous() if len(parts) == 1 else torch.cat(parts))[None]


def _flatten(attended: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(count, heads, length, size) → (tokens, heads, size), without padding."""
    _, heads, _, size = attended.shape
    if segment.padding is None:
        return attended.transpose(1, 2).reshape(-1, heads, size)
    rows = attended.transpose(1, 2).reshape(-1, heads * size)
    return rows.index_select(0, segment.padding.places).view(-1, heads, size)


def _split(tensor: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(1, heads, tokens, size) → (count, heads, length, size) of one segment."""
    _, heads, _, size = tensor.shape
    own = _take(tensor[0].transpose(0, 1).flatten(1), segment)
    return own.view(segment.count, segment.length, heads, size).transpose(1, 2)


def _take(rows: torch.Tensor, segment: Segment) -> torch.Tensor:
    """Return a segment's rows, shape (count · length, width). ``index_select`` copies whole rows, indexing does not."""
    if segment.padding is None:
        return rows if segment.end - segment.start == len(rows) else rows[segment.start : segment.end]
    return rows.index_select(0, segment.padding.gather)
