"""Which texts go into the next batch: pure, with the clock passed in. Called by ``engine`` under its lock.

A request is *interactive* when it is small (a few texts, ``SlicePlan.small_ms``), else *bulk*. Interactive work goes
first, but while both wait, bulk gets a guaranteed share of the device's time, which grows with its age. No batch is
planned to take longer than one slice, so that is how long a short query waits for the batch before it.

Bulk runs in several lanes side by side. Small interactive batches follow one another, each *wide*, on all cores: what
comes while one runs makes one larger batch, which is quicker than two small ones beside each other. Nothing runs beside
a wide one: on two cores it stands still whenever one of them is needed elsewhere. So none is wide while bulk waits, and
when so many small requests wait that the router needs a core all the time, the lanes share them: beside bulk they have
one lane until then, and all but bulk's share from then on. Where no bulk waits, a lane that becomes free then leaves
its core to those that bring the next requests until a quarter of what runs waits: every pass reads all weights, for one
text as for ten.

What may kill the process runs *alone*: one text, nothing in any other lane, so that no other text can be taken for
guilty. It goes first, for it has been on the device before and its client has waited longest; after it, every lane
takes one batch of what else waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from emb_model_provider.messages.link import Priority
from emb_model_provider.modelmap import BatchLimits
from shard.batching.costs import Pace, SlicePlan

_INTERACTIVE_TEXTS: Final = 8
#: What waits of interactive work is one wide batch up to so long, on the cores of one lane.
_WIDE_SHARE_OF_SLICE: Final = 0.5
#: A lane beside others at interactive work begins once so much of their tokens waits.
_COMPANY: Final = 0.25
_BULK_SHARE: Final = 0.25
#: The share grows by so much for each second that the oldest bulk request has waited.
_AGEING_PER_S: Final = 0.05
_LARGEST_BULK_SHARE: Final = 0.75


@dataclass(eq=False, slots=True)
class Item:
    """One text to encode, of so many tokens. It waits until a batch takes it or ``Scheduler.drop`` forgets it."""

    length: int
    is_waiting: bool = field(default=False, init=False)


ItemT = TypeVar("ItemT", bound=Item)


@dataclass(eq=False, slots=True)
class Batch(Generic[ItemT]):
    """What is to be encoded together, until ``Scheduler.finished`` hears of it."""

    items: list[ItemT]
    #: What the cost model says of it.
    planned_ms: float
    is_bulk: bool
    is_alone: bool = False
    #: Whether it gets the cores of all lanes.
    is_wide: bool = False
    #: By how many milliseconds taking it has lowered what bulk is owed; below 0 it has raised that.
    charged_ms: float = 0.0


@dataclass(slots=True)
class _Request(Generic[ItemT]):
    items: deque[ItemT]
    arrived_s: float


_Queue = deque[_Request[ItemT]]


class Scheduler(Generic[ItemT]):
    """Forms batches within a count of texts, a budget of tokens and a time.

    A text beyond any of these gets a batch of its own. With ``dynamic`` off, texts of different requests never
    share a batch. Where several ``lanes`` compute, no batch of bulk takes more than its part of all texts, unless
    that is less than ``min_batch_size``.
    """

    def __init__(self, limits: BatchLimits, plan: SlicePlan, lanes: int = 1) -> None:
        self._limits = limits
        self._plan = plan
        self._lanes = lanes
        self._pace = Pace()
        self._interactive: _Queue[ItemT] = deque()
        self._bulk: _Queue[ItemT] = deque()
        self._alone: deque[ItemT] = deque()
        #: How many shared batches go before the next one that runs alone.
        self._shared_turns = 0
        self._waiting_texts = 0
        self._waiting_tokens = 0
        #: Whether what waits, or something before it, has waited for company: that is waited for once.
        self._is_rest = False
        self._running: list[Batch[ItemT]] = []
        #: Milliseconds that bulk has not had of its share while it waited; below 0, what it has had beyond that.
        self._owed_ms = 0.0

    @property
    def waiting_texts(self) -> int:
        """Texts that no batch has taken yet."""
        return self._waiting_texts

    @property
    def waiting_tokens(self) -> int:
        """Tokens of these texts."""
        return self._waiting_tokens

    def add(self, items: Sequence[ItemT], now_s: float, priority: Priority = "auto", *, is_rest: bool = False) -> None:
        """Queue a request, among those of its size or as its client says.

        An item that waits already is served with whichever of its requests comes first. ``is_rest``: what came before
        of the same request has waited for company.
        """
        self._is_rest = is_rest or (self._is_rest and self._waiting_texts > 0)
        for item in items:
            if not item.is_waiting:
                self._let_wait(item)
        # Longest first: texts of like length fall into the same batch, and waste the least where they are padded.
        ordered = deque(sorted(items, key=lambda item: item.length, reverse=True))
        is_interactive = self._is_interactive(items) if priority == "auto" else priority == "interactive"
        queue = self._interactive if is_interactive else self._bulk
        queue.append(_Request(ordered, now_s))

    def add_alone(self, items: Sequence[ItemT]) -> None:
        """Queue texts each of which gets the whole device to itself."""
        for item in items:
            self._let_wait(item)
            self._alone.append(item)

    def _let_wait(self, item: ItemT) -> None:
        item.is_waiting = True
        self._waiting_texts += 1
        self._waiting_tokens += item.length

    def drop(self, item: ItemT) -> None:
        """Forget an item that nobody waits for any more."""
        if item.is_waiting:
            item.is_waiting = False
            self._waiting_texts -= 1
            self._waiting_tokens -= item.length

    def due_in_s(self, now_s: float) -> float | None:
        """Return how long to wait before the next batch; 0 when it is due now, ``None`` when none is to be had now.

        Only a queue shorter than ``min_batch_size`` waits for company, and never past ``max_wait_time_ms``
        after its oldest request came. What a batch has left behind waits for none, nor does the rest of a request:
        one of many slices would wait once for each.
        """
        _discard_done(self._interactive)
        _discard_done(self._bulk)
        if self._is_alones_turn():
            return None if self._running else 0.0
        if not self._waiting_texts or self._is_held:
            return None
        if not self._limits.dynamic or self._is_rest or self._waiting_texts >= self._limits.min_batch_size:
            return 0.0
        oldest_s = min(queue[0].arrived_s for queue in (self._interactive, self._bulk) if queue)
        return max(0.0, oldest_s + self._limits.max_wait_time_ms / 1000 - now_s)

    def take(self, now_s: float) -> Batch[ItemT]:
        """Remove the next batch from the queues; to be called when one is due."""
        _discard_done(self._interactive)
        _discard_done(self._bulk)
        batch = self._take_alone() if self._is_alones_turn() else self._take_shared(now_s)
        self._running.append(batch)
        return batch

    def _is_alones_turn(self) -> bool:
        while self._alone and not self._alone[0].is_waiting:
            self._alone.popleft()
        return bool(self._alone) and not (self._shared_turns and (self._interactive or self._bulk))

    def _take_alone(self) -> Batch[ItemT]:
        item = self._alone.popleft()
        self.drop(item)
        self._shared_turns = self._lanes
        return Batch([item], self._plan.costs.ms(*_measures([item])), is_bulk=False, is_alone=True, is_wide=True)

    def _take_shared(self, now_s: float) -> Batch[ItemT]:
        self._shared_turns = max(0, self._shared_turns - 1)
        both_wait = bool(self._interactive and self._bulk)
        is_due = both_wait and self._owed_ms >= self._plan.slice_ms
        has_turn = is_due or (self._runs_interactive and not self._is_beyond_wide())
        is_bulk = not self._interactive or (both_wait and has_turn)
        share = self._bulk_share(now_s)
        queue = self._bulk if is_bulk else self._interactive
        is_shared = is_bulk or self._is_beyond_wide()
        max_texts = self._limits.max_batch_size
        if is_shared:
            running_texts = sum(len(batch.items) for batch in self._running)
            part = -(-(self._waiting_texts + running_texts) // self._lanes)
            if part >= self._limits.min_batch_size:  # smaller ones are not wanted
                max_texts = min(max_texts, part)
        items, planned_ms = self._fill(queue, max_texts)
        self._is_rest = self._waiting_texts > 0
        owed_ms = self._owed_ms
        if is_due:  # it may be one text of many slices: interactive work has its own share before the next one
            self._owed_ms -= self._pace.factor * planned_ms
        elif is_bulk:
            self._owed_ms = max(min(0.0, self._owed_ms), self._owed_ms - self._pace.factor * planned_ms)
        else:
            self._owed_ms += self._pace.factor * planned_ms * share / (1 - share)
            if not both_wait:
                self._owed_ms = min(0.0, self._owed_ms)
        is_wide = not self._running and not (is_shared and self._waiting_texts) and not (both_wait and not is_bulk)
        # A text that takes longer than a slice keeps nobody from a free lane, however urgent its client calls it.
        runs_as_bulk = is_bulk or (len(items) == 1 and planned_ms > self._plan.slice_ms)
        return Batch(items, planned_ms, runs_as_bulk, is_wide=is_wide, charged_ms=owed_ms - self._owed_ms)

    def finished(self, batch: Batch[ItemT]) -> None:
        """Hear that a batch of ``take`` is done."""
        self._running.remove(batch)

    def predicted_ms(self, batch: Batch[ItemT]) -> float:
        """Return how long a batch should take on the cores of one lane, neighbours and all."""
        return self._pace.factor * batch.planned_ms

    def replan(self, batch: Batch[ItemT], items: list[ItemT]) -> None:
        """Let a batch of ``take`` hold these instead, or the same ones if they have other lengths now."""
        if not items:  # the time of all was over: nobody is charged
            self._owed_ms += batch.charged_ms
        batch.items = items
        batch.planned_ms = self._plan.costs.ms(*_measures(items))

    def observe(self, batch: Batch[ItemT], took_ms: float) -> None:
        """Learn how long a batch really took on the cores of one lane."""
        self._pace.observe(batch.planned_ms, took_ms)

    @property
    def _runs_interactive(self) -> bool:
        return any(not batch.is_bulk for batch in self._running)

    @property
    def _is_held(self) -> bool:
        """Tell whether what waits is better left until more waits, or until what runs is done."""
        if any(batch.is_wide and not batch.is_bulk for batch in self._running):
            return True
        if self._bulk or any(batch.is_bulk for batch in self._running):
            return False
        grows = self._limits.dynamic and self._waiting_texts < self._limits.max_batch_size
        running = sum(item.length for batch in self._running for item in batch.items)
        return grows and self._waiting_tokens < _COMPANY * running

    def _is_beyond_wide(self) -> bool:
        """Tell whether what waits of interactive work is more than one wide batch should take."""
        limit_ms = self._plan.slice_ms * _WIDE_SHARE_OF_SLICE
        tokens = pairs = 0
        counted: set[ItemT] = set()
        for item in (item for request in self._interactive for item in request.items if item.is_waiting):
            if item in counted:  # several requests wait for it
                continue
            counted.add(item)
            tokens += item.length
            pairs += item.length**2
            if self._pace.factor * self._plan.costs.ms(len(counted), tokens, pairs) > limit_ms:
                return True
        return False

    def _is_interactive(self, items: Sequence[ItemT]) -> bool:
        return len(items) <= _INTERACTIVE_TEXTS and self._plan.costs.ms(*_measures(items)) <= self._plan.small_ms

    def _bulk_share(self, now_s: float) -> float:
        waited_s = now_s - self._bulk[0].arrived_s if self._bulk else 0.0
        return min(_BULK_SHARE + _AGEING_PER_S * waited_s, _LARGEST_BULK_SHARE)

    def _fill(self, queue: _Queue[ItemT], max_texts: int) -> tuple[list[ItemT], float]:
        """Take the items of a batch from a queue, and say what the cost model says of them."""
        plan, factor = self._plan, self._pace.factor
        batch: list[ItemT] = []
        tokens = pairs = 0
        planned_ms = 0.0
        while queue:
            items = queue[0].items
            while items:
                item = items[0]
                if item.is_waiting:
                    tokens += item.length
                    pairs += item.length**2
                    ms = plan.costs.ms(len(batch) + 1, tokens, pairs)
                    is_full = len(batch) >= max_texts or tokens > plan.max_tokens or factor * ms > plan.slice_ms
                    if batch and is_full:
                        return batch, planned_ms
                    planned_ms = ms
                    self.drop(item)
                    batch.append(item)
                items.popleft()
            queue.popleft()
            if not self._limits.dynamic:
                break
        return batch, planned_ms


def _discard_done(queue: _Queue[ItemT]) -> None:
    """Take from the head of a queue what was dropped, or served with another request."""
    while queue:
        items = queue[0].items
        while items and not items[0].is_waiting:
            items.popleft()
        if items:
            return
        queue.popleft()


def _measures(items: Sequence[ItemT]) -> tuple[int, int, int]:
    """Return how many ``items`` there are, their tokens, and the sum of squares of their lengths."""
    lengths = [item.length for item in items]
    return len(lengths), sum(lengths), sum([length * length for length in lengths])
