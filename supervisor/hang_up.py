"""What SIGHUP means: the settings are to be read again, or our terminal was closed. Used by ``tree``.

Who starts a process with the signal ignored, as nohup(1) does, wants it to outlive the terminal: there it never means
stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable


class HangUp:
    """The handler of the signal, made before it is set: a terminal that was there then and is gone now means stop."""

    def __init__(self, stop: Callable[[], None], reload: Callable[[], object]) -> None:
        self._stop = stop
        self._reload = reload
        self._ends_with_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN

    def __call__(self) -> None:
        if self._ends_with_terminal and not _has_terminal():
            self._stop()
        else:
            self._reload()


def _has_terminal() -> bool:
    """Tell whether this process belongs to a terminal that is still there (tty(4))."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
        return True
    return False
