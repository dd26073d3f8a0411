"""Our own process and its end, and what the kernel says about others and their memory (proc(5))."""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_PEAK: Final = "VmHWM"
_NOW: Final = "VmRSS"


def end_what_was_started() -> None:
    """Let SIGTERM be an exception, which passes through every ``with`` and so ends whatever a run has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def children_of(parent: int) -> list[int]:
    """Return the pids of a process's children; zombies are none."""
    return [pid for pid in _pids() if (fields := _stat(pid)) and int(fields[1]) == parent and fields[0] != "Z"]


def command_line(pid: int) -> list[str]:
    """Return a process's arguments; empty when it is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


@dataclass(frozen=True, slots=True)
class Private:
    """Memory that no other process has: ``dirty`` was written, ``clean`` is as its file on the disk, in bytes."""

    dirty: int
    clean: int

    @property
    def whole(self) -> int:
        return self.dirty + self.clean


def private_memory(pid: int) -> Private:
    """Return a process's Private_Dirty and Private_Clean."""
    rollup = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    sizes = {kind: 1024 * int(size) for kind, size in re.findall(r"^Private_(\w+):\s+(\d+) kB", rollup, re.MULTILINE)}
    return Private(sizes["Dirty"], sizes["Clean"])


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
