"""What the threads of an engine have begun and not ended, and how far they have come. Kept by ``engine``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from emb_model_provider.messages.status import BatchTotals


@dataclass(frozen=True, slots=True)
class Activity:
    """One moment's view. ``oldest_s`` is the age of the oldest work in hand, 0 for none; ``last_success`` Unix time."""

    batches_done: int
    oldest_s: float
    waiting_texts: int
    waiting_tokens: int
    last_success: float
    batches: BatchTotals = field(default_factory=BatchTotals, compare=False)


class WorkInHand:
    """When each place (a lane, a tokenizing thread) began what it is at. Each place is written by its own thread only.

    Needs no lock: every operation is one on a dict or an attribute, which the interpreter does as a whole.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_s: dict[int, float] = {}
        self.last_success = 0.0

    def begin(self, where: int) -> None:
        self._begun_s[where] = self._clock()

    def end(self, where: int) -> None:
        self._begun_s.pop(where, None)

    def succeeded(self) -> None:
        """Note that vectors were made just now."""
        self.last_success = time.time()

    @property
    def oldest_s(self) -> float:
        """Seconds since the oldest work in hand was begun; 0 for none."""
        begun_s = min(list(self._begun_s.values()), default=None)
        return 0.0 if begun_s is None else max(self._clock() - begun_s, 1e-3)
