"""Tells systemd how the server is, and takes a socket it has bound: sd_notify(3) and sd_listen_fds(3), in plain Python.

Without systemd nothing is sent. The variables are taken out of the environment, so that no child answers for us.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

_FIRST_PASSED_DESCRIPTOR: Final = 3
_NAMES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Notifier:
    """Sends states to the socket that systemd named; each is lost rather than waited for."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self._watched = _watchdog_us(env) > 0
        self._status = ""

    def ready(self) -> None:
        """Say that connections are taken, or that a reload is done."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that the settings are being read again; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show a sentence in ``systemctl status``."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Keep the watchdog quiet, if there is one."""
        if self._watched:
            self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)  # noqa: FBT003 - the standard library's signature
                out.connect(self._address)
                out.send(state.encode("utf-8"))


def passed_listeners(env: Mapping[str, str]) -> tuple[socket.socket, ...]:
    """Return the listening sockets that systemd has bound for this process: one for each line of its unit."""
    count = env.get("LISTEN_FDS", "0")
    if env.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return ()
    numbers = range(_FIRST_PASSED_DESCRIPTOR, _FIRST_PASSED_DESCRIPTOR + int(count))
    listeners = tuple(socket.socket(fileno=number) for number in numbers)
    for listener in listeners:
        listener.set_inheritable(False)
    return listeners


def forget(env: MutableMapping[str, str]) -> None:
    """Remove what systemd told this process alone."""
    for name in _NAMES:
        env.pop(name, None)


def _address(text: str) -> str:
    """Return the socket's address; a leading @ stands for the zero byte of an abstract one (unix(7))."""
    return "\0" + text[1:] if text.startswith("@") else text


def _watchdog_us(env: Mapping[str, str]) -> int:
    text = env.get("WATCHDOG_USEC", "")
    is_ours = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(text) if is_ours and text.isdecimal() else 0
