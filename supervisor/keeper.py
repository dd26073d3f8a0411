"""Keeps one child alive: starts it, watches it, waits for its end, asks the policy, starts it again.

One keeper per child, made by ``tree``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import time
from dataclasses import dataclass
from typing import Final, Protocol

from emb_model_provider.errors import EXIT_NO_THREAD
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.framing import Message
from emb_model_provider.process_limits import advice_without_threads, memory_limits
from supervisor.child import Child, Launch, spawn
from supervisor.restarts import Breaker, RestartLimits, RestartPolicy
from supervisor.watchdog import Watchdog, WatchLimits

log = EventLog("supervisor.keeper")

#: As the shell says "found but could not be run".
_SPAWN_FAILED: Final = 126
#: Too many processes, too little memory, too many open files, of this process and of all.
_LIMITS: Final = {
    errno.EAGAIN: "ulimit -a and the free memory",
    errno.ENOMEM: "ulimit -v and the free memory",
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "/proc/sys/fs/file-max",
}
#: What a signal that nobody has sent mostly means: OpenBLAS sends itself ``SIGINT`` where it can start no thread.
_CAUSES: Final = {
    "SIGKILL": ", perhaps out of memory",
    "SIGINT": ", perhaps as no thread could be started (see ulimit -u and the limit of processes of its container)",
}
#: A killed process that is not gone after this is stuck in the kernel, and nobody can do anything about it.
_REAP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended. ``ended_because`` continues "its process" where it was the supervisor that ended it.

    ``not_made`` says why there was no process at all.
    ``restart_in_s`` ``None``: it is not started again before a person asks for it.
    """

    exit_code: int
    was_ready: bool
    ended_because: str
    restart_in_s: float | None
    breaker: Breaker
    not_made: str = ""

    @property
    def how(self) -> str:
        """What its process did, in words."""
        if self.not_made:
            return f"could not be made: {self.not_made}"
        return f"{self.ended_because} and was ended" if self.ended_because else describe_exit(self.exit_code)


class Kept(Protocol):
    """What the keeper tells and asks the owner of a child."""

    name: str

    def launch(self, generation: int) -> Launch:
        """Return how to start this generation."""

    def on_message(self, message: Message) -> None:
        """Take a control message of the running generation."""

    def on_hung(self, why: str) -> None:
        """Hear that the child is being ended because it hangs; its death follows."""

    def on_died(self, death: Death) -> None:
        """Hear that the child is gone."""


class Lines(Protocol):
    """Where the lines of a child's stderr go."""

    def take(self, line: str) -> None:
        """Take one line without its newline."""

    def end(self) -> None:
        """Hear that this process will write no more."""


class Keeper:
    """Runs one child after another until it is stopped or starting again cannot help."""

    def __init__(self, kept: Kept, policy: RestartPolicy, watchdog: Watchdog, lines: Lines) -> None:
        self._kept = kept
        self._policy = policy
        self._watchdog = self._next_watchdog = watchdog
        self._lines = lines
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        #: Ends the pause before the next start.
        self._wake = asyncio.Event()
        self._ended_because = ""
        self._not_made = ""
        self._task: asyncio.Task[None] | None = None
        self.generation = 0

    @property
    def pid(self) -> int:
        """The living child's process id, or 0."""
        return self._child.pid if self._child is not None else 0

    @property
    def boot_failures(self) -> int:
        """How many children died before they were ready."""
        return self._policy.boot_failures

    @property
    def crashes(self) -> int:
        """How many children died after they were ready."""
        return self._policy.crashes

    @property
    def breaker(self) -> Breaker:
        """Whether the child is left alone for a time because it keeps dying."""
        return self._policy.breaker(time.monotonic())

    @property
    def report_every_s(self) -> float:
        """How often the child that is started next has to report."""
        return self._next_watchdog.report_every_s

    def retune(self, restarts: RestartLimits, watch: WatchLimits) -> None:
        """Take other limits: on restarts at once, on hangs from the next child on, which then reports accordingly."""
        self._policy.retune(restarts)
        self._next_watchdog = Watchdog(watch)

    def start(self) -> None:
        """Start keeping."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self._kept.name}")

    def send(self, message: Message) -> None:
        """Send to the living child, if there is one."""
        if self._child is not None:
            self._child.send(message)

    def replace(self, why: str) -> None:
        """Kill the living child; the policy decides when its successor starts."""
        if self._child is not None:
            self._ended_because = why
            self._child.kill()

    def revive(self) -> None:
        """Forget earlier failures, and start at once what is dead: a person has changed something, or asks for it."""
        self._policy.reset()
        self._wake.set()

    async def stop(self, grace_s: float) -> bool:
        """Stop the child with SIGTERM, and with SIGKILL after ``grace_s``; true if it went by itself."""
        self._request_stop()
        if self._task is None:
            return True
        if self._child is not None:
            self._child.request_end()
        done, _ = await asyncio.wait([self._task], timeout=grace_s)
        if done:
            return True
        log.error("killed", child=self._kept.name, pid=self.pid, after_s=grace_s)
        self.kill()
        done, _ = await asyncio.wait([self._task], timeout=_REAP_S)
        if not done:
            log.error("cannot_be_killed", child=self._kept.name, pid=self.pid)
            self._task.cancel()
        return False

    def kill(self) -> None:
        """End the child now, with no successor; one that is being ended as it hangs may first write its stacks."""
        self._request_stop()
        if self._child is not None and not self._ended_because:
            self._child.kill()

    def _request_stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            self.generation += 1
            self._ended_because = self._not_made = ""
            exit_code = await self._run_one()
            self._lines.end()
            if self._stopping.is_set():
                return
            now_s = time.monotonic()
            delay_s = self._policy.died(now_s, exit_code)
            breaker = self._policy.breaker(now_s)
            self._wake.clear()  # before it is told: who hears of it may want no other
            death = Death(exit_code, self._watchdog.is_ready, self._ended_because, delay_s, breaker, self._not_made)
            try:
                self._kept.on_died(death)
            except Exception:  # a mistake of ours is no reason to leave the child dead
                log.exception("death_not_taken", child=self._kept.name)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout=delay_s)

    async def _run_one(self) -> int:
        """Return the exit code of one child from start to end."""
        self._policy.started()
        self._watchdog = self._next_watchdog
        self._watchdog.begin(time.monotonic())
        try:
            self._child = await spawn(self._kept.launch(self.generation), self._on_message, self._lines.take)
        except OSError as error:  # no memory or no process number just now: one more death for the policy
            log.error("spawn_failed", child=self._kept.name, error=error)
            limit = _LIMITS.get(error.errno or 0)
            self._not_made = f"{error} (see {limit})" if limit else str(error)
            return _SPAWN_FAILED
        except Exception:  # a mistake of ours: this child is not to be lost for it, nor are the others
            log.exception("spawn_failed", child=self._kept.name)
            return _SPAWN_FAILED
        log.debug("spawned", child=self._kept.name, pid=self._child.pid, generation=self.generation)
        if self._stopping.is_set():  # asked while the process was being made
            self._child.request_end()
        watching = asyncio.create_task(self._watch(self._child), name=f"watch {self._kept.name}")
        try:
            return await self._child.wait()
        finally:
            self._child = None
            watching.cancel()

    def _on_message(self, message: Message) -> None:
        now_s = time.monotonic()
        was_ready = self._watchdog.is_ready
        self._watchdog.hear(now_s, message)
        if self._watchdog.is_ready and not was_ready:
            self._policy.became_ready(now_s)
        self._kept.on_message(message)

    async def _watch(self, child: Child) -> None:
        """End a child that hangs; one that is being stopped has its own bound."""
        was_busy = False
        while True:
            await asyncio.sleep(self._watchdog.check_every_s)
            now_s = time.monotonic()
            is_still = not self._watchdog.is_ready and child.stands_still()
            hang = self._watchdog.check(now_s, is_stopped=child.is_stopped, is_still=is_still)
            if hang is not None and not self._stopping.is_set():
                log.error(
                    "hung", child=self._kept.name, pid=child.pid, kind=hang.kind, why=f"its process {hang.sentence}"
                )
                self._ended_because = hang.sentence
                try:
                    self._kept.on_hung(hang.sentence)
                finally:
                    await child.abort()
                return
            is_busy = self._watchdog.is_busy(now_s)
            if is_busy != was_busy:
                log.warning("late_reports" if is_busy else "reports_again", child=self._kept.name, pid=child.pid)
                was_busy = is_busy


def describe_exit(exit_code: int) -> str:
    """Return in words how a process ended that nobody asked to end."""
    if exit_code == 0:
        return "exited with code 0, although nobody had asked it to"
    if exit_code == EXIT_NO_THREAD:
        return f"could start no thread: {advice_without_threads()}"
    limits = memory_limits()
    return _describe_failure(exit_code) + (f", perhaps for want of memory under {limits}" if limits else "")


def _describe_failure(exit_code: int) -> str:
    if exit_code > 0:
        return f"exited with code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal: of those only the first and the last have names
        name = f"signal {-exit_code}"
    return f"was killed by {name}" + _CAUSES.get(name, "")
