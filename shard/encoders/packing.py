"""Texts laid end to end, so that a forward pass computes no padding at all. Used by ``sentence_transformer``.

transformers lets an attention function be registered by name: the stock model then runs on ids of shape (1, tokens)
with explicit positions, and only attention has to know where one text ends and the next begins. A vector computed so
does not depend on its neighbours. Whether a model can be run like this is not looked up in a list of names:
``loader`` compares its vectors with those of each text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

ATTENTION_NAME = "emb_packed"
_MAX_PADDING = 4


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


def packed_batches(lengths: Sequence[int], groups: Sequence[int], *, max_tokens: int) -> list[list[int]]:
    """Return lists of indices into ``lengths``, longest first, of at most ``max_tokens`` together or of one text.

    Texts of different ``groups`` never share a batch. Pooling pads the hidden states of a batch to its longest text:
    one long text among many short ones ends the batch before that takes more than ``_MAX_PADDING`` times the memory.
    """
    order = sorted(range(len(lengths)), key=lambda index: (groups[index], lengths[index]), reverse=True)
    batches: list[list[int]] = []
    used = 0
    for index in order:
        if batches and groups[batches[-1][0]] == groups[index]:
            padded = lengths[batches[-1][0]] * (len(batches[-1]) + 1)
            if used + lengths[index] <= max_tokens and padded <= _MAX_PADDING * max_tokens:
                batches[-1].append(index)
                used += lengths[index]
                continue
        batches.append([index])
        used = lengths[index]
    return batches


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    segments: Sequence[Segment],
    **_options: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each text. Shapes: query (1, heads, tokens, size), result (1, tokens, heads, size).

    Signature: transformers' ``AttentionInterface``.
    """
    _, heads, tokens, size = query.shape
    result = query.new_empty((1, tokens, heads, size))
    is_causal = bool(getattr(module, "is_causal", False))
    for segment in segments:
        end = segment.start + segment.count * segment.length
        queries, keys, values = (_split(tensor[0, :, segment.start : end], segment) for tensor in (query, key, value))
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, scale=scaling, is_causal=is_causal, enable_gqa=key.shape[1] != heads
        )
        result[0, segment.start : end] = attended.transpose(1, 2).reshape(-1, heads, size)
    return result, None


def _split(tensor: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(heads, count * length, size) → (count, heads, length, size)."""
    heads, _, size = tensor.shape
    return tensor.reshape(heads, segment.count, segment.length, size).transpose(0, 1)


class PackedModel:
    """Runs a transformers model on packed texts."""

    def __init__(self, model: PreTrainedModel) -> None:
        AttentionInterface.register(ATTENTION_NAME, attend)
        AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
        self._model = model
        self._usual = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
        self._first_position = _first_position(model)

    def use(self) -> None:
        """Let the model attend within texts from now on."""
        self._model.set_attn_implementation(ATTENTION_NAME)

    def give_up(self) -> None:
        """Give the model its usual attention back."""
        self._model.set_attn_implementation(self._usual)

    def run(self, ids: torch.Tensor, type_ids: torch.Tensor | None, lengths: Sequence[int]) -> torch.Tensor:
        """Return the last hidden states, shape (tokens, size), of flat ``ids`` of texts of these lengths."""
        positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths]) + self._first_position
        more = {} if type_ids is None else {"token_type_ids": type_ids[None]}
        output = self._model(
            input_ids=ids[None], position_ids=positions[None], segments=find_segments(lengths), use_cache=False, **more
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def _no_mask(*_arguments: object, **_options: object) -> None:
    """Make no mask: ``attend`` knows where texts end."""


def _first_position(model: PreTrainedModel) -> int:
    """Return the position of a text's first token: RoBERTa and its kin count from behind their padding's."""
    for module in model.modules():
        if isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            padding = getattr(module, "padding_idx", None)
            return padding + 1 if isinstance(padding, int) else 0
    return 0
