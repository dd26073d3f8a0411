"""Whose turn it is: start-time fair queueing between clients, pure. Used by ``gate``.

Goyal, Vin and Cheng, "Start-time fair queueing", 1996: an entry is stamped with the virtual time at which it would
begin if its client had its share of the server; the smallest stamp goes first. However much one client queues,
the next entry of another is at most one entry of each client away. Of each client the first that waits is stamped:
those behind it follow from what it has had, and what is taken back has cost it nothing.

There, whoever comes for the first time is stamped with the time of the entry in service, so that an endless row of
those who come once would keep everybody from a second turn. Here the stamp of a newcomer also moves on with the work
that is done, at the pace of one client's share (Parekh and Gallager, "A generalized processor sharing approach to flow
control", 1993), but never past the second entry of anyone.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: How far a newcomer's stamp may come on the way to the second entry of another client.
_SHORT_OF_SECOND: Final = 15 / 16
#: So much of what is over is kept rather than looked for.
_KEPT: Final = 64


@dataclass(eq=False, slots=True)
class Entry(Generic[T]):
    """What waits for its turn; made by ``FairQueue.push``."""

    number: int
    client: str
    cost: int
    item: T
    is_waiting: bool = True


@dataclass(slots=True)
class _Line(Generic[T]):
    """What waits of one client, by number. The first alone is stamped: what leaves without its turn costs nothing."""

    begin: float
    #: Ordered: a dict would look for its first entry through all that were before it.
    entries: OrderedDict[int, Entry[T]] = field(default_factory=OrderedDict)

    @property
    def first(self) -> Entry[T]:
        return next(iter(self.entries.values()))


class FairQueue(Generic[T]):
    """Entries of several clients; each client's own leave in the order in which they came."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._clear()

    def _clear(self) -> None:
        #: When the first entry of each line begins and ends, and its number; what is no longer the first is skipped.
        self._by_begin: list[tuple[float, int, str]] = []
        self._by_end: list[tuple[float, int, str]] = []
        self._waiting = 0
        self._now = 0.0
        #: The virtual time of a server that works for all who wait at once.
        self._shared_now = 0.0
        self._lines: dict[str, _Line[T]] = {}
        #: The virtual time at which the last entry of each client that had its turn would end.
        self._served: dict[str, float] = {}
        self._room = _KEPT

    def __len__(self) -> int:
        return self._waiting

    def push(self, client: str, cost: int, item: T) -> Entry[T]:
        """Queue ``item``, which costs so much (in any unit, the same for all)."""
        entry = Entry(next(self._numbers), client, cost, item)
        line = self._lines.get(client)
        if line is not None:
            line.entries[entry.number] = entry
        else:
            line = _Line(max(self._newcomers_begin(), self._served.get(client, 0.0)))
            line.entries[entry.number] = entry
            self._lines[client] = line
            self._stamp(line)
        self._waiting += 1
        return entry

    def first(self) -> Entry[T]:
        """Return the entry whose turn it is; there must be one."""
        self._skip(self._by_begin)
        return self._lines[self._by_begin[0][2]].first

    def pop(self) -> Entry[T]:
        """Remove and return the entry whose turn it is; there must be one."""
        self._skip(self._by_begin)
        begin, _, client = heapq.heappop(self._by_begin)
        line = self._lines[client]
        entry = line.first
        self._now = begin  # of those that wait none begins before one that had its turn
        self._shared_now = max(self._now, self._shared_now + entry.cost / len(self._lines))
        self._served[client] = line.begin = begin + entry.cost
        self._leave(entry)
        return entry

    def discard(self, entry: Entry[T]) -> None:
        """Forget an entry that nobody waits for any more; one that has had its turn is ignored."""
        if entry.is_waiting:
            self._leave(entry)

    def _newcomers_begin(self) -> float:
        self._skip(self._by_end)
        if not self._by_end:
            return self._now
        return min(self._shared_now, self._now + _SHORT_OF_SECOND * (self._by_end[0][0] - self._now))

    def _leave(self, entry: Entry[T]) -> None:
        entry.is_waiting = False
        self._waiting -= 1
        line = self._lines[entry.client]
        was_first = line.first is entry
        del line.entries[entry.number]
        if not line.entries:
            del self._lines[entry.client]
        elif was_first:
            self._stamp(line)
        if not self._waiting:
            self._clear()
        elif self._size > self._room:
            self._tidy()

    def _stamp(self, line: _Line[T]) -> None:
        first = line.first
        heapq.heappush(self._by_begin, (line.begin, first.number, first.client))
        heapq.heappush(self._by_end, (line.begin + first.cost, first.number, first.client))

    def _skip(self, heap: list[tuple[float, int, str]]) -> None:
        while heap and not self._is_first(heap[0]):
            heapq.heappop(heap)

    def _is_first(self, stamp: tuple[float, int, str]) -> bool:
        line = self._lines.get(stamp[2])
        return line is not None and line.first.number == stamp[1]

    @property
    def _size(self) -> int:
        return len(self._by_begin) + len(self._by_end) + len(self._served)

    def _tidy(self) -> None:
        """Forget what is over. Done when there is twice as much as last time, it costs no more than the pushes did."""
        self._by_begin = [stamp for stamp in self._by_begin if self._is_first(stamp)]
        self._by_end = [stamp for stamp in self._by_end if self._is_first(stamp)]
        heapq.heapify(self._by_begin)
        heapq.heapify(self._by_end)
        self._served = {client: end for client, end in self._served.items() if end > self._now}
        self._room = 2 * self._size + _KEPT
