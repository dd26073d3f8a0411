"""The private directory that holds the shards' sockets: made at start, removed at stop, swept after a crash."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from emb_model_provider.errors import ConfigurationError

_PREFIX = "emb-provider-"
_LOCK = "lock"
#: ``sun_path`` holds 108 bytes with the closing zero (unix(7)); the longest name inside is a shard's socket.
_MAX_SOCKET_PATH_BYTES = 107
_LONGEST_NAME = "s0000-000000.sock"


class RunDirectory:
    """A fresh 0700 directory with a lock held as long as this process lives."""

    def __init__(self, parent: Path) -> None:
        longest = len(os.fsencode(parent / f"{_PREFIX}00000000" / _LONGEST_NAME))
        if longest > _MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(
                f"The directory {parent} is too deep for Unix sockets ({longest} bytes, at most "
                f"{_MAX_SOCKET_PATH_BYTES}): set XDG_RUNTIME_DIR or TMPDIR to a shorter one."
            )
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def socket_path(self, index: int, generation: int) -> Path:
        """Return the path of one generation's socket; never used twice."""
        return self.path / f"s{index}-{generation}.sock"

    def remove(self) -> None:
        """Remove the directory and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def runtime_parent(env: Mapping[str, str]) -> Path:
    """Return where run directories go: the user's runtime directory if there is one, else the temporary one."""
    runtime = env.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())


def sweep(parent: Path) -> None:
    """Remove run directories of supervisors that no longer live; those of others, and living ones, stay."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)
