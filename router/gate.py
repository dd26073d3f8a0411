"""The gate before one model: lets requests in within a budget of time and gives slices turns. Used by ``service``.

A shard is given no more than a fraction of a second's work at a time; what is beyond waits here, where it is each
client's turn in order of what it has had, costs nothing to take back, and is given to whatever process serves the model
when its turn comes. Small requests have turns and a budget of their own: they wait for no big one, and are not refused
because of one that is larger than all that may wait.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from emb_model_provider.errors import OverloadedError
from router.admission import Budget, Rate
from router.fair_queue import FairQueue

#: What a rate is taken for before anybody has measured it: a small model on two cores.
_FIRST_TOKENS_PER_S: Final = 5000.0
#: A shard with so much in hand has the next batches of all its lanes.
_AHEAD_S: Final = 0.25
_AHEAD_TOKENS: Final = 64
_MAX_RETRY_AFTER_S: Final = 60.0


class _Turns:
    """One class of requests: what was let in of it, what the shard has, and what waits."""

    def __init__(self) -> None:
        self.budget = Budget(0.0)
        self.in_hand = 0
        self.queue: FairQueue[asyncio.Future[None]] = FairQueue()


class Gate:
    """Counts what is asked of one model. Amounts are estimated tokens."""

    def __init__(self, model_id: str, max_queue_s: float, tokens_per_s: float = 0.0) -> None:
        self.model_id = model_id
        self.answered = 0
        self.failed = 0
        self.refused = 0
        self.last_success = 0.0
        self._max_queue_s = max_queue_s
        self._rate = Rate(tokens_per_s or _FIRST_TOKENS_PER_S)
        self._ahead = max(self._rate.per_s * _AHEAD_S, _AHEAD_TOKENS)
        self._small = _Turns()
        self._big = _Turns()
        self._last_key = 0
        #: When each request was let in, the oldest first.
        self._began_s: dict[int, float] = {}

    @property
    def tokens_per_s(self) -> float:
        return self._rate.per_s

    @property
    def requests(self) -> int:
        """Requests that were let in and are not answered."""
        return len(self._began_s)

    @property
    def tokens(self) -> int:
        """Tokens of those requests."""
        return self._small.budget.total + self._big.budget.total

    @property
    def waiting_slices(self) -> int:
        """Slices whose turn has not come."""
        return len(self._small.queue) + len(self._big.queue)

    def oldest_s(self) -> float:
        """Return for how long the oldest request has been here; 0 when there is none."""
        first = next(iter(self._began_s.values()), None)
        return 0.0 if first is None else time.monotonic() - first

    def expect(self, tokens_per_s: float) -> None:
        """Take the rate that the shard has measured, as long as there is no better one."""
        if tokens_per_s > 0 and tokens_per_s != self._rate.per_s and not self._rate.is_measured:
            self._rate.per_s = tokens_per_s
            self._ahead = max(tokens_per_s * _AHEAD_S, _AHEAD_TOKENS)

    # ------------------------------------------------------------------------------------------ whole requests

    def let_in(self, client: str, tokens: int, *, is_small: bool) -> int:
        """Count a request in and return its key; raise ``OverloadedError`` when its client has to come back later."""
        budget = (self._small if is_small else self._big).budget
        if budget.total and self._max_queue_s > 0:
            budget.limit = self._rate.per_s * self._max_queue_s
            if missing := budget.missing(client, tokens):
                self.refused += 1
                raise _overloaded(self.model_id, missing / self._rate.per_s)
        budget.take(client, tokens)
        self._last_key = key = self._last_key + 1
        self._began_s[key] = time.monotonic()
        return key

    def let_out(self, key: int, client: str, tokens: int, *, is_small: bool) -> None:
        """Count a request out, however it ended."""
        del self._began_s[key]
        (self._small if is_small else self._big).budget.give_back(client, tokens)

    # -------------------------------------------------------------------------------------------------- slices

    def is_open(self, tokens: int, *, is_small: bool) -> bool:
        """Tell whether the shard may have these at once; if so ``turn_over`` has to follow, else ``turn``."""
        turns = self._small if is_small else self._big
        if turns.in_hand >= self._ahead or turns.queue:
            return False
        turns.in_hand += tokens
        return True

    async def turn(self, client: str, tokens: int, *, is_small: bool) -> None:
        """Wait until the shard may have these; ``turn_over`` has to follow."""
        turns = self._small if is_small else self._big
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = turns.queue.push(client, tokens, granted)
        try:
            await granted
        except asyncio.CancelledError:
            if entry.is_waiting:
                turns.queue.discard(entry)
            else:  # its turn came in the same moment
                self.turn_over(tokens, is_small=is_small, is_answered=False)
            raise

    def turn_over(self, tokens: int, *, is_small: bool, is_answered: bool) -> None:
        """Say that the shard has these no more, and let the next ones go."""
        turns = self._small if is_small else self._big
        turns.in_hand = turns.in_hand - tokens
        if is_answered:
            work_waits = bool(self._small.queue or self._big.queue)
            if work_waits or self._rate.is_measuring:
                self._rate.answered(tokens, time.monotonic(), work_waits=work_waits)
                self._ahead = max(self._rate.per_s * _AHEAD_S, _AHEAD_TOKENS)
        while turns.queue and turns.in_hand < self._ahead:
            entry = turns.queue.pop()
            turns.in_hand += entry.cost
            if not entry.item.done():
                entry.item.set_result(None)
            else:
                turns.in_hand -= entry.cost


def _overloaded(model_id: str, wait_s: float) -> OverloadedError:
    wait_s = min(max(1.0, wait_s), _MAX_RETRY_AFTER_S)
    return OverloadedError(
        f"The model {model_id!r} has more to do than it can finish in time. Try again in {wait_s:.0f} s.",
        retry_after_s=wait_s,
    )
