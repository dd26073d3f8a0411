"""Bytes that stop being HTTP in the middle of a body, of which its client hears at once; the end of connections."""

import asyncio

import pytest
from aiohttp import web

from router.connection import Runner
from tests.unit.router.test_app import make_app

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b'{"model": "m", "input": "abc"}'
GOOD = HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture
async def exchange():
    """A function that sends pieces, a moment apart, and returns all that comes until the server closes."""
    runner = Runner(make_app(), handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]

    async def send(*pieces: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.02)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return answer

    yield send
    await runner.cleanup()


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD, b"zz\r\n"),
        (HEAD + b"%x\r\n%b" % (len(BODY), BODY), b"no end of line"),
        (HEAD + b"5\r\n{", b'"a":', b"\r\nzz"),
    ],
)
async def test_a_chunked_body_that_goes_wrong_is_refused_at_once(exchange, caplog, pieces):
    answer = await exchange(*pieces)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"chunked" in answer
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_so_is_the_body_of_a_request_that_waits_behind_another(exchange):
    answer = await exchange(GOOD + HEAD, b"zz\r\n")
    assert [part[:4] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200 ", b"400 "]


async def test_a_request_that_outlasts_the_time_for_a_stop_is_given_up_when_it_is_over_and_not_twice_as_late():
    loop, begun, given_up_s = asyncio.get_running_loop(), asyncio.Event(), []

    async def hang(_request: web.Request) -> web.Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up_s.append(loop.time())
        return web.Response()

    app = web.Application()
    app.router.add_get("/", hang)
    runner = Runner(app, shutdown_timeout=0.4)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await begun.wait()
    stopped_s = loop.time()
    await runner.cleanup()
    assert await reader.read() == b""
    writer.close()
    assert 0.39 < given_up_s[0] - stopped_s < 0.7
