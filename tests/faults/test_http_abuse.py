"""Hostile bytes on the port, as they come over a raw socket: each gets a clear answer, and the server serves on.

The whole file shares one server, so every test also shows that those before it did no harm.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.leaks import open_files, resident_bytes
from tests.support.processes import wait_until

_MB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("abuse")
    env = {"EMB_PROVIDER_MAX_REQUEST_MB": "1"}
    with FaultyServer(root / "server", {"en": FaultyModel(root / "en")}, env=env) as it:
        it.wait_ready()
        yield it
        assert it.stderr.count("request_crashed") == 0, "a hostile request reached a bug of ours"


@pytest.fixture(autouse=True)
def serves_on(server):
    router = server.router_pid()
    yield
    server.check("en", ["and a real client gets its vector", "真实客户端"])
    assert server.router_pid() == router, "the router died of it"


@contextlib.contextmanager
def connection(server, timeout_s=10.0):
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=timeout_s) as it:
        yield it


def read_all(stream) -> bytes:
    """Read until the server closes, which it may do with a reset when it has not read all of ours."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := stream.recv(65536):
            data += piece
    return data


def read_answer(stream) -> bytes:
    """Read one whole answer, and what came with its last bytes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while not _is_whole(data) and (piece := stream.recv(65536)):
            data += piece
    return data


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length.group(1))


def send(server, data: bytes, timeout_s=10.0) -> tuple[int, bytes, bytes]:
    """Send bytes; return status, head and body of the answer. We do not close first: that means we have gone."""
    with connection(server, timeout_s) as stream:
        with contextlib.suppress(ConnectionError):  # it closed before it had all
            stream.sendall(data)
        return first_answer(read_answer(stream))


def first_answer(data: bytes) -> tuple[int, bytes, bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/"), data[:200]
    return int(head.split()[1]), head, body


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/embeddings HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body


def error_of(body: bytes) -> dict[str, object]:
    error = json.loads(body)["error"]
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


# ------------------------------------------------------------------------------------------------- the request line


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"\x00" * 5000,
        b"HELO example.org\r\n\r\n",
        b"GET /nowhere\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  /health  HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["tls", "zeros", "smtp", "http-0.9", "http-9.9", "spaces", "http-2"],
)
def test_what_is_no_http_1_1_is_answered_with_400_and_closed(server, data):
    status, head, _ = send(server, data)
    assert status in (400, 404, 505), head


@pytest.mark.parametrize("method", ["BREW", "TRACE", "CONNECT", "PROPFIND", "DELETE", "PUT"])
def test_a_method_that_no_route_has_is_405_or_400_and_never_encodes(server, method):
    before = len(server.models["en"].encoded())
    status, head, _ = send(server, post(b'{"model": "en", "input": "x"}').replace(b"POST", method.encode(), 1))
    assert status in (400, 404, 405), head
    assert len(server.models["en"].encoded()) == before


@pytest.mark.parametrize(
    "path", ["/..%2f..%2fetc/passwd", "//etc/passwd", "/v1/../../etc/passwd", "/%00", "/v1/models/%2e%2e"]
)
def test_a_path_that_climbs_is_404_in_openai_s_shape(server, path):
    status, _, body = send(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 404)
    assert b"root:" not in body
    if status == 404:
        assert error_of(body)["type"] == "invalid_request_error"


# ----------------------------------------------------------------------------------------------------------- headers


def test_a_flood_of_headers_is_refused_and_takes_no_memory(server):
    before = resident_bytes(server.router_pid())
    status, _, _ = send(server, post(b"{}", *(f"X-Flood-{n}: {n}" for n in range(5000))))
    assert status == 400
    assert resident_bytes(server.router_pid()) - before < 20 * _MB


def test_one_huge_header_is_refused_before_it_is_all_there(server):
    with connection(server) as stream:
        stream.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 70_000)
        assert first_answer(read_answer(stream))[0] == 400  # no end of the header was ever sent


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: +5",),
        ("Content-Length: -1",),
        ("Content-Length: 99999999999999999999999",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: chunked, identity",),
    ],
    ids=["cl-te", "two-cl", "plus", "minus", "huge", "two-te", "te-list"],
)
def test_a_length_that_two_parsers_could_read_differently_is_refused(server, headers):
    smuggled = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    with connection(server) as stream:
        stream.sendall(post(smuggled, *headers))
        data = read_all(stream)
    assert first_answer(data)[0] in (400, 411, 413, 501)
    assert data.count(b"HTTP/1.") == 1, "a second request was found inside the first"


def test_control_characters_in_a_header_are_refused(server):
    assert send(server, post(b"{}", "X-Bad: a\x00b"))[0] == 400
    assert send(server, post(b"{}", "X-Bad: a\rb"))[0] == 400


def test_a_request_id_with_control_characters_or_too_long_is_replaced(server):
    for bad in ("a b", "x" * 500, '"; drop', "\x7f"):
        _, head, _ = send(server, post(b'{"model": "en", "input": "x"}', f"X-Request-Id: {bad}"))
        assert bad.encode("latin-1") not in head


# -------------------------------------------------------------------------------------------------------------- bodies


def test_a_body_said_to_be_too_large_is_refused_before_it_is_sent(server):
    with connection(server, timeout_s=5) as stream:
        stream.sendall(post(b"", f"Content-Length: {10 * _MB}"))
        status, _, body = first_answer(read_answer(stream))  # though not a byte of it has come
    assert status == 413
    assert "MiB" in error_of(body)["message"]


def test_a_body_without_a_length_is_cut_off_at_the_limit(server):
    before = resident_bytes(server.router_pid())
    with connection(server) as stream:
        with contextlib.suppress(ConnectionError):  # it may close before it has all
            stream.sendall(post(b"", "Transfer-Encoding: chunked"))
            for _ in range(40):
                stream.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        assert first_answer(read_answer(stream))[0] == 413
    assert resident_bytes(server.router_pid()) - before < 30 * _MB


def test_a_compressed_body_is_refused_without_opening_it(server):
    bomb = gzip.compress(b" " * 50 * _MB)
    began_s = time.monotonic()
    status, _, body = send(server, post(bomb, "Content-Encoding: gzip"))
    assert status == 415
    assert "ompressed" in error_of(body)["message"]
    assert time.monotonic() - began_s < 2
    assert resident_bytes(server.router_pid()) < 300 * _MB


DEEP = b"[" * 100_000
BODIES = {
    "deep": DEEP + b"]" * 100_000,
    "deep-open": DEEP,
    "deep-in-place": b'{"model": "en", "input": ' + DEEP + b"]" * 100_000 + b"}",
    "deep-objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "nan": b'{"model": "en", "input": "x", "dimensions": NaN}',
    "infinity": b'{"model": "en", "input": "x", "dimensions": -Infinity}',
    "huge-int": b'{"model": "en", "input": "x", "dimensions": ' + b"9" * 100_000 + b"}",
    "huge-float": b'{"model": "en", "input": "x", "dimensions": 1e999}',
    "huge-ids": b'{"model": "en", "input": [[' + b"9" * 1000 + b"]]}",
    "negative-ids": b'{"model": "en", "input": [[-1]]}',
    "surrogate": b'{"model": "en", "input": "\\ud800"}',
    "surrogate-in-model": b'{"model": "\\udfff", "input": "x"}',
    "surrogate-in-list": b'{"model": "en", "input": ["fine", "x\\udc00y"]}',
    "not-utf-8": b'{"model": "en", "input": "\xff\xfe"}',
    "utf-16": '{"model": "en", "input": "x"}'.encode("utf-16"),
    "bool-as-int": b'{"model": "en", "input": "x", "dimensions": true}',
    "numbers-as-texts": b'{"model": "en", "input": [1.5]}',
    "mixed": b'{"model": "en", "input": ["x", [1]]}',
    "null": b'{"model": "en", "input": null}',
    "empty-list": b'{"model": "en", "input": []}',
    "empty-text": b'{"model": "en", "input": ""}',
    "no-model": b'{"input": "x"}',
    "model-is-list": b'{"model": ["en"], "input": "x"}',
    "array": b"[]",
    "string": b'"x"',
    "truncated": b'{"model": "en", "inp',
    "two": b'{"model": "en", "input": "x"}{"model": "en", "input": "y"}',
    "nothing": b"",
    "control": b'{"model": "en", "input": "a\x01b"}',
    "path-as-model": b'{"model": "../../etc/passwd", "input": "x"}',
    "url-as-model": b'{"model": "http://127.0.0.1:1/x", "input": "x"}',
    "long-model": b'{"model": "' + b"m" * 500_000 + b'", "input": "x"}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_makes_no_sense_gets_a_sentence(server, name):
    began_s = time.monotonic()
    status, _, body = send(server, post(BODIES[name]))
    assert status in (400, 404, 422), (status, body[:300])
    error = error_of(body)
    assert len(str(error["message"])) < 600, "it echoes what it was sent"
    assert time.monotonic() - began_s < 3


def test_null_bytes_and_strange_characters_are_texts_like_any_other(server):
    server.check("en", ["a\0b", "\u202egnp.exe", "👩‍👩‍👧‍👦", "\ufeff", "\u0000", "a\r\nb\tc", "\U0010ffff"])


# ------------------------------------------------------------------------------------------------------ connections


def test_pipelined_requests_are_answered_in_order(server):
    texts = [f"pipelined {n}" for n in range(20)]
    with connection(server) as stream:
        stream.sendall(
            b"".join(
                post(json.dumps({"model": "en", "input": text}).encode()).replace(b"Connection: close\r\n", b"")
                for text in texts
            )
        )
        data = b""
        while data.count(b"HTTP/1.1 200") < len(texts) or not data.rstrip().endswith(b"}"):
            piece = stream.recv(65536)
            assert piece, data[-500:]
            data += piece
    bodies = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in data.split(b"HTTP/1.1 200")[1:]]
    for text, body in zip(texts, bodies, strict=True):
        assert server.models["en"].is_right(text, body["data"][0]["embedding"]), "answers are mixed up"


def test_clients_that_hang_up_at_any_moment_leave_nothing_behind(server):
    request = post(json.dumps({"model": "en", "input": [f"half {n}" for n in range(64)]}).encode())
    pid = server.router_pid()
    before = open_files(pid)
    for cut in range(0, len(request), max(1, len(request) // 60)):
        with connection(server) as stream:
            stream.sendall(request[:cut])
            # As a crashed client does: RST instead of FIN.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wait_until(lambda: open_files(pid) <= before + 2, 10, "their connections are closed")


def test_half_open_requests_do_not_hold_up_others(server):
    where = urlsplit(server.url)
    waiting = [socket.create_connection((where.hostname, where.port)) for _ in range(200)]
    try:
        for index, stream in enumerate(waiting):
            stream.sendall((b"POST /v1/embed", post(b"", "Content-Length: 1000"), b"")[index % 3])
        began_s = time.monotonic()
        server.check("en", ["quick"])
        assert time.monotonic() - began_s < 2
    finally:
        for stream in waiting:
            stream.close()


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_slow_headers_and_slow_bodies_are_ended_in_bounded_time(server):
    began_s = time.monotonic()
    with connection(server, timeout_s=120) as headers, connection(server, timeout_s=120) as body:
        headers.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n")
        body.sendall(post(b"", "Content-Length: 1000"))
        answer = b""
        open_ = [headers, body]
        while open_ and time.monotonic() - began_s < 110:
            ended = []
            for stream in open_:
                stream.settimeout(0.5)
                try:
                    stream.sendall(b"X" if stream is body else b"a: b\r\n")
                    piece = stream.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    piece = b""
                if not piece:
                    ended.append(stream)
                elif stream is body:
                    answer += piece
            open_ = [stream for stream in open_ if stream not in ended]
        assert not open_, "a trickle keeps a connection open for ever"
    assert first_answer(answer)[0] == 408


# ---------------------------------------------------------------------------------------------------------------- logs


def test_nothing_a_client_sends_makes_a_line_of_its_own_in_the_log(server):
    forged = "2026-01-01 00:00:00.000 ERROR   supervisor forged"
    server.post("/v1/embeddings", {"model": f"x\n{forged}", "input": "x"})
    server.post("/v1/embeddings", {"model": f"x\r{forged}\x1b[2J\u202e\u2028", "input": "x"})
    server.post("/v1/embeddings", {"model": "en", "input": f"!say \n{forged}\x1b[2J"})
    send(server, f"GET /x%0a{forged.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    send(server, b"GET /\x1b[2J\xe2\x80\xae HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    send(server, post(b"{}", "X-Request-Id: a%0ab", f"User-Agent: {forged}"))
    wait_until(lambda: "the model says" in server.stderr, 5, "the log has come this far")
    assert "\x1b" not in server.stderr
    assert "\u202e" not in server.stderr
    assert "\u2028" not in server.stderr
    assert not [line for line in server.stderr.splitlines() if line.startswith(forged)]
