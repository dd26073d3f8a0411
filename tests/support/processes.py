"""What the kernel says about processes (proc(5))."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_PROC = Path("/proc")


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the command name: state, parent pid, …; empty when there is no such process."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    """A zombie waits only for its parent to read its exit code; it is not alive."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def is_zombie(pid: int) -> bool:
    return _stat(pid)[:1] == ["Z"]


def children_of(parent: int) -> list[int]:
    pids = [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal()]
    return [pid for pid in pids if (fields := _stat(pid)) and int(fields[1]) == parent]


def command_line(pid: int) -> list[str]:
    return (_PROC / str(pid) / "cmdline").read_bytes().decode().rstrip("\0").split("\0")


def environment(pid: int) -> dict[str, str]:
    pairs = (_PROC / str(pid) / "environ").read_bytes().decode().rstrip("\0").split("\0")
    return dict(pair.split("=", 1) for pair in pairs)


def allowed_cpus(pid: int) -> list[str]:
    """The CPU set of every thread of a process, as the kernel writes it."""
    return [_status_field(task / "status", "Cpus_allowed_list") for task in (_PROC / str(pid) / "task").iterdir()]


def private_bytes(pid: int) -> int:
    """Memory that is this process's alone."""
    rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
    return 1024 * sum(
        int(line.split()[1]) for line in rollup.splitlines() if line.startswith(("Private_Clean", "Private_Dirty"))
    )


def _status_field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    raise KeyError(name)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


def cpu_s(pid: int) -> float:
    """Processor time that a process has used so far, its threads included (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | 2)
