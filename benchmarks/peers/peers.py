"""How each of the other servers is started, all on PyTorch.

infinity's README often prefers its ONNX engine on a CPU. That needs optimum 1.x, which cannot be imported beside torch
2.13 (it asks ``torch.onnx`` for what is gone), as its BetterTransformer cannot beside transformers 4.49 or newer.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.bare_engine import worker_environment
from benchmarks.peers.environments import python_of
from benchmarks.serving import HOST, MODEL, free_port

_READY_TIMEOUT_S: Final = 180.0
_STOP_S: Final = 10.0


class PeerError(RuntimeError):
    """A peer did not start; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class Peer:
    """``arguments`` of its interpreter from (port, model directory); ``prepare`` runs once its port answers.

    All are asked at ``/v1/embeddings``, in OpenAI's words.
    """

    name: str
    arguments: Callable[[int, Path], list[str]]
    prepare: Callable[[int, Path], None] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def _infinity(port: int, model: Path) -> list[str]:
    options = {
        "model-id": model,
        "served-model-name": MODEL,
        "engine": "torch",
        "device": "cpu",
        "dtype": "float32",
        "batch-size": 32,
        "url-prefix": "/v1",
        "host": HOST,
        "port": port,
    }
    return [
        "-c",
        "from infinity_emb.cli import cli; cli()",
        "v2",
        "--no-bettertransformer",
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def _mosec(port: int, _model: Path) -> list[str]:
    # In milliseconds; by default a request that waits for 3 s is given up.
    return [str(Path(__file__).parent / "mosec_server.py"), "--address", HOST, f"--port={port}", "--timeout=120000"]


def _xinference(port: int, _model: Path) -> list[str]:
    return ["-c", "from xinference.deploy.cmdline import local; local()", "-H", HOST, "-p", str(port)]


def _launch_in_xinference(port: int, model: Path) -> None:
    described = {
        "version": 2,
        "model_name": MODEL,
        "dimensions": 384,
        "max_tokens": 256,
        "language": ["en", "zh"],
        "model_specs": [
            {"model_format": "pytorch", "quantization": "none", "model_id": MODEL, "model_uri": f"file://{model}"}
        ],
    }
    _post(port, "/v1/model_registrations/embedding", {"model": json.dumps(described), "persist": False})
    _post(
        port,
        "/v1/models",
        {
            "model_uid": MODEL,
            "model_name": MODEL,
            "model_type": "embedding",
            "model_engine": "sentence_transformers",
            "n_gpu": None,
        },
    )


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("infinity", _infinity, environment={"DO_NOT_TRACK": "1", "INFINITY_DISABLE_OPTIMUM": "1"}),
        Peer("mosec", _mosec),
        Peer("xinference", _xinference, _launch_in_xinference, {"XINFERENCE_AUTH_ADVANCED": "0"}),
    )
}


@contextlib.contextmanager
def running(peer: Peer, environments: Path, model: Path, threads: int) -> Iterator[int]:
    """Install and start a peer; yield its port once it has answered with a vector. Raises ``PeerError``."""
    python = python_of(peer.name, environments)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix=f"peer-{peer.name}-") as home:
        log = Path(home) / "log.txt"
        environment = {**os.environ, **worker_environment(threads), **peer.environment}
        environment |= {"PEER_MODEL": str(model), "XINFERENCE_HOME": home, "HF_HUB_OFFLINE": "1"}
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(python), *peer.arguments(port, model)],
                cwd=home,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_ready(peer, process, port, model, log)
            yield port
        finally:
            _stop(process)


def _wait_ready(peer: Peer, process: subprocess.Popen[bytes], port: int, model: Path, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_TIMEOUT_S
    is_prepared = False
    why = ""
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with socket.create_connection((HOST, port), timeout=5):
                pass
            if peer.prepare is not None and not is_prepared:
                is_prepared = True
                peer.prepare(port, model)
            _post(port, "/v1/embeddings", {"model": MODEL, "input": ["hello"]})
        except OSError as error:
            why = str(error)
            time.sleep(0.5)
        else:
            return
    raise PeerError(f"{peer.name} gave no vector: {why}\n{log.read_text('utf-8', 'replace')[-1500:]}")


def _post(port: int, path: str, content: Mapping[str, object]) -> None:
    request = urllib.request.Request(
        f"http://{HOST}:{port}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_READY_TIMEOUT_S) as response:
            response.read()
    except urllib.error.HTTPError as error:
        with error:
            raise PeerError(f"{path}: status {error.code}: {error.read()[:300]!r}") from None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the peer and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
