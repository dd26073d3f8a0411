"""A closed-loop HTTP load: each connection sends its next request when the last one is answered.

One process, one epoll loop, raw sockets, requests made beforehand, answers counted and not parsed: some 20 µs of CPU
for a request. That it is not the bottleneck is measured, not assumed: ``ceiling`` sends the same requests over the same
connections to a responder that does nothing, and stands beside every HTTP figure.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figure import percentile
from benchmarks.serving import HOST, MODEL
from benchmarks.worker import Worker

_GENERATOR: Final = "benchmarks.load:Generator"
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"
_CHUNK: Final = 1 << 18
_ANSWER_TIMEOUT_S: Final = 120.0


class LoadError(RuntimeError):
    """An answer was not what it should be; a figure made of it would mean nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: requests in this order, over and over, until ``seconds`` or ``count`` requests are over.

    ``pause_s`` passes between an answer and the next request, for which one connection is meant.
    """

    port: int
    requests: Sequence[Sequence[str]]
    connections: int
    seconds: float = 60.0
    count: int = 1_000_000_000
    model: str = MODEL
    encoding_format: str = "base64"
    pause_s: float = 0.0

    def bodies(self) -> list[bytes]:
        """Return each request as it stands on the wire."""
        return [self._wire(texts) for texts in self.requests]

    def _wire(self, texts: Sequence[str]) -> bytes:
        content = {
            "model": self.model,
            "input": texts[0] if len(texts) == 1 else list(texts),
            "encoding_format": self.encoding_format,
        }
        body = json.dumps(content, ensure_ascii=False).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: {HOST}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What happened: for each request, in the order of the answers, when it was sent, when answered, how many texts.

    Times are of the machine's monotonic clock, which all processes share. ``answer_bytes`` is the size of the first
    answer's body.
    """

    sent_s: list[float]
    done_s: list[float]
    texts: list[int]
    answer_bytes: int

    @property
    def elapsed_s(self) -> float:
        """From the first request to the last answer."""
        return max(self.done_s) - min(self.sent_s)

    @property
    def requests_per_s(self) -> float:
        return len(self.done_s) / self.elapsed_s

    @property
    def texts_per_s(self) -> float:
        return sum(self.texts) / self.elapsed_s

    def latency_ms(self, percent: float, *, begin_s: float = 0.0, end_s: float = float("inf")) -> float:
        """Return a percentile of the latency of requests that were sent between the two moments."""
        spans = zip(self.sent_s, self.done_s, strict=True)
        return 1000 * percentile([done - sent for sent, done in spans if begin_s <= sent <= end_s], percent)

    def texts_per_s_within(self, begin_s: float, end_s: float) -> float:
        """Return the rate within a window; a request across its edge counts by its share of time within."""
        inside = 0.0
        for sent, done, texts in zip(self.sent_s, self.done_s, self.texts, strict=True):
            overlap = min(done, end_s) - max(sent, begin_s)
            if overlap > 0:
                inside += texts * overlap / (done - sent)
        return inside / (end_s - begin_s)

    def summary(self) -> dict[str, float]:
        """Return what is shown of a run."""
        return {
            "requests_per_s": round(self.requests_per_s, 1),
            "texts_per_s": round(self.texts_per_s, 1),
            "p50_ms": round(self.latency_ms(50), 3),
            "p90_ms": round(self.latency_ms(90), 3),
            "p99_ms": round(self.latency_ms(99), 3),
            "max_ms": round(self.latency_ms(100), 3),
        }


def generator() -> Worker:
    """Return a load generator in a process of its own."""
    return Worker(_GENERATOR)


def run(worker: Worker, load: Load) -> LoadRun:
    """Let a generator send a load; raise ``WorkerError`` when any answer is not a 200 with all its vectors."""
    result = worker.call("run", load)
    assert isinstance(result, LoadRun)
    return result


def finished(worker: Worker) -> LoadRun:
    """Wait for a load that was begun with ``worker.begin("run", load)``."""
    result = worker.result()
    assert isinstance(result, LoadRun)
    return result


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    sent_s: float = 0.0
    texts: int = 0
    missing: int = -1
    head: bytes = b""
    kept: bytearray | None = field(default=None)


class Generator:
    """Lives in the worker process."""

    def run(self, load: Load) -> LoadRun:
        """Send a load and check status and size of all answers, and the content of the first."""
        return _Round(load, checked=True).run()

    def run_unchecked(self, load: Load) -> LoadRun:
        """Do the same with a responder whose answers have no content."""
        return _Round(load, checked=False).run()


class _Round:
    """One load as it runs."""

    def __init__(self, load: Load, *, checked: bool) -> None:
        self._load = load
        self._checked = checked
        self._bodies = load.bodies()
        self._next = 0
        self._sent: list[float] = []
        self._done: list[float] = []
        self._texts: list[int] = []
        self._answer_bytes = 0

    def run(self) -> LoadRun:
        poll = select.epoll()
        connections: dict[int, _Connection] = {}
        try:
            for _ in range(min(self._load.connections, self._load.count)):
                connection = _Connection(_connect(self._load.port))
                connections[connection.socket.fileno()] = connection
                poll.register(connection.socket, select.EPOLLIN)
            end_s = time.monotonic() + self._load.seconds
            for connection in connections.values():
                self._send(connection)
            self._answer_all(poll, connections, end_s)
        finally:
            for connection in connections.values():
                connection.socket.close()
            poll.close()
        return LoadRun(self._sent, self._done, self._texts, self._answer_bytes)

    def _answer_all(self, poll: select.epoll, connections: dict[int, _Connection], end_s: float) -> None:
        busy = len(connections)
        while busy:
            events = poll.poll(_ANSWER_TIMEOUT_S)
            if not events:
                raise LoadError(f"no answer for {_ANSWER_TIMEOUT_S:g} s")
            for descriptor, _ in events:
                connection = connections[descriptor]
                if not self._read(connection):
                    continue
                now_s = time.monotonic()
                self._record(connection, now_s)
                if now_s < end_s and self._next < self._load.count:
                    self._send(connection)
                else:
                    busy -= 1

    def _send(self, connection: _Connection) -> None:
        index = self._next % len(self._bodies)
        connection.texts = len(self._load.requests[index])
        connection.missing = -1
        connection.head = b""
        connection.kept = bytearray() if self._checked and self._next == 0 else None
        self._next += 1
        if self._load.pause_s:
            time.sleep(self._load.pause_s)
        connection.sent_s = time.monotonic()
        # Blocking: a request is at most some 100 kB, and the server reads while it works.
        connection.socket.sendall(self._bodies[index])

    def _read(self, connection: _Connection) -> bool:
        """Take what has come; tell whether the answer is complete."""
        data = connection.socket.recv(_CHUNK)
        if not data:
            raise LoadError("the server closed the connection")
        if connection.missing < 0:
            data = connection.head + data
            split = data.find(_HEAD_END)
            if split < 0:
                connection.head = data
                return False
            connection.missing = _content_length(data[:split], data)
            data = data[split + 4 :]
            self._answer_bytes = self._answer_bytes or connection.missing
        connection.missing -= len(data)
        if connection.kept is not None:
            connection.kept += data
        return connection.missing <= 0

    def _record(self, connection: _Connection, now_s: float) -> None:
        if connection.kept is not None:
            vectors = len(json.loads(connection.kept)["data"])
            if vectors != connection.texts:
                raise LoadError(f"{connection.texts} texts got {vectors} vectors")
        self._sent.append(connection.sent_s)
        self._done.append(now_s)
        self._texts.append(connection.texts)


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port), timeout=_ANSWER_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _content_length(head: bytes, answer: bytes) -> int:
    """Return the size of the body; raise ``LoadError`` for any status but 200."""
    if head[9:12] != b"200":
        raise LoadError(f"not a 200: {answer[:500]!r}")
    lowered = head.lower()
    at = lowered.find(_LENGTH)
    if at < 0:
        raise LoadError(f"no content-length: {head!r}")
    return int(lowered[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
