"""Attention within each text of a packed sequence on a CUDA device: one call for all texts. Called by captured graphs.

In 16 bit by flash attention, in fp32 and on cards before Ampere by torch's memory-efficient kernel. Both take the
texts' bounds as a tensor, so that a recorded pass (``recording``) serves any texts that fit into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from shard.encoders.graph.attention import Rule

_flash = torch.ops.aten._flash_attention_forward.default  # noqa: SLF001 - 16 bit alone has a public name
_efficient = torch.ops.aten._efficient_attention_forward.default  # noqa: SLF001

#: ``custom_mask_type`` of torch's memory-efficient attention.
_NO_MASK: Final = 0
_CAUSAL: Final = 1
_NO_WINDOW: Final = -1
#: The first compute capability that flash attention is written for.
_AMPERE: Final = (8, 0)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where each text of a pass begins and ends.

    ``starts`` has the first token of each text and the end of the last, int32, shape (texts + 1,); texts may be empty.
    No text has more than ``longest`` tokens. ``seen``, int32, shape (texts,), is how many tokens of each are attended
    to; ``None``: all.
    """

    starts: torch.Tensor
    longest: int
    seen: torch.Tensor | None = None


def attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule, bounds: Bounds
) -> torch.Tensor:
    """Attend within each text. Shapes: (1, heads, tokens, size) each, result (1, tokens, heads, size).

    What the result holds for tokens behind the last text is undefined. Raises ``NotImplementedError`` for what the
    kernel of this number format cannot do.
    """
    queries, keys, values = (tensor.transpose(1, 2) for tensor in (query, key, value))
    if query.dtype == torch.float32 or not _takes_flash(query.device):
        return _attend_widely(queries, keys, values, rule, bounds)
    reach = _NO_WINDOW if rule.window is None else rule.window - 1
    attended: torch.Tensor = _flash(
        queries[0],
        keys[0],
        values[0],
        bounds.starts,
        bounds.starts,
        bounds.longest,
        bounds.longest,
        0.0,
        rule.causal,
        False,  # noqa: FBT003 - no mask for debugging; the operation takes it by position
        scale=rule.scale,
        window_size_left=reach,
        window_size_right=0 if rule.causal else reach,
        seqused_k=bounds.seen,
    )[0]
    return attended[None]


def _attend_widely(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rule: Rule, bounds: Bounds
) -> torch.Tensor:
    if bounds.seen is not None or rule.window is not None:
        raise NotImplementedError("memory-efficient attention sees all of a text")
    repeated = queries.shape[2] // keys.shape[2]
    if repeated > 1:
        keys, values = (tensor.repeat_interleave(repeated, dim=2) for tensor in (keys, values))
    attended: torch.Tensor = _efficient(
        queries,
        keys,
        values,
        None,
        bounds.starts,
        bounds.starts,
        bounds.longest,
        bounds.longest,
        0.0,
        _CAUSAL if rule.causal else _NO_MASK,
        scale=rule.scale,
    )[0]
    return attended


@cache
def _takes_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _AMPERE
