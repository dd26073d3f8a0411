"""Reads the files that settings come from, without ever waiting for one while a server runs. Used by their readers."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_small_file(path: Path, most_bytes: int, *, again: bool) -> tuple[bytes, int]:
    """Return at most ``most_bytes`` and the file's mode; raise ``OSError``.

    A pipe, such as the shell makes of ``<(command)``, is read to its end at the start. ``again`` is for a reload, which
    it would hold up, or where it would be empty and taken for settings that are gone.
    """
    with open(path, "rb", opener=_open_at_once if again else None) as file:
        mode = os.fstat(file.fileno()).st_mode
        if again and (stat.S_ISFIFO(mode) or file.isatty()):
            reason = "it is a pipe, which can be read only once; a file is needed, or a restart of the server"
            raise OSError(errno.ESPIPE, reason, str(path))
        return file.read(most_bytes), mode


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
