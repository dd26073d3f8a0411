"""The shard's end of the link: a private Unix socket that the router connects to. Hosts the engine."""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import socket
from collections.abc import Sequence
from typing import cast

from emb_model_provider.black_box import BlackBox
from emb_model_provider.errors import InvalidRequestError, ProtocolError
from emb_model_provider.frames import FrameDecoder, Outbox
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.framing import Message, pack, unpack
from emb_model_provider.messages.link import Cancel, Detokenize, Encode, Failed, Hello, Tokenize
from emb_model_provider.private_socket import peer_process, peer_user
from shard.engine import Engine
from shard.listener import Outcome
from shard.tracing import Tell

log = EventLog("shard.channel")

_FLUSH_S = 2.0
#: Answers that wait for a router to read them before no more is taken from it.
_HIGH_WATER_BYTES = 8 * 1024 * 1024


class Channel:
    """Carries requests from every link to the engine and outcomes back to the link that asked."""

    def __init__(
        self,
        hello: Hello,
        loop: asyncio.AbstractEventLoop,
        box: BlackBox,
        trace: Tell | None = None,
    ) -> None:
        self._hello = hello
        self._box = box
        self._loop = loop
        self._engine: Engine | None = None
        self._keys = itertools.count(1)
        self._askers: dict[int, tuple[_Link, int]] = {}
        self._trace = trace
        #: The ``traceparent`` of those requests that are traced.
        self._traced: dict[int, str] = {}
        self._links: set[_Link] = set()
        #: What the engine has said and the loop has not yet passed on.
        self._heard: collections.deque[tuple[int, Outcome]] = collections.deque()
        self._is_woken = False
        self._server: asyncio.Server | None = None
        self.requests_taken = 0

    @property
    def has_links(self) -> bool:
        """Tell whether a router could send something."""
        return bool(self._links)

    async def serve(self, engine: Engine, server_socket: socket.socket) -> None:
        """Accept links from now on."""
        self._engine = engine
        self._server = await self._loop.create_unix_server(lambda: _Link(self), sock=server_socket)

    async def close(self) -> None:
        """Accept no more links, and close those that are open once what was written has left."""
        if self._server is not None:
            self._server.close()
        closing = [link.closed for link in self._links]
        for link in list(self._links):
            link.close()
        if closing:
            await asyncio.wait(closing, timeout=_FLUSH_S)

    # ---------------------------------------------------------------- called by the engine, on its own threads

    def begins(self, where: int, keys: Sequence[int]) -> None:
        askers = [asker for key in keys if (asker := self._askers.get(key)) is not None]
        self._box.enter(where, [(link.router, request_id) for link, request_id in askers])

    def ends(self, where: int) -> None:
        self._box.leave(where)

    def finished(self, key: int, outcome: Outcome) -> None:
        self._heard.append((key, outcome))
        # Waking the loop is a system call and a switch of threads: once for all that is said until it runs. Two
        # threads at this line wake it twice, which is harmless.
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        self._is_woken = False  # before reading: what is said from now on wakes the loop again
        while self._heard:
            self._send_outcome(*self._heard.popleft())

    def _send_outcome(self, key: int, outcome: Outcome) -> None:
        if (asker := self._askers.pop(key, None)) is not None:
            link, request_id = asker
            link.keys.pop(request_id, None)
            if self._trace is not None and (traceparent := self._traced.pop(key, "")):
                self._trace(traceparent, outcome)
            try:
                link.send(outcome, request_id)
            except ProtocolError as error:
                log.error("answer_too_large", error=error)
                link.send(_too_large(), request_id)

    # --------------------------------------------------------------------------- called by links, on the loop

    def opened(self, link: _Link) -> None:
        self._links.add(link)
        link.send(self._hello)

    def received(self, link: _Link, request_id: int, message: Message) -> None:
        assert self._engine is not None
        if isinstance(message, (Encode, Tokenize, Detokenize)):
            if request_id in link.keys:
                raise ProtocolError(f"request id {request_id} is already in use on this link")
            if message.alone and message.count != 1:
                raise ProtocolError(f"what runs alone is one input, not {message.count}")
            key = next(self._keys)
            self.requests_taken += 1
            self._askers[key] = (link, request_id)
            link.keys[request_id] = key
            if self._trace is not None and isinstance(message, Encode) and message.traceparent:
                self._traced[key] = message.traceparent
            self._engine.submit(key, message)
        elif isinstance(message, Cancel):
            for cancelled in message.request_ids:
                self._forget(link, cancelled)
        else:
            raise ProtocolError(f"{type(message).__name__} is not for a shard")

    def closed(self, link: _Link) -> None:
        self._links.discard(link)
        for request_id in list(link.keys):
            self._forget(link, request_id)

    def _forget(self, link: _Link, request_id: int) -> None:
        assert self._engine is not None
        if (key := link.keys.pop(request_id, None)) is not None:
            self._askers.pop(key, None)
            self._traced.pop(key, None)
            self._engine.cancel(key)


class _Link(asyncio.Protocol):
    """One connection from a router."""

    def __init__(self, channel: Channel) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self.keys: dict[int, int] = {}
        self.router = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)  # uvloop's is one without being derived from it
        peer = stream.get_extra_info("socket")
        if peer_user(peer) != os.getuid():
            log.warning("link_refused", why="another user")
            stream.abort()
            return
        self.router = peer_process(peer)
        self._transport = stream
        stream.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._outbox = Outbox(asyncio.get_running_loop().call_soon, stream.write)
        self._channel.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._channel.received(self, frame.request_id, unpack(frame))
        except ProtocolError as error:
            log.error("link_broken", error=error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.closed.set_result(None)
        if self._transport is not None:
            self._channel.closed(self)

    def pause_writing(self) -> None:
        # Whoever does not read its answers gets to ask for no more of them. The router always reads, so the two never
        # wait for each other.
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, message: Message, request_id: int = 0) -> None:
        if self._outbox is not None and self._transport is not None and not self._transport.is_closing():
            self._outbox.add(pack(message, request_id))

    def close(self) -> None:
        if self._outbox is not None and self._transport is not None:
            self._outbox.flush()
            self._transport.close()


def _too_large() -> Failed:
    message = "The answer to these inputs is too large for one message; send fewer or shorter ones in one request."
    return Failed(InvalidRequestError.status, InvalidRequestError.kind, "answer_too_large", message, "input")
