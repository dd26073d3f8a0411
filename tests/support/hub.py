"""A small model hub on 127.0.0.1 that the real huggingface_hub and modelscope_hub clients download from.

Used by tests of downloading, loading and faults::

    with LoopbackHub() as hub:
        hub.add("iic/x", directory, hubs={"modelscope"})
        ...  # MODELSCOPE_ENDPOINT=hub.endpoint or HF_ENDPOINT=hub.endpoint
        assert hub.requests == []

This module owns the sockets, ranges and faults; ``hub_protocols`` knows what the two hubs say. Every answer
closes its connection, so a hub that goes down is down for everyone at once.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support import hub_protocols
from tests.support.hub_protocols import OWNER_TOKEN, STRANGER_TOKEN, Reply
from tests.support.hub_repositories import BOTH_HUBS, Access, Hub, HubFile, Repository, Shelf, Snapshot

__all__ = ["OWNER_TOKEN", "STRANGER_TOKEN", "LoopbackHub", "SeenRequest"]

_CHUNK_BYTES = 64 * 1024
_FLIPPED_BYTES = 16


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """One request as it arrived. ``path`` includes the query; ``range`` is the header's text or empty."""

    method: str
    path: str
    range: str = ""
    token: str | None = None


@dataclass(slots=True)
class _Cut:
    """End what is sent at this offset into the file; ``times`` ``None`` means every time.

    ``is_relative``: counted from where each request begins. ``stalls``: the connection stays open, and silent.
    """

    offset: int
    times: int | None
    is_relative: bool = False
    stalls: bool = False


@dataclass(slots=True)
class _Faults:
    corrupt: set[tuple[str, str]] = field(default_factory=set)
    cuts: dict[tuple[str, str], _Cut] = field(default_factory=dict)
    bytes_per_s: float | None = None
    answers_500: bool = False


class LoopbackHub:
    """Both hubs on one port of loopback. Enter it to start serving; leaving it stops every thread."""

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._faults = _Faults()
        self._lock = threading.Lock()
        self._requests: list[SeenRequest] = []
        self._sent_bytes: Counter[tuple[str, str]] = Counter()
        self._handler_errors: list[BaseException] = []
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._handler_errors:
            raise ExceptionGroup("the hub itself failed", [e for e in self._handler_errors if isinstance(e, Exception)])

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``, the same before and after ``down()``."""
        return f"http://127.0.0.1:{self._port}"

    # --- what is on the shelf ---

    def add(
        self,
        name: str,
        source: Path | Mapping[str, bytes],
        *,
        hubs: Iterable[Hub] = BOTH_HUBS,
        access: Access = "public",
        revision: str = "main",
    ) -> Snapshot:
        """Publish ``source`` as it is now; publishing again under the same revision moves it.

        ``main`` and ``master`` are the same branch. The result holds the commit and each file's hashes.
        """
        snapshot = Snapshot.of(source)
        with self._lock:
            repository = self._shelf.repositories.setdefault(name, Repository(name, frozenset(hubs), access))
            repository.hubs, repository.access = frozenset(hubs), access
            repository.put(revision, snapshot)
        return snapshot

    def remove(self, name: str) -> None:
        """Take a repository off the hub."""
        with self._lock:
            del self._shelf.repositories[name]

    # --- what was asked of it ---

    @property
    def requests(self) -> list[SeenRequest]:
        """Every request so far, in order of arrival (a copy)."""
        with self._lock:
            return list(self._requests)

    def clear_requests(self) -> None:
        """Forget requests and byte counts."""
        with self._lock:
            self._requests.clear()
            self._sent_bytes.clear()

    def sent_bytes(self, name: str, path: str) -> int:
        """Body bytes of one file handed to the kernel, over all requests: smaller than two files means a resume."""
        with self._lock:
            return self._sent_bytes[name, path]

    # --- faults ---

    def corrupt(self, name: str, path: str) -> None:
        """Serve ``path`` with a few bytes in the middle flipped: right length, and metadata with the true hash."""
        self._faults.corrupt.add((name, path))

    def cut_after(self, name: str, path: str, n_bytes: int, *, times: int | None = 1) -> None:
        """Drop the connection once byte ``n_bytes`` of the file is reached; ``times=None``: whenever it is."""
        self._faults.cuts[name, path] = _Cut(n_bytes, times)

    def cut_each_after(self, name: str, path: str, n_bytes: int) -> None:
        """Drop the connection whenever it has sent so many bytes of the file."""
        self._faults.cuts[name, path] = _Cut(n_bytes, None, is_relative=True)

    def stall_after(self, name: str, path: str, n_bytes: int) -> None:
        """Send nothing more once byte ``n_bytes`` of the file is reached, and keep the connection open."""
        self._faults.cuts[name, path] = _Cut(n_bytes, None, stalls=True)

    def throttle(self, bytes_per_s: float | None) -> None:
        """Send each file's body at this rate (per connection); ``None``: as fast as it goes."""
        self._faults.bytes_per_s = bytes_per_s

    def heal(self) -> None:
        """End every fault of the kinds above."""
        self._faults = _Faults()

    def down(self, how: Literal["refuse", "500"] = "refuse") -> None:
        """Refuse connections (open ones are dropped), or answer 500 to everything, until ``up()``."""
        if how == "500":
            self._faults.answers_500 = True
        else:
            self._stop()

    def up(self) -> None:
        """Serve again, on the same port."""
        self._faults.answers_500 = False
        if self._server is None:
            self._start()

    # --- the shell ---

    def _start(self) -> None:
        self._server = _Server(self, self._port)
        self._port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="loopback-hub"
        )
        self._thread.start()

    def _stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.drop_connections()
        self._server.server_close()
        self._server = self._thread = None

    def _answer(self, seen: SeenRequest) -> Reply:
        url = urlsplit(seen.path)
        request = hub_protocols.Request(url.path, dict(parse_qsl(url.query)), seen.token)
        with self._lock:
            self._requests.append(seen)
            if self._faults.answers_500:
                return Reply(500, {"Content-Type": "application/json"}, b'{"Code":500,"Message":"out of order"}')
            if url.path.startswith("/api/v1/"):
                return hub_protocols.modelscope(request, self._shelf)
            return hub_protocols.huggingface(request, self._shelf, f"http://localhost:{self._port}")

    def _body_of(self, name: str, file: HubFile) -> bytes:
        if (name, file.path) not in self._faults.corrupt:
            return file.content
        middle = len(file.content) // 2
        end = min(middle + _FLIPPED_BYTES, len(file.content))
        flipped = bytes(byte ^ 0xFF for byte in file.content[middle:end])
        return file.content[:middle] + flipped + file.content[end:]

    def _cut_of(self, name: str, path: str) -> _Cut | None:
        """Where to end a body that is about to be sent; uses up one of the cut's times."""
        with self._lock:
            cut = self._faults.cuts.get((name, path))
            if cut is None or cut.times == 0:
                return None
            cut.times = cut.times - 1 if cut.times is not None else None
            return cut

    def _count(self, name: str, path: str, sent_bytes: int) -> None:
        with self._lock:
            self._sent_bytes[name, path] += sent_bytes


class _Server(ThreadingHTTPServer):
    """Knows its open connections, so that stopping drops them and joins their threads."""

    daemon_threads = False
    block_on_close = True

    def __init__(self, hub: LoopbackHub, port: int) -> None:
        self.hub = hub
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.hub._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self.hub._lock:
            self._open.discard(request)
        super().close_request(request)

    def drop_connections(self) -> None:
        self.stopping.set()
        with self.hub._lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the client, or its own handler, was faster

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.hub._handler_errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        reply = self.server.hub._answer(self._seen())
        if reply.file is not None:
            self._send_file(reply, reply.file)
        else:
            self._send_head(reply.status, reply.headers, len(reply.body))
            self._write(reply.body)

    def do_HEAD(self) -> None:
        reply = self.server.hub._answer(self._seen())
        size = len(reply.file.content) if reply.file is not None else len(reply.body)
        self._send_head(reply.status, reply.headers, size)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr: ``hub.requests`` is the log."""

    def _seen(self) -> SeenRequest:
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        token = credentials if scheme.lower() == "bearer" else None
        cookie = SimpleCookie(self.headers.get("Cookie", "")).get("m_session_id")
        if token is None and cookie is not None:
            token = cookie.value
        return SeenRequest(self.command, self.path, self.headers.get("Range", ""), token)

    def _send_head(self, status: int, headers: Mapping[str, str], size_bytes: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size_bytes))
        self.send_header("Connection", "close")
        self.end_headers()

    def _send_file(self, reply: Reply, file: HubFile) -> None:
        body = self.server.hub._body_of(reply.repository, file)
        start, end = 0, len(body)
        header = self.headers.get("Range", "")
        headers = dict(reply.headers)
        status = reply.status
        if header.startswith("bytes="):
            first, _, last = header.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else len(body), len(body))
            if start >= len(body):
                self._send_head(416, {"Content-Range": f"bytes */{len(body)}"}, 0)
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        self._send_head(status, headers, end - start)
        cut = self.server.hub._cut_of(reply.repository, file.path) if end > start else None
        offset = end if cut is None else cut.offset + start * cut.is_relative
        stop = max(start, min(offset, end))
        while start < stop:
            chunk = body[start : min(start + self._chunk_bytes(), stop)]
            self._write(chunk)
            start += len(chunk)
            self.server.hub._count(reply.repository, file.path, len(chunk))
            self._pace(len(chunk))
        if cut is not None and cut.stalls:
            self.wfile.flush()
            self.server.stopping.wait()

    def _chunk_bytes(self) -> int:
        rate = self.server.hub._faults.bytes_per_s
        return _CHUNK_BYTES if rate is None else max(1, min(_CHUNK_BYTES, int(rate / 50)))

    def _pace(self, sent_bytes: int) -> None:
        rate = self.server.hub._faults.bytes_per_s
        if rate is not None and self.server.stopping.wait(sent_bytes / rate):
            raise ConnectionAbortedError("the hub goes down")

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
