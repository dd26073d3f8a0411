"""Which process holds a directory: by a lock of the kernel's on the directory itself.

It ends with the process, however that ends, and systemd-tmpfiles leaves directories that are locked so
(tmpfiles.d(5)). Called by ``rundir``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

#: A look takes some 20 µs.
_LOOK_S = 0.01
_LOOKERS = 10


def lock(path: Path, kind: int = fcntl.LOCK_EX) -> int:
    """Return a descriptor that holds the directory; raise ``BlockingIOError`` where another process does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        _check_is_at(path, descriptor)
    except BaseException:  # also Ctrl-C: nobody else knows the descriptor
        os.close(descriptor)
        raise
    return descriptor


def lock_patiently(path: Path) -> int:
    """Lock a directory for good; whoever only looks whether a server runs there holds it for a moment, too."""
    for _ in range(_LOOKERS):
        with contextlib.suppress(BlockingIOError):
            return lock(path)
        time.sleep(_LOOK_S)
    return lock(path)


def _check_is_at(path: Path, descriptor: int) -> None:
    """Refuse one that was removed, and perhaps made again, before it was locked: that is the lock of nothing."""
    if not os.path.samestat(path.stat(), os.fstat(descriptor)):
        raise FileNotFoundError(path)
