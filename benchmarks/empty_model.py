"""The real router and the real channel around a model that does nothing: what the server itself costs.

The router runs in a process of its own as the supervisor starts it; the shard's channel and engine run in another one,
without torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from benchmarks.serving import HOST, MODEL
from benchmarks.worker import Worker
from emb_model_provider.black_box import BlackBox, box_path
from emb_model_provider.frames import FrameDecoder
from emb_model_provider.messages.configs import LogConfig, RouterConfig
from emb_model_provider.messages.framing import Message, pack, unpack
from emb_model_provider.messages.link import Hello
from emb_model_provider.messages.status import EncoderInfo, ModelInfo, RouterReady, ShardStatus, ShardTable
from emb_model_provider.modelmap import BatchLimits

if TYPE_CHECKING:
    from shard.encoder import Encoder, Results, Tokenized, Vectors

DIMENSION: Final = 384
_ROOT: Final = Path(__file__).resolve().parent.parent
_READY_S: Final = 20.0

_INFO: Final = EncoderInfo(
    dimension=DIMENSION,
    max_tokens=256,
    pooling="mean",
    normalized=True,
    device="cpu",
    precision="fp32",
    storage_dtype="float32",
    compute_dtype="float32",
    layout="plain",
    weights_bytes=0,
    vocabulary_size=30522,
    prompts=(),
)


class EmptyShard:
    """Lives in a worker process: channel and engine at a socket, on a thread with an event loop of its own."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        bound = threading.Event()
        threading.Thread(target=self._run, args=(bound,), daemon=True).start()
        if not bound.wait(_READY_S):
            raise TimeoutError("the shard's socket was not bound")

    def _run(self, bound: threading.Event) -> None:
        import uvloop  # noqa: PLC0415

        uvloop.run(self._serve(bound))

    async def _serve(self, bound: threading.Event) -> None:
        from emb_model_provider.private_socket import bind_private  # noqa: PLC0415
        from shard.batching.costs import CostModel, SlicePlan  # noqa: PLC0415
        from shard.batching.lane import Lane  # noqa: PLC0415
        from shard.channel import Channel  # noqa: PLC0415
        from shard.engine import Engine  # noqa: PLC0415
        from shard.listener import FIRST_LANE  # noqa: PLC0415

        box = BlackBox(box_path(self._path), FIRST_LANE + 1)
        channel = Channel(Hello(MODEL, 1), asyncio.get_running_loop(), box)
        plan = SlicePlan(CostModel(0.0, 0.0, 0.0, 0.0), slice_ms=50.0, max_tokens=2048)
        engine = Engine(cast("Encoder", _EmptyEncoder()), [Lane()], 1, BatchLimits(), plan, channel)
        engine.start()
        await channel.serve(engine, bind_private(self._path))
        bound.set()
        await asyncio.Event().wait()


class _EmptyEncoder:
    """Reads three tokens of every text, never the same, and returns the same random unit vectors for every batch."""

    info = _INFO

    def __init__(self) -> None:
        import numpy as np  # noqa: PLC0415

        vectors = np.random.default_rng(0).standard_normal((4096, DIMENSION)).astype(np.float32)
        self._vectors: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self._ids = itertools.count(1000)

    def tokenize(self, texts: Sequence[str], reading: object = None, seconds: Sequence[str] = ()) -> list[Tokenized]:
        from shard.encoder import Tokenized  # noqa: PLC0415

        del reading, seconds
        return [Tokenized((101, next(self._ids), 102), 3) for _ in texts]

    def accept_ids(self, ids: Sequence[int]) -> Tokenized:
        raise NotImplementedError

    def resolve_prompt(self, prompt_name: str | None) -> str | None:
        return prompt_name

    def use_threads(self, count: int) -> None:
        del count

    def encode(self, batch: Sequence[Tokenized]) -> Results:
        from shard.encoder import Results  # noqa: PLC0415

        return Results(self._vectors[: len(batch)])

    def encode_exactly(self, batch: Sequence[Tokenized]) -> Results:
        raise NotImplementedError


@contextlib.contextmanager
def router_around_nothing() -> Iterator[int]:
    """Run one router process in front of an empty shard; yield the router's port."""
    with tempfile.TemporaryDirectory(prefix="embbench-") as name:
        path = str(Path(name) / "shard.sock")
        with Worker("benchmarks.empty_model:EmptyShard", path) as shard, _router(path, shard.pid) as port:
            yield port


@contextlib.contextmanager
def _router(shard_path: str, shard_pid: int) -> Iterator[int]:
    listener = socket.create_server((HOST, 0), backlog=1024)
    ours, theirs = socket.socketpair()
    passed = (theirs.fileno(), listener.fileno())
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "router", str(os.getpid()), *map(str, passed)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))},
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()
    try:
        ours.settimeout(_READY_S)
        ours.sendall(pack(_config()) + pack(_table(shard_path, shard_pid)))
        _wait_for_ready(ours)
        yield listener.getsockname()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ours.close()
        listener.close()


def _wait_for_ready(control: socket.socket) -> None:
    decoder = FrameDecoder()
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s:
        data = control.recv(65536)
        if not data:
            raise RuntimeError("the router ended before it was ready")
        messages: list[Message] = [unpack(frame) for frame in decoder.feed(data)]
        if any(isinstance(message, RouterReady) for message in messages):
            return
    raise TimeoutError("the router was not ready in time")


def _config() -> RouterConfig:
    return RouterConfig(
        log=LogConfig("ERROR", "plain"),
        api_key_digests=(),
        ready_wait_s=10.0,
        max_request_bytes=64 * 1024 * 1024,
        drain_s=2.0,
        request_timeout_s=600.0,
    )


def _table(path: str, pid: int) -> ShardTable:
    status = ShardStatus(
        model_id=MODEL,
        name=MODEL,
        source="local",
        precision="fp32",
        overlong="truncate",
        state="ready",
        reason="",
        detail="",
        done_bytes=0,
        total_bytes=0,
        generation=1,
        restarts=0,
        pid=pid,
        socket_path=path,
        expected_ready_s=0.0,
        created=0,
        info=ModelInfo(_INFO, "local", None),
    )
    return ShardTable((status,))
