"""Buries who was left to us, as all orphans of a container are to its first process. Used by ``lookout``."""

from __future__ import annotations

import contextlib
import os


class Orphans:
    """Our own children are reaped by who waits for them, at once: what is dead at two looks was somebody else's."""

    def __init__(self) -> None:
        self._dead = 0

    def look(self) -> None:
        """Reap who was dead at the last look, too, and see who else is."""
        with contextlib.suppress(ChildProcessError):
            if self._dead and self._first() == self._dead:
                os.waitpid(self._dead, os.WNOHANG)
            self._dead = self._first()

    def _first(self) -> int:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return 0 if found is None else found.si_pid
