"""The batching loop: one thread that tokenises ahead and one that owns the device.

Knows neither asyncio nor sockets: requests come in through ``submit`` from any thread and leave through the
listener, called on the engine's own threads. ``channel`` is its host.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from emb_model_provider.errors import EncodeError, InvalidRequestError, RequestError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Encode, Encoded, Failed
from emb_model_provider.modelmap import BatchLimits
from shard.encoder import Encoder, Tokenized, Vectors, cut
from shard.isolate import encode_isolated
from shard.scheduler import Scheduler, Slot

log = EventLog("shard.engine")


class Listener(Protocol):
    """Hears what becomes of the work; called on engine threads, so it must be quick and thread-safe."""

    def started(self, keys: list[int]) -> None:
        """Hear that the device begins with the first inputs of these jobs."""

    def finished(self, key: int, outcome: Encoded | Failed) -> None:
        """Take a job's vectors or its error; never called for a cancelled job."""


@dataclass(slots=True)
class _Job:
    request: Encode
    inputs: list[Tokenized]
    vectors: list[Vectors | None] = field(default_factory=list)
    missing: int = 0
    started: bool = False


class Engine:
    """Runs one encoder. ``max_batch_tokens`` bounds the tokens of one batch."""

    def __init__(
        self,
        encoder: Encoder,
        limits: BatchLimits,
        max_batch_tokens: int,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = encoder
        self._listener = listener
        self._clock = clock
        self._scheduler = Scheduler(limits, max_batch_tokens)
        self._jobs: dict[int, _Job] = {}
        self._accepted: set[int] = set()
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
        with self._changed:
            self._accepted.add(key)
        self._incoming.put((key, request))

    def cancel(self, key: int) -> None:
        """Drop a request: what has not begun is never encoded, and the listener hears nothing more of it."""
        with self._changed:
            self._accepted.discard(key)
            self._jobs.pop(key, None)
            self._scheduler.cancel(key)
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
            if key not in self._accepted:
                continue
            try:
                inputs = self._tokenize(request)
            except RequestError as error:
                self._finish(key, _as_failed(error))
            except Exception:  # a tokenizer may raise anything; only this request fails
                log.exception("tokenize_failed")
                self._finish(key, _as_failed(EncodeError("the model's tokenizer failed on this input")))
            else:
                self._enqueue(key, request, inputs)

    def _tokenize(self, request: Encode) -> list[Tokenized]:
        if request.token_ids:
            inputs = [self._accept_ids(ids, index) for index, ids in enumerate(request.token_ids, request.first_index)]
        else:
            prompt = self._encoder.resolve_prompt(request.prompt_name)
            inputs = self._encoder.tokenize(request.texts, prompt=prompt)
        if request.overlong == "error":
            _refuse_overlong(inputs, self._encoder.info.max_tokens, request.first_index)
        return inputs

    def _accept_ids(self, ids: tuple[int, ...], index: int) -> Tokenized:
        try:
            return self._encoder.accept_ids(ids)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"Input {index}: {error.message}", param="input") from None

    def _enqueue(self, key: int, request: Encode, inputs: list[Tokenized]) -> None:
        with self._changed:
            if key not in self._accepted:
                return
            self._jobs[key] = _Job(request, inputs, [None] * len(inputs), len(inputs))
            self._scheduler.add(key, [len(one.ids) for one in inputs], self._clock())
            self._changed.notify_all()

    # ---------------------------------------------------------------------------------------- the device thread

    def _device_loop(self) -> None:
        while True:
            with self._changed:
                slots = self._next_batch()
                if slots is None:
                    return
                batch = [self._jobs[slot.key].inputs[slot.index] for slot in slots]
                newly_started = self._mark_started(slots)
            if newly_started:
                self._listener.started(newly_started)
            self._deliver(slots, encode_isolated(self._encoder.encode, batch))

    def _next_batch(self) -> list[Slot] | None:
        while not self._stopping:
            due_s = self._scheduler.due_in_s(self._clock())
            if due_s == 0.0:
                return self._scheduler.take()
            self._changed.wait(due_s)
        return None

    def _mark_started(self, slots: list[Slot]) -> list[int]:
        fresh = dict.fromkeys(slot.key for slot in slots if not self._jobs[slot.key].started)
        for key in fresh:
            self._jobs[key].started = True
        return list(fresh)

    def _deliver(self, slots: list[Slot], results: list[Vectors | Exception]) -> None:
        for slot, result in zip(slots, results, strict=True):
            with self._changed:
                job = self._jobs.get(slot.key)
                if job is None:  # cancelled, or failed by an earlier input of the same request
                    continue
                if not isinstance(result, Exception):
                    job.vectors[slot.index] = result
                    job.missing -= 1
                    if job.missing:
                        continue
            if isinstance(result, Exception):
                log.error("encode_failed", index=slot.index, error=f"{type(result).__name__}: {result}")
                self._finish(slot.key, _failed_input(job.request.first_index + slot.index))
            else:
                self._finish(slot.key, _assemble(job))

    def _finish(self, key: int, outcome: Encoded | Failed) -> None:
        with self._changed:
            if key not in self._accepted:
                return
            self._jobs.pop(key, None)
            self._scheduler.cancel(key)
        self._listener.finished(key, outcome)
        # Only now: whoever waits for idle may rely on the listener having heard of everything.
        with self._changed:
            self._accepted.discard(key)
            self._changed.notify_all()


def _assemble(job: _Job) -> Encoded:
    rows = [row for row in job.vectors if row is not None]
    vectors = np.stack(rows)
    if job.request.dimensions is not None:
        vectors = cut(vectors, job.request.dimensions)
    return Encoded(
        vectors=vectors.astype("<f4", copy=False).tobytes(),
        dimension=vectors.shape[1],
        tokens=tuple(len(one.ids) for one in job.inputs),
        truncated=tuple(index for index, one in enumerate(job.inputs) if one.truncated),
    )


def _refuse_overlong(inputs: list[Tokenized], max_tokens: int, first_index: int) -> None:
    for index, one in enumerate(inputs, first_index):
        if one.truncated:
            raise InvalidRequestError(
                f"This model's maximum context length is {max_tokens} tokens, however input {index} has "
                f"{one.original_tokens} tokens. Please reduce the length of the input.",
                param="input",
                code="context_length_exceeded",
            )


def _failed_input(index: int) -> Failed:
    message = f"The model failed on input {index}; every other input is fine. Change or leave out that input."
    return Failed(EncodeError.status, EncodeError.kind, EncodeError.code, message, "input", index)


def _as_failed(error: RequestError) -> Failed:
    return Failed(error.status, error.kind, error.code, error.message, error.param)
