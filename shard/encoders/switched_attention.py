"""BigBird's attention, which is sparse in long texts and full in short ones.

transformers switches the model at the first short text, for whatever comes next; and a pass is long if its longest text
is. So each long text has a pass of its own, and the model is switched before each pass: a text's result is that of a
fresh model. Made by ``parts``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shard.encoder import Results, Tokenized
from shard.encoders.one_by_one import is_long, split_long
from shard.encoders.sentence_transformer import ForwardPath


class SwitchedAttention:
    """Implements ``sentence_transformer.ForwardPath`` over another one; ``model`` is from ``find_sparse``."""

    def __init__(self, path: ForwardPath, model: Any) -> None:  # noqa: ANN401 - of the kinds that have such attention
        self._path = path
        self._model = model
        # As transformers has it: the first and last block, three around each, random ones, and as many to spare.
        self._most_full = (5 + 2 * model.config.num_random_blocks) * model.config.block_size
        self._in_use = threading.Lock()

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return split_long(self._path, batch, self._most_full)

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of short texts, or of one long one."""
        kind = "block_sparse" if is_long(rows, self._most_full) else "original_full"
        with self._in_use:
            with torch.device("meta"):  # it makes new layers, and then takes the weights over from the old ones
                self._model.set_attention_type(kind)
            return self._path.run(rows)


def find_sparse(model: nn.Module) -> nn.Module | None:
    """Return the part of a model that switches its attention, where it is sparse in long texts."""
    for module in model.modules():
        # Not as the module itself has it: a short text may have been through it.
        kind = getattr(getattr(module, "config", None), "attention_type", None)
        if kind == "block_sparse" and hasattr(module, "set_attention_type"):
            return module
    return None
