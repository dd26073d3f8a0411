"""The sockets that clients connect to: bound here and handed down, so that a router's death queues clients.

Used by ``cli`` and ``front``.

Several routers have a TCP socket each on the same port (SO_REUSEPORT, socket(7)): the kernel deals connections out
evenly, where processes that wait for one socket leave nearly all of them to whoever is quickest. All of them stay open
here, so what was dealt to a router that dies waits for its successor.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.private_socket import MAX_PATH_BYTES

_BACKLOG: Final = 2048
_BIND_ADVICE: Final = {
    errno.EADDRINUSE: "Stop the program that uses it, or set EMB_PROVIDER_PORT to another port.",
    errno.EADDRNOTAVAIL: "Set EMB_PROVIDER_HOST to an address of this machine.",
    errno.EACCES: "Ports below 1024 need a privilege: set EMB_PROVIDER_PORT to a higher one.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n, LimitNOFILE in a systemd unit).",
}


@dataclass(frozen=True, slots=True)
class Listening:
    """What is listened on: ``tcp`` has a socket for each router, or one for all; the others are for all.

    ``more`` are what systemd has bound beside the first, which may be Unix sockets; so may the first.
    """

    tcp: tuple[socket.socket, ...]
    unix: UnixSocket | None = None
    more: tuple[socket.socket, ...] = ()

    def address(self, *, is_tls: bool) -> str:
        """Return the URL; a wildcard address is shown as one that works from this machine."""
        addresses = self._addresses()
        if not addresses:
            return f"unix:{self.tcp[0].getsockname()}"
        host, port = addresses[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound
        scheme = "https" if is_tls else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def open_host(self) -> str:
        """The first address that other machines reach, empty where there is none."""
        return next((host for host, _ in self._addresses() if _is_open(host)), "")

    def _addresses(self) -> list[tuple[str, int]]:
        tcp = [one for one in (*self.tcp, *self.more) if one.family != socket.AF_UNIX]
        return [one.getsockname()[:2] for one in tcp]

    def descriptors(self, index: int) -> tuple[int, ...]:
        """Return what the router of this number accepts on."""
        unix = (self.unix.socket.fileno(),) if self.unix is not None else ()
        return (self.tcp[index % len(self.tcp)].fileno(), *(one.fileno() for one in self.more), *unix)

    def close(self) -> None:
        """Close every socket and remove the Unix socket's file."""
        for one in (*self.tcp, *self.more):
            one.close()
        if self.unix is not None:
            self.unix.close()


def open_host(host: str) -> str:
    """Return the address that ``bind_tcp`` would listen on where other machines reach it, else nothing."""
    with contextlib.suppress(socket.gaierror):  # of which the start says what is wrong
        address = str(_resolve(host, 0).name[0])
        return address if _is_open(address) else ""
    return ""


def exposure(host: str, *, needs_key: bool) -> str:
    """Return a warning when anybody on the network may use the server; ``host`` is what ``open_host`` gives."""
    if needs_key or not host:
        return ""
    return (
        f"open to the network: listening on {host} without a key; "
        "set EMB_PROVIDER_API_KEYS, or EMB_PROVIDER_HOST=127.0.0.1"
    )


def _is_open(address: str) -> bool:
    reached = ipaddress.ip_address(address)
    # Python takes an address of IPv4 that is written as one of IPv6 for what is in it from 3.13 on.
    return not (getattr(reached, "ipv4_mapped", None) or reached).is_loopback


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A listening Unix socket. ``inode`` tells its file from one that somebody else has put in its place."""

    socket: socket.socket
    path: Path
    inode: int

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


@dataclass(frozen=True, slots=True)
class _Address:
    """``takes_ipv4``: connections of IPv4 as well, with addresses such as ``::ffff:127.0.0.1`` (ipv6(7))."""

    family: int
    name: tuple[object, ...]
    takes_ipv4: bool

    def bind(self, *, reuse_port: bool) -> socket.socket:
        return socket.create_server(
            self.name,
            family=self.family,
            backlog=_BACKLOG,
            reuse_port=reuse_port,
            dualstack_ipv6=self.takes_ipv4,
        )


def _resolve(host: str, port: int) -> _Address:
    """Return the first address that a name stands for; raise ``socket.gaierror``."""
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return _Address(family, found[:2], found[0] == "::" and socket.has_dualstack_ipv6())


def bind_tcp(host: str, port: int, count: int = 1) -> tuple[socket.socket, ...]:
    """Return ``count`` listening sockets of one address, ``::`` for IPv4, too; raise ``OSError`` with a sentence."""
    try:
        address = _resolve(host, port)
        # The first one alone, for with SO_REUSEPORT a second server of the same user would not be told that the port
        # is taken, and get half of its connections. Only who has it may have more of the same.
        first = address.bind(reuse_port=False)
        return (first,) if count == 1 else _bind_beside(first, address, count - 1)
    except socket.gaierror as error:
        raise ConfigurationError(
            f"EMB_PROVIDER_HOST={host} is not an address of this machine: {error.strerror}."
        ) from None
    except OSError as error:
        number = error.errno or 0
        advice = _BIND_ADVICE.get(number, "Set EMB_PROVIDER_HOST and EMB_PROVIDER_PORT.")
        raise OSError(f"{host}:{port} cannot be bound: {os.strerror(number)}. {advice}") from None


def _bind_beside(first: socket.socket, address: _Address, more: int) -> tuple[socket.socket, ...]:
    address = replace(address, name=first.getsockname()[:2])
    sockets = [first]
    try:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sockets.extend(address.bind(reuse_port=True) for _ in range(more))
    except OSError:
        for one in sockets:
            one.close()
        raise
    return tuple(sockets)


def bind_unix(path: Path, mode: int) -> UnixSocket:
    """Return a listening Unix socket of this mode; a file that a dead server has left is replaced.

    Raises ``ConfigurationError`` for a path that cannot be one, ``OSError`` with a sentence for one that is taken.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigurationError(
            f"EMB_PROVIDER_UNIX_SOCKET={path} is longer than the {MAX_PATH_BYTES} bytes that a socket's path may have:"
            " set it to a shorter one."
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o777 & ~mode)
    try:
        _make_room(path)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno is None:  # it says all
            raise
        raise _not_bound(path, os.strerror(error.errno)) from None
    finally:
        os.umask(old_mask)
    return UnixSocket(listener, path, path.lstat().st_ino)


def _make_room(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise _not_bound(path, "there is a file of that name that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:  # nobody listens: its server is dead
                path.unlink()
            except PermissionError:
                raise _not_bound(path, "it is another user's") from None
            else:
                raise _not_bound(path, "another server listens on it")


def _not_bound(path: Path, why: str) -> OSError:
    return OSError(
        f"The Unix socket {path} cannot be bound: {why}. Set EMB_PROVIDER_UNIX_SOCKET to another path, in a directory "
        "where this user may make it."
    )
