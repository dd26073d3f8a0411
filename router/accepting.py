"""Takes connections from a listening socket, as many as there is room for. Used by ``main``.

The loop's own servers know no limit, and uvloop's closes every waiting connection when the process has no descriptor
left. Here a connection over the limit hears 503, and without a descriptor nobody is taken for a moment: clients wait in
the kernel's queue meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web

from emb_model_provider.errors import UnavailableError
from emb_model_provider.logs import EventLog
from emb_model_provider.process_limits import SHORTAGES
from router.app import error_response, new_request_id
from router.connection import Runner

log = EventLog("router.accepting")

_TOO_MANY: Final = "too_many_connections"
_AT_ONCE: Final = 64
_PAUSE_S: Final = 0.2
#: How long a refused connection stays open: closed with its request unread, the client would get a reset and no answer.
_REFUSAL_S: Final = 0.5
_MAX_REFUSALS: Final = 64
#: How long TLS handshakes that are under way are waited for at the end; a client that says nothing would take a minute.
_LAST_HANDSHAKES_S: Final = 1.0
#: Descriptors that are no client's: shards, control channel, event loop, files.
_OWN_DESCRIPTORS: Final = 64
#: For so long a client may take nothing of its answer, which stays in memory meanwhile; as long as for its body. What
#: it takes is seen once a sixteenth of its buffer is free again, so one below a few KB/s is given up, too.
_UNREAD_MS: Final = 60_000


def room_for_connections(wanted: int) -> int:
    """Raise this process's limit of open files as far as it may go; return how many connections there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = hard if hard != resource.RLIM_INFINITY else max(soft, wanted + _OWN_DESCRIPTORS)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = max(1, soft - _OWN_DESCRIPTORS)
    if room < wanted:
        log.warning("connections_limited", asked=wanted, limit=room, why="the limit of open files (ulimit -n)")
    return min(wanted, room)


class Accepting(web.BaseSite):
    """One listening socket of a runner that shall have at most ``limit`` connections.

    ``on_refused`` hears why one was not let in.
    """

    __slots__ = ("_limit", "_listener", "_on_refused", "_opening", "_own", "_paused", "_refused")

    def __init__(
        self,
        runner: Runner,
        listener: socket.socket,
        limit: int,
        ssl_context: ssl.SSLContext | None = None,
        on_refused: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context)
        self._own = runner
        self._listener = listener
        self._limit = limit
        self._on_refused = on_refused
        self._opening: set[asyncio.Task[None]] = set()
        self._refused: set[socket.socket] = set()
        self._paused: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return str(self._listener.getsockname())

    async def start(self) -> None:
        await super().start()
        self._listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        if self._listener.family != socket.AF_UNIX:  # connections inherit it
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
        else:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        if self._opening:
            await asyncio.wait(self._opening, timeout=_LAST_HANDSHAKES_S)
            for task in self._opening:
                task.cancel()
        await super().stop()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in SHORTAGES:
                    raise
                self._pause(error)
                return
            connection.setblocking(False)  # noqa: FBT003
            if self._own.connections() >= self._limit:
                self._refuse(connection)
            else:
                self._own.opens(1)
                task = asyncio.get_running_loop().create_task(self._open(connection))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        server = self._runner.server
        assert server is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(server, connection, ssl=self._ssl_context)
        except (OSError, asyncio.CancelledError) as error:  # gone already, or no TLS handshake
            log.debug("connection_failed", error=error)
            self._own.opens(-1)
            connection.close()

    def _pause(self, error: OSError) -> None:
        loop = asyncio.get_running_loop()
        log.warning("accepting_paused", connections=self._own.connections(), error=error)
        loop.remove_reader(self._listener)
        self._paused = loop.call_later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._paused = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _refuse(self, connection: socket.socket) -> None:
        self._on_refused(_TOO_MANY)
        if self._ssl_context is not None or len(self._refused) >= _MAX_REFUSALS:
            connection.close()
            return
        with contextlib.suppress(OSError):
            connection.send(_refusal(self._limit))
            connection.shutdown(socket.SHUT_WR)
        self._refused.add(connection)
        asyncio.get_running_loop().call_later(_REFUSAL_S, self._close_refused, connection)

    def _close_refused(self, connection: socket.socket) -> None:
        self._refused.discard(connection)
        connection.close()


def _refusal(limit: int) -> bytes:
    error = UnavailableError(
        f"The server has {limit} connections open and takes no more. Close idle ones, or try again in a moment.",
        code=_TOO_MANY,
        retry_after_s=1.0,
    )
    response = error_response(error, new_request_id())
    body = response.body
    assert isinstance(body, bytes)
    fields = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n".encode() + body
