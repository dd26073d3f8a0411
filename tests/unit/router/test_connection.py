"""Bytes that stop being HTTP in the middle of a body, of which its client hears at once; the end of connections."""

import asyncio

import pytest
from aiohttp import web

from emb_model_provider.messages.link import Encode, Encoded
from router.connection import Runner
from tests.unit.router.test_app import make_app

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b'{"model": "m", "input": "abc"}'
GOOD = HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


class NeverBackend:
    """Answers nobody."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        self.begun.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


@pytest.fixture
async def exchange():
    """A function that sends pieces, a moment apart, and returns all that comes until the server closes."""
    runner = Runner(make_app(limit=2**20), handler_cancellation=True, shutdown_timeout=1.0)
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


LAST = GOOD.replace(b"Host: x", b"Host: x\r\nConnection: close")
BLANKS = b" " * 600_000


@pytest.mark.parametrize(
    "large",
    [
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(BODY) + len(BLANKS))
        + BLANKS
        + BODY,
        HEAD + b"%x\r\n%b\r\n" % (len(BLANKS), BLANKS) + GOOD.removeprefix(HEAD),
    ],
    ids=["with its length", "in chunks"],
)
async def test_bodies_that_hold_up_reading_are_read_to_their_end_and_so_is_what_follows(exchange, large):
    answer = await exchange(large + GOOD + large, GOOD + large + LAST)
    assert [part[:4] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200 "] * 6


@pytest.mark.parametrize("host", [b"another.example:80", b"xn--", b"xn--a", b"x..y"])
async def test_a_request_to_a_whole_address_is_answered_whatever_host_is_in_it(exchange, host):
    answer = await exchange(LAST.replace(b"POST /", b"POST http://%b/" % host))
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_tunnel_is_refused_whatever_host_it_leads_to(exchange):
    answer = await exchange(b"CONNECT xn--:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            "POST /embed/er/v1/v1/embeddings",
            "no POST /embed/er/v1/v1/embeddings here. Did you mean /embed/er/v1/embeddings?",
        ),
        ("DELETE /embed/er/v1/embeddings", "Use POST for /embed/er/v1/embeddings."),
    ],
)
async def test_a_path_that_is_named_below_a_prefix_begins_with_it(asked, told):
    runner = Runner(make_app(), "/embed/er", shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(f"{asked} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await runner.cleanup()
    assert told.encode() in answer


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


async def test_the_client_of_a_request_that_is_given_up_at_a_stop_is_told_to_send_it_again(caplog):
    backend = NeverBackend()
    runner = Runner(make_app(backend=backend), handler_cancellation=True, shutdown_timeout=0.4)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0])
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
    await backend.begun.wait()
    await runner.cleanup()
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 503 ")
    assert "Retry-After: 1\r\n" in answer
    assert '"server_stopping"' in answer
    assert [(record.name, record.levelname) for record in caplog.records] == [("router", "WARNING")]


@pytest.fixture
async def serving():
    """A runner that has half a minute to stop, the port it listens on, and what lets its ``/slow`` answer."""
    go_on = asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        await go_on.wait()
        return web.Response(text="slow")

    async def quick(_request: web.Request) -> web.Response:
        return web.Response(text="quick")

    app = web.Application()
    app.router.add_get("/slow", slow)
    app.router.add_get("/quick", quick)
    runner = Runner(app, shutdown_timeout=30.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner, runner.addresses[0], go_on
    await runner.cleanup()


async def _ask(stream, path):
    reader, writer = stream
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    head = await reader.readuntil(b"\r\n\r\n")
    return b"Connection: close" in head, await reader.readexactly(len(path) - 1)


async def test_a_client_that_asks_once_more_while_the_router_ends_is_answered_and_told_that_it_was_the_last(serving):
    runner, address, go_on = serving
    under_way, asks_on, silent = [await asyncio.open_connection(*address) for _ in range(3)]
    for stream in (asks_on, silent):
        assert await _ask(stream, b"/quick") == (False, b"quick")
    answer = asyncio.create_task(_ask(under_way, b"/slow"))
    await asyncio.sleep(0.05)
    began_s = asyncio.get_running_loop().time()
    ending = asyncio.create_task(runner.cleanup())
    await asyncio.sleep(0.1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert await _ask(asks_on, b"/quick") == (True, b"quick")
    assert await asks_on[0].read() == b""
    go_on.set()
    assert await answer == (True, b"slow")
    assert await silent[0].read() == b"", "who asks nothing in time is let go"
    await ending
    assert 0.9 < asyncio.get_running_loop().time() - began_s < 3
    for _, writer in (under_way, asks_on, silent):
        writer.close()


async def test_nobody_who_waits_is_nobody_to_wait_for(serving):
    runner, address, _ = serving
    stream = await asyncio.open_connection(*address)
    assert await _ask(stream, b"/quick") == (False, b"quick")
    stream[1].close()
    await asyncio.sleep(0.05)
    began_s = asyncio.get_running_loop().time()
    await runner.cleanup()
    assert asyncio.get_running_loop().time() - began_s < 0.5
