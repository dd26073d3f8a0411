"""Who asks, and how long they wait: told by the headers, set by ``app`` for each request, read by ``service``.

In a context variable and not in every dialect's request, so that no dialect can forget it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.value_kinds import read_number

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
_TIMEOUT_S: Final = "x-request-timeout"
_TIMEOUT_MS: Final = "x-request-timeout-ms"


class Caller(NamedTuple):
    """``client`` tells clients apart for a fair share and is never shown; ``timeout_s`` is what this one allows."""

    client: str = ""
    timeout_s: float | None = None


_NOBODY: Final = Caller()
CALLER: Final[ContextVar[Caller]] = ContextVar("caller", default=_NOBODY)


def client_of(address: str | None, connection: object) -> str:
    """Return what tells a client without a key from others: its address, or on this machine its connection.

    Behind a proxy on this machine, and over a Unix socket, there is nothing better than the connection.
    """
    return address if address and address not in _LOOPBACK else f"#{id(connection)}"


def read_timeout_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the client waits, in seconds; raise ``InvalidRequestError`` for what is no time."""
    for name, unit_s in ((_TIMEOUT_S, 1.0), (_TIMEOUT_MS, 0.001)):
        if (text := headers.get(name)) is not None:
            return _positive(text, name) * unit_s
    return None


def _positive(text: str, name: str) -> float:
    value = read_number(text)
    if value is None or value <= 0:
        raise InvalidRequestError(f"The header {name} must be a number greater than 0, such as 2.5, not {text[:40]!r}.")
    return value
