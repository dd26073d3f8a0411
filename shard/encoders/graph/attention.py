"""Attention within each text of a packed sequence. Called by captured graphs."""

from __future__ import annotations

from collections.abc import Sequence
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
    if len(segments) == 1 and segments[0].count == 1:
        return functional.scaled_dot_product_attention(
            query, key, value, scale=scale, is_causal=causal, enable_gqa=grouped
        ).transpose(1, 2)
    _, heads, tokens, _ = query.shape
    size = value.shape[-1]
    result = query.new_empty((1, tokens, heads, size))
    for segment in segments:
        end = segment.start + segment.count * segment.length
        queries, keys, values = (_split(tensor[0, :, segment.start : end], segment) for tensor in (query, key, value))
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, scale=scale, is_causal=causal, enable_gqa=grouped
        )
        result[0, segment.start : end] = attended.transpose(1, 2).reshape(-1, heads, size)
    return result


def _split(tensor: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(heads, count * length, size) → (count, heads, length, size)."""
    heads, _, size = tensor.shape
    return tensor.reshape(heads, segment.count, segment.length, size).transpose(0, 1)
