"""Whether the limit of open files leaves room for a start. Asked by ``cli``, before anything is started.

Later each process that cannot be made is told of by itself; a limit under which none can is told here, once.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

from emb_model_provider.errors import ConfigurationError

#: The event loop (3), the operator's socket, the log file; and while a process is made, the ends that it is given (4).
_OWN: Final = 9
#: Of each process: its channel, both ends while it is being made, and what it writes to stderr.
_OF_A_CHILD: Final = 3


def require_descriptors(children: int) -> None:
    """Raise ``ConfigurationError`` unless as many files can be opened as a supervisor of so many children needs."""
    needed = _OWN + _OF_A_CHILD * children
    opened: list[int] = []
    try:
        while len(opened) < needed:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise ConfigurationError(
            f"The limit of open files (ulimit -n, LimitNOFILE in a systemd unit) is {limit}, and a start alone needs "
            f"{needed - len(opened)} more. Raise it; 1024 are enough for most."
        ) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
