"""The requests in a shard and the distinct texts they wait for: bookkeeping. Called by ``engine`` under its lock.

Equal texts in flight are one input with several waiters, so they are encoded once. Those of a request that runs
*alone* are shared with nobody: whoever waited for them would be lost with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from emb_model_provider.messages import Encode, Encoded
from emb_model_provider.modelmap import BatchLimits
from shard.costs import SlicePlan
from shard.encoder import Tokenized, Vectors, cut
from shard.scheduler import Batch, Item, Scheduler

#: The deadline of what has none.
NEVER_S: Final = float("inf")


@dataclass(eq=False, slots=True)
class Job:
    """One request: where its vectors come together."""

    key: int
    request: Encode
    vectors: Vectors
    missing: int
    deadline_s: float
    inputs: list[Input] = field(default_factory=list)
    started: bool = False

    def take(self, index: int, vector: Vectors) -> bool:
        """Keep one vector; tell whether it was the last one missing."""
        self.vectors[index] = vector
        self.missing -= 1
        return not self.missing

    def encoded(self) -> Encoded:
        """Return the answer."""
        dimensions = self.request.dimensions
        vectors = self.vectors if dimensions is None else cut(self.vectors, dimensions)
        return Encoded(
            vectors=vectors.tobytes(),
            dimension=vectors.shape[1],
            tokens=tuple(one.length for one in self.inputs),
            truncated=tuple(index for index, one in enumerate(self.inputs) if one.tokenized.truncated),
        )


@dataclass(eq=False, slots=True)
class Input(Item):
    """One distinct text in flight; ``waiters`` are jobs with the index that the text has in them."""

    tokenized: Tokenized
    waiters: list[tuple[Job, int]] = field(default_factory=list)


class Jobs:
    """All jobs of a shard that are tokenised and not yet answered. ``dimension`` is that of the vectors."""

    def __init__(self, limits: BatchLimits, plan: SlicePlan, lanes: int, dimension: int) -> None:
        self.scheduler: Scheduler[Input] = Scheduler(limits, plan, lanes)
        self._dimension = dimension
        self._jobs: dict[int, Job] = {}
        #: Those that wait for a batch or are in one.
        self._inputs: dict[Tokenized, Input] = {}

    def add(self, key: int, request: Encode, texts: Sequence[Tokenized], now_s: float, deadline_s: float) -> Job:
        """Queue a job; it is ``started`` from the first if the device is at one of its texts already."""
        vectors = np.empty((len(texts), self._dimension), dtype="<f4")
        job = self._jobs[key] = Job(key, request, vectors, len(texts), deadline_s)
        if request.alone:
            job.inputs = [Input(len(text.ids), text, [(job, index)]) for index, text in enumerate(texts)]
            self.scheduler.add_alone(job.inputs)
            return job
        queued: dict[Input, None] = {}
        for index, text in enumerate(texts):
            one = self._inputs.get(text)
            if one is None:
                one = self._inputs[text] = Input(len(text.ids), text)
                queued[one] = None
            elif one.is_waiting:
                queued[one] = None
            elif one not in queued:
                job.started = True
            one.waiters.append((job, index))
            job.inputs.append(one)
        if queued:
            self.scheduler.add(list(queued), now_s)
        return job

    def drop(self, key: int) -> None:
        """Forget a job, and every text that nobody else waits for; unknown keys are ignored."""
        job = self._jobs.pop(key, None)
        if job is None:
            return
        for one in job.inputs:
            one.waiters = [(waiter, index) for waiter, index in one.waiters if waiter is not job]
            if one.is_waiting and not one.waiters:
                self.scheduler.drop(one)
                self._forget(one)

    def take(self, now_s: float) -> tuple[Batch[Input], list[Job]]:
        """Return the next batch, and the jobs that it would have come too late for; these are dropped."""
        batch = self.scheduler.take(now_s)
        expired = {job: None for one in batch.items for job, _ in one.waiters if job.deadline_s <= now_s}
        if expired:
            for job in expired:
                self.drop(job.key)
            for one in batch.items:
                if not one.waiters:
                    self._forget(one)
            batch.items = [one for one in batch.items if one.waiters]
        return batch, list(expired)

    def mark_started(self, batch: Batch[Input]) -> list[int]:
        """Return the keys of the jobs of which these are the first texts to be encoded."""
        started = []
        for one in batch.items:
            for job, _ in one.waiters:
                if not job.started:
                    job.started = True
                    started.append(job.key)
        return started

    def release(self, one: Input) -> list[tuple[Job, int]]:
        """End the flight of a text that has its vector or its error; return who waits for it."""
        self._forget(one)
        return one.waiters

    def _forget(self, one: Input) -> None:
        if self._inputs.get(one.tokenized) is one:
            del self._inputs[one.tokenized]
