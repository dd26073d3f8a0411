"""A child's life, tied to its parent's. Called by the ``__main__`` of each child before anything else is imported.

Imports next to nothing itself: until the kernel knows, a parent that dies leaves an orphan behind, and a child's own
imports take seconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies, also while a C call holds the GIL.

    "Parent" is the thread that forked (prctl(2)): the supervisor starts children from its main thread only.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the line above: then nobody will ever send the signal.
    if os.getppid() != parent_pid:
        os._exit(1)
