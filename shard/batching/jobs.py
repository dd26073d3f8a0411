"""The requests in a shard and the distinct texts they wait for: bookkeeping. Called by ``engine`` under its lock.

Equal texts in flight are one input with several waiters, so they are encoded once. Those of a request that runs
*alone* are shared with nobody: whoever waited for them would be lost with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from emb_model_provider.messages.link import Detokenize, Encode, Encoded, InputError, Timing, Tokenize
from emb_model_provider.modelmap import BatchLimits
from shard.batching.answers import Answer
from shard.batching.costs import SlicePlan
from shard.batching.scheduler import Batch, Item, Scheduler
from shard.encoder import Result, Tokenized

#: The deadline of what has none.
NEVER_S: Final = float("inf")
#: Stands for the tokens of what is not read yet.
_UNREAD: Final = Tokenized((), 0)
_NOTHING: Final = Encode(())


class Times(NamedTuple):
    """When a request came, when its tokens were queued, and its deadline."""

    arrived_s: float
    queued_s: float
    deadline_s: float = NEVER_S


@dataclass(eq=False, slots=True)
class Job:
    """One request: where its results come together. ``inputs`` are those without an error of their own."""

    key: int
    request: Encode
    texts: Sequence[Tokenized | InputError]
    answer: Answer
    times: Times
    missing: int
    inputs: list[Input] = field(default_factory=list)
    started_s: float | None = None
    encode_ms: float = 0.0
    #: What runs alone only to be read; ``request`` then asks for nothing.
    spelled: Tokenize | Detokenize | None = None

    def take(self, index: int, result: Result) -> bool:
        """Keep the results of one input; tell whether it was the last one missing."""
        self.answer.take(index, result)
        self.missing -= 1
        return not self.missing

    def refuse(self, error: InputError) -> bool:
        """Keep the error of one input in place of its results; tell whether it was the last one missing."""
        self.answer.errors.append(error)
        self.missing -= 1
        return not self.missing

    def encoded(self) -> Encoded:
        """Return the answer."""
        times = self.times
        started_s = times.queued_s if self.started_s is None else self.started_s
        timing = Timing(
            tokenize_ms=1000 * (times.queued_s - times.arrived_s),
            queue_ms=1000 * (started_s - times.queued_s),
            encode_ms=self.encode_ms,
        )
        return self.answer.encoded(self.request, self.texts, timing)


@dataclass(eq=False, slots=True)
class Input(Item):
    """One distinct text in flight; ``waiters`` are jobs with the indexes that the text has in them."""

    tokenized: Tokenized
    #: A dict, for thousands who wait for one text may all leave at once.
    waiters: dict[Job, list[int]] = field(default_factory=dict)


def jobs_of(batch: Batch[Input]) -> list[Job]:
    """Return the jobs that wait for something in a batch, each once; under the lock, for who waits may change."""
    return list(dict.fromkeys(job for one in batch.items for job in one.waiters))


class Jobs:
    """All jobs of a shard that wait for the device or are at it. ``dimension`` is that of the model's rows."""

    def __init__(self, limits: BatchLimits, plan: SlicePlan, lanes: int, dimension: int) -> None:
        self.scheduler: Scheduler[Input] = Scheduler(limits, plan, lanes)
        self._dimension = dimension
        self._jobs: dict[int, Job] = {}
        #: Those that wait for a batch or are in one.
        self._inputs: dict[Tokenized, Input] = {}

    def add(self, key: int, request: Encode, texts: Sequence[Tokenized | InputError], times: Times) -> Job:
        """Queue a job; it has started from the first if the device is at one of its texts already.

        Where every text has an error nothing is queued, and the job is complete.
        """
        job = Job(key, request, texts, Answer(request, self._dimension), times, len(texts))
        self._jobs[key] = job
        for text in texts:
            if isinstance(text, InputError):
                job.refuse(text)
        good = [(index, text) for index, text in enumerate(texts) if isinstance(text, Tokenized)]
        queued: dict[Input, None] = {}
        for index, text in good:
            fresh = Input(len(text.ids), text)
            one = self._inputs.setdefault(text, fresh)  # one look: hashing a text's tokens costs more than the rest
            if one is fresh or one.is_waiting:
                queued[one] = None
            elif one not in queued:
                job.started_s = times.queued_s
            one.waiters.setdefault(job, []).append(index)
            job.inputs.append(one)
        if queued:
            self.scheduler.add(list(queued), times.queued_s, request.priority, is_rest=request.first_index > 0)
        return job

    def add_unread(self, key: int, request: Encode | Tokenize | Detokenize, times: Times) -> None:
        """Queue a request of one input that runs alone; it is not even tokenised before that."""
        encode, spelled = (request, None) if isinstance(request, Encode) else (_NOTHING, request)
        job = Job(key, encode, (), Answer(encode, self._dimension), times, 1, spelled=spelled)
        self._jobs[key] = job
        job.inputs = [Input(1, _UNREAD, {job: [0]})]
        self.scheduler.add_alone(job.inputs)

    def read(self, job: Job, texts: Sequence[Tokenized | InputError]) -> bool:
        """Hear how the input of ``add_unread`` reads; tell whether it is to be encoded, or the job is complete."""
        job.texts = texts
        (text,) = texts
        if isinstance(text, InputError):
            job.refuse(text)
            for one in job.inputs:
                one.waiters.clear()  # nobody waits for it, so it is not encoded
            return False
        for one in job.inputs:
            one.tokenized, one.length = text, len(text.ids)
        return True

    def drop(self, key: int) -> None:
        """Forget a job, and every text that nobody else waits for; unknown keys are ignored."""
        job = self._jobs.pop(key, None)
        if job is None or not job.missing:
            return  # none of its texts is in flight any more
        for one in dict.fromkeys(job.inputs):  # the same text a thousand times is one input
            one.waiters.pop(job, None)
            if one.is_waiting and not one.waiters:
                self.scheduler.drop(one)
                self._forget(one)
                # Its place in a queue is left when that comes to it. A long text before it may be minutes, in which
                # a client that asks and leaves, over and over, would fill the memory with tokens.
                one.tokenized = _UNREAD

    def take(self, now_s: float) -> tuple[Batch[Input], list[Job]]:
        """Return the next batch, and the jobs that it would have come too late for; these are dropped.

        Jobs of which these are the first texts to be encoded have waited until now.
        """
        batch = self.scheduler.take(now_s)
        jobs = jobs_of(batch)
        expired = [job for job in jobs if job.times.deadline_s <= now_s]
        for job in jobs:
            if job.started_s is None:
                job.started_s = now_s
        if expired:
            for job in expired:
                self.drop(job.key)
            for one in batch.items:
                if not one.waiters:
                    self._forget(one)
            self.scheduler.replan(batch, [one for one in batch.items if one.waiters])
        return batch, expired

    def charge(self, batch: Batch[Input], took_ms: float) -> None:
        """Count the time of a batch for every job that it worked for."""
        for job in jobs_of(batch):
            job.encode_ms += took_ms

    def settle(
        self, batch: Batch[Input], results: Sequence[Result | Exception]
    ) -> tuple[list[Job], list[tuple[Job, int, Exception]]]:
        """End the flight of texts that have their results or errors, in the order of ``batch``.

        Returns the jobs that are complete now, and each error with the job and the index that it falls on; what becomes
        of these is up to the caller.
        """
        complete: list[Job] = []
        failed: list[tuple[Job, int, Exception]] = []
        for one, result in zip(batch.items, results, strict=True):
            self._forget(one)
            if isinstance(result, Exception):
                failed += [(job, index, result) for job, indexes in one.waiters.items() for index in indexes]
                continue
            for job, indexes in one.waiters.items():
                complete += [job for index in indexes if job.take(index, result)]
        return complete, failed

    def _forget(self, one: Input) -> None:
        # As in ``add``, one look, and more only where an equal one runs alone.
        known = self._inputs.pop(one.tokenized, None)
        if known is not None and known is not one:
            self._inputs[known.tokenized] = known
