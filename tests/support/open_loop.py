"""Requests at a fixed rate, whatever becomes of them, from a process of its own.

    answers = ask_at_rate(server.url, "a key", per_s=80, for_s=8, text="weather")

A test that asks from its own event loop measures that loop too. Here each request has a thread that does nothing else,
on a connection of its own, and takes from before it connects until its answer is read to the end.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answered:
    """``at_s`` is on the monotonic clock, which all processes share; ``retry_after_s`` is 0 where none was sent."""

    at_s: float
    status: int
    took_s: float
    retry_after_s: float


def ask_at_rate(url: str, key: str, *, per_s: float, for_s: float, text: str) -> list[Answered]:
    """Ask the model "en" of the server at ``url`` and return every answer, once all are there.

    Each request's text is ``text``, the beginning of it replaced by a number of its own.
    """
    arguments = (url, key, str(per_s), str(for_s), text)
    ended = subprocess.run(
        [sys.executable, "-m", __name__, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        timeout=for_s + 60,
        check=True,
    )
    return [Answered(*row) for row in json.loads(ended.stdout)]


def _ask(address: tuple[str, int], key: str, text: str, found: list[Answered]) -> None:
    body = json.dumps({"model": "en", "input": text}).encode()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    began_s = time.monotonic()
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(head.encode() + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    now_s = time.monotonic()
    retry_after = re.search(rb"retry-after: (\d+)", answer, re.IGNORECASE)
    seconds = float(retry_after.group(1)) if retry_after else 0.0
    found.append(Answered(now_s, int(answer.split(b" ", 2)[1]), now_s - began_s, seconds))


def _main(url: str, key: str, per_s: float, for_s: float, text: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    found: list[Answered] = []
    threads = []
    began_s = time.monotonic()
    for number in range(int(per_s * for_s)):
        time.sleep(max(0.0, began_s + number / per_s - time.monotonic()))
        own = f"{number:06d}{text}"[: len(text)]
        threads.append(threading.Thread(target=_ask, args=((parts.hostname, parts.port), key, own, found)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads), "requests without an answer"
    json.dump([astuple(one) for one in found], sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
