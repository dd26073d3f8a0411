"""Attention within each text of a packed sequence. Called by captured graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Segment:
    """``count`` texts of ``length`` tokens each that stand next to each other from token ``start`` on."""

    start: int
    count: int
    length: int


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
    scale: float | None,
    causal: bool,  # noqa: FBT001 - as the graph passes it
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Attend within each text. Shapes: (1, heads, tokens, size) each, result (1, tokens, heads, size)."""
    grouped = key.shape[1] != query.shape[1]

    def attend_within(segment: Segment) -> torch.Tensor:
        end = segment.start + segment.count * segment.length
        queries, keys, values = (_split(tensor[0, :, segment.start : end], segment) for tensor in (query, key, value))
        return functional.scaled_dot_product_attention(
            queries, keys, values, scale=scale, is_causal=causal, enable_gqa=grouped
        )

    return _gather(attend_within, segments, query.shape[2], query.shape[1], value.shape[-1])


def attend_joint(
    joint: torch.Tensor,
    size: int,
    scale: float | None,
    causal: bool,  # noqa: FBT001 - as the graph passes it
    segments: Sequence[Segment],
) -> torch.Tensor:
    """Attend where one layer has made queries, keys and values, shape (1, tokens, 3 * heads * size)."""
    _, tokens, width = joint.shape
    heads = width // (3 * size)
    rows = joint.view(tokens, 3, heads, size)

    def attend_within(segment: Segment) -> torch.Tensor:
        end = segment.start + segment.count * segment.length
        own = rows[segment.start : end].view(segment.count, segment.length, 3, heads, size)
        queries, keys, values = own.permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(queries, keys, values, scale=scale, is_causal=causal)

    return _gather(attend_within, segments, tokens, heads, size)


def _gather(
    attend_within: Callable[[Segment], torch.Tensor], segments: Sequence[Segment], tokens: int, heads: int, size: int
) -> torch.Tensor:
    """Return what each segment has, (count, heads, length, size), one after the other: (1, tokens, heads, size)."""
    if len(segments) == 1:
        return attend_within(segments[0]).transpose(1, 2).reshape(1, tokens, heads, size)
    parts = [attend_within(segment).transpose(1, 2).reshape(-1, heads, size) for segment in segments]
    return torch.cat(parts)[None]


def _split(tensor: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(heads, count * length, size) → (count, heads, length, size)."""
    heads, _, size = tensor.shape
    return tensor.reshape(heads, segment.count, segment.length, size).transpose(0, 1)
