"""What a process may have of memory by its own limits, in words: little of it is met as many unlike failures.

Asked by ``supervisor.keeper`` and ``shard.memory``.
"""

from __future__ import annotations

import resource
from typing import Final

_LIMITS: Final = ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d"))
_KIB: Final = 1024


def memory_limits() -> str:
    """Return the limits that are set as a shell names and counts them, such as "ulimit -v 300000"; "" without any."""
    soft = ((resource.getrlimit(which)[0], name) for which, name in _LIMITS)
    return ", ".join(f"{name} {limit // _KIB}" for limit, name in soft if limit != resource.RLIM_INFINITY)
