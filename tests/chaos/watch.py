"""Looks at every process once a second: memory, descriptors, threads, zombies. Run by ``run`` and by the soak."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from tests.support.leaks import open_files, resident_bytes, thread_count
from tests.support.processes import children_of, command_line, is_zombie

_MB = 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """One process at one moment."""

    at_s: float
    resident_mb: float
    files: int
    threads: int


@dataclass
class Watch:
    """Samples by (role, pid). A zombie counts when it is one for three looks: being reaped takes a moment."""

    supervisor: int
    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)
    zombies: Counter[int] = field(default_factory=Counter)
    most_processes: int = 0

    def look(self) -> None:
        now_s = time.monotonic()
        children = children_of(self.supervisor)
        self.most_processes = max(self.most_processes, 1 + len(children))
        for pid in children:
            if is_zombie(pid):
                self.zombies[pid] += 1
        for pid in [self.supervisor, *children]:
            try:
                sample = Sample(now_s, resident_bytes(pid) / _MB, open_files(pid), thread_count(pid))
                self.samples.setdefault((self._role(pid), pid), []).append(sample)
            except (OSError, IndexError):  # it ended between two looks
                continue

    def lasting_zombies(self) -> int:
        return sum(count >= 3 for count in self.zombies.values())

    def longest(self, role: str) -> list[Sample]:
        """Return the samples of the process of that role that was watched longest."""
        found = [samples for (its_role, _), samples in self.samples.items() if its_role == role]
        return max(found, key=len, default=[])

    def _role(self, pid: int) -> str:
        if pid == self.supervisor:
            return "supervisor"
        words = command_line(pid)
        return next((word for word in ("router", "shard") if word in words), "other")


def growth(samples: list[Sample], what: str) -> float:
    """Return how much larger a value is in the last fifth than in the second fifth, by medians.

    The first fifth is left out: caches fill and thread pools start.
    """
    if len(samples) < 10:
        return 0.0
    fifth = len(samples) // 5
    values = [float(getattr(sample, what)) for sample in samples]
    return _median(values[-fifth:]) - _median(values[fifth : 2 * fifth])


def slope_per_hour(samples: list[Sample], what: str) -> float:
    """Return the least-squares slope per hour, the first fifth left out."""
    kept = samples[len(samples) // 5 :]
    if len(kept) < 3:
        return 0.0
    times = [sample.at_s - kept[0].at_s for sample in kept]
    values = [float(getattr(sample, what)) for sample in kept]
    mean_time, mean_value = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time_s - mean_time) ** 2 for time_s in times)
    return 3600 * sum((t - mean_time) * (v - mean_value) for t, v in zip(times, values, strict=True)) / spread


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
