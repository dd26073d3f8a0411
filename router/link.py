"""One connection to one shard: request ids to futures. Owned by ``backend``."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from emb_model_provider.black_box import BlackBoxReader
from emb_model_provider.errors import PayloadTooLargeError, ProtocolError, ProviderError, RequestError
from emb_model_provider.frames import MAX_PAYLOAD_BYTES, FrameDecoder, Outbox
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import Cancel, Detokenize, Encode, Encoded, Failed, Hello, Texts, Tokenize, Tokens
from router.quarantine import fingerprint

log = EventLog("router.link")

Answer = TypeVar("Answer", Encoded, Tokens, Texts)

#: What may wait to be written before no more is added; a large slice is about half of it.
_HIGH_WATER_BYTES: Final = 1024 * 1024
#: As many requests that were taken back are kept in mind, the last ones.
_MAX_LEFT: Final = 1024


@dataclass(frozen=True, slots=True)
class Left:
    """A request whose client has left: the fingerprints of its inputs, and whether it was alone in the process."""

    model_id: str
    marks: tuple[bytes, ...]
    alone: bool


class ShardLostError(ProviderError):
    """The shard went away before it answered. ``started`` says whether it was at this request when it died."""

    def __init__(self, *, started: bool) -> None:
        super().__init__("the shard is gone")
        self.started = started


class _ShardAnswerError(RequestError):
    """What the shard answered instead of vectors, with the status it chose."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message, param=failed.param, code=failed.code)
        self.status = failed.status
        self.kind = failed.kind


class Link(asyncio.Protocol):
    """Sends requests to one shard generation and matches the answers to them.

    It never stops reading, whatever it cannot write: two peers that each wait for the other to read wait for ever.
    ``on_broken`` is told once, before any request that waits hears of it, and knows whether it ``was_relieved``.
    ``on_left`` is told, before that too, of each request that the shard was at when it went and whose client had left.
    """

    def __init__(
        self,
        model_id: str,
        generation: int,
        box: BlackBoxReader,
        on_broken: Callable[[Link], None] = lambda _link: None,
        on_left: Callable[[Left], None] = lambda _left: None,
    ) -> None:
        self.model_id = model_id
        self.generation = generation
        #: What the shard sent that it may not send; empty while it keeps to the protocol.
        self.complaint = ""
        #: Whether the shard's place had been taken when it went, so that it did not die of what it was at.
        self.was_relieved = False
        #: Kept: to ask for it is a system call in Python 3.11.
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._decoder = FrameDecoder()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Encoded | Tokens | Texts]] = {}
        self._alone: set[int] = set()
        #: Requests that their clients have taken back; the shard may be at some of them still.
        self._left: OrderedDict[int, Left] = OrderedDict()
        self._on_broken = on_broken
        self._on_left = on_left
        self._is_broken = False
        self._box = box
        #: Done when the shard takes more again; ``None`` while it does.
        self._writable: asyncio.Future[None] | None = None

    async def request(self, message: Encode | Tokenize | Detokenize, kind: type[Answer]) -> Answer:
        """Return the shard's answer, which must be of ``kind``; raise its error, or ``ShardLostError``.

        A caller that is cancelled takes its request back: what has not started is never encoded.
        """
        while self._writable is not None and not self._is_broken:
            await asyncio.shield(self._writable)
        if self._outbox is None or self._is_broken:
            raise ShardLostError(started=False)
        request_id = next(self._ids)
        self._outbox.add(_packed(message, request_id))
        future: asyncio.Future[Encoded | Tokens | Texts] = self._loop.create_future()
        self._waiting[request_id] = future
        if message.alone:
            self._alone.add(request_id)
        try:
            answer = await future
        except asyncio.CancelledError:
            if not self._is_broken:
                self._outbox.add(pack(Cancel((request_id,))))
                self._keep_in_mind(request_id, message)
            raise
        finally:
            self._waiting.pop(request_id, None)
            self._alone.discard(request_id)
        if not isinstance(answer, kind):
            self._complain(ProtocolError(f"{type(answer).__name__} is no answer to {type(message).__name__}"))
            raise ShardLostError(started=False)
        if answer.count != message.count:
            self._complain(ProtocolError(f"{answer.count} rows are no answer to {message.count} inputs"))
            raise ShardLostError(started=True)
        return answer

    @property
    def in_flight(self) -> int:
        """How many messages wait for their answers."""
        return len(self._waiting)

    def close(self) -> None:
        """Close the connection; whoever still waits gets ``ShardLostError``."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without being derived from it
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._outbox = Outbox(self._loop.call_soon, self._transport.write)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._receive(frame.request_id, unpack(frame))
        except ProtocolError as error:
            self._complain(error)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.lost.set_result(None)
        self._break()
        self.resume_writing()
        noted = self._box.requests_of(os.getpid())
        self._box.close()
        if noted and not (self.was_relieved or self.complaint):
            for left in (left for request_id, left in self._left.items() if request_id in noted):
                self._on_left(left)
        begun = self._begun(noted)
        for request_id, future in self._waiting.items():
            if not future.done():
                future.set_exception(ShardLostError(started=request_id in begun))

    def _begun(self, noted: frozenset[int] | None) -> Collection[int]:
        """Return the requests that the shard was at when it went, which ``noted`` them.

        All of them if they were more than it could note, but for those that run alone: it was at none of these then.
        Nor did it die of any of these where it was relieved, or where we broke with it.
        """
        if noted is None:
            return self._waiting.keys() - self._alone
        return noted - self._alone if self.was_relieved or self.complaint else noted

    def _keep_in_mind(self, request_id: int, message: Encode | Tokenize | Detokenize) -> None:
        marks = tuple(fingerprint(self.model_id, message, index) for index in range(message.count))
        self._left[request_id] = Left(self.model_id, marks, message.alone)
        while len(self._left) > _MAX_LEFT:
            self._left.popitem(last=False)

    def _complain(self, error: ProtocolError) -> None:
        log.error("link_broken", model=self.model_id, generation=self.generation, error=error)
        self.complaint = f"its link carried what it may not: {error}"
        self._break()
        self.close()

    def _break(self) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._on_broken(self)

    def _receive(self, request_id: int, message: object) -> None:
        if isinstance(message, (Encoded, Tokens, Texts)):
            self._answer(request_id, message)
        elif isinstance(message, Failed):
            if (future := self._waiting.get(request_id)) is not None and not future.done():
                future.set_exception(_ShardAnswerError(message))
        elif isinstance(message, Hello):
            if (message.model_id, message.generation) != (self.model_id, self.generation):
                raise ProtocolError(f"expected {self.model_id}#{self.generation}, found {message}")
        else:
            raise ProtocolError(f"{type(message).__name__} is not for a router")

    def _answer(self, request_id: int, answer: Encoded | Tokens | Texts) -> None:
        future = self._waiting.get(request_id)
        if future is None or future.done():  # the client left while the answer was on its way
            return
        if isinstance(answer, Encoded) and len(answer.vectors) != 4 * answer.dimension * len(answer.tokens):
            raise ProtocolError("the vectors' bytes do not match their count and dimension")
        future.set_result(answer)


def _packed(message: Encode | Tokenize | Detokenize, request_id: int) -> bytes:
    try:
        return pack(message, request_id)
    except ProtocolError:
        raise PayloadTooLargeError(
            f"An input, or all texts whose tokens are asked for, may have {MAX_PAYLOAD_BYTES // 2**20} MiB, and a list "
            "of token ids a million: split it."
        ) from None
