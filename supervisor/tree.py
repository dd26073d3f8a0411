"""The one place that decides and acts: starts router and shards, pushes the shard table, stops them in order."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
from pathlib import Path

from emb_model_provider.logs import EventLog
from emb_model_provider.messages import (
    Heartbeat,
    LogConfig,
    Message,
    RestartShard,
    RouterConfig,
    RouterReady,
    ShardTable,
)
from emb_model_provider.settings import Settings, SupervisionSettings
from supervisor.child import Launch
from supervisor.console import Console
from supervisor.keeper import Death, Keeper
from supervisor.output import ChildLines, Output
from supervisor.plan import Placement, child_environment
from supervisor.restarts import RestartLimits, RestartPolicy
from supervisor.rundir import RunDirectory
from supervisor.shards import Shard, ShardSetting
from supervisor.watchdog import Watchdog, WatchLimits

log = EventLog("supervisor")

#: A router holds no model: it is back in half a second and may try for ever.
_ROUTER_LIMITS = RestartLimits(first_delay_s=0.05, max_delay_s=1.0, stable_s=10.0, intensity=0)
#: Changes come in bursts (progress of several downloads); the router needs only the newest.
_PUSH_DELAY_S = 0.02
#: What only moves a number is worth a push of its own a second.
_PROGRESS_DELAY_S = 1.0
#: A router whose loop was held up for longer than this is worth a line.
_LAG_WORTH_A_LINE_S = 1.0
#: What a child that was asked to drain gets beyond its own bound before it is killed.
_KILL_MARGIN_S = 2.0


class Tree:
    """All children of one supervisor. ``run`` returns the exit code."""

    def __init__(
        self,
        settings: Settings,
        places: dict[str, Placement],
        listener: socket.socket,
        run_directory: RunDirectory,
        output: Output,
        console: Console,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._output = output
        self._console = console
        self._stop_requested = asyncio.Event()
        self._push_due: asyncio.TimerHandle | None = None
        self._watch_limits = _watch_limits(settings.supervision)
        self.address = address_of(listener)
        self._shards = [self._make_shard(index, places, run_directory) for index in range(len(settings.models))]
        self.name = "router"
        self._router = self._keeper(self, _ROUTER_LIMITS)

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; a second one ends everything at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        self._router.start()
        for shard in self._shards:
            assert shard.keeper is not None
            shard.keeper.start()
        await self._stop_requested.wait()
        return await self._stop()

    async def _stop(self) -> int:
        """Let the router finish what it has, then end the shards; 1 if somebody had to be killed."""
        grace_s = self._settings.server.shutdown_grace_s
        log.info("stopping", grace_s=grace_s)
        self._console.say("stopping: finishing what is in flight (once more to stop at once)")
        # Until the last copy of the socket is closed the kernel would go on queueing clients nobody will serve.
        self._listener.close()
        went = [await self._router.stop(grace_s + _KILL_MARGIN_S)]
        keepers = [shard.keeper for shard in self._shards if shard.keeper is not None]
        went += await asyncio.gather(*(keeper.stop(grace_s + _KILL_MARGIN_S) for keeper in keepers))
        log.info("stopped", orderly=all(went))
        return 0 if all(went) else 1

    def _on_stop_signal(self) -> None:
        if not self._stop_requested.is_set():
            self._stop_requested.set()
            return
        self._router.kill()
        for shard in self._shards:
            if shard.keeper is not None:
                shard.keeper.kill()

    # ---------------------------------------------------------------------------------------------- the shards

    def _make_shard(self, index: int, places: dict[str, Placement], run_directory: RunDirectory) -> Shard:
        spec = self._settings.models[index]
        setting = ShardSetting(
            index=index,
            spec=spec,
            placement=places[spec.id],
            hubs=self._settings.hubs,
            log=self._log_config(),
            run_directory=run_directory,
            cache_dir=own_cache(),
            drain_s=self._settings.server.shutdown_grace_s,
            report_every_s=self._watch_limits.report_every_s,
        )
        shard = Shard(setting, self._on_shard_change, lambda: self._schedule_push(_PROGRESS_DELAY_S))
        shard.keeper = self._keeper(shard, _restart_limits(self._settings.supervision))
        return shard

    def _on_shard_change(self, shard: Shard) -> None:
        status = shard.current_status()
        if status.state != "downloading":
            log.said(
                "model_state",
                model=status.model_id,
                state=status.state,
                generation=status.generation,
                reason=status.reason or None,
                detail=status.detail or None,
                after_s=round(shard.age_s, 2),
            )
        self._console.show(status, shard.age_s)
        if status.state == "ready":
            self._console.invite(self.address, status, needs_key=bool(self._settings.server.api_keys))
        self._schedule_push()

    # ---------------------------------------------------------------------- the router; implements keeper.Kept

    def launch(self, generation: int) -> Launch:
        del generation
        server = self._settings.server
        config = RouterConfig(
            log=self._log_config(),
            api_key_digests=tuple(hashlib.sha256(key.encode()).digest() for key in server.api_keys),
            ready_wait_s=server.ready_wait_s,
            max_request_bytes=server.max_request_bytes,
            drain_s=server.shutdown_grace_s,
            request_timeout_s=server.request_timeout_s,
            intake=server.intake,
            report_every_s=self._watch_limits.report_every_s,
        )
        return Launch("router", child_environment(os.environ), (config, self._table()), (self._listener.fileno(),))

    def on_message(self, message: Message) -> None:
        if isinstance(message, RouterReady):
            log.info("accepting", address=self.address, router_pid=message.pid)
            # What changed between its first message and now has gone to a router that was not listening yet.
            self._schedule_push()
        elif isinstance(message, RestartShard):
            self._replace_shard(message)
        elif isinstance(message, Heartbeat):
            if message.lag_s > _LAG_WORTH_A_LINE_S:
                log.warning("router_busy", lag_s=round(message.lag_s, 2), in_flight=message.requests_in_flight)
        else:
            log.error("unexpected_message", kind=type(message).__name__)

    def on_hung(self, why: str) -> None:
        """Its death follows, and what clients wait for ends with its connections."""

    def on_died(self, death: Death) -> None:
        log.error("router_died", how=death.how, restart_in_s=death.restart_in_s)
        if death.restart_in_s is None:
            self._stop_requested.set()

    def _replace_shard(self, request: RestartShard) -> None:
        for shard in self._shards:
            if shard.status.model_id == request.model_id and shard.status.generation == request.generation:
                log.warning("replacing", model=request.model_id, generation=request.generation, why=request.why)
                assert shard.keeper is not None
                shard.keeper.replace(request.why)

    def _table(self) -> ShardTable:
        return ShardTable(tuple(shard.current_status() for shard in self._shards))

    def _schedule_push(self, delay_s: float = _PUSH_DELAY_S) -> None:
        loop = asyncio.get_running_loop()
        if self._push_due is not None:
            if self._push_due.when() <= loop.time() + delay_s:
                return
            self._push_due.cancel()
        self._push_due = loop.call_later(delay_s, self._push)

    def _push(self) -> None:
        self._push_due = None
        self._router.send(self._table())

    def _keeper(self, kept: Shard | Tree, limits: RestartLimits) -> Keeper:
        lines = ChildLines(kept.name, self._output, self._settings.logs.format)
        return Keeper(kept, RestartPolicy(limits, random.random), Watchdog(self._watch_limits), lines)

    def _log_config(self) -> LogConfig:
        return LogConfig(self._settings.logs.level, self._settings.logs.format)


def _watch_limits(supervision: SupervisionSettings) -> WatchLimits:
    return WatchLimits(supervision.startup_timeout_s, supervision.batch_timeout_s, supervision.silence_timeout_s)


def _restart_limits(supervision: SupervisionSettings) -> RestartLimits:
    return RestartLimits(
        first_delay_s=supervision.restart_delay_s,
        max_delay_s=supervision.restart_max_delay_s,
        stable_s=supervision.restart_stable_s,
        intensity=supervision.restart_limit,
        period_s=supervision.restart_period_s,
        probe_s=supervision.restart_probe_s,
    )


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket; a wildcard address is shown as one that works from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def own_cache() -> Path:
    """Return where converted weights are kept (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "emb-model-provider"
