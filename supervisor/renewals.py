"""Replacements of model processes, one after another: never two at once, each ready before the old one leaves.

``tree`` asks for them: after a reload, at an operator's word, and where ``due`` finds a process too large, too old or
out of reach.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from emb_model_provider.logs import EventLog
from supervisor.posts import Post
from supervisor.room import has_room

log = EventLog("supervisor.renewals")


class Renewals:
    """The queue of posts whose process is to be replaced."""

    def __init__(self) -> None:
        self._waiting: dict[Post, str] = {}
        self._current: Post | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ask(self, post: Post, why: str) -> None:
        """Have a post renewed when its turn comes; one that is being renewed with older settings begins again."""
        if post is self._current:
            post.give_up_renewal()
        self._waiting.setdefault(post, why)
        self._wake.set()

    def is_asked(self, post: Post) -> bool:
        return post is self._current or post in self._waiting

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody is being replaced or waits for it."""
        return self._current is None and not self._waiting

    def drop(self, post: Post) -> None:
        """Renew a post no more."""
        self._waiting.pop(post, None)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="renewals")

    async def close(self) -> None:
        """Begin with nobody any more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            while self._waiting:
                self._current = next(iter(self._waiting))
                why = self._waiting.pop(self._current)
                try:
                    await self._renew(self._current, why)
                except Exception:  # the next post's replacement must not depend on this one's
                    log.exception("renewal_crashed", model=self._current.model_id)
                finally:
                    self._current = None
            self._wake.clear()
            await self._wake.wait()

    async def _renew(self, post: Post, why: str) -> None:
        info, placement = post.holder.status.info, post.holder.setting.placement
        overlap = info is not None and post.is_ready and has_room(info.encoder, placement.visible_gpus, os.environ)
        log.info("replacing", model=post.model_id, why=why, first="successor" if overlap else "stop")
        served = await post.renew(overlap=overlap)
        if not served and overlap and post.lacked_memory:
            log.warning("replacing", model=post.model_id, why="no memory for two processes", first="stop")
            await post.renew(overlap=False)


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """When a process is replaced by a fresh one; 0 is never."""

    rss_bytes: int = 0
    age_s: float = 0.0


class Lifespan:
    """How long one process may serve: the limits, each stretched by up to a tenth so that many do not end together.

    ``jitter`` returns a number in [0, 1). A process that is over the limit from the start would only be followed by
    another such: its memory is no reason.
    """

    def __init__(self, generation: int, ready_rss_bytes: int, jitter: Callable[[], float]) -> None:
        self.generation = generation
        self._ready_rss_bytes = ready_rss_bytes
        self._stretch = 1.0 + 0.1 * jitter()

    def due(self, limits: RecycleLimits, rss_bytes: int, age_s: float) -> str:
        """Return why the process is to be replaced now, or nothing."""
        if limits.age_s and age_s >= limits.age_s * self._stretch:
            return f"it has run for {age_s:.0f} s"
        limit_bytes = limits.rss_bytes * self._stretch
        if limits.rss_bytes and self._ready_rss_bytes < limits.rss_bytes and rss_bytes >= limit_bytes:
            return f"it holds {rss_bytes // (1024 * 1024)} MiB"
        return ""

    def is_too_large_from_the_start(self, limits: RecycleLimits) -> bool:
        """Tell whether the limit on memory can never be kept."""
        return bool(limits.rss_bytes) and self._ready_rss_bytes >= limits.rss_bytes
