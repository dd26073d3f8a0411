"""Whose turn it is: start-time fair queueing between clients, pure. Used by ``gate``.

Goyal, Vin and Cheng, "Start-time fair queueing", 1996: an entry is stamped with the virtual time at which it would
begin if its client had its share of the server; the smallest stamp goes first. However much one client queues,
the next entry of another is at most one entry of each client away.

There, whoever comes for the first time is stamped with the time of the entry in service, so that an endless row of
those who come once would keep everybody from a second turn. Here the stamp of a newcomer also moves on with the work
that is done, at the pace of one client's share (Parekh and Gallager, "A generalized processor sharing approach to flow
control", 1993), but never past the second entry of anyone.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: How far a newcomer's stamp may come on the way to the second entry of another client.
_SHORT_OF_SECOND: Final = 15 / 16
#: So much of what is over is kept rather than looked for.
_KEPT: Final = 64


@dataclass(order=True, slots=True)
class Entry(Generic[T]):
    """What waits for its turn; made by ``FairQueue.push``."""

    begin: float
    number: int
    client: str = field(compare=False)
    cost: int = field(compare=False)
    item: T = field(compare=False)
    is_waiting: bool = field(default=True, compare=False)

    @property
    def end(self) -> float:
        return self.begin + self.cost


@dataclass(slots=True)
class _Line(Generic[T]):
    """What waits of one client, by number, and when the last would end by what has not left."""

    end: float
    entries: dict[int, Entry[T]] = field(default_factory=dict)

    def begin(self, newcomers_begin: float) -> float:
        """Return when one more would begin: not before one that waits already."""
        last = next(reversed(self.entries.values()), None)
        return max(newcomers_begin, self.end, last.begin if last is not None else 0.0)


class FairQueue(Generic[T]):
    """Entries of several clients; each client's own leave in the order in which they came."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._clear()

    def _clear(self) -> None:
        self._by_begin: list[Entry[T]] = []
        self._by_end: list[tuple[float, int, Entry[T]]] = []
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
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = _Line(self._served.get(client, 0.0))
        entry = Entry(line.begin(self._newcomers_begin()), next(self._numbers), client, cost, item)
        line.entries[entry.number], line.end = entry, entry.end
        heapq.heappush(self._by_begin, entry)
        heapq.heappush(self._by_end, (entry.end, entry.number, entry))
        self._waiting += 1
        return entry

    def pop(self) -> Entry[T]:
        """Remove and return the entry whose turn it is; there must be one."""
        while not (entry := heapq.heappop(self._by_begin)).is_waiting:
            pass
        self._now = max(self._now, entry.begin)
        self._shared_now = max(self._now, self._shared_now + entry.cost / len(self._lines))
        self._served[entry.client] = entry.end
        self._leave(entry)
        return entry

    def discard(self, entry: Entry[T]) -> None:
        """Forget an entry that nobody waits for any more; one that has had its turn is ignored."""
        if entry.is_waiting:
            self._lines[entry.client].end -= entry.cost
            self._leave(entry)

    def _newcomers_begin(self) -> float:
        while self._by_end and not self._by_end[0][2].is_waiting:
            heapq.heappop(self._by_end)
        if not self._by_end:
            return self._now
        return min(self._shared_now, self._now + _SHORT_OF_SECOND * (self._by_end[0][0] - self._now))

    def _leave(self, entry: Entry[T]) -> None:
        entry.is_waiting = False
        self._waiting -= 1
        line = self._lines[entry.client]
        del line.entries[entry.number]
        if not line.entries:
            del self._lines[entry.client]
        if not self._waiting:
            self._clear()
        elif self._size > self._room:
            self._tidy()

    @property
    def _size(self) -> int:
        return len(self._by_begin) + len(self._by_end) + len(self._served)

    def _tidy(self) -> None:
        """Forget what is over. Done when there is twice as much as last time, it costs no more than the pushes did."""
        self._by_begin = [entry for entry in self._by_begin if entry.is_waiting]
        self._by_end = [(entry.end, entry.number, entry) for entry in self._by_begin]
        heapq.heapify(self._by_begin)
        heapq.heapify(self._by_end)
        self._served = {client: end for client, end in self._served.items() if end > self._now}
        self._room = 2 * self._size + _KEPT
