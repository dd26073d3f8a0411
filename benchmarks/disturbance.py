"""How much of the processors somebody else used while a row was measured: a figure taken on a busy machine says so."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
#: The columns of proc(5)'s cpu lines that are not idle time: user nice system irq softirq steal.
_BUSY: Final = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True, slots=True)
class Usage:
    """A moment: seconds on the clock, seconds that these CPUs were busy or stolen, seconds that were ours."""

    clock_s: float
    busy_s: float
    own_s: float


def usage(cpus: Sequence[int]) -> Usage:
    """Return the usage until now; processes that we started count as ours once they have ended."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = busy_seconds(_STAT.read_text(encoding="ascii"), cpus, os.sysconf("SC_CLK_TCK"))
    return Usage(time.monotonic(), busy, sum(one.ru_utime + one.ru_stime for one in own))


def busy_seconds(stat: str, cpus: Sequence[int], ticks_per_s: int) -> float:
    """Return how long these CPUs were not idle, from the text of /proc/stat."""
    ticks = 0
    for number, columns in re.findall(r"^cpu(\d+) (.+)$", stat, re.MULTILINE):
        if int(number) in cpus:
            values = [int(value) for value in columns.split()]
            ticks += sum(values[column] for column in _BUSY)
    return ticks / ticks_per_s


def others_share(before: Usage, after: Usage, cpus: int) -> float:
    """Return the part of the CPUs' time between two moments, 0 to 1, that went to others."""
    whole_s = (after.clock_s - before.clock_s) * cpus
    others_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return min(1.0, max(0.0, others_s / whole_s)) if whole_s > 0 else 0.0
