import asyncio
import socket

from aiohttp import web

from router import accepting
from router.accepting import Accepting
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
