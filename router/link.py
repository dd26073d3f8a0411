"""One connection to one shard: request ids to futures. Owned by ``backend``."""

from __future__ import annotations

import asyncio
import itertools
from typing import cast

from emb_model_provider.errors import ProtocolError, ProviderError, RequestError
from emb_model_provider.frames import FrameDecoder, Outbox
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import Cancel, Encode, Encoded, Failed, Hello, Started, pack, unpack

log = EventLog("router.link")


class ShardLostError(ProviderError):
    """The shard went away before it answered. ``started`` says whether the device had begun with the request."""

    def __init__(self, *, started: bool) -> None:
        super().__init__("the shard is gone")
        self.started = started


class _ShardAnswerError(RequestError):
    """What the shard answered instead of vectors, with the status it chose."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message, param=failed.param, code=failed.code)
        self.status = failed.status
        self.kind = failed.kind
        self.index = failed.index


class Link(asyncio.Protocol):
    """Sends requests to one shard generation and matches the answers to them."""

    def __init__(self, model_id: str, generation: int) -> None:
        self.model_id = model_id
        self.generation = generation
        #: What the shard sent that it may not send; empty while it keeps to the protocol.
        self.complaint = ""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._decoder = FrameDecoder()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Encoded]] = {}
        self._started: set[int] = set()

    async def request(self, message: Encode) -> Encoded:
        """Return the shard's answer; raise its error, or ``ShardLostError``.

        A caller that is cancelled takes its request back: what has not started is never encoded.
        """
        if self._outbox is None or self.lost.done():
            raise ShardLostError(started=False)
        request_id = next(self._ids)
        self._outbox.add(pack(message, request_id))
        future: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        try:
            return await future
        except asyncio.CancelledError:
            if not self.lost.done():
                self._outbox.add(pack(Cancel((request_id,))))
            raise
        finally:
            self._waiting.pop(request_id, None)
            self._started.discard(request_id)

    def close(self) -> None:
        """Close the connection; whoever still waits gets ``ShardLostError``."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without being derived from it
        self._outbox = Outbox(asyncio.get_running_loop().call_soon, self._transport.write)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._receive(frame.request_id, unpack(frame))
        except ProtocolError as error:
            log.error("link_broken", model=self.model_id, generation=self.generation, error=error)
            self.complaint = f"its link carried what it may not: {error}"
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set_result(None)
        for request_id, future in self._waiting.items():
            if not future.done():
                future.set_exception(ShardLostError(started=request_id in self._started))

    def _receive(self, request_id: int, message: object) -> None:
        if isinstance(message, Started):
            self._started.update(message.request_ids)
        elif isinstance(message, Encoded):
            self._answer(request_id, message)
        elif isinstance(message, Failed):
            if (future := self._waiting.get(request_id)) is not None and not future.done():
                future.set_exception(_ShardAnswerError(message))
        elif isinstance(message, Hello):
            if (message.model_id, message.generation) != (self.model_id, self.generation):
                raise ProtocolError(f"expected {self.model_id}#{self.generation}, found {message}")
        else:
            raise ProtocolError(f"{type(message).__name__} is not for a router")

    def _answer(self, request_id: int, encoded: Encoded) -> None:
        future = self._waiting.get(request_id)
        if future is None or future.done():  # the client left while the answer was on its way
            return
        if len(encoded.vectors) != 4 * encoded.dimension * len(encoded.tokens):
            raise ProtocolError("the vectors' bytes do not match their count and dimension")
        future.set_result(encoded)
