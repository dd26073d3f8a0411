"""How many requests a second the load generator reaches where answers cost nothing: it has to be far from a figure."""

from __future__ import annotations

import select
import socket
import time
from typing import Final

from benchmarks.load import Load
from benchmarks.serving import HOST, free_port
from benchmarks.worker import Worker

_RESPONDER: Final = "benchmarks.ceiling:Responder"
_HEAD_END: Final = b"\r\n\r\n"
_CHUNK: Final = 1 << 18


def ceiling(worker: Worker, load: Load, answer_bytes: int, seconds: float = 0.6) -> float:
    """Return the requests/s that the generator reaches on this load when the answers cost nothing."""
    port = free_port()
    with Worker(_RESPONDER, port, answer_bytes) as responder:
        responder.begin("serve", seconds + 0.5)
        idle = Load(port, load.requests, load.connections, seconds, load.count, load.model, load.encoding_format)
        reached: float = worker.call("run_unchecked", idle).requests_per_s
        responder.result()
    return reached


class Responder:
    """Answers every request at once with the same bytes; what the generator's ceiling is measured against."""

    def __init__(self, port: int, answer_bytes: int) -> None:
        self._listener = socket.create_server((HOST, port), backlog=256)
        self._answer = f"HTTP/1.1 200 OK\r\nContent-Length: {answer_bytes}\r\n\r\n".encode() + b"0" * answer_bytes

    def serve(self, seconds: float) -> None:
        """Answer for so long; a request that comes in pieces is answered once it is whole."""
        poll = select.epoll()
        poll.register(self._listener, select.EPOLLIN)
        clients: dict[int, tuple[socket.socket, bytearray]] = {}
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left_s):
                if descriptor == self._listener.fileno():
                    client = self._listener.accept()[0]
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = (client, bytearray())
                    poll.register(client, select.EPOLLIN)
                    continue
                client, received = clients[descriptor]
                data = client.recv(_CHUNK)
                if not data:
                    poll.unregister(client)
                    client.close()
                    continue
                received += data
                if _is_whole(received):
                    received.clear()
                    client.sendall(self._answer)
        poll.close()
        self._listener.close()


def _is_whole(request: bytearray) -> bool:
    split = request.find(_HEAD_END)
    if split < 0:
        return False
    at = request.find(b"Content-Length:", 0, split)
    length = int(request[at + 15 : request.find(b"\r\n", at)])
    return len(request) >= split + 4 + length
