"""Bodies of requests and answers as they pass through aiohttp, without holding the loop. Used by ``handlers``."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp import payload, web
from aiohttp.abc import AbstractStreamWriter

from emb_model_provider.errors import (
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
    RequestTimeoutError,
    UnsupportedMediaError,
)
from router.admission import Budget

_BODY_TIMEOUT_S = 60.0
_RETRY_AFTER_S = 1.0
#: A piece of an answer takes no longer to leave: over TCP the kernel has given up such a client before (``accepting``),
#: over a Unix socket nobody else does.
_LEAVING_S = 300.0
#: Python joins as much and more without holding its lock, so that it is worth another thread.
_JOINED_ELSEWHERE_BYTES = 2**20


class HeldBytes:
    """What one request's body takes of the memory that all bodies may take together, until the request is over."""

    __slots__ = ("_budget", "_client", "_size")

    def __init__(self, budget: Budget, client: str) -> None:
        self._budget = budget
        self._client = client
        self._size = 0

    def grow_to(self, size: int) -> None:
        """Hold so much altogether; raise ``OverloadedError`` when there is no room for it."""
        more = size - self._size
        if more <= 0:
            return
        if self._budget.missing(self._client, more):
            raise OverloadedError("The server holds as many requests as it may.", retry_after_s=_RETRY_AFTER_S)
        self._budget.take(self._client, more)
        self._size = size

    def release(self) -> None:
        if self._size:
            self._budget.give_back(self._client, self._size)
            self._size = 0


HELD: web.RequestKey[HeldBytes] = web.RequestKey("held", HeldBytes)


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """Return the body; raise ``RequestError`` for one that is compressed, too large, too slow or empty.

    Taken from the stream and not from ``request.read()``, which would keep it for as long as the request lasts.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaError("Compressed bodies are not taken: send the JSON as it is.")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    held = request.get(HELD)
    if held is not None:
        held.grow_to(request.content_length or 0)
    if request.content.is_eof():  # nearly always: a small body comes with its headers, and needs no timer
        body = request.content.read_nowait()
        if held is not None:  # one in chunks has not said how large it is
            held.grow_to(len(body))
    else:
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await _receive(request, max_bytes, held)
        except TimeoutError:
            raise RequestTimeoutError(f"The body did not arrive within {_BODY_TIMEOUT_S:.0f} s.") from None
    if not body:
        raise InvalidRequestError("The body is empty: send a JSON object with 'model' and 'input'.")
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


async def _receive(request: web.Request, max_bytes: int, held: HeldBytes | None) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await request.content.readany():
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        if held is not None:
            held.grow_to(size)
    if (broken := request.content.exception()) is not None:  # between two reads: aiohttp shows it as an end
        raise broken
    return await _JOINER.join(pieces) if size >= _JOINED_ELSEWHERE_BYTES else b"".join(pieces)


class _Joiner:
    """Joins in a thread: 12 MB take up to 10 ms, most of it while the machine finds new pages.

    The thread is not the loop's own, to end which takes one more.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "joiner")

    async def join(self, pieces: list[bytes]) -> bytes:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, b"".join, pieces)
        except RuntimeError:  # no thread can be had: the loop is held up for once
            self._thread = ThreadPoolExecutor(1, "joiner")  # the other would keep the pieces until one can
            return b"".join(pieces)


_JOINER = _Joiner()


def _too_large(max_bytes: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The body is over the limit of {max_bytes // 2**20} MiB: split the request, "
        "or raise EMB_PROVIDER_MAX_REQUEST_MB on the server."
    )


class PiecedBody(payload.Payload):
    """A large answer in pieces: never joined, written as fast as the client reads, and freed as it leaves."""

    _give_back: Callable[[int], None] | None = None

    def __init__(self, pieces: Iterable[bytes], content_type: str) -> None:
        super().__init__(None, content_type=content_type)
        self._pieces = collections.deque(pieces)
        self._size = sum(map(len, self._pieces))

    def count_in(self, budget: Budget, client: str) -> None:
        """Have this answer take of what answers may take, as long as its client has not read it."""
        if self._pieces:
            budget.take(client, sum(map(len, self._pieces)))
            self._give_back = partial(budget.give_back, client)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._pieces).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        try:
            while self._pieces:
                size = len(self._pieces[0])
                try:
                    async with asyncio.timeout(_LEAVING_S):
                        await writer.write(self._pieces.popleft())
                finally:
                    self._leave(size)
        except TimeoutError:
            raise ConnectionResetError("nobody reads the answer") from None
        finally:
            self._forget()

    def __del__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Give back what was not written: its client has left."""
        self._leave(sum(map(len, self._pieces)))
        self._pieces.clear()

    def _leave(self, size: int) -> None:
        if self._give_back is not None and size:
            self._give_back(size)


class UnreadAnswers:
    """What large answers take of the memory that they may take together, until their clients have read them.

    Too much of it is refused before there is any work: an answer that is there is never thrown away.
    """

    __slots__ = ("_budget",)

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def check(self, request: web.Request, client: str) -> None:
        """Raise ``OverloadedError`` where a client has too much to read before it asks a model for more."""
        if request.method == "POST" and self._budget.missing(client, 1):
            raise OverloadedError(
                "Answers that nobody has read take all the memory that they may: read those to your earlier requests.",
                retry_after_s=_RETRY_AFTER_S,
            )

    def counted(self, response: web.StreamResponse, client: str) -> web.StreamResponse:
        """Count an answer in until it has been read."""
        if isinstance(response, web.Response) and isinstance(response.body, PiecedBody):
            response.body.count_in(self._budget, client)
        return response
