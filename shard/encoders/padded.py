"""The reference path: the stock transformer on padded batches. Every quicker one is compared with it.

Runs the modules' forward passes directly, without ``SentenceTransformer.encode``: batches come tokenised and are
padded here to nearly equal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from shard.encoder import Results, Tokenized
from shard.encoders.heads import Features, Head
from shard.encoders.padded_batches import padded_batches

#: Padded tokens of one forward pass. On a CPU more falls out of the cache; a GPU wants many.
_MAX_TOKENS_CPU = 2048
_MAX_TOKENS_CUDA = 32768


class PaddedPath:
    """Implements ``sentence_transformer.ForwardPath`` with the model's own code."""

    def __init__(self, transformer: nn.Module, heads: Head, device: str, *, pad_id: int, wants_type_ids: bool) -> None:
        self._transformer = transformer.eval().requires_grad_(requires_grad=False)
        self._heads = heads
        self._device = torch.device(device)
        self._pad_id = pad_id
        self._wants_type_ids = wants_type_ids

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return padded_batches(
            [len(one.ids) for one in batch],
            [self._heads.group(one) for one in batch],
            max_tokens=_MAX_TOKENS_CPU if self._device.type == "cpu" else _MAX_TOKENS_CUDA,
        )

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of ``rows``, which ``split`` has put together.

        Rows are padded on the right whatever the tokenizer prefers: positions then start at 0 for all of them, and
        a result is that of the text alone.
        """
        return self._heads.run(self._transformer(self._features(rows)), rows)

    def _features(self, rows: Sequence[Tokenized]) -> Features:
        width = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), width), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        types = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            mask[number, : len(row.ids) - row.expanded] = 1
            if row.type_ids is not None:
                types[number, : len(row.ids)] = row.type_ids
        features: Features = {"input_ids": self._place(ids), "attention_mask": self._place(mask), "modality": "text"}
        if self._wants_type_ids:
            features["token_type_ids"] = self._place(types)
        return features

    def _place(self, matrix: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(matrix).to(self._device, non_blocking=True)
