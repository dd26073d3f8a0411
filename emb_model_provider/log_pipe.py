"""A child's stderr that never waits for its reader: a supervisor that is stopped or slow holds up no request.

Made by ``logs.configure_child_logs``. What is written is in the kernel's pipe at once, so that the last lines before a
crash arrive. Where the pipe is full, lines are dropped and counted, and the count is written as soon as there is room.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: As much as any user may ask for (pipe(7)): some 5,000 lines of an access log. Others have 64 KB.
_PIPE_BYTES: Final = 1024 * 1024


class LogPipe(io.RawIOBase):
    """The writing end of a pipe. ``notice`` makes the line that tells how many lines were dropped.

    Safe from any thread, and within itself: a finalizer that warns may run in the middle of a write.
    """

    def __init__(self, descriptor: int, notice: Callable[[int], str]) -> None:
        self._descriptor = descriptor
        self._notice = notice
        self._lock = threading.RLock()
        self._rest = b""
        self._dropped = 0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: ReadableBuffer, /) -> int:
        """Take one or more whole lines: all of them are written, or later, or counted. Never waits, never raises."""
        lines = bytes(data)
        with self._lock:
            if not self._catch_up() or (written := self._put(lines)) == 0:
                self._dropped += lines.count(b"\n")
            else:
                self._rest = lines[written:]
        return len(lines)

    def flush(self) -> None:
        """Write what the pipe had no room for before, as far as it has now."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> bool:
        """Write the rest of a line and the count of those that were dropped; tell whether nothing is left of both."""
        self._rest = self._rest[self._put(self._rest) :]
        if self._dropped and not self._rest and self._has_room() and self._put(self._notice(self._dropped).encode()):
            self._dropped = 0
        return not self._rest and not self._dropped

    def _has_room(self) -> bool:
        """Tell whether a page is free: the notice fits into what is left of one, between lines that do not."""
        return bool(self._poll.poll(0))

    def _put(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data) if data else 0
        except OSError:  # full, or the supervisor is gone and this process about to follow
            return 0


def open_log_pipe(descriptor: int, notice: Callable[[int], str]) -> LogPipe | None:
    """Return another way into the pipe at ``descriptor``; ``None`` where that is no pipe, or cannot be opened again.

    It is opened again because not to wait belongs to the opening, not to the descriptor (fcntl(2)): what C code and
    ``faulthandler`` write to stderr shall wait, for they would lose it without a word.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return None
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    return LogPipe(again, notice)
