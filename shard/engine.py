"""The batching loop: threads that tokenise ahead, and the lanes that compute.

Knows neither asyncio nor sockets: requests come in through ``submit`` from any thread and leave through the
listener, called on the engine's own threads or within ``submit``. ``channel`` is its host.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from emb_model_provider.messages.link import Encode, Failed, InputError, Texts, Tokens
from emb_model_provider.modelmap import BatchLimits
from shard.activity import Activity, WorkInHand
from shard.batching.batch_totals import Totals
from shard.batching.costs import SlicePlan
from shard.batching.failures import as_input_error, failed_input, log_failure, too_late
from shard.batching.intake import is_small, spell, tokenize
from shard.batching.isolate import encode_isolated
from shard.batching.jobs import NEVER_S, Input, Job, Jobs, Times, jobs_of
from shard.batching.lane import Lane, count_tokenizers, threads_of_lane
from shard.batching.scheduler import Batch
from shard.batching.solitude import Solitude
from shard.encoder import Encoder, Result, Tokenized, row_dimension
from shard.listener import FIRST_LANE, HOST_THREAD, SPELLING_THREAD, TOKENIZER_THREADS, Listener, Outcome, Request
from shard.mapped_files import MappedFiles

_Incoming = queue.SimpleQueue[tuple[int, Request, float] | None]


@dataclass(eq=False, slots=True)
class _Device:
    """A lane as the engine sees it: ``wake`` is told when there may be work for it."""

    number: int
    lane: Lane
    wake: threading.Condition
    is_busy: bool = False


class Engine:
    """Runs one encoder on ``lanes``, of which the first has loaded it, and on ``threads`` cores altogether."""

    def __init__(
        self,
        encoder: Encoder,
        lanes: Sequence[Lane],
        threads: int,
        limits: BatchLimits,
        plan: SlicePlan,
        listener: Listener,
        files: MappedFiles | None = None,
    ) -> None:
        self._encoder = encoder
        self._files = files
        self._threads = threads
        self._lane_threads = threads_of_lane(threads, len(lanes))
        self._listener = listener
        self._clock = time.monotonic
        self._jobs = Jobs(limits, plan, len(lanes), row_dimension(encoder.info))
        #: Every request that has no answer yet, with its deadline.
        self._accepted: dict[int, float] = {}
        self._lock = threading.RLock()
        self._devices = [
            _Device(number, lane, threading.Condition(self._lock)) for number, lane in enumerate(lanes, FIRST_LANE)
        ]
        self._incoming: _Incoming = queue.SimpleQueue()
        #: What is to be spelled out. That may take seconds, and nothing that is to be encoded waits for it.
        self._to_spell: _Incoming = queue.SimpleQueue()
        self._stopping = False
        self._in_hand = WorkInHand()
        self._solitude = Solitude()
        self._batches_done = 0
        self._totals = Totals(limits, plan, is_padded=encoder.info.batching == "padded")
        places = [(where, self._incoming) for where in TOKENIZER_THREADS[: count_tokenizers(encoder.info, threads)]]
        #: Each with the queue that it reads.
        self._tokenizers = [
            (threading.Thread(target=self._tokenize_loop, args=place, name="tokenizer", daemon=True), place[1])
            for place in [*places, (SPELLING_THREAD, self._to_spell)]
        ]

    def start(self) -> None:
        """Let all threads work from now on."""
        for tokenizer, _ in self._tokenizers:
            tokenizer.start()
        for device in self._devices:
            device.lane.begin(partial(self._device_loop, device))

    def submit(self, key: int, request: Request) -> None:
        """Queue a request under a key that is not in use; never waits.

        A small one is tokenised before this returns, unless something runs alone; what runs alone itself, in its turn.
        """
        now_s = self._clock()
        timeout_ms = request.timeout_ms if isinstance(request, Encode) else 0
        with self._lock:
            self._accepted[key] = now_s + timeout_ms / 1000 if timeout_ms else NEVER_S
            if request.alone:
                self._jobs.add_unread(key, request, Times(now_s, now_s, self._accepted[key]))
                self._wake_idle()
                return
        if isinstance(request, Encode) and is_small(request) and self._solitude.try_read():
            try:
                self._take_in(key, request, now_s, HOST_THREAD)
            finally:
                self._solitude.done_reading()
        else:
            (self._incoming if isinstance(request, Encode) else self._to_spell).put((key, request, now_s))

    def cancel(self, key: int) -> None:
        """Drop a request: what has not begun is never encoded, and the listener hears nothing more of it."""
        with self._lock:
            self._accepted.pop(key, None)
            self._jobs.drop(key)
            self._wake_idle()  # what was to run alone may have kept a lane waiting

    def activity(self) -> Activity:
        """Return how far the work is, from any thread; cheap."""
        with self._lock:
            texts, tokens = self._jobs.scheduler.waiting_texts, self._jobs.scheduler.waiting_tokens
            totals = self._totals.so_far()
        hand = self._in_hand
        return Activity(self._batches_done, hand.oldest_s, texts, tokens, hand.last_success, totals)

    def is_idle(self) -> bool:
        """Tell whether every accepted request is answered."""
        return not self._accepted

    def stop(self) -> None:
        """End all threads after the batches in hand."""
        for _, incoming in self._tokenizers:
            incoming.put(None)
        with self._lock:
            self._stopping = True
            for device in self._devices:
                device.wake.notify()
        for tokenizer, _ in self._tokenizers:
            tokenizer.join()
        for device in self._devices:
            device.lane.join()

    # ------------------------------------------------------------------------------------ the tokenizer threads

    def _tokenize_loop(self, where: int, incoming: _Incoming) -> None:
        while (item := incoming.get()) is not None:
            self._solitude.read()
            self._take_in(*item, where)
            self._solitude.done_reading()

    def _take_in(self, key: int, request: Request, arrived_s: float, where: int) -> None:
        deadline_s = self._accepted.get(key)
        if deadline_s is None:
            return
        if deadline_s <= self._clock():
            self._answer([(key, too_late())])
            return
        self._listener.begins(where, (key,))
        self._in_hand.begin(where)
        texts = tokenize(self._encoder, request) if isinstance(request, Encode) else spell(self._encoder, request)
        self._in_hand.end(where)
        self._listener.ends(where)
        if isinstance(texts, (Tokens, Texts, Failed)):
            self._answer([(key, texts)])
        else:
            assert isinstance(request, Encode)
            self._enqueue(key, request, texts, Times(arrived_s, self._clock(), deadline_s))

    def _enqueue(self, key: int, request: Encode, texts: Sequence[Tokenized | InputError], times: Times) -> None:
        with self._lock:
            if key not in self._accepted:
                return
            job = self._jobs.add(key, request, texts, times)
            self._wake_idle()
        if not job.missing:
            self._answer([(key, job.encoded())])

    # ----------------------------------------------------------------------------------------------- the lanes

    def _device_loop(self, device: _Device) -> None:
        while not self._stopping:
            with self._lock:
                batch, expired = self._next_batch(device)
                if batch is not None:
                    device.is_busy = True
                    jobs = jobs_of(batch)
                    threads = self._threads if batch.is_wide else self._lane_threads
                self._wake_idle()
            self._answer([(job.key, too_late()) for job in expired])
            if batch is not None:
                with self._solitude.alone() if batch.is_alone else nullcontext():
                    results, took_ms = self._run(device, batch, jobs, threads)
                self._deliver(device, batch, results, took_ms)

    def _run(
        self, device: _Device, batch: Batch[Input], jobs: list[Job], threads: int
    ) -> tuple[list[Result | Exception], float]:
        """Return what becomes of a batch, and the milliseconds that it took."""
        self._listener.begins(device.number, [job.key for job in jobs])
        self._in_hand.begin(device.number)
        began_s = self._clock()
        if batch.is_alone:
            self._read_alone(batch, jobs)
        results = self._encode(batch, threads)
        if self._files is not None:
            self._files.check()
        took_ms = 1000 * (self._clock() - began_s)
        self._in_hand.end(device.number)
        self._listener.ends(device.number)
        return results, took_ms

    def _read_alone(self, batch: Batch[Input], jobs: list[Job]) -> None:
        """Tokenise what runs alone, now that nothing else can be taken for guilty; what has its answer then leaves."""
        for job in jobs:
            spelled = job.spelled
            texts = tokenize(self._encoder, job.request) if spelled is None else spell(self._encoder, spelled)
            if isinstance(texts, (Tokens, Texts, Failed)):
                self._answer([(job.key, texts)])
                continue
            with self._lock:
                is_complete = not self._jobs.read(job, texts)
            if is_complete:
                self._answer([(job.key, job.encoded())])
        self._jobs.scheduler.replan(batch, [one for one in batch.items if one.waiters])

    def _next_batch(self, device: _Device) -> tuple[Batch[Input] | None, list[Job]]:
        """Return what ``Jobs.take`` does, or nothing after waiting until something has changed."""
        due_in_s = self._jobs.scheduler.due_in_s(self._clock())
        # Of those that are free, the first one works: it is the one that may use all cores.
        is_first = next(one for one in self._devices if not one.is_busy) is device
        if is_first and due_in_s == 0.0:
            return self._jobs.take(self._clock())
        if not self._stopping:
            device.wake.wait(due_in_s if is_first else None)
        return None, []

    def _wake_idle(self) -> None:
        idle = next((device for device in self._devices if not device.is_busy), None)
        if idle is not None and self._jobs.scheduler.due_in_s(self._clock()) is not None:
            idle.wake.notify()

    def _encode(self, batch: Batch[Input], threads: int) -> list[Result | Exception]:
        if not batch.items:
            return []
        self._encoder.use_threads(threads)
        began_s = self._clock()
        texts = [one.tokenized for one in batch.items]
        results = encode_isolated(self._encoder.encode, self._encoder.encode_exactly, texts)
        # The cost model is of inference, of which a way without any teaches nothing.
        if threads == self._lane_threads and all(text.is_inferred for text in texts):
            with self._lock:
                took_ms = 1000 * (self._clock() - began_s)
                self._totals.timed(self._jobs.scheduler.predicted_ms(batch), took_ms)
                self._jobs.scheduler.observe(batch, took_ms)
        return results

    def _deliver(
        self, device: _Device, batch: Batch[Input], results: Sequence[Result | Exception], took_ms: float
    ) -> None:
        failed: dict[int, Failed] = {}
        with self._lock:
            device.is_busy = False
            self._batches_done += 1
            self._totals.add([one.length for one in batch.items], self._jobs.scheduler.predicted_ms(batch))
            self._jobs.scheduler.finished(batch)
            self._jobs.charge(batch, took_ms)
            self._wake_idle()
            complete, errors = self._jobs.settle(batch, results)
            for job, index, exception in errors:
                log_failure(job.request, index, exception)
                error = failed_input(job.request, index, exception)
                if not job.request.partial:
                    failed.setdefault(job.key, error)
                elif job.refuse(as_input_error(error, index)):
                    complete.append(job)
        if any(not isinstance(one, Exception) for one in results):
            self._in_hand.succeeded()
        self._answer([*((job.key, job.encoded()) for job in complete), *failed.items()])

    def _answer(self, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        if not outcomes:
            return
        with self._lock:
            due = [(key, outcome) for key, outcome in outcomes if key in self._accepted]
            for key, _ in due:
                self._jobs.drop(key)
        for key, outcome in due:
            self._listener.finished(key, outcome)
        # Only now: whoever finds the engine idle may rely on the listener having heard of everything.
        with self._lock:
            for key, _ in due:
                self._accepted.pop(key, None)
