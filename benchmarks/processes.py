"""What the kernel says about processes and their memory (proc(5))."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_PEAK: Final = "VmHWM"
_NOW: Final = "VmRSS"


def children_of(parent: int) -> list[int]:
    """Return the pids of a process's children; zombies are none."""
    return [pid for pid in _pids() if (fields := _stat(pid)) and int(fields[1]) == parent and fields[0] != "Z"]


def command_line(pid: int) -> list[str]:
    """Return a process's arguments; empty when it is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def private_bytes(pid: int) -> int:
    """Return the memory that no other process shares, written or not: Private_Clean + Private_Dirty."""
    rollup = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    return 1024 * sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.MULTILINE))


def resident_bytes(pid: int) -> int:
    """Return the memory in use now, shared pages among it."""
    return _status_bytes(pid, _NOW)


def peak_resident_bytes(pid: int) -> int:
    """Return the most memory in use at once since ``reset_peak``."""
    return _status_bytes(pid, _PEAK)


def reset_peak(pid: int) -> None:
    """Let the peak begin anew at what is in use now."""
    (_PROC / str(pid) / "clear_refs").write_text("5", encoding="ascii")


def _pids() -> list[int]:
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal()]


def _stat(pid: int) -> list[str]:
    """Return the fields after the command's name: state, parent and so on."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _status_bytes(pid: int, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", (_PROC / str(pid) / "status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"the kernel does not say {name} of process {pid}")
    return 1024 * int(match.group(1))
