"""Whose turn it is: start-time fair queueing between clients, pure. Used by ``gate``.

Goyal, Vin and Cheng, "Start-time fair queueing", 1996: an entry is stamped with the virtual time at which it would
begin if its client had its share of the server; the smallest stamp goes first. However much one client queues,
the next entry of another is at most one entry of each client away.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(order=True, slots=True)
class Entry(Generic[T]):
    """What waits for its turn; made by ``FairQueue.push``."""

    begin: float
    number: int
    client: str = field(compare=False)
    cost: int = field(compare=False)
    item: T = field(compare=False)
    is_waiting: bool = field(default=True, compare=False)


class FairQueue(Generic[T]):
    """Entries of several clients; each client's own leave in the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[Entry[T]] = []
        self._numbers = itertools.count()
        self._waiting = 0
        self._now = 0.0
        #: The virtual time at which each client's last entry would end.
        self._ends: dict[str, float] = {}

    def __len__(self) -> int:
        return self._waiting

    def push(self, client: str, cost: int, item: T) -> Entry[T]:
        """Queue ``item``, which costs so much (in any unit, the same for all)."""
        begin = max(self._now, self._ends.get(client, 0.0))
        self._ends[client] = begin + cost
        entry = Entry(begin, next(self._numbers), client, cost, item)
        heapq.heappush(self._heap, entry)
        self._waiting += 1
        return entry

    def pop(self) -> Entry[T]:
        """Remove and return the entry whose turn it is; there must be one."""
        while not (entry := heapq.heappop(self._heap)).is_waiting:
            pass
        entry.is_waiting = False
        self._waiting -= 1
        self._now = max(self._now, entry.begin)
        if not self._waiting:
            self._heap.clear()
            self._ends.clear()
            self._now = 0.0
        return entry

    def discard(self, entry: Entry[T]) -> None:
        """Forget an entry that nobody waits for any more; one that has had its turn is ignored."""
        if not entry.is_waiting:
            return
        entry.is_waiting = False
        self._waiting -= 1
        if not self._waiting:
            self._heap.clear()
            self._ends.clear()
            self._now = 0.0
