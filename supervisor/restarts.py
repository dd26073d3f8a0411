"""When a child that died is started again: pure, with clock and randomness passed in. Asked by ``keeper``.

Delays double, each drawn at random below its bound ("full jitter"), so that children that died together do not come
back together. A child that keeps dying opens the *breaker*: from then on it is only probed, slowly, until one probe
has served for a stable time. What a restart cannot help is not tried again before a person has changed something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from emb_model_provider.errors import EXIT_CONFIGURATION, EXIT_TEMPORARY

Breaker = Literal["closed", "open", "half-open"]

#: Below it a delay would be none: a child that cannot start at all would keep a core busy with trying.
_LEAST_PART: Final = 0.2
#: Probes become rarer, up to this many times the first pause.
_RAREST_PROBE: Final = 10.0
#: Doubling any further would overflow a float after a thousand deaths.
_MOST_DOUBLINGS: Final = 32


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """Delays double from ``first_delay_s`` to ``max_delay_s`` and start anew after ``stable_s`` of readiness.

    More than ``intensity`` deaths within ``period_s``, or as many in a row before READY however long each takes, open
    the breaker; 0 never does. The first probe comes after ``probe_s``.
    """

    first_delay_s: float = 0.5
    max_delay_s: float = 30.0
    stable_s: float = 60.0
    intensity: int = 5
    period_s: float = 120.0
    probe_s: float = 60.0


class RestartPolicy:
    """Decides over one child. Times are seconds of a monotonic clock; ``jitter`` returns a number in [0, 1).

    ``boot_failures`` counts deaths before READY, ``crashes`` those after; neither is ever forgotten.
    """

    def __init__(self, limits: RestartLimits, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self._jitter = jitter
        self._deaths: deque[float] = deque(maxlen=limits.intensity + 1)
        self._streak = 0
        self._boot_streak = 0
        self._ready_since_s: float | None = None
        self._is_open = False
        self._is_probing = False
        self._probes = 0
        self.boot_failures = 0
        self.crashes = 0

    def retune(self, limits: RestartLimits) -> None:
        """Decide by other limits from now on; what has happened counts on."""
        self._limits = limits
        self._deaths = deque(self._deaths, maxlen=limits.intensity + 1)

    def started(self) -> None:
        """Note that the child is started; with the breaker open this is a probe."""
        self._is_probing = self._is_open

    def became_ready(self, now_s: float) -> None:
        """Note that the child serves."""
        self._ready_since_s = now_s
        self._boot_streak = 0

    def breaker(self, now_s: float) -> Breaker:
        """Return where the breaker stands."""
        if not self._is_open or self._is_stable(now_s):
            return "closed"
        return "half-open" if self._is_probing else "open"

    def died(self, now_s: float, exit_code: int) -> float | None:
        """Return the delay before the next start, or ``None``: starting again cannot help."""
        if self._is_stable(now_s):
            self._start_anew()
        if self._ready_since_s is None:
            self.boot_failures += 1
            self._boot_streak += 1
        else:
            self.crashes += 1
        self._ready_since_s = None
        self._is_probing = False
        if exit_code == EXIT_CONFIGURATION:
            return None
        self._deaths.append(now_s)
        self._streak += 1
        if self._is_open:
            self._probes += 1
        else:
            self._is_open = self._is_flapping(now_s)
        if self._is_open:
            return self._pause(self._limits.probe_s, self._probes, self._limits.probe_s * _RAREST_PROBE)
        if exit_code == EXIT_TEMPORARY:  # what is lacking is not there half a second later
            return self._pause(self._limits.max_delay_s, 0, self._limits.max_delay_s)
        bound_s = min(_doubled(self._limits.first_delay_s, self._streak - 1), self._limits.max_delay_s)
        return max(_LEAST_PART * self._limits.first_delay_s, bound_s * self._jitter())

    def reset(self) -> None:
        """Forget all failures but their counts: a person has changed something or wants it tried now."""
        self._start_anew()
        self._boot_streak = 0

    def _pause(self, first_s: float, doublings: int, most_s: float) -> float:
        """Return a pause that is meant to be long: half of it is fixed."""
        return min(_doubled(first_s, doublings), most_s) * (0.5 + 0.5 * self._jitter())

    def _start_anew(self) -> None:
        self._deaths.clear()
        self._streak = 0
        self._is_open = False
        self._probes = 0

    def _is_stable(self, now_s: float) -> bool:
        return self._ready_since_s is not None and now_s - self._ready_since_s >= self._limits.stable_s

    def _is_flapping(self, now_s: float) -> bool:
        most = self._limits.intensity
        if most == 0:
            return False
        is_frequent = len(self._deaths) > most and now_s - self._deaths[0] <= self._limits.period_s
        return is_frequent or self._boot_streak > most


def _doubled(seconds: float, times: int) -> float:
    return seconds * 2.0 ** min(times, _MOST_DOUBLINGS)
