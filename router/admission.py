"""Who is let in, and how much: pure, but for the clock passed in. Used by ``gate`` (tokens) and ``app`` (bytes).

What waits is bounded in *time*: a budget of tokens is the measured rate times the seconds that work may wait at most.
Clients share it by dynamic thresholds (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
switches", 1998): each may hold at most ``_GREED`` times what is free. One client alone gets two thirds, two get two
fifths each, and whoever comes next always finds something free, without anybody counting who is there.
"""

from __future__ import annotations

from typing import Final

_GREED: Final = 2.0
#: A rate is measured over at least this long, while more waits than the shard is given.
_WINDOW_S: Final = 0.5
_FOLLOWED: Final = 0.3
#: The least that a text costs beside its own tokens: those that the model puts around it.
_SPECIAL_TOKENS: Final = 2
#: A long text is judged by its beginning, so that 2,048 of them are no work.
_HEAD_CHARS: Final = 256


class Budget:
    """Whole units of something that clients hold while they wait. ``limit`` may be changed at any time."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.total = 0
        self._held: dict[str, int] = {}

    def missing(self, client: str, amount: int) -> float:
        """Return how much less there would have to be in use for ``client`` to get ``amount``; 0: there is room.

        What is larger than the whole budget is let in when nothing else is.
        """
        if not self.total:
            return 0.0
        allowed = _GREED * (self.limit - self.total)
        return max(0.0, self._held.get(client, 0) + amount - allowed, self.total + amount - self.limit)

    def take(self, client: str, amount: int) -> None:
        """Hold ``amount`` until it is given back."""
        self.total += amount
        self._held[client] = self._held.get(client, 0) + amount

    def give_back(self, client: str, amount: int) -> None:
        self.total -= amount
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]


class Rate:
    """Tokens per second of one model: first as the shard measured it, then as answers come while work is waiting.

    Where nothing waits, answers come as slowly as clients ask, which says nothing of what the model can do.
    """

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self.is_measured = False
        self._since_s: float | None = None
        self._tokens = 0.0

    @property
    def is_measuring(self) -> bool:
        return self._since_s is not None

    def answered(self, tokens: float, now_s: float, *, work_waits: bool) -> None:
        """Learn from one answer."""
        if not work_waits or self._since_s is None:
            self._since_s = now_s if work_waits else None
            self._tokens = 0.0
            return
        self._tokens += tokens
        took_s = now_s - self._since_s
        if took_s < _WINDOW_S:
            return
        found = self._tokens / took_s
        self.per_s = self.per_s + _FOLLOWED * (found - self.per_s) if self.is_measured else found
        self.is_measured = True
        self._since_s, self._tokens = now_s, 0.0


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, before any tokenizer has seen it.

    A character of UTF-8's three bytes (Chinese, Japanese, Korean) is about one token, four of one byte (Latin) are
    about one, and the alphabets of two bytes lie between. ``isascii`` is a flag of the string and costs nothing.
    """
    if text.isascii():
        return len(text) // 4 + _SPECIAL_TOKENS
    if len(text) > _HEAD_CHARS:
        return estimate_tokens(text[:_HEAD_CHARS]) * len(text) // _HEAD_CHARS
    wide = (len(text.encode("utf-8", "surrogatepass")) - len(text)) // 2
    return wide + max(0, len(text) - wide) // 4 + _SPECIAL_TOKENS
