"""The one place that decides and acts: starts router and shards, pushes the shard table, reloads, stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import (
    LogConfig,
    RestartShard,
    RouterConfig,
    ShardTable,
)
from emb_model_provider.modelmap import ModelSpec
from emb_model_provider.settings import Settings, SupervisionSettings
from supervisor.changes import Changes, compare, keep_fixed
from supervisor.console import Console
from supervisor.control import ControlError, ControlSocket, Request
from supervisor.front import ROUTER_LIMITS, Front
from supervisor.keeper import Keeper, Kept
from supervisor.listening import Listening
from supervisor.lookout import Lookout
from supervisor.output import ChildLines, Output
from supervisor.plan import Placement
from supervisor.posts import KILL_MARGIN_S, Post
from supervisor.renewals import RecycleLimits, Renewals
from supervisor.report import ModelReport, RouterReport, ServerReport, model_report, to_json
from supervisor.restarts import RestartLimits, RestartPolicy
from supervisor.room import resident_bytes
from supervisor.rundir import RunDirectory
from supervisor.sdnotify import Notifier
from supervisor.shards import Shard, ShardSetting
from supervisor.watchdog import Watchdog, WatchLimits

log = EventLog("supervisor")

#: The signals that ``Tree.run`` takes.
OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Reads the settings again, as at the start.
Load = Callable[[], tuple[Settings, dict[str, Placement]]]

#: Once the router is gone nobody waits for an answer: a shard only has to end the batch in hand.
_SHARD_END_S = 5.0
_EXIT_FAILURE = 1


@dataclass(frozen=True, slots=True)
class Ground:
    """What the command has opened before the tree grows. ``load`` reads the settings again."""

    version: str
    listening: Listening
    run_directory: RunDirectory
    output: Output
    console: Console
    notifier: Notifier
    load: Load


class Tree:
    """All children of one supervisor. ``run`` returns the exit code."""

    def __init__(self, settings: Settings, places: dict[str, Placement], ground: Ground) -> None:
        self._settings = settings
        self._places = places
        self._ground = ground
        self._stop_requested = asyncio.Event()
        self._is_hurried = False
        self._began_s = time.monotonic()
        self._settings_read = time.time()
        self._problems: tuple[str, ...] = ()
        self._needs_restart: tuple[str, ...] = ()
        self._indexes = itertools.count()
        self._generations: dict[str, itertools.count[int]] = {}
        self.address = ground.listening.address
        self._front = Front(self._router_config(), ground.listening, self._keep_router, self._table, self)
        self._posts = {spec.id: self._make_post(spec) for spec in settings.models}
        self._leaving: dict[Post, asyncio.Task[None]] = {}
        self._renewals = Renewals()
        self._control = ControlSocket(self._answer)
        self._lookout = Lookout(
            ground.run_directory,
            self._control,
            ground.notifier,
            self._renewals,
            lambda: (list(self._posts.values()), list(self._leaving)),
        )
        self._lookout.limits = self._recycle_limits()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; a second one ends everything at once. SIGHUP reads the settings again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, _HangUp(self._on_stop_signal, self.reload))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OBEYED)
        await self._control.open(self._ground.run_directory.control_path)
        self._front.start()
        self._renewals.start()
        for post in self._posts.values():
            post.start()
        looking = asyncio.create_task(self._lookout.run(), name="lookout")
        await self._stop_requested.wait()
        looking.cancel()
        return await self._stop()

    async def _stop(self) -> int:
        """Let the router finish what it has, then end the shards; 1 if somebody had to be killed."""
        grace_s = self._settings.server.shutdown_grace_s
        log.info("stopping", grace_s=grace_s)
        self._ground.console.say("stopping: finishing what is in flight (once more to stop at once)")
        self._ground.notifier.stopping()
        await self._renewals.close()
        # A model that still loads has nothing in flight, and nobody will wait for it any more.
        loading = [post for post in self._posts.values() if not post.is_ready]
        for post in loading:
            post.withdraw()
        went = [await self._front.close(grace_s)]
        end_s = min(grace_s, _SHARD_END_S) + KILL_MARGIN_S
        went += await asyncio.gather(*(post.close(end_s) for post in self._posts.values()))
        await asyncio.gather(*self._leaving.values())
        await self._control.close()
        orderly = all(went) and not self._is_hurried
        log.info("stopped", orderly=orderly)
        return 0 if orderly else _EXIT_FAILURE

    def _on_stop_signal(self) -> None:
        if not self._stop_requested.is_set():
            self._stop_requested.set()
            return
        self._is_hurried = True
        log.warning("stopping_at_once")
        self._front.kill()
        for post in (*self._posts.values(), *self._leaving):
            post.kill()

    # -------------------------------------------------------------------------------------------------- reloading

    def reload(self) -> Changes | None:
        """Read the settings again and carry out what has changed; ``None`` where they cannot be used."""
        if self._stop_requested.is_set():
            return None
        self._ground.notifier.reloading()
        try:
            return self._reload()
        finally:
            self._ground.notifier.ready()

    def _reload(self) -> Changes | None:
        try:
            read, places = self._ground.load()
        except ConfigurationError as error:
            self._problems = error.problems
            for problem in error.problems:
                log.error("reload_refused", problem=problem)
            self._ground.console.say("reload refused, the server goes on as before: " + " ".join(error.problems))
            return None
        changes = compare(self._settings, read)
        for warning in read.warnings:
            log.warning(warning)
        self._problems, self._needs_restart = (), changes.needs_restart
        self._settings_read = time.time()
        self._settings, self._places = keep_fixed(self._settings, read), places
        self._lookout.limits = self._recycle_limits()
        log.info("reloaded", changes=changes.summary())
        self._ground.console.say(f"settings read again; {changes.summary()}")
        self._carry_out(changes)
        return changes

    def _carry_out(self, changes: Changes) -> None:
        before, self._posts = self._posts, {}
        for spec in self._settings.models:
            post = before.get(spec.id)
            if post is None:
                self._ground.console.add(spec, self._places[spec.id])
                post = self._make_post(spec)
                post.start()
            else:
                post.wanted = self._next_setting(post)
                post.retune(_restart_limits(self._settings.supervision), self._watch_limits())
                if spec.id in changes.changed:
                    self._renewals.ask(post, "its settings have changed")
                elif post.problem:
                    self._renewals.ask(post, "it could not be replaced before")
                elif post.has_failed:
                    post.revive()
            self._posts[spec.id] = post
        for model_id in changes.removed:
            self._remove(before[model_id])
        self._front.configure(self._router_config())
        self._front.push()

    def _next_setting(self, post: Post) -> ShardSetting:
        """Return what the post's next process is started with; a GPU, once chosen, stays the model's."""
        (spec,) = (spec for spec in self._settings.models if spec.id == post.model_id)
        place, held = self._places[spec.id], post.wanted.placement
        if spec.device == post.wanted.spec.device and place.device == held.device:
            place = replace(place, visible_gpus=held.visible_gpus)
        return replace(
            post.wanted,
            spec=spec,
            placement=place,
            hubs=self._settings.hubs,
            drain_s=self._settings.server.shutdown_grace_s,
        )

    def _remove(self, post: Post) -> None:
        self._renewals.drop(post)

        async def leave() -> None:
            try:
                await post.close(self._settings.server.shutdown_grace_s + KILL_MARGIN_S)
                log.info("removed", model=post.model_id)
                self._ground.console.say(f"  {post.model_id}  removed")
            finally:
                del self._leaving[post]
                self._front.push()

        self._leaving[post] = asyncio.create_task(leave(), name=f"remove {post.model_id}")

    # ---------------------------------------------------------------------------------------- the operator's word

    def _answer(self, request: Request) -> dict[str, object]:
        if request.command == "status":
            return {"status": to_json(self._report())}
        if self._stop_requested.is_set() and request.command != "stop":
            raise ControlError("The server is stopping.")
        log.info("asked", command=request.command, model=request.model or None)
        if request.command == "reload":
            changes = self.reload()
            if changes is None:
                problems = "\n".join(self._problems)
                raise ControlError(f"The settings cannot be used; the server goes on as before.\n{problems}")
            return {"summary": changes.summary()}
        if request.command == "restart":
            return {"summary": self._restart(request.model)}
        self._on_stop_signal()
        return {"summary": f"stopping within {self._settings.server.shutdown_grace_s:g} s"}

    def _restart(self, model: str) -> str:
        post = self._posts.get(model)
        if post is None:
            raise ControlError(f"No model {model!r} is served here. There are: {', '.join(self._posts)}.")
        if post.has_failed:
            post.revive()
            return f"{model}: started anew"
        self._renewals.ask(post, "an operator asks for it")
        if post.is_ready:
            return f"{model}: process {post.row().pid} serves until a fresh one is ready, if memory allows"
        return f"{model}: started anew"

    def _report(self) -> ServerReport:
        routers = self._front.routers
        state = "stopping" if self._stop_requested.is_set() else "serving"
        return ServerReport(
            version=self._ground.version,
            pid=os.getpid(),
            address=self.address,
            run_dir=str(self._ground.run_directory.path),
            state=state,
            uptime_s=round(time.monotonic() - self._began_s, 1),
            settings_read=self._settings_read,
            problems=self._problems,
            pending_restart=self._needs_restart,
            router=RouterReport(
                routers[0].keeper.pid,
                sum(router.restarts for router in routers),
                sum(resident_bytes(router.keeper.pid) for router in routers),
                len(routers),
            ),
            models=tuple(self._report_of(post) for post in (*self._posts.values(), *self._leaving)),
        )

    def _report_of(self, post: Post) -> ModelReport:
        row = post.row()
        successor = post.successor.status.state if post.successor is not None else ""
        return replace(
            model_report(row, age_s=post.holder.age_s, rss_bytes=resident_bytes(row.pid)),
            successor=successor,
            leaving=len(post.everybody()) - 1 - bool(successor),
            renewing=self._renewals.is_asked(post),
        )

    # ---------------------------------------------------------------------------------------------- the shards

    def _make_post(self, spec: ModelSpec) -> Post:
        setting = ShardSetting(
            index=next(self._indexes),
            generations=self._generations.setdefault(spec.id, itertools.count(1)),
            spec=spec,
            placement=self._places[spec.id],
            hubs=self._settings.hubs,
            log=self._log_config(),
            run_directory=self._ground.run_directory,
            cache_dir=own_cache(),
            drain_s=self._settings.server.shutdown_grace_s,
        )
        return Post(setting, self._hire, self._on_shard_change)

    def _hire(self, setting: ShardSetting, on_change: Callable[[Shard], None]) -> Shard:
        shard = Shard(setting, on_change, self._front.push_progress)
        shard.keeper = self._keeper(shard, _restart_limits(self._settings.supervision))
        return shard

    def _on_shard_change(self, shard: Shard) -> None:
        status = shard.current_status()
        if status.state != "downloading" and status.generation:  # without one there is no process yet
            log.said(
                "model_state",
                model=status.model_id,
                state=status.state,
                generation=status.generation,
                reason=status.reason or None,
                detail=status.detail or None,
                after_s=round(shard.age_s, 2),
            )
        if status.generation:
            self._ground.console.show(status, shard.age_s)
        if status.state == "ready":
            self._lookout.note_ready(shard)
            self._ground.console.invite(self.address, status, needs_key=bool(self._settings.server.api_keys))
        self._ground.notifier.status(self._readiness())
        self._front.push()

    def _recycle_limits(self) -> RecycleLimits:
        processes = self._settings.processes
        return RecycleLimits(processes.recycle_rss_bytes, processes.recycle_age_s)

    def _readiness(self) -> str:
        ready = sum(post.is_ready for post in self._posts.values())
        return f"{ready} of {len(self._posts)} models ready on {self.address}"

    # ---------------------------------------------------------------------- the router; implements front.FrontOwner

    def front_opened(self, pid: int) -> None:
        log.info("accepting", address=self.address, router_pid=pid)
        self._ground.notifier.ready()

    def shard_demanded(self, request: RestartShard) -> None:
        post = self._posts.get(request.model_id)
        if post is not None and post.give_up(request.generation, f"failed the router: {request.why}"):
            log.warning("given_up", model=request.model_id, generation=request.generation, why=request.why)

    def front_lost(self) -> None:
        self._stop_requested.set()

    def _router_config(self) -> RouterConfig:
        server = self._settings.server
        return RouterConfig(
            log=self._log_config(),
            api_key_digests=tuple(hashlib.sha256(key.encode()).digest() for key in server.api_keys),
            ready_wait_s=server.ready_wait_s,
            max_request_bytes=server.max_request_bytes,
            drain_s=server.shutdown_grace_s,
            request_timeout_s=server.request_timeout_s,
            intake=server.intake,
            report_every_s=self._watch_limits().report_every_s,
            around=replace(server.around, run_directory=str(self._ground.run_directory.path)),
        )

    def _table(self) -> ShardTable:
        leaving = [post.row() for post in self._leaving if post.model_id not in self._posts]
        finishing = [row for row in leaving if row.state == "stopping"]
        return ShardTable((*(post.row() for post in self._posts.values()), *finishing))

    def _keep_router(self, kept: Kept) -> Keeper:
        return self._keeper(kept, ROUTER_LIMITS)

    def _keeper(self, kept: Kept, limits: RestartLimits) -> Keeper:
        lines = ChildLines(kept.name, self._ground.output, self._settings.logs.format)
        return Keeper(kept, RestartPolicy(limits, random.random), Watchdog(self._watch_limits()), lines)

    def _watch_limits(self) -> WatchLimits:
        supervision = self._settings.supervision
        return WatchLimits(supervision.startup_timeout_s, supervision.batch_timeout_s, supervision.silence_timeout_s)

    def _log_config(self) -> LogConfig:
        return LogConfig(self._settings.logs.level, self._settings.logs.format)


class _HangUp:
    """Decides what SIGHUP means: the settings are to be read again, or our terminal was closed, which means stop."""

    def __init__(self, stop: Callable[[], None], reload: Callable[[], object]) -> None:
        self._stop = stop
        self._reload = reload
        self._had_terminal = _has_terminal()

    def __call__(self) -> None:
        if self._had_terminal and not _has_terminal():
            self._stop()
        else:
            self._reload()


def _has_terminal() -> bool:
    """Tell whether this process belongs to a terminal that is still there (tty(4))."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    return False


def _restart_limits(supervision: SupervisionSettings) -> RestartLimits:
    return RestartLimits(
        first_delay_s=supervision.restart_delay_s,
        max_delay_s=supervision.restart_max_delay_s,
        stable_s=supervision.restart_stable_s,
        intensity=supervision.restart_limit,
        period_s=supervision.restart_period_s,
        probe_s=supervision.restart_probe_s,
    )


def own_cache() -> Path:
    """Return where converted weights are kept (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "emb-model-provider"
