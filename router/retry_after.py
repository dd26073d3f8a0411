"""How long a client is asked to wait before it asks again. Used by whatever answers that it cannot be served now."""

from __future__ import annotations

from typing import Final

_SHORTEST_S: Final = 1.0
#: Said, too, where nobody can tell how long it will take.
LONGEST_S: Final = 60.0


def bounded_s(wait_s: float) -> float:
    """Return so many seconds as it is of use to ask for: at least 1, at most 60."""
    return min(max(_SHORTEST_S, wait_s), LONGEST_S)
