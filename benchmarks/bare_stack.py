"""The libraries alone: what aiohttp, msgpack and a Unix socket cost around a model that does nothing.

The least that a server of two processes in Python can be: an aiohttp handler reads JSON and sends a message, another
process answers it with a vector, and the handler writes JSON. Nothing is checked, counted, bounded or restarted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.empty_model import DIMENSION
from benchmarks.serving import HOST, free_port
from benchmarks.worker import Worker

if TYPE_CHECKING:
    from aiohttp import web

_READY_S: Final = 20.0


class BareShard:
    """Lives in a worker process: answers each message at a socket with the same vector for every text."""

    def __init__(self, path: str) -> None:
        self._vector = bytes(4 * DIMENSION)
        _run_on_thread(lambda: _listen(self._answer, path))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import msgpack  # noqa: PLC0415

        unpacker = msgpack.Unpacker()
        while data := await reader.read(1 << 18):
            unpacker.feed(data)
            answers = [msgpack.packb((number, [self._vector] * len(texts), len(texts))) for number, texts in unpacker]
            writer.write(b"".join(answers))
        writer.close()


class BareRouter:
    """Lives in a worker process: an aiohttp application in front of a ``BareShard``."""

    def __init__(self, port: int, path: str) -> None:
        self._waiting: dict[int, asyncio.Future[tuple[list[bytes], int]]] = {}
        self._number = 0
        _run_on_thread(lambda: self._serve(port, path))

    async def _serve(self, port: int, path: str) -> None:
        from aiohttp import web  # noqa: PLC0415

        reader, self._writer = await asyncio.open_unix_connection(path)
        self._reading = asyncio.create_task(self._read(reader))
        application = web.Application()
        application.router.add_post("/v1/embeddings", self._embed)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HOST, port).start()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        import msgpack  # noqa: PLC0415

        unpacker = msgpack.Unpacker()
        while data := await reader.read(1 << 18):
            unpacker.feed(data)
            for number, vectors, tokens in unpacker:
                self._waiting.pop(number).set_result((vectors, tokens))

    async def _embed(self, request: web.Request) -> web.Response:
        import msgpack  # noqa: PLC0415
        import orjson  # noqa: PLC0415
        from aiohttp import web  # noqa: PLC0415

        asked = orjson.loads(await request.read())
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        self._number += 1
        waiting = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        self._writer.write(msgpack.packb((self._number, texts)))
        vectors, tokens = await waiting
        answer = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": base64.b64encode(vector).decode()}
                for index, vector in enumerate(vectors)
            ],
            "model": asked["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


@contextlib.contextmanager
def bare_stack() -> Iterator[int]:
    """Run both processes; yield the port."""
    with tempfile.TemporaryDirectory(prefix="embbench-") as name:
        path, port = str(Path(name) / "bare.sock"), free_port()
        with Worker("benchmarks.bare_stack:BareShard", path), Worker("benchmarks.bare_stack:BareRouter", port, path):
            yield port


async def _listen(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: str) -> None:
    await asyncio.start_unix_server(answer, path)


def _run_on_thread(serve: Callable[[], Awaitable[None]]) -> None:
    """Run ``serve`` and what it has begun on a loop of its own; return once it has begun."""
    begun = threading.Event()

    async def run() -> None:
        await serve()
        begun.set()
        await asyncio.Event().wait()

    def start() -> None:
        import uvloop  # noqa: PLC0415

        uvloop.run(run())

    threading.Thread(target=start, daemon=True).start()
    if not begun.wait(_READY_S):
        raise TimeoutError("it did not begin to listen in time")
