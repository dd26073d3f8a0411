"""Unix sockets that only one user can reach: bound with the right mode from the first moment, the peer's user checked.

Used by ``shard`` and ``router`` for links and by ``supervisor`` for an operator's requests.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Final

#: ``sun_path`` holds 108 bytes with the closing zero (unix(7)).
MAX_PATH_BYTES: Final = 107
_BACKLOG: Final = 64
#: ``struct ucred``: pid, uid, gid (unix(7), SO_PEERCRED).
_CREDENTIALS: Final = struct.Struct("3i")


def bind_private(path: Path) -> socket.socket:
    """Return a listening socket at ``path`` that only this user can reach.

    It is bound under another name with the right mode and then renamed: at no moment does a socket with a
    wider mode, or one that does not listen yet, stand at the final path.
    """
    unfinished = path.with_suffix(".tmp")
    unfinished.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        server.bind(str(unfinished))
    except OSError:
        server.close()
        raise
    finally:
        os.umask(old_mask)
    server.listen(_BACKLOG)
    server.setblocking(False)  # noqa: FBT003 - the standard library's signature
    unfinished.rename(path)
    return server


def peer_user(peer: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel noted it when it connected."""
    _pid, uid, _gid = _credentials(peer)
    return uid


def peer_process(peer: socket.socket) -> int:
    """Return the process id at the other end, as the kernel noted it when it connected."""
    pid, _uid, _gid = _credentials(peer)
    return pid


def _credentials(peer: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid), int(uid), int(gid)
