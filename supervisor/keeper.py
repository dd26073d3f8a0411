"""Keeps one child alive: starts it, waits for its end, asks the policy, starts it again. One keeper per child."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Protocol

from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Message
from supervisor.child import Child, Launch, spawn
from supervisor.restarts import RestartPolicy

log = EventLog("supervisor.keeper")

#: As the shell says "found but could not be run".
_SPAWN_FAILED = 126


class Kept(Protocol):
    """What the keeper tells and asks the owner of a child."""

    name: str

    def launch(self, generation: int) -> Launch:
        """Return how to start this generation."""

    def on_message(self, message: Message) -> None:
        """Take a control message of the running generation."""

    def on_died(self, exit_code: int, restart_in_s: float | None) -> None:
        """Hear that the child is gone; ``None``: it will not be started again."""


class Keeper:
    """Runs one child after another until it is stopped or starting again cannot help."""

    def __init__(self, kept: Kept, policy: RestartPolicy, on_line: Callable[[str], None]) -> None:
        self._kept = kept
        self._policy = policy
        self._on_line = on_line
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.generation = 0

    @property
    def pid(self) -> int:
        """The living child's process id, or 0."""
        return self._child.pid if self._child is not None else 0

    def start(self) -> None:
        """Start keeping."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self._kept.name}")

    def send(self, message: Message) -> None:
        """Send to the living child, if there is one."""
        if self._child is not None:
            self._child.send(message)

    def became_ready(self) -> None:
        """Note that the living child serves."""
        self._policy.became_ready(time.monotonic())

    def replace(self) -> None:
        """Kill the living child; the policy decides when its successor starts."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> bool:
        """Stop the child with SIGTERM, and with SIGKILL after ``grace_s``; true if it went by itself."""
        self._stopping.set()
        if self._task is None:
            return True
        if self._child is not None:
            self._child.signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self._task], timeout=grace_s)
        if not done:
            log.error("killed", child=self._kept.name, pid=self.pid, after_s=grace_s)
            self.kill()
        await self._task
        return bool(done)

    def kill(self) -> None:
        """End the child now, with no successor."""
        self._stopping.set()
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            self.generation += 1
            exit_code = await self._run_one()
            if self._stopping.is_set():
                return
            delay_s = self._policy.died(time.monotonic(), exit_code)
            self._kept.on_died(exit_code, delay_s)
            if delay_s is None:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), timeout=delay_s)

    async def _run_one(self) -> int:
        """Return the exit code of one child from start to end."""
        try:
            self._child = await spawn(self._kept.launch(self.generation), self._kept.on_message, self._on_line)
        except OSError as error:  # no memory or no process number just now: one more death for the policy
            log.error("spawn_failed", child=self._kept.name, error=error)
            return _SPAWN_FAILED
        log.debug("spawned", child=self._kept.name, pid=self._child.pid, generation=self.generation)
        if self._stopping.is_set():  # asked while the process was being made
            self._child.signal(signal.SIGTERM)
        try:
            return await self._child.wait()
        finally:
            self._child = None


def describe_exit(exit_code: int) -> str:
    """Return in words how a process ended."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in signal.valid_signals() else f"signal {-exit_code}"
    return f"was killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
