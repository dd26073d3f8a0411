"""Sees to what nobody reports: files that are gone, processes that are due, systemd's watchdog. Made by ``tree``."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from emb_model_provider.logs import EventLog
from emb_model_provider.rss import rss_bytes_of
from supervisor.control import ControlSocket
from supervisor.orphans import Orphans
from supervisor.posts import Post
from supervisor.renewals import Lifespan, RecycleLimits, Renewals
from supervisor.rundir import RunDirectory
from supervisor.sdnotify import Notifier
from supervisor.shards import Shard

log = EventLog("supervisor")

_LOOK_S = 1.0
_TRY_AGAIN_S = 600.0
_INIT = 1


class Lookout:
    """Looks once a second. ``posts`` returns those that serve and those that are being removed."""

    def __init__(
        self,
        directory: RunDirectory,
        control: ControlSocket,
        notifier: Notifier,
        renewals: Renewals,
        posts: Callable[[], tuple[list[Post], list[Post]]],
    ) -> None:
        self._directory = directory
        self._control = control
        self._notifier = notifier
        self._renewals = renewals
        self._posts = posts
        self._orphans = Orphans()
        self._lifespans: dict[Shard, Lifespan] = {}
        #: Why the run directory, which is gone, cannot be made again; empty where it is there.
        self._loss = ""
        #: When processes are replaced by fresh ones; may be set at any time.
        self.limits = RecycleLimits()

    async def run(self) -> None:
        """Look again and again until cancelled. What keeps it from looking is told once, not each second."""
        told = ""
        while True:
            try:
                await self._look()
                told = ""
            except Exception as error:  # what it missed, it sees the next time
                if told != repr(error):
                    log.exception("look_crashed")
                told = repr(error)
            await asyncio.sleep(_LOOK_S)

    def note_ready(self, shard: Shard) -> None:
        """Hear that a process serves: from now on its age and its memory count."""
        known = self._lifespans.get(shard)
        if known is not None and known.generation == shard.status.generation:
            return
        pid = shard.keeper.pid if shard.keeper is not None else 0
        span = self._lifespans[shard] = Lifespan(shard.status.generation, rss_bytes_of(pid), random.random)
        if span.is_too_large_from_the_start(self.limits):
            log.warning(
                "EMB_PROVIDER_RECYCLE_RSS_MB is less than this model needs from the start, and does not count",
                model=shard.status.model_id,
            )

    async def _look(self) -> None:
        self._notifier.alive()
        if os.getpid() == _INIT:
            self._orphans.look()
        serving, leaving = self._posts()
        if not await self._keep_directory():
            return
        shards = [shard for post in (*serving, *leaving) for shard in post.everybody()]
        self._directory.tidy([Path(shard.status.socket_path) for shard in shards])
        for shard in self._lifespans.keys() - set(shards):
            del self._lifespans[shard]
        for post in serving:
            if post.is_ready and not post.is_reachable and not self._renewals.is_asked(post):
                self._renewals.ask(post, "its socket file is gone")
        self._recycle(serving)

    async def _keep_directory(self) -> bool:
        """Make again what is gone of the run directory; false where that cannot be done, which is told once.

        So it is where a login has ended and the user's runtime directory with it (pam_systemd(8)).
        """
        path = self._directory.control_path
        try:
            if self._directory.restore() or not path.exists():
                await self._control.open(path)
                log.warning("run_directory_restored", path=self._directory.path)
        except OSError as error:
            if str(error) != self._loss:
                self._loss = str(error)
                effect = "models serve on, but none can be started: make its parent again, or restart the server"
                log.error("run_directory_lost", path=self._directory.path, error=error, effect=effect)
            return False
        self._loss = ""
        return True

    def _recycle(self, posts: list[Post]) -> None:
        """Have at most one post renewed; one whose last replacement failed is left in peace for a while."""
        if not (self.limits.age_s or self.limits.rss_bytes) or not self._renewals.is_idle:
            return
        for post in posts:
            span = self._lifespans.get(post.holder)
            has_just_failed = post.problem and time.monotonic() - post.problem_since_s < _TRY_AGAIN_S
            if span is None or not post.is_ready or has_just_failed:
                continue
            if why := span.due(self.limits, rss_bytes_of(post.row().pid), post.holder.age_s):
                self._renewals.ask(post, why)
                return
