"""Whether a child still gets on with its work, judged by what it reports: pure, the clock passed in.

Asked by ``keeper``.

A process that lives is no proof: a thread can be stuck on the device for ever, or in a C call that keeps the
interpreter from every other thread. Before READY nothing is known of how long a model takes to load, or for how long
it keeps the interpreter to itself, so the limit on the start holds there, counted from the last sign of progress, and
that on silence only for a process that the kernel says is stopped. Many times that on silence holds for one of which
the kernel says that it stands still: no thread of it has run. Whoever computes, reads from a slow disk, swaps, tries a
hub again or looks at a lock now and then is seen to run; whoever waits for an answer gives up sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.status import EncoderInfo, LoadProgress, Progress, Ready, RouterReady

_REPORT_S: Final = 1.0
#: A report may be this many intervals late before its sender is called busy.
_BUSY_INTERVALS: Final = 3.0
#: A batch may take this many times what was measured for as many tokens: others compute beside it, and attention grows
#: with the square of a text's length.
_SLOWEST_FACTOR: Final = 4.0
#: No start has a reason to stand still for as long: a hub may be silent for 30 s, the kernel gives up a connection that
#: nobody answers after 127, a file server is back in minutes.
_STANDSTILL_FACTOR: Final = 10.0
_LEAST_STANDSTILL_S: Final = 150.0


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How long a start may go without progress, one batch take, and a child that serves say nothing; 0: for ever.

    ``company_s`` is for how long a child may let texts wait for others, by its settings.
    """

    startup_s: float = 0.0
    batch_s: float = 0.0
    silence_s: float = 0.0
    company_s: float = 0.0

    @property
    def report_every_s(self) -> float:
        """How often a child reports: often enough that one lost moment is no silence."""
        return min([_REPORT_S, *(limit_s / 4 for limit_s in (self.batch_s, self.silence_s) if limit_s)])

    @property
    def standstill_s(self) -> float:
        """For how long no thread of a start may run."""
        return max(_LEAST_STANDSTILL_S, _STANDSTILL_FACTOR * self.silence_s) if self.silence_s else 0.0


@dataclass(frozen=True, slots=True)
class Hang:
    """The verdict that ends a child; ``sentence`` continues "its process"."""

    kind: Literal["startup", "standstill", "silent", "stuck"]
    sentence: str


class Watchdog:
    """Judges one child. Times are seconds of a monotonic clock."""

    def __init__(self, limits: WatchLimits) -> None:
        self._limits = limits
        self.report_every_s = limits.report_every_s
        self.check_every_s = min([_REPORT_S, *(limit / 4 for limit in _set(limits))])
        self.begin(0.0)

    def begin(self, now_s: float) -> None:
        """Note that a child is started."""
        self.is_ready = False
        self._batch_s = self._limits.batch_s
        self._checked_s = now_s
        #: The last sign of life, before READY of progress.
        self._heard_s = now_s
        #: When it was last seen not to be stopped by a signal.
        self._moved_s = now_s
        #: When a thread of it was last seen to have run.
        self._ran_s = now_s
        self._load: tuple[str, int] = ("", 0)
        self._last: Progress | None = None
        #: Since when texts have waited and no batch has begun.
        self._idle_s = now_s
        #: When we last came back from an absence, and for how long the work in hand has run in absences.
        self._back_s = now_s
        self._away_s = 0.0

    def hear(self, now_s: float, message: Message) -> None:
        """Take a message of the child."""
        if isinstance(message, LoadProgress):
            if self._load == (load := (message.state, message.done_bytes)):
                return  # a download that says the same again and again has stopped
            self._load = load
        elif isinstance(message, Ready | RouterReady):
            self.is_ready = True
            if isinstance(message, Ready) and self._batch_s:
                self._batch_s = max(self._batch_s, _SLOWEST_FACTOR * _longest_batch_s(message.info.encoder))
        elif isinstance(message, Progress):
            self._note_idleness(now_s, message)
            if now_s - message.running_s >= self._back_s:
                self._away_s = 0.0
            self._last = message
        self._heard_s = now_s

    def check(self, now_s: float, *, is_stopped: bool, is_still: bool = False) -> Hang | None:
        """Return why the child must be ended, or ``None``. To be called every ``check_every_s``.

        ``is_still``: no thread of the child has run since the last call, and it waits for no process of its own.
        """
        self._excuse_own_absence(now_s)
        if not is_stopped:
            self._moved_s = now_s
        if not is_still:
            self._ran_s = now_s
        silent_s = now_s - self._heard_s
        if not self.is_ready:
            if _exceeds(stopped_s := now_s - self._moved_s, self._limits.silence_s):
                return Hang("silent", f"was stopped by a signal for {stopped_s:.3g} s while it started")
            if _exceeds(still_s := now_s - self._ran_s, self._limits.standstill_s):
                return Hang(
                    "standstill",
                    f"stood still for {still_s:.3g} s while it started, as one that waits for a disk or a lock",
                )
            if _exceeds(silent_s, self._limits.startup_s):
                return Hang("startup", f"made no progress for {silent_s:.3g} s while it started")
            return None
        if _exceeds(silent_s, self._limits.silence_s):
            return Hang("silent", f"gave no sign of life for {silent_s:.3g} s")
        return self._check_work(now_s, silent_s)

    def is_busy(self, now_s: float) -> bool:
        """Tell whether a child that serves is late with its report, but not so late that it must be ended."""
        return self.is_ready and now_s - self._heard_s > _BUSY_INTERVALS * self.report_every_s

    def _check_work(self, now_s: float, silent_s: float) -> Hang | None:
        if self._last is None:
            return None
        if self._last.running_s:
            batch_s = self._last.running_s + silent_s - self._away_s
            if _exceeds(batch_s, self._batch_s):
                return Hang("stuck", f"was at one batch for {batch_s:.3g} s")
        elif self._last.waiting_texts and self._batch_s:
            idle_s = now_s - self._idle_s
            if idle_s > self._batch_s + self._limits.company_s:
                return Hang("stuck", f"let {self._last.waiting_texts} texts wait for {idle_s:.3g} s and began no batch")
        return None

    def _note_idleness(self, now_s: float, progress: Progress) -> None:
        last = self._last
        is_waiting = progress.waiting_texts and not progress.running_s
        if not (is_waiting and last and last.waiting_texts and last.batches_done == progress.batches_done):
            self._idle_s = now_s

    def _excuse_own_absence(self, now_s: float) -> None:
        """Count only the time in which we listened: a supervisor that was stopped must not find everybody silent.

        Nor stuck: where the whole machine stood still (a paused container), so did the batch in hand.
        """
        absent_s = now_s - self._checked_s - 2 * self.check_every_s
        self._checked_s = now_s
        if absent_s > 0:
            # What came before this look, though after the absence, is as new as can be.
            self._heard_s = min(now_s, self._heard_s + absent_s)
            self._moved_s = min(now_s, self._moved_s + absent_s)
            self._ran_s = min(now_s, self._ran_s + absent_s)
            self._idle_s = min(now_s, self._idle_s + absent_s)
            self._back_s = now_s
            self._away_s += absent_s


def _longest_batch_s(info: EncoderInfo) -> float:
    """Return how long the longest text, or a full batch, takes by what was measured at the start; 0: not known."""
    if not info.tokens_per_s:
        return 0.0
    return max(info.max_tokens, info.slice_tokens) * info.lanes / info.tokens_per_s


def _set(limits: WatchLimits) -> list[float]:
    return [limit_s for limit_s in (limits.startup_s, limits.batch_s, limits.silence_s) if limit_s]


def _exceeds(seconds: float, limit_s: float) -> bool:
    return bool(limit_s) and seconds > limit_s
