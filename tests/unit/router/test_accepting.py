import asyncio
import contextlib
import errno
import resource
import socket
import ssl

import pytest
from aiohttp import web

from router import accepting
from router.accepting import Accepting, room_for_connections
from router.body import PiecedBody
from router.connection import Runner
from router.metrics.meter import Meter
from tests.unit.router.test_app import make_app


async def test_a_connection_over_the_limit_hears_503_and_is_counted(monkeypatch):
    monkeypatch.setattr(accepting, "_REFUSAL_S", 0.01)
    meter = Meter()
    runner = Runner(make_app())
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    await Accepting(runner, listener, 1, on_refused=meter.refused).start()
    try:
        first, first_writer = await asyncio.open_connection(*where)
        first_writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await first.readline() == b"HTTP/1.1 200 OK\r\n"
        over, over_writer = await asyncio.open_connection(*where)
        assert b" 503 " in await over.readline()
        over_writer.close()
        first_writer.close()
        await asyncio.sleep(0.05)
    finally:
        await runner.cleanup()
    text, _ = meter.render([], "")
    assert b'emb_refused_total{reason="too_many_connections"} 1.0' in text


async def test_an_answer_that_nobody_reads_is_given_up_in_bounded_time(monkeypatch):
    monkeypatch.setattr(accepting, "_UNREAD_MS", 500)

    ended = asyncio.Event()

    async def answer(request):
        request.task.add_done_callback(lambda _task: ended.set())  # the connection's, not this request's alone
        return web.Response(body=PiecedBody([bytes(2**20)] * 64, "application/octet-stream"))

    app = web.Application()
    app.router.add_get("/", answer)
    runner = Runner(app, handler_cancellation=True)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await Accepting(runner, listener, 10).start()
    try:
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(10):
                await ended.wait()
        assert runner.connections() == 0
    finally:
        await runner.cleanup()


class Failing(socket.socket):
    """A listener whose next calls of ``accept`` fail with these errors, one after the other."""

    errors: list[OSError]

    def accept(self):
        if self.errors:
            raise self.errors.pop(0)
        return super().accept()


@contextlib.asynccontextmanager
async def serving(*errors: OSError, limit: int = 10):
    runner = Runner(make_app())
    await runner.setup()
    listener = Failing(fileno=socket.create_server(("127.0.0.1", 0)).detach())
    listener.errors = list(errors)
    await Accepting(runner, listener, limit).start()
    try:
        yield runner, listener
    finally:
        await runner.cleanup()


async def health(listener) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_a_descriptor_clients_wait_for_a_moment_and_are_served(monkeypatch, number):
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.05)
    async with serving(OSError(number, "told to"), OSError(number, "told to")) as (_, listener):
        began_s = asyncio.get_running_loop().time()
        assert b"200 OK" in await health(listener)
        assert asyncio.get_running_loop().time() - began_s >= 0.1
        assert b"200 OK" in await health(listener)


async def test_a_server_that_stops_while_it_pauses_does_not_begin_again(monkeypatch):
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.05)
    mistakes = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: mistakes.append(context))
    async with serving(OSError(errno.EMFILE, "told to")) as (_, listener):
        with socket.create_connection(listener.getsockname()):
            await asyncio.sleep(0.02)
            assert not listener.errors
    assert listener.fileno() == -1
    await asyncio.sleep(0.1)
    assert mistakes == []


async def test_a_client_that_never_ends_its_tls_handshake_does_not_keep_the_server_from_stopping(monkeypatch):
    monkeypatch.setattr(accepting, "_LAST_HANDSHAKES_S", 0.01)
    runner = Runner(make_app())
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    await Accepting(runner, listener, 10, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)).start()
    reader, writer = await asyncio.open_connection(*where)
    async with asyncio.timeout(5):
        while runner.connections() != 1:  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.001)
        await runner.cleanup()
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_connection_that_is_gone_before_it_is_accepted_holds_up_nobody():
    gone = ConnectionAbortedError(errno.ECONNABORTED, "told to")
    async with serving(gone, gone) as (_, listener):
        assert b"200 OK" in await health(listener)


async def test_a_connection_that_cannot_be_made_takes_no_place(monkeypatch):
    async def fail(*_arguments, **_options):
        raise OSError(errno.ENOTCONN, "told to")

    async with serving(limit=1) as (runner, listener):
        with monkeypatch.context() as broken:
            broken.setattr(asyncio.get_running_loop(), "connect_accepted_socket", fail)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert runner.connections() == 0
        assert b"200 OK" in await health(listener)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "room", "raised_to"),
    [
        (1024, 4096, 16_384, 4032, 4096),
        (1024, 65_536, 16_384, 16_384, 65_536),
        (1024, resource.RLIM_INFINITY, 16_384, 16_384, 16_384 + 64),
        (20, 20, 100, 1, 20),
    ],
)
def test_connections_leave_room_for_what_is_no_clients(monkeypatch, soft, hard, wanted, room, raised_to):
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, pair: limits.append(pair))
    assert room_for_connections(wanted) == room
    assert limits[-1] == (raised_to, hard)
