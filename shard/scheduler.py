"""Which texts go into the next batch: pure, with the clock passed in. Called by ``engine`` under its lock.

A job is one request's inputs with their true token counts. Jobs are served in order of arrival; a batch may
hold inputs of several jobs, and a long job spans several batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from emb_model_provider.modelmap import BatchLimits


@dataclass(frozen=True, slots=True)
class Slot:
    """One input of one job."""

    key: int
    index: int


@dataclass(slots=True)
class _Job:
    key: int
    lengths: Sequence[int]
    arrived_s: float
    taken: int = 0

    @property
    def waiting(self) -> int:
        return len(self.lengths) - self.taken


class Scheduler:
    """Forms batches within a count of texts and a budget of tokens.

    A text longer than the whole budget gets a batch of its own. With ``dynamic`` off, inputs of different jobs
    never share a batch.
    """

    def __init__(self, limits: BatchLimits, max_batch_tokens: int) -> None:
        self._limits = limits
        self._max_batch_tokens = max_batch_tokens
        self._jobs: deque[_Job] = deque()
        self._waiting_texts = 0

    @property
    def waiting_texts(self) -> int:
        """Inputs that no batch has taken yet."""
        return self._waiting_texts

    def add(self, key: int, lengths: Sequence[int], now_s: float) -> None:
        """Queue a job; ``lengths`` are tokens per input, at least one input."""
        self._jobs.append(_Job(key, lengths, now_s))
        self._waiting_texts += len(lengths)

    def cancel(self, key: int) -> None:
        """Forget what is left of a job; unknown keys are ignored."""
        for job in self._jobs:
            if job.key == key:
                self._waiting_texts -= job.waiting
                self._jobs.remove(job)
                return

    def due_in_s(self, now_s: float) -> float | None:
        """Return how long to wait before the next batch; 0 when it is due now, ``None`` when nothing is queued.

        Only a queue shorter than ``min_batch_size`` waits for company, and never past ``max_wait_time_ms``
        after its oldest job came.
        """
        if not self._jobs:
            return None
        if not self._limits.dynamic or self._waiting_texts >= self._limits.min_batch_size:
            return 0.0
        return max(0.0, self._jobs[0].arrived_s + self._limits.max_wait_time_ms / 1000 - now_s)

    def take(self) -> list[Slot]:
        """Remove the next batch from the queue; empty when nothing is queued."""
        batch: list[Slot] = []
        tokens = 0
        while self._jobs:
            job = self._jobs[0]
            while job.waiting and self._fits(len(batch), tokens, job.lengths[job.taken]):
                tokens += job.lengths[job.taken]
                batch.append(Slot(job.key, job.taken))
                job.taken += 1
            if job.waiting:
                break
            self._jobs.popleft()
            if not self._limits.dynamic:
                break
        self._waiting_texts -= len(batch)
        return batch

    def _fits(self, texts: int, tokens: int, length: int) -> bool:
        if texts == 0:
            return True
        return texts < self._limits.max_batch_size and tokens + length <= self._max_batch_tokens
