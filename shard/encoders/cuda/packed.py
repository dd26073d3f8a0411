"""The quick path on a CUDA device: texts laid end to end through a captured graph. The counterpart of ``packed``.

Short passes are recorded once and replayed (``recording``). A pass is asked for by one thread at a time and waited for
by each by itself: while the device is at one batch, the next is formed, and lies ready when it has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from shard.encoder import Results, Tokenized
from shard.encoders.cuda.flat_texts import FlatTexts, exact_layout
from shard.encoders.cuda.recording import MOST_TOKENS, Outputs, Recordings, record
from shard.encoders.heads import Head, Heads
from shard.encoders.packed import PackedGraph, packed_batches


class CudaPackedPath:
    """Implements ``sentence_transformer.ForwardPath`` on a CUDA device; ``run`` may be called by several threads.

    A text's first token is at ``first_position``. Nothing is recorded before ``record_passes``.
    """

    def __init__(
        self, graph: PackedGraph, heads: Head, device: str, *, first_position: int, wants_type_ids: bool
    ) -> None:
        self._graph = graph
        self._heads = heads
        #: These leave their vectors on the device, where the pass may still be running.
        self._dense = heads if isinstance(heads, Heads) else None
        self._device = torch.device(device)
        self._first_position = first_position
        self._wants_type_ids = wants_type_ids
        self._recordings = Recordings([])
        self._asking = threading.Lock()

    def record_passes(self, example: Tokenized, max_tokens: int) -> None:
        """Record passes over texts of up to ``max_tokens``; ``example`` is one of any length."""
        with torch.inference_mode(), self._asking:
            self._recordings = record(self._compute, self._device, example, max_tokens, typed=self._wants_type_ids)

    def split(self, batch: Sequence[Tokenized]) -> list[list[int]]:
        return packed_batches(
            [len(one.ids) for one in batch], [self._heads.group(one) for one in batch], max_tokens=MOST_TOKENS
        )

    def run(self, rows: Sequence[Tokenized]) -> Results:
        """Return the results of ``rows``, which ``split`` has put together."""
        used = exact_layout(rows, typed=self._wants_type_ids)
        seen = self._seen(rows)
        recording = self._recordings.find(used) if seen is None else None
        layout = used if recording is None else recording.layout
        block = torch.empty(layout.size, dtype=torch.long, pin_memory=True)
        layout.fill(block.numpy(), rows, self._first_position)
        with self._asking:
            if recording is None:
                texts = layout.read(block.to(self._device, non_blocking=True))
                hidden, pooled = self._graph(*texts.inputs, texts.bounds(seen)), None
            else:
                recording.block.copy_(block, non_blocking=True)
                recording.graph.replay()
                texts, (hidden, pooled) = layout.read(recording.block), recording.outputs
            if pooled is None or self._heads.group(rows[0]):
                features = texts.features(hidden, used.tokens, used.texts)
                if self._dense is None:
                    return self._heads.run(features, rows)
                pooled = self._dense.pool(features, rows)
            found = torch.empty((len(rows), pooled.shape[1]), dtype=torch.float32, pin_memory=True)
            found.copy_(pooled[: len(rows)], non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        done.synchronize()
        return Results(found.numpy())

    def _compute(self, texts: FlatTexts) -> Outputs:
        hidden = self._graph(*texts.inputs, texts.bounds())
        if self._dense is None or not self._dense.pools_without_asking:
            return hidden, None
        return hidden, self._dense.pool(texts.features(hidden))

    def _seen(self, rows: Sequence[Tokenized]) -> torch.Tensor | None:
        if not any(row.expanded for row in rows):
            return None
        return torch.tensor([len(row.ids) - row.expanded for row in rows], dtype=torch.int32, device=self._device)
