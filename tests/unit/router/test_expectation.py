"""What a client expects or offers before its body, over a real socket: much of it is done below every middleware."""

import asyncio
import json

import pytest
from aiohttp import web

from router.connection import Runner
from tests.unit.router.test_app import make_app

BODY = b'{"model": "m", "input": "abc"}'


@pytest.fixture
async def connect(request):
    # A body that never comes is waited for after the answer, too: for 10 s in a server.
    runner = Runner(make_app(), getattr(request, "param", ""), lingering_time=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield lambda: asyncio.open_connection(*runner.addresses[0][:2])
    await runner.cleanup()


def head(expected, path="/v1/embeddings", version="1.1"):
    fields = ("Host: x", f"Expect: {expected}", f"Content-Length: {len(BODY)}")
    return "\r\n".join((f"POST {path} HTTP/{version}", *fields, "", "")).encode()


@pytest.mark.parametrize("expected", ["something-else", "100-continue, else"])
@pytest.mark.parametrize(
    ("path", "message_of"),
    [
        ("/v1/embeddings", lambda body: body["error"]["message"]),
        ("/api/embed", lambda body: body["error"]),
        ("/v2/embed", lambda body: body["message"]),
        ("/nowhere", lambda body: body["error"]["message"]),
    ],
)
async def test_what_nobody_can_meet_is_refused_in_the_dialects_shape(connect, expected, path, message_of):
    reader, writer = await connect()
    writer.write(head(expected, path))
    answer, _, body = (await reader.read()).partition(b"\r\n\r\n")  # the body is not waited for: the end is ours
    assert answer.startswith(b"HTTP/1.1 417 ")
    assert b"application/json" in answer
    assert b"x-request-id: req-" in answer
    assert "100-continue" in message_of(json.loads(body))
    writer.close()


@pytest.mark.parametrize("connect", ["/behind"], indirect=True)
async def test_behind_a_prefix_as_well(connect):
    reader, writer = await connect()
    writer.write(head("something-else", "/behind/v1/embeddings"))
    assert (await reader.readline()).startswith(b"HTTP/1.1 417 ")
    writer.close()


@pytest.mark.parametrize("expected", ["100-continue", "100-Continue"])
async def test_who_waits_for_a_word_before_the_body_gets_it(connect, expected):
    reader, writer = await connect()
    writer.write(head(expected))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_http_1_0_is_sent_no_such_word(connect):
    reader, writer = await connect()
    writer.write(head("100-continue", version="1.0") + BODY)
    assert (await reader.readline()).startswith(b"HTTP/1.0 200 ")
    writer.close()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/nowhere"])
async def test_who_offers_http_2_and_is_answered_before_the_body_is_here_is_not_to_send_the_next_request(connect, path):
    """What aiohttp's parser gets in one piece with the end of such a body, it drops."""
    fields = ("Host: x", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEA", "Upgrade: h2c")
    asked = "\r\n".join((f"POST {path} HTTP/1.1", *fields, f"Content-Length: {len(BODY)}", "", "")).encode()
    reader, writer = await connect()
    writer.write(asked + BODY)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b"Connection: close" not in answer, "nothing is left of its body"
    await reader.readexactly(int(answer.partition(b"Content-Length: ")[2].split()[0]))
    writer.write(asked.replace(b"/1.1\r\n", b"/1.1\r\nContent-Encoding: gzip\r\n", 1))
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Connection: close" in answer
    writer.close()
