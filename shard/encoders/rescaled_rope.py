"""Rotary positions that transformers rescales by the longest text of a pass (``dynamic``, ``longrope``).

The scale is kept in the model, for whatever comes next. So such a model is given one text at a time, in one thread, and
starts from its own scale each time: a text's result is that of a fresh model. Made by ``parts``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from torch import nn

from shard.encoder import Results, Tokenized
from shard.encoders.one_by_one import OneByOne
from shard.encoders.sentence_transformer import ForwardPath


class RescaledRope(OneByOne):
    """Implements ``sentence_transformer.ForwardPath`` over another one; ``rotaries`` are from ``find_rescaled``."""

    def __init__(self, path: ForwardPath, rotaries: Sequence[nn.Module]) -> None:
        super().__init__(path)
        self._rotaries = rotaries
        self._in_use = threading.Lock()

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of the one text."""
        with self._in_use:
            for rotary in self._rotaries:
                _reset(rotary)
            return super().run(rows)


def find_rescaled(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a model that compute rotations whose scale depends on the text."""
    return [module for module in model.modules() if any(_is_rescaled(kind) for _, kind in _kinds(module))]


def _kinds(rotary: Any) -> list[tuple[str, object]]:  # noqa: ANN401 - transformers adds its attributes one by one
    """Return the kind of each set of rotations, by what its attributes begin with: layers may have different ones."""
    kinds = getattr(rotary, "rope_type", None)
    if isinstance(kinds, dict):
        return [(f"{layers}_", kind) for layers, kind in kinds.items()]
    return [("", kinds)]


def _is_rescaled(kind: object) -> bool:
    return isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")


def _reset(rotary: Any) -> None:  # noqa: ANN401
    for prefix, kind in _kinds(rotary):
        if isinstance(kind, str) and "dynamic" in kind:  # the other kind is set anew by every pass
            original = getattr(rotary, f"{prefix}original_inv_freq")
            rotary.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
