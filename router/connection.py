"""What a client gets that does not speak HTTP, or no longer: OpenAI's error shape all the same. Used by ``main``.

aiohttp answers such bytes below the application, where no middleware sees them; only its connection class does.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from emb_model_provider.errors import InternalError, InvalidRequestError
from emb_model_provider.logs import EventLog
from router.app import GIVEN_UP, error_response, new_request_id
from router.expectation import without_expectation
from router.prefix import RequestFactory, without_prefix
from router.target import without_address

log = EventLog("router.connection")

#: So long connections that wait for their next request are left open at the end, in which each gets one last answer: a
#: client that uses one just when it is closed would not know whether its request was heard. At most half of all time.
_LAST_ANSWERS_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.02
#: So long what is given up has for its answer. Were aiohttp's time over at the same moment, it would fail of that.
_GIVING_UP_S: Final = 1.0


class _Connection(RequestHandler):
    """A connection whose errors below the application have the shape of those above it."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._end_body()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        """Go on with what was paused. aiohttp (3.14) asks for it twice with every body, and then parses nothing."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _end_body(self) -> None:
        """Tell the request whose body stops being HTTP: aiohttp queues the error behind it, and it waits for the rest.

        Where no body is under way, aiohttp's way is right: the error is answered in its turn.
        """
        if len(self._messages) > 1:
            body = self._messages[-2][1]
        elif self._current_request is not None:
            body = self._current_request.content
        else:
            return
        if not body.is_eof():
            self._messages.pop()
            body.set_exception(InvalidRequestError("The body is not valid HTTP: its chunked encoding is broken."))
            body.feed_eof()
            self.close()  # after the answer: what follows cannot be read

    @property
    def waits(self) -> bool:
        """Whether no request is under way."""
        return self._current_request is None

    def take_leave(self) -> None:
        """Tell the client with the answer under way, or else the next one, that it is the last."""
        if self._request_factory is not None:
            self._request_factory = _for_the_last_time(self._request_factory)
        if (request := self._current_request) is not None:
            request._message = request._message._replace(should_close=True)  # noqa: SLF001 - aiohttp has no way to it

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Finish what is under way within ``timeout`` seconds; aiohttp waits for a handler twice as long."""
        end = None
        if timeout is not None and self._current_request is not None:
            end = asyncio.get_running_loop().call_later(timeout, self._give_up)
            timeout += _GIVING_UP_S
        try:
            await super().shutdown(timeout)
        finally:
            if end is not None:
                end.cancel()

    def _give_up(self) -> None:
        if isinstance(request := self._current_request, web.Request):
            request[GIVEN_UP] = True  # so that its client gets an answer
        if self._task_handler is not None:
            self._task_handler.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        del message  # it repeats the client's bytes
        request_id = new_request_id()
        log.info("bad_request_bytes", request_id=request_id, status=status, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        error = (
            InternalError("The server made a mistake; its log has this request's id.")
            if status >= 500
            else InvalidRequestError("This is not a valid HTTP request, or its line or headers are too long.")
        )
        response = error_response(error, request_id)
        response.force_close()
        return response


def _for_the_last_time(make: RequestFactory) -> RequestFactory:
    def make_last(message: RawRequestMessage, *connection: Any) -> web.BaseRequest:  # noqa: ANN401 - handed on
        return make(message._replace(should_close=True), *connection)

    return make_last


class _Server(web.Server):
    #: Connections that were accepted and are not yet made: their TLS handshake takes a while.
    opening = 0

    def count(self) -> int:
        return len(self._connections) + self.opening

    def own(self) -> list[_Connection]:
        return [one for one in self.connections if isinstance(one, _Connection)]

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        self.opening -= 1
        super().connection_made(handler, transport)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application on connections of ours; clients put ``url_prefix`` before every path."""

    __slots__ = ("_url_prefix",)

    def __init__(self, app: web.Application, url_prefix: str = "", **options: Any) -> None:  # noqa: ANN401 - aiohttp's
        super().__init__(app, **options)
        self._url_prefix = url_prefix

    def connections(self) -> int:
        """Return how many connections are open or about to be; none after ``cleanup``."""
        return self._own_server().count() if self.server is not None else 0

    def opens(self, change: int) -> None:
        """Count connections that were accepted (1) or have failed before they were made (-1)."""
        self._own_server().opening += change

    async def cleanup(self) -> None:
        """Take no more connections, and end all within the time for it: those that wait with a last answer."""
        for site in list(self.sites):
            await site.stop()
        if self.server is not None:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            await self._say_goodbye(began_s + min(_LAST_ANSWERS_S, self._shutdown_timeout / 2))
            self._shutdown_timeout -= loop.time() - began_s
        await super().cleanup()

    async def _say_goodbye(self, until_s: float) -> None:
        server = self._own_server()
        for connection in server.own():
            connection.take_leave()
        loop = asyncio.get_running_loop()
        while any(one.waits for one in server.own()) and loop.time() < until_s:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(_LOOK_EVERY_S)

    def _own_server(self) -> _Server:
        server = self.server
        assert isinstance(server, _Server)
        return server

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp has no parameter for the class of its connections; the test with raw bytes holds this together.
        server.__class__ = _Server
        inside = without_prefix(self._url_prefix, server.request_factory)
        server.request_factory = without_address(without_expectation(inside))
        return server
