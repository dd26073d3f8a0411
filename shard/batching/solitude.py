"""Who reads, and when nobody may: what may kill the process has it to itself. Used by ``engine``.

The scheduler sees to it that no other lane computes beside a text that runs alone. This sees to it that no other text
is read (tokenised) meanwhile, so that whatever the process dies of then, only one text can be to blame.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Solitude:
    """Held by many readers at once, or by one that is alone.

    Readers that come while somebody is alone are let in as soon as that one is done, before the next may be alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        #: Readers that wait for the one that is, or is about to be, alone.
        self._kept_out = 0
        self._is_claimed = False
        self._times_alone = 0

    def try_read(self) -> bool:
        """Begin to read if that is possible without waiting; tell whether it was."""
        with self._changed:
            if not self._is_claimed:
                self._readers += 1
            return not self._is_claimed

    def read(self) -> None:
        """Begin to read, after waiting for whoever is alone."""
        with self._changed:
            if not self._is_claimed:
                self._readers += 1
                return
            self._kept_out += 1
            times = self._times_alone
            self._changed.wait_for(lambda: self._times_alone != times)

    def done_reading(self) -> None:
        """End what ``read`` or ``try_read`` began."""
        with self._changed:
            self._readers -= 1
            if self._is_claimed:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone, after waiting for those that read and for whoever is alone already."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_claimed)
            self._is_claimed = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._is_claimed = False
                self._times_alone += 1
                self._readers, self._kept_out = self._kept_out, 0
                self._changed.notify_all()
