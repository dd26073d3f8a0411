"""When a child that died is started again: pure, with clock and randomness passed in. Asked by ``keeper``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from emb_model_provider.errors import EXIT_CONFIGURATION


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """Delays double from ``first_delay_s`` to ``max_delay_s`` and start anew after ``stable_s`` of readiness.

    More than ``intensity`` deaths within ``period_s`` and every further try waits the full ``max_delay_s``.
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    stable_s: float = 60.0
    intensity: int = 5
    period_s: float = 120.0


class RestartPolicy:
    """Decides over one child. Times are seconds of a monotonic clock; ``jitter`` returns a number in [0, 1)."""

    def __init__(self, limits: RestartLimits, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self._jitter = jitter
        self._deaths: deque[float] = deque(maxlen=limits.intensity + 1)
        self._streak = 0
        self._ready_since_s: float | None = None

    def became_ready(self, now_s: float) -> None:
        """Note that the child serves."""
        self._ready_since_s = now_s

    def died(self, now_s: float, exit_code: int) -> float | None:
        """Return the delay before the next start, or ``None``: starting again cannot help."""
        if exit_code == EXIT_CONFIGURATION:
            return None
        if self._ready_since_s is not None and now_s - self._ready_since_s >= self._limits.stable_s:
            self._streak = 0
        self._ready_since_s = None
        self._deaths.append(now_s)
        self._streak += 1
        if self._is_flapping(now_s):
            return self._limits.max_delay_s
        # Doubling past the cap would overflow a float after a thousand deaths.
        delay_s = self._limits.first_delay_s * 2.0 ** min(self._streak - 1, 32)
        # Half fixed, half random: children that died together do not come back together.
        return min(delay_s, self._limits.max_delay_s) * (0.5 + 0.5 * self._jitter())

    def _is_flapping(self, now_s: float) -> bool:
        return len(self._deaths) > self._limits.intensity and now_s - self._deaths[0] <= self._limits.period_s
