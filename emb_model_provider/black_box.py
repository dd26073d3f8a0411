"""What a shard was at when it died: a page of memory that outlives its process.

A message that says "I begin with these" may still wait in the shard's own event loop when the model crashes a moment
later, and then nobody would know which requests were at fault. So the threads of a shard note what they are at in a
mapped file, which costs a microsecond and no system call, and the router maps the same file and reads it once the link
is gone. Written by ``shard.channel``, read by ``router.link``.

The file is a row of slots, one for each thread that can be at something: a count, then as many pairs of router and
request id, all little-endian. A router is known by its process id, which both ends of a link know without a message. A
slot is written by its own thread only, the count last.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

#: More requests in one batch than a slot has room for: nothing is known of it.
MAX_ENTRIES: Final = 1000
_TOO_MANY: Final = 0xFFFF_FFFF
_COUNT: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<QQ")
_SLOT_BYTES: Final = _COUNT.size + MAX_ENTRIES * _PAIR.size


def box_path(socket_path: str | Path) -> Path:
    """Return where the box of the shard at that socket lies."""
    return Path(socket_path).with_suffix(".box")


class BlackBox:
    """The shard's side: what each of its threads is at. Raises ``OSError`` where there is no room for it."""

    def __init__(self, path: Path, slots: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Now, for a write to a page that the file system has no room for is a signal that kills (mmap(2), SIGBUS).
            os.posix_fallocate(descriptor, 0, slots * _SLOT_BYTES)
            self._memory = mmap.mmap(descriptor, slots * _SLOT_BYTES)
        finally:
            os.close(descriptor)

    def enter(self, slot: int, requests: Collection[tuple[int, int]]) -> None:
        """Note that this slot's thread is at these requests now, each a router and a request id."""
        start = slot * _SLOT_BYTES
        if len(requests) > MAX_ENTRIES:
            _COUNT.pack_into(self._memory, start, _TOO_MANY)
            return
        position = start + _COUNT.size
        for router, request_id in requests:
            _PAIR.pack_into(self._memory, position, router, request_id)
            position += _PAIR.size
        _COUNT.pack_into(self._memory, start, len(requests))

    def leave(self, slot: int) -> None:
        """Note that this slot's thread is at nothing."""
        _COUNT.pack_into(self._memory, slot * _SLOT_BYTES, 0)


class BlackBoxReader:
    """The router's side: open while the shard lives, read once it is gone."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)

    def requests_of(self, router: int) -> frozenset[int] | None:
        """Return the request ids of one router that were in hand; ``None`` where that is not known."""
        found: set[int] = set()
        for start in range(0, len(self._memory) - _SLOT_BYTES + 1, _SLOT_BYTES):
            (count,) = _COUNT.unpack_from(self._memory, start)
            if count > MAX_ENTRIES:
                return None
            for index in range(count):
                owner, request_id = _PAIR.unpack_from(self._memory, start + _COUNT.size + index * _PAIR.size)
                if owner == router:
                    found.add(request_id)
        return frozenset(found)

    def close(self) -> None:
        self._memory.close()
