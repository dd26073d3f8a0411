"""What stands where a keeper stands: no process is started, and what it is told is noted."""

from __future__ import annotations

import asyncio


class NoKeeper:
    """Its child ends when ``gone`` is set. How it is started and stopped is for who has it to say."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.pid = 0
        self.boot_failures = self.crashes = 0
        self.breaker = "closed"
        self.report_every_s = 1.0
        self.gone = asyncio.Event()

    def start(self) -> None:
        self.told.append("start")

    def kill(self) -> None:
        self.told.append("kill")
        self.gone.set()

    def replace(self, why: str) -> None:
        self.told.append(f"replace: {why}")

    def revive(self) -> None:
        self.told.append("revive")
