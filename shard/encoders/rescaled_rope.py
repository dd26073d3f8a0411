"""Rotary positions that transformers rescales by the longest text of a pass (``dynamic``, ``longrope``).

Up to a length that the model states they are never rescaled, and texts share passes as those of any model do. A longer
text has a pass of its own. As the scale is kept in the model for whatever comes next, each pass through the model's own
code has it to itself, and begins with its own scale: a text's result is that of a fresh model. Made by ``parts``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from shard.encoder import Results, Tokenized
from shard.encoders.one_by_one import is_long, split_long
from shard.encoders.sentence_transformer import ForwardPath


class RescaledRope:
    """Implements ``sentence_transformer.ForwardPath`` over the plain one; ``rotaries`` are from ``find_rescaled``."""

    def __init__(self, path: ForwardPath, rotaries: Sequence[nn.Module]) -> None:
        self._path = path
        self._rotaries = rotaries
        #: The longest text whose positions are not rescaled.
        self.most_plain = min(length for rotary in rotaries for length in _lengths(rotary))
        self._in_use = threading.Lock()

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return split_long(self._path, batch, self.most_plain)

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of short texts, or of one long one."""
        with self._in_use:
            for rotary in self._rotaries:
                _reset(rotary)
            return self._path.run(rows)

    @contextmanager
    def kept_plain(self) -> Iterator[None]:
        """Let the model rescale nothing, for whoever captures it, and leave it what passes do not write to."""
        with self._in_use:
            kept = [_keep_plain(rotary) for rotary in self._rotaries]
            try:
                yield
            finally:
                for rotary, before in zip(self._rotaries, kept, strict=True):
                    for name, value in before.items():
                        setattr(rotary, name, value)


class BesideRescaled:
    """Implements ``sentence_transformer.ForwardPath``: short texts go by ``quick``, which was ``kept_plain``."""

    def __init__(self, quick: ForwardPath, plain: RescaledRope) -> None:
        self._quick = quick
        self._plain = plain

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return split_long(self._quick, batch, self._plain.most_plain)

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of short texts, or of one long one."""
        return (self._plain if is_long(rows, self._plain.most_plain) else self._quick).run(rows)


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
            rotary.register_buffer(f"{prefix}inv_freq", _original(rotary, prefix), persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


def _original(rotary: Any, prefix: str) -> torch.Tensor:  # noqa: ANN401
    """Return the rotations of a fresh model, where it computes: code of older models does not take them along there."""
    original: torch.Tensor = getattr(rotary, f"{prefix}original_inv_freq")
    return original.to(getattr(rotary, f"{prefix}inv_freq").device)


def _lengths(rotary: Any) -> Iterator[int]:  # noqa: ANN401
    """Yield up to how many tokens each set of rotations is what it is in a fresh model."""
    for prefix, kind in _kinds(rotary):
        if kind == "longrope":
            stated = rotary.config.rope_parameters
            yield (stated[prefix.removesuffix("_")] if prefix else stated)["original_max_position_embeddings"]
        elif _is_rescaled(kind):
            yield rotary.original_max_seq_len


def _keep_plain(rotary: Any) -> dict[str, Any]:  # noqa: ANN401
    """Have no pass rescale anything, and return the attributes to set again."""
    before = {"rope_type": rotary.rope_type}
    kinds = _kinds(rotary)
    for prefix, kind in kinds:
        if _is_rescaled(kind):
            name = f"{prefix}inv_freq"
            before[name] = getattr(rotary, name)
            # A copy: into the buffer itself a long text's pass writes its own.
            setattr(rotary, name, _original(rotary, prefix).clone())
    is_dict = isinstance(rotary.rope_type, dict)
    rotary.rope_type = dict.fromkeys(rotary.rope_type, "default") if is_dict else "default"
    return before
