"""What a shard's batches add up to, for ``/metrics``. Kept by ``engine`` under its lock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from emb_model_provider.messages.status import BatchTotals
from emb_model_provider.modelmap import BatchLimits
from shard.batching.costs import SlicePlan
from shard.encoders.padded_batches import padded_batches

#: The bounds of ``emb_batch_fill_ratio`` and ``emb_batch_time_ratio``; a test holds them to the router's.
FILL_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
RATIO_BOUNDS: Final = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0)


class Totals:
    """Adds up batches; where texts are padded, so is the count of what is computed."""

    def __init__(self, limits: BatchLimits, plan: SlicePlan, *, is_padded: bool) -> None:
        self._max_texts = limits.max_batch_size
        self._plan = plan
        self._is_padded = is_padded
        self._texts = self._tokens = self._computed = 0
        self._predicted_ms = self._took_ms = 0.0
        self._fill = [0.0] * (len(FILL_BOUNDS) + 2)
        self._ratio = [0.0] * (len(RATIO_BOUNDS) + 2)

    def add(self, lengths: Sequence[int], predicted_ms: float) -> None:
        """Count a batch of texts of so many tokens."""
        if not lengths:
            return
        tokens = sum(lengths)
        self._texts += len(lengths)
        self._tokens += tokens
        self._computed += self._padded(lengths) if self._is_padded and len(lengths) > 1 else tokens
        by_time = predicted_ms / self._plan.slice_ms if self._plan.slice_ms else 0.0
        fill = max(by_time, tokens / self._plan.max_tokens, len(lengths) / self._max_texts)
        self._fill[bisect_left(FILL_BOUNDS, fill)] += 1
        self._fill[-1] += fill

    def timed(self, predicted_ms: float, took_ms: float) -> None:
        """Count the times of a batch that ran as the cost model assumes."""
        self._predicted_ms += predicted_ms
        self._took_ms += took_ms
        if predicted_ms > 0:
            self._ratio[bisect_left(RATIO_BOUNDS, took_ms / predicted_ms)] += 1
            self._ratio[-1] += took_ms / predicted_ms

    def so_far(self) -> BatchTotals:
        return BatchTotals(
            texts=self._texts,
            tokens=self._tokens,
            computed_tokens=self._computed,
            predicted_ms=round(self._predicted_ms, 3),
            took_ms=round(self._took_ms, 3),
            fill=tuple(self._fill),
            time_ratio=tuple(self._ratio),
        )

    def _padded(self, lengths: Sequence[int]) -> int:
        batches = padded_batches(lengths, [0] * len(lengths), max_tokens=self._plan.max_tokens)
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
