"""What a process may have of memory, threads, descriptors and bytes of a file by its own limits, in words.

Too little of each shows in many unlike ways. Asked by whichever process meets one.
"""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason

_MEMORY: Final = ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d"))
_KIB: Final = 1024
#: What Python says of it, in a ``RuntimeError``; its own libraries pass the words on.
NO_THREAD: Final = "can't start new thread"
#: What a new connection fails of for which nobody at its other end is to blame: too few descriptors, too little memory.
SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def memory_limits() -> str:
    """Return the limits that are set as a shell names and counts them, such as "ulimit -v 300000"; "" without any."""
    soft = ((resource.getrlimit(which)[0], name) for which, name in _MEMORY)
    return ", ".join(f"{name} {limit // _KIB}" for limit, name in soft if limit != resource.RLIM_INFINITY)


def advice_without_threads() -> str:
    """Return what a person can do where no thread can be started: each takes a process number and room for a stack."""
    limits = memory_limits()
    processes = "raise the limit of processes (ulimit -u, TasksMax in a systemd unit, a container's pids limit)"
    return processes + (f" or of memory ({limits})" if limits else "")


def files_limited(directory: Path) -> LoadError:
    """Return the error of a process that may not write files as large as it needs (``EFBIG``)."""
    why = f"a file in {directory} must be larger than this process may write"
    return LoadError(LoadReason.NO_PERMISSION, f"{why}: raise its limit (ulimit -f, LimitFSIZE in a systemd unit)")
