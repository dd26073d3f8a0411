"""What the control groups around this process allow, as the kernel's files say it. Read by ``machine`` and ``room``.

A container sees its own group as the root of the tree, a unit of systemd lies deep in it, and each group on the way up
may allow less. Version 1 has a tree for each controller and other names for the files (cgroups(7)).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_TREE: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


def read(path: Path) -> str:
    """Return a file's text, empty where there is none, or none for us."""
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace")
    return ""


def cpu_quotas(tree: Path = _TREE, membership: Path = _MEMBERSHIP) -> list[str]:
    """Return each group's quota in the format of version 2's ``cpu.max``; empty or a negative one for no limit."""
    quotas = [read(group / "cpu.max") for group in _groups("", tree, membership)]
    groups_v1 = _groups("cpu", tree / "cpu", membership)
    return quotas + [f"{read(one / 'cpu.cfs_quota_us').strip()} {read(one / 'cpu.cfs_period_us')}" for one in groups_v1]


def memory_figures(tree: Path = _TREE, membership: Path = _MEMBERSHIP) -> list[tuple[str, str, str]]:
    """Return each group's limit, what it has taken of it, and its statistics."""
    names = ("memory.max", "memory.current", "memory.stat")
    names_v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    groups = [(group, names) for group in _groups("", tree, membership)]
    groups += [(group, names_v1) for group in _groups("memory", tree / "memory", membership)]
    return [(read(group / limit), read(group / taken), read(group / stat)) for group, (limit, taken, stat) in groups]


def _groups(controller: str, root: Path, membership: Path) -> list[Path]:
    """Return the group of this process below ``root`` and all around it; no controller stands for version 2.

    The path may begin above a container's root and then leads nowhere: the root itself is that container's group.
    """
    own = root
    for line in read(membership).splitlines():
        _, _, of_group = line.partition(":")
        controllers, _, path = of_group.partition(":")
        if controller in controllers.split(","):
            own = root / os.path.normpath("/" + path).lstrip("/")
    return [own, *(above for above in own.parents if above.is_relative_to(root))]
