"""What a test may not leave behind: processes, zombies, socket files, run directories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import alive, children_of, is_zombie, wait_until

_PROC = Path("/proc")


def processes_in(directory: Path) -> list[int]:
    """Pids of all living processes that work in ``directory`` or below, whoever their parent is now."""
    root = directory.resolve()
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal() and _works_in(path, root)]


def _works_in(process: Path, root: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(root) and alive(int(process.name))
    except OSError:
        return False


def open_files(pid: int) -> int:
    """Count a process's descriptors."""
    return len(list((_PROC / str(pid) / "fd").iterdir()))


def thread_count(pid: int) -> int:
    return len(list((_PROC / str(pid) / "task").iterdir()))


def resident_bytes(pid: int) -> int:
    pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def zombies_under(pid: int) -> list[int]:
    return [child for child in children_of(pid) if is_zombie(child)]


@contextmanager
def nothing_left(directory: Path) -> Iterator[None]:
    """Assert that soon no process works in ``directory``, no child of ours is new, no socket is left there."""
    children = set(children_of(os.getpid()))
    yield
    wait_until(lambda: not processes_in(directory), 5, f"no process is left in {directory}")
    left = set(children_of(os.getpid())) - children
    assert not left, f"children are left: {left}"
    sockets = [path for path in directory.rglob("*") if path.is_socket()]
    assert not sockets, f"socket files are left: {sockets}"
