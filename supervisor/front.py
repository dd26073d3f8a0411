"""The front door's processes: routers, what they are told, how each is replaced without losing the port.

Made by ``tree``. The listening sockets are the supervisor's. A router that is replaced goes on taking connections until
its successor takes them, then finishes what it has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, Literal, Protocol

from emb_model_provider.logs import EventLog
from emb_model_provider.messages.configs import RouterConfig
from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.status import (
    Acquitted,
    Heartbeat,
    Quarantined,
    RestartShard,
    RouterReady,
    ShardTable,
)
from supervisor.changes import router_change
from supervisor.child import Launch
from supervisor.keeper import Death, Keeper, Kept
from supervisor.listening import Listening
from supervisor.plan import router_environment
from supervisor.posts import KILL_MARGIN_S
from supervisor.restarts import RestartLimits

log = EventLog("supervisor")

#: A router holds no model: it is back in half a second and may try for ever.
ROUTER_LIMITS: Final = RestartLimits(first_delay_s=0.05, max_delay_s=1.0, stable_s=10.0, intensity=0)
#: It loads nothing but its own code.
ROUTER_STARTUP_S: Final = 60.0
#: Changes come in bursts (progress of several downloads); the router needs only the newest.
_PUSH_DELAY_S: Final = 0.02
#: What only moves a number is worth a push of its own a second.
_PROGRESS_DELAY_S: Final = 1.0
#: A router whose loop was held up for longer than this is worth a line.
_LAG_WORTH_A_LINE_S: Final = 1.0


class FrontOwner(Protocol):
    """What ``Front`` tells; ``tree`` implements it."""

    def front_opened(self, pid: int) -> None:
        """Hear that connections are taken."""

    def front_failed(self, name: str, how: str) -> None:
        """Hear that a router, which is tried again and again, has died before it took connections, and of what."""

    def shard_demanded(self, request: RestartShard) -> None:
        """Hear that a router wants another process for a model."""

    def shard_acquitted(self, model_id: str) -> None:
        """Hear that a model's deaths so far were the work of inputs that are refused now."""

    def front_lost(self) -> None:
        """Hear that no router can be had."""


class Front:
    """All routers; each has a seat.

    ``keep`` makes a keeper for a router, ``table`` returns the rows of now.
    """

    def __init__(
        self,
        config: RouterConfig,
        listening: Listening,
        keep: Callable[[Kept], Keeper],
        table: Callable[[], ShardTable],
        owner: FrontOwner,
    ) -> None:
        self._config = config
        self._listening = listening
        self.table = table
        self._push_due: asyncio.TimerHandle | None = None
        self._seats = [
            Seat(_of_seat(config, index), listening.descriptors(index), keep, self, owner)
            for index in range(config.around.routers)
        ]

    @property
    def routers(self) -> list[Router]:
        """The routers that take connections."""
        return [seat.router for seat in self._seats]

    @property
    def quarantined(self) -> int:
        """How many inputs are refused for what they have done: what one router finds, all know soon."""
        return max(router.quarantined for router in self.routers)

    @property
    def is_renewing(self) -> bool:
        """Tell whether a router is being replaced by one with the newest settings."""
        return any(seat.is_renewing for seat in self._seats)

    def start(self) -> None:
        for seat in self._seats:
            seat.router.keeper.start()

    def push(self) -> None:
        """Send the table soon."""
        self._push_within(_PUSH_DELAY_S)

    def push_progress(self) -> None:
        """Send the table within a second."""
        self._push_within(_PROGRESS_DELAY_S)

    def _push_within(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._push_due is not None:
            if self._push_due.when() <= loop.time() + delay_s:
                return
            self._push_due.cancel()
        self._push_due = loop.call_later(delay_s, self._push)

    def _push(self) -> None:
        self._push_due = None
        table = self.table()
        for seat in self._seats:
            seat.send(table)

    def spread(self, message: Quarantined, source: Seat) -> None:
        """Tell every other router what one has found."""
        for seat in self._seats:
            if seat is not source:
                seat.send(message)

    def configure(self, config: RouterConfig, *, anew: bool = False) -> None:
        """Take new settings: tell the routers, or replace them where they could only take them at their start.

        ``anew``: the settings are others of which no router is told, such as how it is watched.
        """
        change = "replace" if anew else router_change(self._config, config)
        self._config = config
        for index, seat in enumerate(self._seats):
            seat.configure(_of_seat(config, index), change)

    async def close(self, grace_s: float) -> bool:
        """Take no more connections, finish what is in hand; true if every router went by itself."""
        # Until the last copy of a socket is closed the kernel would go on queueing clients nobody will serve.
        self._listening.close()
        return all(await asyncio.gather(*(seat.close(grace_s) for seat in self._seats)))

    def kill(self) -> None:
        """End every router now."""
        for seat in self._seats:
            seat.kill()


def _of_seat(config: RouterConfig, index: int) -> RouterConfig:
    return config.replace(around=config.around.replace(index=index))


class Seat:
    """The place of one router: the one that takes connections, its successor, and those that finish."""

    def __init__(
        self,
        config: RouterConfig,
        descriptors: tuple[int, ...],
        keep: Callable[[Kept], Keeper],
        front: Front,
        owner: FrontOwner,
    ) -> None:
        self.config = config
        self.descriptors = descriptors
        self.owner = owner
        self.front = front
        self._keep = keep
        self._router = Router(self, keep)
        self._successor: Router | None = None
        self._leaving: dict[Router, asyncio.Task[bool]] = {}

    @property
    def router(self) -> Router:
        """The router that takes connections."""
        return self._router

    @property
    def is_renewing(self) -> bool:
        """Tell whether the router has a successor that does not take connections yet."""
        return self._successor is not None

    def send(self, message: Message) -> None:
        """Send to the router and to its successor."""
        for router in (self._router, self._successor):
            if router is not None:
                router.keeper.send(message)

    def configure(self, config: RouterConfig, change: Literal["none", "live", "replace"]) -> None:
        """Take new settings. A router that is to be replaced takes what it can at once, too: a key may be revoked."""
        self.config = config
        if change != "none":
            self.send(config)
        if change == "replace":
            self.replace()

    def replace(self) -> None:
        """Start a successor on the same sockets; it takes over once it accepts."""
        if self._successor is not None:
            self._let_go(self._successor)
        self._successor = Router(self, self._keep)
        self._successor.keeper.start()

    def accepts(self, router: Router) -> None:
        """Hear from a router that it takes connections."""
        if router is self._successor:
            before, self._router, self._successor = self._router, router, None
            router.follow(before)
            self._let_go(before)
        # What changed between its first message and now has gone to a router that was not listening yet.
        if router.launched_with != self.config:
            router.keeper.send(self.config)
        self.front.push()

    async def close(self, grace_s: float) -> bool:
        """Let all finish; true if every one went by itself."""
        if self._successor is not None:
            self._let_go(self._successor)
        went = await asyncio.gather(self._router.keeper.stop(grace_s + KILL_MARGIN_S), *self._leaving.values())
        return all(went)

    def kill(self) -> None:
        """End all now, those that finish what they have too."""
        for router in (self._router, self._successor, *self._leaving):
            if router is not None:
                router.keeper.kill()

    def _let_go(self, router: Router) -> None:
        task = asyncio.create_task(router.keeper.stop(self.config.drain_s + KILL_MARGIN_S))
        self._leaving[router] = task
        task.add_done_callback(lambda _done: self._leaving.pop(router, None))


class Router:
    """One router process and its successors after deaths. Implements ``keeper.Kept``."""

    def __init__(self, seat: Seat, keep: Callable[[Kept], Keeper]) -> None:
        around = seat.config.around
        self.name = "router" if around.routers == 1 else f"router[{around.index}]"
        self.restarts = 0
        self._restarts_before = 0
        self.quarantined = 0
        self._failed_of = ""
        self.launched_with = seat.config
        self._seat = seat
        self.keeper = keep(self)

    def launch(self, generation: int) -> Launch:
        self.restarts = self._restarts_before + generation - 1
        self.quarantined = 0
        self.launched_with = self._seat.config
        first = (self.launched_with, self._seat.front.table())
        return Launch("router", router_environment(os.environ), first, self._seat.descriptors)

    def follow(self, before: Router) -> None:
        """Take over from another router, whose restarts are still those of the seat: as with a model's processes."""
        self._restarts_before = before.restarts
        self.restarts += before.restarts

    def on_message(self, message: Message) -> None:
        if isinstance(message, RouterReady):
            self._failed_of = ""
            self._seat.accepts(self)
            self._seat.owner.front_opened(message.pid)
        elif isinstance(message, RestartShard):
            self._seat.owner.shard_demanded(message)
        elif isinstance(message, Acquitted):
            self._seat.owner.shard_acquitted(message.model_id)
        elif isinstance(message, Quarantined):
            self._seat.front.spread(message, self._seat)
        elif isinstance(message, Heartbeat):
            self.quarantined = message.quarantined
            if message.lag_s > _LAG_WORTH_A_LINE_S:
                log.warning("router_busy", lag_s=round(message.lag_s, 2), in_flight=message.requests_in_flight)
        else:
            log.error("unexpected_message", kind=type(message).__name__)

    def on_hung(self, why: str) -> None:
        """Its death follows, and what clients wait for ends with its connections."""

    def on_died(self, death: Death) -> None:
        log.error("router_died", how=death.how, restart_in_s=death.restart_in_s)
        if not death.was_ready and death.how != self._failed_of:
            self._failed_of = death.how
            self._seat.owner.front_failed(self.name, death.how)
        if death.restart_in_s is None:
            self._seat.owner.front_lost()
