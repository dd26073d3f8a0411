"""How long a request may take, and what its client hears when that is over. Used by ``service``.

One timer for all limits, set for the earliest: one for each, as ``asyncio.timeout`` has it, takes a tenth of what the
router does for a small request, and hardly any of them ever rings.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from types import TracebackType
from typing import Final

from emb_model_provider.errors import DeadlineError

#: What a client may do about it stands in every such error.
LIMITED_BY: Final = (
    "the limit is the shortest of EMB_PROVIDER_REQUEST_TIMEOUT_S, the header x-request-timeout and the field timeout_ms"
)
#: Limits that are over stay among the others until there are more of them than of those, and at least so many.
_MOST_KEPT: Final = 64


class TimeLimits:
    """The limits of all requests of one event loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        #: A heap: when, a number that is never the same, and which.
        self._set: list[tuple[float, int, TimeLimit]] = []
        self._numbers = itertools.count()
        self._over = 0
        self._timer: asyncio.TimerHandle | None = None

    def limit(self, inputs: int, *limits_s: float | None, since_s: float | None = None) -> TimeLimit:
        """Return what ends, with ``DeadlineError``, what runs within after the shortest of the times that are given.

        0 and ``None`` are none. Times count from ``since_s`` on the loop's clock, by default from when it is entered,
        which returns when that is, on the same clock. ``inputs`` is how many were asked for.
        """
        return TimeLimit(self, inputs, min([limit_s for limit_s in limits_s if limit_s], default=None), since_s)

    def loop_and_task(self) -> tuple[asyncio.AbstractEventLoop, asyncio.Task[object]]:
        """Return those that run. To ask for the loop is a system call in Python 3.11, so it is kept."""
        task = None if self._loop is None else asyncio.current_task(self._loop)
        if self._loop is None or task is None:
            self._loop = asyncio.get_running_loop()
            task = asyncio.current_task(self._loop)
        assert task is not None, "what is limited runs in a task"
        return self._loop, task

    def set(self, limit: TimeLimit, when_s: float) -> None:
        """Have ``limit`` end what it is around at ``when_s`` on the loop's clock."""
        heapq.heappush(self._set, (when_s, next(self._numbers), limit))
        if self._timer is None or when_s < self._timer.when():
            self._wind()

    def discard(self) -> None:
        """Hear that one of those that were set is over."""
        self._over += 1
        if self._over > max(_MOST_KEPT, len(self._set) // 2):
            self._set = [one for one in self._set if one[2].is_running]
            heapq.heapify(self._set)
            self._over = 0

    def _wind(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._set[0][0], self._ring) if self._set else None

    def _ring(self) -> None:
        assert self._loop is not None
        while self._set and (not self._set[0][2].is_running or self._set[0][0] <= self._loop.time()):
            limit = heapq.heappop(self._set)[2]
            if limit.is_running:
                limit.expire()
        self._wind()


class TimeLimit:
    """One request's. An asynchronous context manager, as ``asyncio.timeout``, and as careful with cancellation."""

    __slots__ = ("_cancelling", "_inputs", "_is_expired", "_limit_s", "_limits", "_since_s", "_task")

    def __init__(self, limits: TimeLimits, inputs: int, limit_s: float | None, since_s: float | None) -> None:
        self._limits = limits
        self._inputs = inputs
        self._limit_s = limit_s
        self._since_s = since_s
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_expired = False

    @property
    def is_running(self) -> bool:
        """Whether it was entered and was not left."""
        return self._task is not None

    def expire(self) -> None:
        """End what runs within."""
        assert self._task is not None
        self._is_expired = True
        self._task.cancel()

    async def __aenter__(self) -> float | None:
        if self._limit_s is None:
            return None
        loop, task = self._limits.loop_and_task()
        now_s = loop.time()
        until_s = self._limit_s + (now_s if self._since_s is None else self._since_s)
        if until_s <= now_s:
            raise self._too_late()
        self._task, self._cancelling = task, task.cancelling()
        self._limits.set(self, until_s)
        return until_s

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        if not self._is_expired:
            self._limits.discard()
        elif task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._too_late() from None

    def _too_late(self) -> DeadlineError:
        advice = "Send fewer inputs at once, or ask" if self._inputs > 1 else "Ask"
        return DeadlineError(
            f"No answer within {self._limit_s:g} s, so this request was taken back. {advice} again when there is less "
            f"to do; {LIMITED_BY}."
        )
