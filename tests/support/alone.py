"""Tests that measure what the machine can do run while no other one does, also where several processes share a run.

Without pytest-xdist there is nothing to do. With it, every test holds a lock that those marked ``alone`` take for
themselves; who waits for that keeps others from beginning, or it would wait for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def turn(directory: Path, *, alone: bool) -> Iterator[None]:
    """Wait for a turn to run among the processes that share ``directory``, and hold it."""
    with _locked(directory / "door.lock", fcntl.LOCK_EX) as door:
        running = os.open(directory / "running.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(door, fcntl.LOCK_UN)
            yield
        finally:
            os.close(running)


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
