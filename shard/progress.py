"""Tells the supervisor, again and again, what this process is at. Started by ``main`` once the model is ready.

A thread of its own: what it sends proves that the interpreter still gives threads their turn, and says how long the
oldest work has been in hand, which a process that only lives would not.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.status import Progress
from emb_model_provider.rss import rss_bytes
from shard.activity import Activity

#: An event loop turns within milliseconds unless something holds it up.
_LOOP_LAG_S: Final = 1.0


class Busy(Protocol):
    """What ``engine`` tells of itself, from any thread and at once."""

    def activity(self) -> Activity: ...


def report_progress(
    busy: Busy, loop: asyncio.AbstractEventLoop, send: Callable[[Message], None], every_s: float
) -> None:
    """Send ``Progress`` every ``every_s`` seconds from now on, as long as the process lives."""
    reporter = _Reporter(busy, loop, send)
    threading.Thread(target=reporter.run, args=(every_s,), name="progress", daemon=True).start()


class _Reporter:
    def __init__(self, busy: Busy, loop: asyncio.AbstractEventLoop, send: Callable[[Message], None]) -> None:
        self._busy = busy
        self._loop = loop
        self._send = send
        #: When the loop was asked to turn, while it has not done so.
        self._asked_s: float | None = None

    def run(self, every_s: float) -> None:
        while not self._loop.is_closed():
            sys.stderr.flush()  # what could not be written before
            self._send(self._report())
            time.sleep(every_s)

    def _report(self) -> Progress:
        activity = self._busy.activity()
        return Progress(
            batches_done=activity.batches_done,
            running_s=round(max(activity.oldest_s, self._loop_lag_s()), 3),
            waiting_texts=activity.waiting_texts,
            waiting_tokens=activity.waiting_tokens,
            rss_bytes=rss_bytes(),
            last_success=activity.last_success,
            batches=activity.batches,
        )

    def _loop_lag_s(self) -> float:
        """Return for how long the loop has not turned, where that is out of the ordinary: it answers nobody then."""
        now_s = time.monotonic()
        if self._asked_s is None:
            self._asked_s = now_s
            try:
                self._loop.call_soon_threadsafe(self._loop_turned)
            except RuntimeError:  # closed: the process ends
                self._asked_s = None
            return 0.0
        lag_s = now_s - self._asked_s
        return lag_s if lag_s > _LOOP_LAG_S else 0.0

    def _loop_turned(self) -> None:
        self._asked_s = None
