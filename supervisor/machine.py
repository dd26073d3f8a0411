"""What this machine offers, as far as placing processes needs it. Read once at start by ``tree``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.cgroups import cpu_quotas

_GPU_NODE = re.compile(r"nvidia\d+")


@dataclass(frozen=True, slots=True)
class Machine:
    """CPUs this process may use, how many of them at once, and GPUs as ``CUDA_VISIBLE_DEVICES`` names them."""

    cpus: tuple[int, ...]
    cpu_count: int
    gpus: tuple[str, ...]


def read_machine(env: Mapping[str, str]) -> Machine:
    """Return the machine as the kernel and ``CUDA_VISIBLE_DEVICES`` describe it."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    quotas = (parse_cpu_quota(quota) for quota in cpu_quotas())
    return Machine(cpus, min([len(cpus), *(quota for quota in quotas if quota is not None)]), _visible_gpus(env))


def parse_cpu_quota(text: str) -> int | None:
    """Return the whole CPUs of a cgroup v2 ``cpu.max`` ("200000 100000" is 2), at least 1; ``None`` for no limit.

    Format: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    quota, _, period = text.strip().partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return max(1, int(quota) // int(period))


def _visible_gpus(env: Mapping[str, str]) -> tuple[str, ...]:
    nodes = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia*") if _GPU_NODE.fullmatch(path.name))
    chosen = env.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(str(index) for index in range(len(nodes)))
    return tuple(one.strip() for one in chosen.split(",") if one.strip() not in ("", "-1"))
