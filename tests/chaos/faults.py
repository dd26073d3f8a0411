"""What goes wrong in a chaos run: each kind of fault is one coroutine that does it to the running server.

A fault names the models whose recovery is then measured: the time until the next 200 of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from emb_model_provider.frames import HEADER, MAGIC, VERSION
from emb_model_provider.messages.framing import pack
from emb_model_provider.messages.link import Encode, Hello
from tests.chaos.clients import KILLERS, Client
from tests.support.faulty_server import FaultyServer
from tests.support.leaks import open_files
from tests.support.processes import children_of, command_line

#: Files the router may open beyond those it has, while it is kept short of them.
_SPARE_FILES = 2


@dataclass
class Target:
    """The server under attack. ``client`` is one of its own, for texts that are faults."""

    server: FaultyServer
    client: Client
    rng: random.Random

    @property
    def models(self) -> list[str]:
        return list(self.server.models)

    @property
    def supervisor(self) -> int:
        assert self.server.process is not None
        return self.server.process.pid

    def child(self, package: str) -> int | None:
        """Return the pid of a child of that package, any one; ``None`` while there is none."""
        found = [pid for pid in children_of(self.supervisor) if package in _words(pid)]
        return self.rng.choice(found) if found else None

    def shard(self) -> tuple[list[str], int | None]:
        """Return a model, as a list, and the pid of its process, if it has one now."""
        model_id = self.rng.choice(self.models)
        pids = self.server.models[model_id].start_pids()
        living = set(children_of(self.supervisor))
        return [model_id], next((pid for pid in reversed(pids) if pid in living), None)

    def shard_sockets(self) -> list[Path]:
        return [path for path in self.server.run_directory.rglob("s*.sock") if path.is_socket()]


Fault = Callable[[Target], Awaitable[list[str]]]


async def kill_shard(target: Target) -> list[str]:
    models, pid = target.shard()
    _signal(pid, signal.SIGKILL)
    return models


async def stop_shard_a_moment(target: Target) -> list[str]:
    models, pid = target.shard()
    await _pause(pid, target.rng.uniform(0.5, 3.0))
    return models


async def stop_shard_for_good(target: Target) -> list[str]:
    """Only the watchdog can end this."""
    models, pid = target.shard()
    _signal(pid, signal.SIGSTOP)
    return models


async def kill_router(target: Target) -> list[str]:
    _signal(target.child("router"), signal.SIGKILL)
    return target.models


async def stop_router_a_moment(target: Target) -> list[str]:
    await _pause(target.child("router"), target.rng.uniform(0.5, 2.0))
    return target.models


async def stop_supervisor_a_moment(target: Target) -> list[str]:
    await _pause(target.supervisor, target.rng.uniform(0.5, 2.0))
    return target.models


async def text_that_kills(target: Target) -> list[str]:
    model = target.rng.choice(target.models)
    await target.client.poison_once(target.rng.choice(KILLERS), model)
    return [model]


async def text_that_hangs(target: Target) -> list[str]:
    model = target.rng.choice(target.models)
    await target.client.poison_once("!hang-times=1 {}", model)
    return [model]


async def text_that_holds_the_gil(target: Target) -> list[str]:
    model = target.rng.choice(target.models)
    await target.client.poison_once("!spin=30 {}", model)
    return [model]


async def answer_of_garbage(target: Target) -> list[str]:
    """A shard that answers its router with what must not be on the wire, or with too much of it."""
    model = target.rng.choice(target.models)
    await target.client.poison_once(f"!wire={target.rng.randint(0, 12)} {{}}", model)
    return [model]


async def garbage_frames(target: Target) -> list[str]:
    """A stranger on each shard's socket: garbage, half a frame, a huge length, messages that are not for a shard."""
    pieces = [
        target.rng.randbytes(300),
        HEADER.pack(MAGIC, VERSION, 2, 2**32 - 1, 1),
        HEADER.pack(MAGIC, VERSION, 2, 100, 1) + b"\x81",
        HEADER.pack(MAGIC, VERSION + 1, 2, 0, 1),
        HEADER.pack(MAGIC, VERSION, 251, 0, 1),
        pack(Hello("a stranger", 1)),
        pack(Encode(("a stranger's text",)), 7) * 2,
        pack(Encode(("a stranger's text",)), 7)[:-3],
    ]
    for path in target.shard_sockets():
        await asyncio.to_thread(_send_unix, path, target.rng.choice(pieces))
    return target.models


async def garbage_http(target: Target) -> list[str]:
    where = urlsplit(target.server.url)
    pieces = [
        target.rng.randbytes(2000),
        b"GET / HTTP/0.9\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"[" * 20000,
    ]
    for _ in range(5):
        await asyncio.to_thread(_send_tcp, (where.hostname or "", where.port or 0), target.rng.choice(pieces))
    return target.models


async def disk_full(target: Target) -> list[str]:
    """No file of the supervisor (its log, and stderr, which is one here) may grow for some seconds."""
    pid = target.supervisor
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        await asyncio.sleep(2.0)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    return target.models


async def no_descriptors(target: Target) -> list[str]:
    """The router may open almost nothing for some seconds, while connections come."""
    pid = target.child("router")
    if pid is None:
        return []
    try:
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files(pid) + _SPARE_FILES, before[1]))
    except OSError:
        return []
    where = urlsplit(target.server.url)
    connections: list[socket.socket] = []
    try:
        for _ in range(20):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((where.hostname or "", where.port or 0))
            connections.append(connection)
        await asyncio.sleep(1.5)
    finally:
        for connection in connections:
            connection.close()
        with contextlib.suppress(OSError):  # it was killed meanwhile
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    return target.models


async def reload(target: Target) -> list[str]:
    """SIGHUP with nothing changed, or with one model's entry changed so that it is replaced."""
    if target.rng.random() < 0.5:
        model = target.server.models[target.rng.choice(target.models)]
        model.entry["max_length"] = target.rng.randint(400, 500)
        target.server.write_mapping()
    os.kill(target.supervisor, signal.SIGHUP)
    return target.models


async def broken_reload(target: Target) -> list[str]:
    """SIGHUP with a configuration that is wrong: the old one serves on."""
    path = target.server.directory / ".env"
    right = path.read_text("utf-8")
    path.write_text("EMB_PROVIDER_MODEL_MAPPING={\n", "utf-8")
    os.kill(target.supervisor, signal.SIGHUP)
    await asyncio.sleep(1.0)
    path.write_text(right, "utf-8")
    return target.models


async def delete_sockets(target: Target) -> list[str]:
    for path in target.shard_sockets():
        path.unlink(missing_ok=True)
    return target.models


async def starve(target: Target) -> list[str]:
    """Two processes take the CPUs for a few seconds."""
    busy = "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass"
    hogs = [await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", busy) for _ in range(2)]
    for hog in hogs:
        await hog.wait()
    return target.models


FAULTS: dict[str, Fault] = {
    "SIGKILL a shard": kill_shard,
    "SIGSTOP a shard for a moment": stop_shard_a_moment,
    "SIGSTOP a shard for good": stop_shard_for_good,
    "SIGKILL the router": kill_router,
    "SIGSTOP the router for a moment": stop_router_a_moment,
    "SIGSTOP the supervisor for a moment": stop_supervisor_a_moment,
    "a text that kills its process": text_that_kills,
    "a text that never ends": text_that_hangs,
    "a text that holds the GIL": text_that_holds_the_gil,
    "garbage on the shards' sockets": garbage_frames,
    "garbage instead of an answer": answer_of_garbage,
    "garbage on the port": garbage_http,
    "disk full": disk_full,
    "no descriptors left": no_descriptors,
    "SIGHUP": reload,
    "SIGHUP with a broken configuration": broken_reload,
    "socket files deleted": delete_sockets,
    "CPUs taken": starve,
}


def _words(pid: int) -> list[str]:
    try:
        return command_line(pid)
    except OSError:
        return []


def _signal(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def _pause(pid: int | None, seconds: float) -> None:
    _signal(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        _signal(pid, signal.SIGCONT)


def _send_unix(path: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        _exchange(stranger, str(path), data)


def _send_tcp(address: tuple[str, int], data: bytes) -> None:
    with socket.socket() as stranger:
        _exchange(stranger, address, data)


def _exchange(stranger: socket.socket, address: str | tuple[str, int], data: bytes) -> None:
    stranger.settimeout(0.3)
    try:
        stranger.connect(address)
        stranger.sendall(data)
        stranger.recv(4096)
    except OSError:  # refused, reset or silent: all are right answers to garbage
        pass
