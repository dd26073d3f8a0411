"""The gate before one model: what may come in, and whose turn it is. Used by ``service`` and ``delivery``.

A shard is given no more than a fraction of a second's work at a time; what is beyond waits here, where it is each
client's turn in order of what it has had, costs nothing to take back, and is given to whatever process serves the model
when its turn comes. Small requests have turns and a budget of their own: they wait for no big one, and are not refused
because of one that is larger than all that may wait.

What cannot be answered in time any more when its turn comes has none: where more is asked than can be done, everybody
would be encoded at the brink of their deadline, and most of it for nothing.

A shard encodes equal inputs once, as long as it has them together. So a slice that is equal to one in the shard's hand
costs nothing and waits for no turn, and those that wait go with the first of them. That one alone is charged: should
its client leave, the shard has a slice more than is counted until the others are answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from emb_model_provider.errors import DeadlineError, OverloadedError, RequestError
from router.admission import Budget, Rate
from router.fair_queue import Entry, FairQueue
from router.retry_after import bounded_s
from router.time_limit import LIMITED_BY

#: What a rate is taken for before anybody has measured it: a small model on two cores.
_FIRST_TOKENS_PER_S: Final = 5000.0
#: A shard with so much in hand has the next batches of all its lanes.
_AHEAD_S: Final = 0.25
_AHEAD_TOKENS: Final = 64


class Work:
    """What the shard is asked to make of which inputs. What compares equal is encoded once while it has both."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, *parts: Hashable) -> None:
        self._parts = parts
        # Thousands of token ids are not to be gone through at every look.
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Work) and self._hash == other._hash and self._parts == other._parts


@dataclass(eq=False, slots=True)
class Turn:
    """A slice's way through the gate. The gate alone sets ``is_charged``: that these tokens count as in hand.

    ``deadline_s`` is on the loop's clock, ``None`` for none.
    """

    client: str
    tokens: int
    is_small: bool
    work: Work
    deadline_s: float | None = None
    is_charged: bool = False
    granted: asyncio.Future[None] | None = None


class _Turns:
    """One class of requests: what was let in of it, what the shard has, and what waits."""

    def __init__(self) -> None:
        self.budget = Budget(0.0)
        self.in_hand = 0
        self.queue: FairQueue[Turn] = FairQueue()


class Gate:
    """Counts what is asked of one model. Amounts are estimated tokens."""

    def __init__(self, model_id: str, max_queue_s: float) -> None:
        self.model_id = model_id
        self.answered = 0
        self.failed = 0
        self.refused = 0
        #: Unix time, for people to read: that clock may be set at any moment.
        self.last_success = 0.0
        self._last_success_s = -math.inf
        self._max_queue_s = max_queue_s
        self._rate = Rate(_FIRST_TOKENS_PER_S)
        self._is_guess = True
        self._ahead = max(self._rate.per_s * _AHEAD_S, _AHEAD_TOKENS)
        self._small = _Turns()
        self._big = _Turns()
        #: What the shard has in hand, each charged to one turn; and what waits, by what is asked.
        self._in_hand: set[Work] = set()
        self._waiting: dict[Work, dict[Turn, Entry[Turn]]] = {}
        self._last_key = 0
        #: When each request was let in, the oldest first.
        self._began_s: dict[int, float] = {}

    @property
    def tokens_per_s(self) -> float | None:
        """What the shard or this gate has measured; ``None`` before, when all is counted with a guess."""
        return None if self._is_guess and not self._rate.is_measured else self._rate.per_s

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

    def succeeded(self) -> None:
        """Count one request that has its result."""
        self.answered += 1
        self.last_success, self._last_success_s = time.time(), time.monotonic()

    def has_succeeded_within(self, seconds: float) -> bool:
        """Tell whether a request got its result in the last so many seconds."""
        return time.monotonic() - self._last_success_s < seconds

    def oldest_s(self) -> float:
        """Return for how long the oldest request has been here; 0 when there is none."""
        first = next(iter(self._began_s.values()), None)
        return 0.0 if first is None else time.monotonic() - first

    def expect(self, tokens_per_s: float) -> None:
        """Take the rate that the shard has measured, as long as there is no better one."""
        if tokens_per_s <= 0:
            return
        self._is_guess = False
        if tokens_per_s != self._rate.per_s and not self._rate.is_measured:
            self._rate.per_s = tokens_per_s
            self._ahead = max(tokens_per_s * _AHEAD_S, _AHEAD_TOKENS)

    # ------------------------------------------------------------------------------------------ whole requests

    def let_in(self, client: str, tokens: int, *, is_small: bool) -> int:
        """Count a request in and return its key; raise ``OverloadedError`` when its client has to come back later."""
        budget = (self._small if is_small else self._big).budget
        if self._max_queue_s > 0:
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

    def counted(self, client: str, tokens: int, *, is_small: bool) -> _Counted:
        """Count a request in for as long as it lasts, and whether it fails of us; as ``let_in`` and ``let_out``."""
        return _Counted(self, client, tokens, is_small=is_small)

    # -------------------------------------------------------------------------------------------------- slices

    def is_open(self, turn: Turn) -> bool:
        """Tell whether the shard may have this slice at once; if so ``turn_over`` has to follow, else ``wait``."""
        if turn.work in self._in_hand:
            return True
        turns = self._turns(turn)
        if turns.in_hand >= self._ahead or turns.queue:
            return False
        self._charge(turn)
        return True

    async def wait(self, turn: Turn) -> None:
        """Wait until the shard may have this slice; ``turn_over`` has to follow.

        Raises ``DeadlineError`` when its turn has come too late.
        """
        turn.granted = asyncio.get_running_loop().create_future()
        entry = self._turns(turn).queue.push(turn.client, turn.tokens, turn)
        self._waiting.setdefault(turn.work, {})[turn] = entry
        try:
            await turn.granted
        except asyncio.CancelledError:
            if entry.is_waiting:
                self._leave(entry)
            else:  # its turn came in the same moment
                self.turn_over(turn, is_answered=False)
            raise

    def turn_over(self, turn: Turn, *, is_answered: bool) -> None:
        """Say that the shard has this slice no more, and let the next ones go."""
        if not turn.is_charged:
            return
        turn.is_charged = False
        self._in_hand.discard(turn.work)
        turns = self._turns(turn)
        turns.in_hand -= turn.tokens
        if is_answered:
            work_waits = bool(self._small.queue or self._big.queue)
            if work_waits or self._rate.is_measuring:
                self._rate.answered(turn.tokens, time.monotonic(), work_waits=work_waits)
                self._ahead = max(self._rate.per_s * _AHEAD_S, _AHEAD_TOKENS)
        while turns.queue and turns.in_hand < self._ahead:
            entry = turns.queue.first()
            if self._is_too_late(entry.item):
                self._leave(entry)  # without a turn, which costs its client nothing
                _refuse(entry.item)
            else:
                self._charge(turns.queue.pop().item)

    def _is_too_late(self, turn: Turn) -> bool:
        """Tell whether the shard, with what it has in hand, is not done with this one by its deadline."""
        if turn.deadline_s is None:
            return False
        takes_s = (self._turns(turn).in_hand + turn.tokens) / self._rate.per_s
        return asyncio.get_running_loop().time() + takes_s > turn.deadline_s

    def _turns(self, turn: Turn) -> _Turns:
        return self._small if turn.is_small else self._big

    def _charge(self, turn: Turn) -> None:
        """Let this one go, and with it, at no cost, all that wait with the same work; itself, if it waits."""
        turn.is_charged = True
        self._in_hand.add(turn.work)
        self._turns(turn).in_hand += turn.tokens
        for alike, entry in self._waiting.pop(turn.work, {}).items():
            self._turns(alike).queue.discard(entry)
            if alike.granted is not None and not alike.granted.done():  # else it is about to leave
                alike.granted.set_result(None)

    def _leave(self, entry: Entry[Turn]) -> None:
        turn = entry.item
        self._turns(turn).queue.discard(entry)
        alike = self._waiting[turn.work]
        del alike[turn]
        if not alike:
            del self._waiting[turn.work]


class _Counted:
    """A request that is counted in while this is entered."""

    __slots__ = ("_client", "_gate", "_is_small", "_key", "_tokens")

    def __init__(self, gate: Gate, client: str, tokens: int, *, is_small: bool) -> None:
        self._gate = gate
        self._client = client
        self._tokens = tokens
        self._is_small = is_small
        self._key = 0

    def __enter__(self) -> None:
        self._key = self._gate.let_in(self._client, self._tokens, is_small=self._is_small)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, RequestError):
            self._gate.failed += error.status >= 500
        self._gate.let_out(self._key, self._client, self._tokens, is_small=self._is_small)


def _refuse(turn: Turn) -> None:
    if turn.granted is not None and not turn.granted.done():  # else it is about to leave
        turn.granted.set_exception(
            DeadlineError(
                "So much waits before this request that it could not be answered in time, so it was not encoded. Ask "
                f"again when there is less to do; {LIMITED_BY}."
            )
        )


def _overloaded(model_id: str, wait_s: float) -> OverloadedError:
    wait_s = bounded_s(wait_s)
    return OverloadedError(
        f"The model {model_id!r} has more to do than it can finish in time. Try again in {math.ceil(wait_s)} s.",
        retry_after_s=wait_s,
    )
