"""The batching loop: one thread that tokenises ahead and one that owns the device.

Knows neither asyncio nor sockets: requests come in through ``submit`` from any thread and leave through the
listener, called on the engine's own threads. ``channel`` is its host.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from emb_model_provider.errors import DeadlineError, EncodeError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Encode, Encoded, Failed
from emb_model_provider.modelmap import BatchLimits
from shard.costs import SlicePlan
from shard.encoder import Encoder, Tokenized, Vectors
from shard.intake import as_failed, tokenize
from shard.isolate import encode_isolated
from shard.jobs import NEVER_S, Input, Job, Jobs

log = EventLog("shard.engine")


class Listener(Protocol):
    """Hears what becomes of the work; called on engine threads, so it must be quick and thread-safe."""

    def started(self, keys: list[int]) -> None:
        """Hear that the device begins with the first inputs of these jobs."""

    def finished(self, key: int, outcome: Encoded | Failed) -> None:
        """Take a job's vectors or its error; never called for a cancelled job."""


class Engine:
    """Runs one encoder."""

    def __init__(
        self,
        encoder: Encoder,
        limits: BatchLimits,
        plan: SlicePlan,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._listener = listener
        self._clock = clock
        self._jobs = Jobs(limits, plan, encoder.info.dimension)
        #: Every request that has no answer yet, with its deadline.
        self._accepted: dict[int, float] = {}
        self._changed = threading.Condition()
        self._incoming: queue.SimpleQueue[tuple[int, Encode] | None] = queue.SimpleQueue()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._tokenize_loop, name="tokenizer", daemon=True),
            threading.Thread(target=self._device_loop, name="device", daemon=True),
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, key: int, request: Encode) -> None:
        """Queue a request under a key that is not in use."""
        deadline_s = self._clock() + request.timeout_ms / 1000 if request.timeout_ms else NEVER_S
        with self._changed:
            self._accepted[key] = deadline_s
        self._incoming.put((key, request))

    def cancel(self, key: int) -> None:
        """Drop a request: what has not begun is never encoded, and the listener hears nothing more of it."""
        with self._changed:
            self._accepted.pop(key, None)
            self._jobs.drop(key)
            self._changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every accepted request is answered; false if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._accepted, timeout_s)

    def stop(self) -> None:
        """End both threads after the batch in hand."""
        self._incoming.put(None)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------------------------------- the tokenizer thread

    def _tokenize_loop(self) -> None:
        while (item := self._incoming.get()) is not None:
            key, request = item
            deadline_s = self._accepted.get(key)
            if deadline_s is None:
                continue
            if deadline_s <= self._clock():
                self._answer([(key, _too_late())])
                continue
            tokenized = tokenize(self._encoder, request)
            if isinstance(tokenized, Failed):
                self._answer([(key, tokenized)])
            else:
                self._enqueue(key, request, tokenized, deadline_s)

    def _enqueue(self, key: int, request: Encode, texts: Sequence[Tokenized], deadline_s: float) -> None:
        with self._changed:
            if key not in self._accepted:
                return
            job = self._jobs.add(key, request, texts, self._clock(), deadline_s)
            self._changed.notify_all()
        if job.started:
            self._listener.started([key])

    # ---------------------------------------------------------------------------------------- the device thread

    def _device_loop(self) -> None:
        while not self._stopping:
            with self._changed:
                batch, expired = self._next_batch()
                newly_started = self._jobs.mark_started(batch)
            self._answer([(job.key, _too_late()) for job in expired])
            if newly_started:
                self._listener.started(newly_started)
            if batch:
                self._deliver(batch, self._encode(batch))

    def _next_batch(self) -> tuple[list[Input], list[Job]]:
        """Return what ``Jobs.take`` does, or nothing after waiting until something has changed."""
        due_in_s = self._jobs.scheduler.due_in_s(self._clock())
        if due_in_s == 0.0:
            return self._jobs.take(self._clock())
        if not self._stopping:
            self._changed.wait(due_in_s)
        return [], []

    def _encode(self, batch: Sequence[Input]) -> list[Vectors | Exception]:
        began_s = self._clock()
        texts = [one.tokenized for one in batch]
        results = encode_isolated(self._encoder.encode, self._encoder.encode_exactly, texts)
        self._jobs.scheduler.observe(batch, 1000 * (self._clock() - began_s))
        return results

    def _deliver(self, batch: Sequence[Input], results: Sequence[Vectors | Exception]) -> None:
        complete: list[Job] = []
        failed: dict[int, Failed] = {}
        with self._changed:
            for one, result in zip(batch, results, strict=True):
                for job, index in self._jobs.release(one):
                    if isinstance(result, Exception):
                        log.error("encode_failed", index=index, error=f"{type(result).__name__}: {result}")
                        failed.setdefault(job.key, _failed_input(job.request.first_index + index))
                    elif job.take(index, result):
                        complete.append(job)
        self._answer([*((job.key, job.encoded()) for job in complete), *failed.items()])

    def _answer(self, outcomes: Sequence[tuple[int, Encoded | Failed]]) -> None:
        if not outcomes:
            return
        with self._changed:
            due = [(key, outcome) for key, outcome in outcomes if key in self._accepted]
            for key, _ in due:
                self._jobs.drop(key)
        for key, outcome in due:
            self._listener.finished(key, outcome)
        # Only now: whoever waits for idle may rely on the listener having heard of everything.
        with self._changed:
            for key, _ in due:
                self._accepted.pop(key, None)
            self._changed.notify_all()


def _failed_input(index: int) -> Failed:
    message = f"The model failed on input {index}; every other input is fine. Change or leave out that input."
    return Failed(EncodeError.status, EncodeError.kind, EncodeError.code, message, "input", index)


def _too_late() -> Failed:
    return as_failed(DeadlineError("No answer in time, so this was not encoded. Ask again when there is less to do."))
