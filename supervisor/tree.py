"""The one place that decides and acts: starts router and shards, pushes the shard table, reloads, stops in order."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from emb_model_provider.logs import EventLog
from emb_model_provider.messages.status import RestartShard, ShardTable
from emb_model_provider.modelmap import ModelSpec
from emb_model_provider.settings import Settings
from supervisor.changes import Changes
from supervisor.console import Console
from supervisor.control import ControlSocket
from supervisor.desk import Desk, Plate
from supervisor.front import ROUTER_LIMITS, ROUTER_STARTUP_S, Front
from supervisor.hang_up import HangUp
from supervisor.keeper import Keeper, Kept
from supervisor.listening import Listening, exposure
from supervisor.lookout import Lookout
from supervisor.output import ChildLines, Output
from supervisor.plan import Placement
from supervisor.posts import KILL_MARGIN_S, Post
from supervisor.renewals import Renewals
from supervisor.restarts import RestartLimits, RestartPolicy
from supervisor.rundir import RunDirectory
from supervisor.sdnotify import Notifier
from supervisor.settings_in_use import Load, SettingsInUse
from supervisor.shards import Shard, ShardSetting, own_cache
from supervisor.watchdog import Watchdog, WatchLimits

log = EventLog("supervisor")

#: The signals that ``Tree.run`` takes.
OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

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
        self._use = SettingsInUse(settings, places, ground.load)
        self._ground = ground
        self._stop_requested = asyncio.Event()
        self._is_disorderly = False
        self._indexes = itertools.count()
        self._generations: dict[str, itertools.count[int]] = {}
        # Of a socket that is closed, as all are while the last requests are finished, there is no address to be had.
        self._addresses = {is_tls: ground.listening.address(is_tls=is_tls) for is_tls in (False, True)}
        self._front = Front(
            self._use.router_config(str(ground.run_directory.path)),
            ground.listening,
            self._keep_router,
            self._table,
            self,
        )
        self._posts = {spec.id: self._make_post(spec) for spec in settings.models}
        self._leaving: dict[Post, asyncio.Task[None]] = {}
        self._renewals = Renewals()
        plate = Plate(ground.version, str(ground.run_directory.path))
        self._desk = Desk(
            plate, self, self._use, self._front, self._renewals, lambda: (self._posts, list(self._leaving))
        )
        self._control = ControlSocket(self._desk.answer)
        self._lookout = Lookout(
            ground.run_directory,
            self._control,
            ground.notifier,
            self._renewals,
            lambda: (list(self._posts.values()), list(self._leaving)),
        )
        self._lookout.limits = self._use.recycle_limits()

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; a second one ends everything at once. SIGHUP reads the settings again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, HangUp(self.stop, self.reload))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OBEYED)
        await self._control.open(self._ground.run_directory.control_path)
        self._front.start()
        self._renewals.start()
        for post in self._posts.values():
            post.start()
        looking = asyncio.create_task(self._lookout.run(), name="lookout")
        await self._stop_requested.wait()
        looking.cancel()
        code = await self._stop()
        # One more signal would find no handler, and end this process before it has tidied up, with a code of its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, OBEYED)
        return code

    async def _stop(self) -> int:
        """Let the router finish what it has, then end the shards; 1 if somebody had to be killed."""
        grace_s = self._use.grace_s
        log.info("stopping", grace_s=grace_s)
        self._ground.console.say("stopping: finishing what is in flight (once more to stop at once)")
        self._ground.notifier.stopping()
        await self._renewals.close()
        for post in self._posts.values():
            post.withdraw()
        went = [await self._front.close(grace_s)]
        end_s = min(grace_s, _SHARD_END_S) + KILL_MARGIN_S
        went += await asyncio.gather(*(post.close(end_s) for post in self._posts.values()))
        await asyncio.gather(*self._leaving.values())
        await self._control.close()
        orderly = all(went) and not self._is_disorderly
        log.info("stopped", orderly=orderly)
        return 0 if orderly else _EXIT_FAILURE

    @property
    def address(self) -> str:
        return self._addresses[self._use.settings.server.around.certificate is not None]

    @property
    def is_stopping(self) -> bool:
        return self._stop_requested.is_set()

    def stop(self) -> None:
        """Begin to stop, or, the second time, end everything at once."""
        if not self.is_stopping:
            self._stop_requested.set()
            return
        self._is_disorderly = True
        log.warning("stopping_at_once")
        self._front.kill()
        for post in (*self._posts.values(), *self._leaving):
            post.kill()

    # -------------------------------------------------------------------------------------------------- reloading

    def reload(self) -> Changes | None:
        """Read the settings again and carry out what has changed; ``None`` where they cannot be used."""
        if self.is_stopping:
            return None
        self._ground.notifier.reloading()
        needed_key = bool(self._use.settings.server.api_keys)
        try:
            changes = self._use.read_again()
            if changes is None:
                problems = " ".join(self._use.problems)
                self._ground.console.say(f"reload refused, the server goes on as before: {problems}")
                return None
            self._ground.console.say(f"settings read again; {changes.summary()}")
            needs_key = bool(self._use.settings.server.api_keys)
            # A server that was open before has been warned of, and may be so on purpose.
            if needed_key and (warning := exposure(self._ground.listening.open_host, needs_key=needs_key)):
                log.warning(warning)
            self._carry_out(changes)
            return changes
        finally:
            self._ground.notifier.ready()

    def _carry_out(self, changes: Changes) -> None:
        before, self._posts = self._posts, {}
        for spec in self._use.settings.models:
            post = before.get(spec.id)
            if post is None:
                self._ground.console.add(spec, self._use.places[spec.id])
                post = self._make_post(spec)
                post.start()
            else:
                post.wanted = post.wanted.next(
                    spec, self._use.places[spec.id], self._use.settings.hubs, self._use.grace_s
                )
                post.take_hubs()
                post.retune(self._use.restart_limits(), self._use.watch_limits(spec.batch))
                if spec.id in changes.changed:
                    self._renewals.ask(post, "its settings have changed")
                elif post.problem:
                    self._renewals.ask(post, "it could not be replaced before")
                elif post.has_failed:
                    post.revive()
            self._posts[spec.id] = post
        for model_id in changes.removed:
            self._remove(before[model_id])
        self._front.configure(self._use.router_config(str(self._ground.run_directory.path)), anew=changes.silence)
        self._lookout.limits = self._use.recycle_limits()
        self._front.push()

    def _remove(self, post: Post) -> None:
        self._renewals.drop(post)

        async def leave() -> None:
            try:
                await post.close(self._use.grace_s + KILL_MARGIN_S)
                log.info("removed", model=post.model_id)
                self._ground.console.forget(post.model_id)
                self._ground.console.say(f"  {post.model_id}  removed")
            finally:
                del self._leaving[post]
                self._front.push()

        self._leaving[post] = asyncio.create_task(leave(), name=f"remove {post.model_id}")

    # ---------------------------------------------------------------------------------------------- the shards

    def _make_post(self, spec: ModelSpec) -> Post:
        setting = ShardSetting(
            index=next(self._indexes),
            generations=self._generations.setdefault(spec.id, itertools.count(1)),
            spec=spec,
            placement=self._use.places[spec.id],
            hubs=self._use.settings.hubs,
            log=self._use.log_config(),
            run_directory=self._ground.run_directory,
            cache_dir=own_cache(),
            drain_s=self._use.grace_s,
        )
        return Post(setting, self._hire, self._on_shard_change)

    def _hire(self, setting: ShardSetting, on_change: Callable[[Shard], None]) -> Shard:
        shard = Shard(setting, on_change, self._front.push_progress)
        shard.keeper = self._keeper(shard, self._use.restart_limits(), self._use.watch_limits(setting.spec.batch))
        return shard

    def _on_shard_change(self, shard: Shard) -> None:
        status = shard.current_status()
        if status.state != "downloading" and status.generation:  # without one there is no process yet
            log.said(
                "model_state",
                is_error=status.state == "failed",  # the one line that says why: not to be lost with LOG_LEVEL=ERROR
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
            server = self._use.settings.server
            address = self.address + server.around.url_prefix
            self._ground.console.invite(address, status, needs_key=bool(server.api_keys))
        self._ground.notifier.status(self._readiness())
        self._front.push()

    def _readiness(self) -> str:
        ready = sum(post.is_ready for post in self._posts.values())
        return f"{ready} of {len(self._posts)} models ready on {self.address}"

    # ---------------------------------------------------------------------- the router; implements front.FrontOwner

    def front_opened(self, pid: int) -> None:
        log.info("accepting", address=self.address, router_pid=pid)
        self._ground.notifier.ready()

    def front_failed(self, name: str, how: str) -> None:
        self._ground.console.say(f"  {name}  takes no connections yet: its process {how}; it is tried again")

    def shard_demanded(self, request: RestartShard) -> None:
        post = self._posts.get(request.model_id)
        if post is not None and post.give_up(request.generation, f"failed the router: {request.why}"):
            log.warning("given_up", model=request.model_id, generation=request.generation, why=request.why)

    def shard_acquitted(self, model_id: str) -> None:
        post = self._posts.get(model_id)
        if post is not None:
            post.acquit()

    def front_lost(self) -> None:
        self._is_disorderly = True
        self._stop_requested.set()

    def _table(self) -> ShardTable:
        leaving = [post.row() for post in self._leaving if post.model_id not in self._posts]
        finishing = [row for row in leaving if row.state == "stopping"]
        return ShardTable((*(post.row() for post in self._posts.values()), *finishing))

    def _keep_router(self, kept: Kept) -> Keeper:
        watch = replace(self._use.watch_limits(), startup_s=ROUTER_STARTUP_S)
        return self._keeper(kept, ROUTER_LIMITS, watch)

    def _keeper(self, kept: Kept, limits: RestartLimits, watch: WatchLimits) -> Keeper:
        lines = ChildLines(kept.name, self._ground.output, self._use.settings.logs.format)
        return Keeper(kept, RestartPolicy(limits, random.random), Watchdog(watch), lines)
