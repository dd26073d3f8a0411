"""One router's counting: ``entrance`` tells what happens, ``/metrics`` asks here. Made by ``main``."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from emb_model_provider.errors import QuarantinedError
from emb_model_provider.messages.status import ShardStatus
from emb_model_provider.rss import rss_bytes, rss_bytes_of
from router.metrics import catalogue as c
from router.metrics.store import Gauges, RouterCounts, Store
from router.metrics.tallies import Histogram, Tallies
from router.requests import EncodeResult
from router.visit import Visit

_WRITE_EVERY_S: Final = 1.0
#: The loop's lag is measured so often; the worst of so many seconds is told.
_LAG_EVERY_S: Final = 0.25
_LAG_PERIODS: Final = 15
_REFUSALS: Final = frozenset({401, 403, 408, 413, 415, 429, 503})
#: Known by their code: the first never reaches the device, the second has been there, and has a refusal's status.
_IN_QUARANTINE: Final = QuarantinedError.code
_TOO_LARGE_FOR_THE_DEVICE: Final = "input_too_large"


@dataclass(frozen=True, slots=True)
class _ModelSeries:
    """One model's histograms, found once."""

    inputs: Histogram
    tokens: Histogram
    tokenize: Histogram
    queue: Histogram
    encode: Histogram
    router: Histogram

    @classmethod
    def of(cls, tallies: Tallies, model: str) -> _ModelSeries:
        stages = [tallies.histogram(c.STAGE, model, stage) for stage in ("tokenize", "queue", "encode", "router")]
        inputs = tallies.histogram(c.INPUTS_PER_REQUEST, model)
        return cls(inputs, tallies.histogram(c.TOKENS_PER_REQUEST, model), *stages)


class Meter:
    """Counts for one router; ``look`` returns the state of now."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or Store("", 0)
        self.tallies = self._store.take_over()
        self.tallies.count(c.ROUTER_STARTS)
        self.in_flight = 0
        self._durations: dict[tuple[str, str, str], Histogram] = {}
        self._series: dict[str, _ModelSeries] = {}
        self._look: Callable[[], Gauges] = Gauges
        self._lags_s = [0.0] * _LAG_PERIODS
        self._due_s = math.inf

    def watch(self, look: Callable[[], Gauges]) -> None:
        """Ask ``look`` for the state that others know; in-flight requests and the loop's lag are known here."""
        self._look = look

    # --------------------------------------------------------------------------------------------- what happens

    def answered(self, visit: Visit, status: int, took_s: float) -> None:
        """Hear of one answer."""
        where = (visit.route, visit.dialect, visit.model)
        self.tallies.count(c.REQUESTS, *where, str(status))
        durations = self._durations.get(where)
        if durations is None:
            durations = self._durations[where] = self.tallies.histogram(c.DURATION, *where)
        durations.observe(took_s)
        if visit.error:
            self.tallies.count(c.ERRORS, visit.error, visit.dialect, visit.model)
            if _is_refusal(visit.error, status):
                self.tallies.count(c.REFUSED, visit.error)
        if visit.result is not None:
            self._count_result(visit.result, visit, took_s)

    def refused(self, reason: str) -> None:
        """Hear of a connection that was not let in."""
        self.tallies.count(c.REFUSED, reason)

    def resent(self, model: str) -> None:
        self.tallies.count(c.RESENDS, model)

    def _count_result(self, result: EncodeResult, visit: Visit, took_s: float) -> None:
        tallies, model, tokens = self.tallies, result.model_id, result.prompt_tokens
        inputs = visit.inputs
        tallies.count(c.INPUTS, model, by=inputs)
        tallies.count(c.TOKENS, model, by=tokens)
        for script, share in visit.shares:
            tallies.count(c.SCRIPT_TOKENS, model, script, by=tokens * share)
        if result.truncated:
            tallies.count(c.TRUNCATED, model, by=len(result.truncated))
        if failed := visit.holes + sum([len(part.errors) for part in result.parts]):
            tallies.count(c.FAILED_INPUTS, model, by=failed)
        series = self._series.get(model)
        if series is None:
            series = self._series[model] = _ModelSeries.of(tallies, model)
        series.inputs.observe(inputs)
        series.tokens.observe(tokens)
        tokenize_ms, queue_ms, encode_ms = _longest(result)
        series.tokenize.observe(tokenize_ms / 1000)
        series.queue.observe(queue_ms / 1000)
        series.encode.observe(encode_ms / 1000)
        series.router.observe(max(0.0, took_s - (tokenize_ms + queue_ms + encode_ms) / 1000))

    # -------------------------------------------------------------------------------------------------- telling

    async def write_again_and_again(self) -> None:
        """Measure the loop's lag and keep this router's file up to date, until cancelled."""
        written_s = time.monotonic()
        self.write()
        while True:
            self._due_s = time.monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            now_s = time.monotonic()
            self._lags_s[-1] = max(self._lags_s[-1], now_s - self._due_s)
            if now_s - written_s >= _WRITE_EVERY_S:
                written_s = now_s
                self.write()
                self._lags_s = [*self._lags_s[1:], 0.0]

    def loop_lag_s(self) -> float:
        """Return how late the loop was at worst in the last seconds, or is now: the first to ask may be ahead of it."""
        return round(max(*self._lags_s, time.monotonic() - self._due_s), 4)

    def write(self) -> None:
        """Write this router's file."""
        self._store.write(self.tallies, self._gauges())

    def render(self, models: Sequence[ShardStatus], accept: str) -> tuple[bytes, str]:
        """Return the text of all routers together, and its content type."""
        from router.metrics.exposition import render  # noqa: PLC0415 - 30 ms of every start for what is asked later

        gauges = self._gauges()
        self._store.write(self.tallies, gauges)
        others = self._store.others()
        total = Tallies()
        for counts in (self.tallies, *(other.tallies for other in others)):
            total.add(counts)
        ours = RouterCounts(self._store.index, os.getpid(), True, self.tallies, gauges)  # noqa: FBT003
        return render(total, [ours, *others], models, accept, rss_bytes_of(os.getppid()))

    def _gauges(self) -> Gauges:
        known = self._look()
        return Gauges(
            in_flight=self.in_flight,
            connections=known.connections,
            quarantined=known.quarantined,
            loop_lag_s=self.loop_lag_s(),
            memory_bytes=rss_bytes(),
            by_model=known.by_model,
        )


def _is_refusal(error: str, status: int) -> bool:
    return error == _IN_QUARANTINE or (status in _REFUSALS and error != _TOO_LARGE_FOR_THE_DEVICE)


def _longest(result: EncodeResult) -> tuple[float, float, float]:
    """Return the longest of each stage: slices run beside each other, so a sum could exceed the request."""
    if len(result.parts) == 1:
        timing = result.parts[0].timing
        return timing.tokenize_ms, timing.queue_ms, timing.encode_ms
    timings = [part.timing for part in result.parts]
    return (
        max(one.tokenize_ms for one in timings),
        max(one.queue_ms for one in timings),
        max(one.encode_ms for one in timings),
    )
