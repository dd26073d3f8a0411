"""Whether a process stands still: not one of its threads has run. Asked of the kernel by ``child``, for ``watchdog``.

A thread that has run has been put on a processor and taken off it, which the kernel counts (proc_pid_status(5),
``voluntary_ctxt_switches``). The count moves with the least thing that is done, so that nothing need be known of how
much a start computes, reads or receives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
#: In a system call or a page fault, with or without regard to signals, or stopped by one (proc_pid_stat(5)): it cannot
#: go on by itself. One that could run gets no processor, and one under a debugger is left alone.
_WAITING: Final = frozenset("SDT")
_COUNTS: Final = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")


class Stillness:
    """Looks at one process again and again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._runs: dict[str, tuple[str, ...]] = {}

    def look(self) -> bool:
        """Tell whether no thread has run since the last look, none can, and no child of the process lives.

        What such a child does, a compiler for instance, is its parent's work. False where the kernel does not say.
        """
        before, self._runs = self._runs, _runs_of_waiting_threads(self._pid)
        return bool(before) and self._runs == before and not _has_children(self._pid)


def _runs_of_waiting_threads(pid: int) -> dict[str, tuple[str, ...]]:
    """Return how often each thread was taken off a processor; nothing where one does not wait or cannot be asked."""
    runs: dict[str, tuple[str, ...]] = {}
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            lines = (task / "status").read_text("utf-8", "replace").splitlines()
            fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if fields["State"][0] not in _WAITING:
                return {}
            runs[task.name] = tuple(fields[name] for name in _COUNTS)
    except (OSError, LookupError):
        return {}
    return runs


def _has_children(pid: int) -> bool:
    for path in _PROC.iterdir():
        if path.name.isdecimal():
            try:
                stat = (path / "stat").read_text("utf-8", "replace")
            except OSError:  # it has gone meanwhile
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                return True
    return False
