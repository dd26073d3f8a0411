"""One model's post, which is always filled: who holds it, who is to take over, who is leaving. Made by ``tree``.

A holder that serves is replaced by a successor that is ready first; it leaves when everything it was asked is
answered. All changes happen on the event loop, so that the shard table never shows two holders.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.status import ShardStatus
from supervisor.keeper import Keeper
from supervisor.restarts import RestartLimits
from supervisor.shards import Shard, ShardSetting
from supervisor.watchdog import WatchLimits

log = EventLog("supervisor.posts")

#: What a child that was asked to drain gets beyond its own bound before it is killed.
KILL_MARGIN_S: Final = 2.0
#: Makes the shard of a setting, with a keeper that has not started; what changes is told to the function.
Hire = Callable[[ShardSetting, Callable[[Shard], None]], Shard]


class Post:
    """One model. ``wanted`` are the settings of whichever process is started next."""

    def __init__(self, wanted: ShardSetting, hire: Hire, on_change: Callable[[Shard], None]) -> None:
        self.wanted = wanted
        #: Why the newest settings, or a fresh process, do not serve although they should; empty where they do.
        self.problem = ""
        self.problem_since_s = 0.0
        #: Whether that was for want of memory, as it may be beside the process that is to be replaced.
        self.lacked_memory = False
        self._hire = hire
        self._on_change = on_change
        self.holder = hire(wanted, self._changed)
        self.successor: Shard | None = None
        self._leaving: dict[Shard, asyncio.Task[bool]] = {}
        #: Of processes that hold the post no more.
        self._past = _Count()
        self._settled: dict[Shard, asyncio.Future[bool]] = {}
        self._is_closing = False

    @property
    def model_id(self) -> str:
        return self.wanted.spec.id

    @property
    def is_ready(self) -> bool:
        return self.holder.status.state == "ready"

    @property
    def has_failed(self) -> bool:
        """Tell whether no process of the holder lives, for a while or for good."""
        return self.holder.status.state in ("failed", "restarting")

    @property
    def is_reachable(self) -> bool:
        """Tell whether a router that starts now would find the holder's socket."""
        return Path(self.holder.status.socket_path).exists()

    def row(self) -> ShardStatus:
        """Return the post's row of the shard table."""
        status = self._past.add_to(self.holder.current_status())
        if self._is_closing and status.state == "ready":
            return status.replace(state="stopping")
        if self.problem and status.state == "ready":
            return status.replace(reason="not_replaced", detail=self.problem)
        return status

    def start(self) -> None:
        """Start the first holder."""
        _keeper(self.holder).start()

    async def renew(self, *, overlap: bool) -> bool:
        """Replace the holder by a process with the settings wanted now; true once that one serves.

        With ``overlap`` a holder that serves goes on until then, and stays where the successor cannot come up at all.
        Without, or where it does not serve, it leaves first.
        """
        self.withdraw()
        if self._is_closing:
            return False
        self.problem, self.lacked_memory = "", False
        newcomer = self._hire(self.wanted, self._changed)
        settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._settled[newcomer] = settled
        try:
            if overlap and self.is_ready:
                self.successor = newcomer
                _keeper(newcomer).start()
            else:
                await self._begin_anew(newcomer)
            return await settled
        finally:
            del self._settled[newcomer]

    def revive(self) -> None:
        """Start a holder that does not serve at once, with the settings wanted now, its failures forgotten."""
        self.problem = ""
        self.holder.setting = self.wanted
        self.holder.was_asked_for()
        _keeper(self.holder).revive()

    def acquit(self) -> None:
        """Forget the deaths of a holder that is well, and start it at once where it is dead."""
        _keeper(self.holder).revive()

    def take_hubs(self) -> None:
        """Have the holder's next start use the hubs wanted now; its own description stays as it is."""
        self.holder.setting = replace(self.holder.setting, hubs=self.wanted.hubs)

    def retune(self, restarts: RestartLimits, watch: WatchLimits) -> None:
        """Take other limits on restarts and hangs for every process of the post."""
        for shard in self.everybody():
            _keeper(shard).retune(restarts, watch)

    def withdraw(self) -> None:
        """Give up a successor that is still on its way."""
        if self.successor is not None:
            newcomer, self.successor = self.successor, None
            _keeper(newcomer).kill()
            self._let_go(newcomer)
            self._settle(newcomer, served=False)

    def give_up_renewal(self) -> None:
        """Wait no more for the process that is on its way, whether it is a successor or has begun anew."""
        self.withdraw()
        self._settle(self.holder, served=False)

    async def close(self, grace_s: float) -> bool:
        """End every process of the post; true if all went by themselves."""
        self._is_closing = True
        self.give_up_renewal()
        went = await asyncio.gather(_keeper(self.holder).stop(grace_s), *self._leaving.values())
        return all(went)

    def kill(self) -> None:
        """End every process of the post now."""
        for shard in self.everybody():
            _keeper(shard).kill()

    def everybody(self) -> list[Shard]:
        """Return every shard that may have a process: the holder first, then its successor and those that leave."""
        return [self.holder, *([self.successor] if self.successor is not None else ()), *self._leaving]

    def give_up(self, generation: int, why: str) -> bool:
        """End a process that fails those who ask it; ``why`` continues "its process". False where it is gone already.

        A successor that is on its way takes its place at once, else it is started again.
        """
        if self.holder.status.generation != generation:
            return False
        if self.successor is not None:
            _keeper(self.holder).kill()
            self._take_over(self.successor)
            self._on_change(self.holder)
        else:
            _keeper(self.holder).replace(why)
        return True

    async def _begin_anew(self, newcomer: Shard) -> None:
        before, self.holder = self.holder, newcomer
        self._on_change(newcomer)
        await asyncio.wait([self._let_go(before)])  # who waits may be cancelled; the farewell goes on
        if self.holder is newcomer and not self._is_closing:
            _keeper(newcomer).start()

    def _changed(self, shard: Shard) -> None:
        """Hear from one of our shards that its row has changed."""
        if shard is self.successor:
            self._hear_successor(shard)
        elif shard is self.holder and shard.status.state == "failed" and self.successor is not None:
            self._take_over(self.successor)
            self._on_change(self.holder)
        if shard is self.holder:
            state = shard.status.state
            if state in ("ready", "failed", "restarting"):
                self._settle(shard, served=state == "ready")
        if shard is self.holder or shard is self.successor:
            self._on_change(shard)

    def _hear_successor(self, shard: Shard) -> None:
        status = shard.status
        if status.state == "ready":
            self._take_over(shard)
        elif status.state in ("failed", "restarting"):
            self.lacked_memory = status.reason == LoadReason.OUT_OF_MEMORY
            self.problem_since_s = time.monotonic()
            self.problem = f"a process with the new settings cannot take over: {status.detail}"
            log.error("not_replaced", model=self.model_id, reason=status.reason, detail=status.detail)
            self._on_change(shard)
            self.withdraw()

    def _take_over(self, successor: Shard) -> None:
        before, self.holder, self.successor = self.holder, successor, None
        log.info(
            "taken_over",
            model=self.model_id,
            generation=successor.status.generation,
            before=before.status.generation,
        )
        self._let_go(before)

    def _let_go(self, shard: Shard) -> asyncio.Task[bool]:
        """End a process once everything it was asked is answered."""
        grace_s = shard.setting.drain_s + KILL_MARGIN_S
        task = asyncio.create_task(_keeper(shard).stop(grace_s), name=f"leave {shard.name}")
        self._leaving[shard] = task
        self._past = self._past.plus(shard)
        task.add_done_callback(lambda _done: self._leaving.pop(shard, None))
        return task

    def _settle(self, shard: Shard, *, served: bool) -> None:
        if (future := self._settled.get(shard)) is not None and not future.done():
            future.set_result(served)


@dataclass(frozen=True, slots=True)
class _Count:
    """What went wrong so far, and when something last went right."""

    restarts: int = 0
    crashes: int = 0
    boot_failures: int = 0
    succeeded: float = 0.0

    def plus(self, shard: Shard) -> _Count:
        health = shard.current_status().health
        return _Count(
            self.restarts + shard.status.restarts,
            self.crashes + health.crashes,
            self.boot_failures + health.boot_failures,
            max(self.succeeded, health.last_success),
        )

    def add_to(self, status: ShardStatus) -> ShardStatus:
        health = status.health.replace(
            crashes=status.health.crashes + self.crashes,
            boot_failures=status.health.boot_failures + self.boot_failures,
            succeeded_before=max(status.health.succeeded_before, self.succeeded),
        )
        return status.replace(restarts=status.restarts + self.restarts, health=health)


def _keeper(shard: Shard) -> Keeper:
    assert shard.keeper is not None
    return shard.keeper
