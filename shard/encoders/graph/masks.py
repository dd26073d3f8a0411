"""Does attention see what a model's masks let it see? Asked by ``capture``, which leaves masks out.

A difference shows in no text that is shorter than the window, and windows are often longer than any probe. So a model
runs once with masks that are only named, and each layer's rule is held against the one that its mask has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

_NAME: Final = "emb_masked"
#: Beyond any window: a mask is asked what the first, a middle and the last token of so long a text see.
_TOKENS: Final = 1 << 18

#: transformers' own: (batch, head, query, key) → whether the one sees the other, of whole tensors of places, too.
MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class MaskError(ValueError):
    """A layer's mask is another one than its attention knows of."""


@contextmanager
def attention_by(
    model: PreTrainedModel, name: str, attend: Callable[..., Any], mask: Callable[..., Any]
) -> Iterator[None]:
    """Let ``model`` attend by ``attend``, with masks of ``mask``: functions as transformers has them under a name."""
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, mask)
    usual = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def asked_rule(module: nn.Module, options: Mapping[str, Any]) -> tuple[bool, int | None]:
    """Return whether a layer's attention is causal, and its window, from what a model hands to attention."""
    causal = options.get("is_causal")
    is_causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    return is_causal, options.get("sliding_window")


def check_masks(model: PreTrainedModel, run: Callable[[], object]) -> None:
    """Let ``model`` ``run`` on a text and raise ``MaskError`` where a mask and the layer's own rule differ."""
    functions: dict[int, MaskFunction] = {}
    marks: list[torch.Tensor] = []  # kept, for their places in memory are their names
    device = model.device  # not the model: transformers keeps what is registered, and so all that it reads

    def name_mask(*, mask_function: MaskFunction, q_length: int, kv_length: int, **_options: object) -> torch.Tensor:
        mark = torch.ones((1, 1, int(q_length), int(kv_length)), dtype=torch.bool, device=device)
        marks.append(mark)
        functions[mark.untyped_storage().data_ptr()] = mask_function
        return mark

    def compare(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,  # noqa: ANN401 - whatever a model hands to attention
    ) -> tuple[torch.Tensor, None]:
        del key
        named = None if attention_mask is None else functions.get(attention_mask.untyped_storage().data_ptr())
        if named is not None and not _agree(named, *asked_rule(module, options)):
            raise MaskError("its masks let tokens see others than its attention is told")
        batch, heads, tokens, _ = query.shape
        return query.new_zeros((batch, tokens, heads, value.shape[-1])), None

    with attention_by(model, _NAME, compare, name_mask):
        run()


def _agree(function: MaskFunction, causal: bool, window: int | None) -> bool:  # noqa: FBT001 - a rule, as it is told
    keys, first = torch.arange(_TOKENS), torch.tensor(0)
    for place in (0, _TOKENS // 2, _TOKENS - 1):
        distance = place - keys
        told = distance >= 0 if causal else torch.ones_like(keys, dtype=torch.bool)
        if window is not None:
            told &= distance.abs() < window
        if not torch.equal(torch.as_tensor(function(first, first, torch.tensor(place), keys)).expand_as(told), told):
            return False
    return True
