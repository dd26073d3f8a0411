"""Our server as a user starts it, in a directory of its own, for as long as a figure needs it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import children_of, command_line
from benchmarks.setting import Setting

HOST: Final = "127.0.0.1"
MODEL: Final = "minilm"
#: A cold CUDA build of torch is gigabytes to read.
_READY_TIMEOUT_S: Final = 180.0
_STOP_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. ``began_s`` is the monotonic time at which its command was given."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    began_s: float

    def wait_for_port(self) -> float:
        """Wait until the port accepts; return the seconds since the command."""
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, self.port), timeout=5):
                return time.monotonic() - self.began_s
            self._check(self.began_s + _READY_TIMEOUT_S, "the port was not opened")
            time.sleep(0.002)

    def wait_ready(self) -> None:
        """Wait until every model is ready; raise ``RuntimeError`` with the server's log when that takes too long."""
        self.wait_for_port()
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while self._get("/ready")[0] != 200:
            self._check(deadline_s, "not every model became ready")
            time.sleep(0.05)

    def embed(self, model: str, texts: Sequence[str], timeout_s: float = 120.0) -> list[list[float]]:
        """Return the vectors of one request; raise ``RuntimeError`` for any answer but 200."""
        body = json.dumps({"model": model, "input": list(texts), "encoding_format": "float"}).encode()
        status, answer = self._send("/v1/embeddings", body, timeout_s)
        if status != 200:
            raise RuntimeError(f"status {status}: {answer[:500]!r}")
        return [row["embedding"] for row in json.loads(answer)["data"]]

    def model(self, model: str = MODEL) -> dict[str, Any]:
        """Return what the server says of a model."""
        described = json.loads(self._get(f"/v1/models/{model}")[1])
        assert isinstance(described, dict)
        return described

    def pids(self) -> dict[str, int]:
        """Return the pids of ``supervisor``, ``router`` and ``shard`` (of the first, where there are several)."""
        found = {"supervisor": self.process.pid}
        for pid in children_of(self.process.pid):
            line = command_line(pid)
            for package in ("router", "shard"):
                if package in line:
                    found.setdefault(package, pid)
        if len(found) != 3:
            raise RuntimeError(f"of supervisor, router and shard only {sorted(found)} are running")
        return found

    def _get(self, path: str) -> tuple[int, bytes]:
        return self._send(path, None, 10.0)

    def _send(self, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}{path}", data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _check(self, deadline_s: float, what: str) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with code {self.process.returncode}: {self._story()}")
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{what} in time: {self._story()}")

    def _story(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:]


@contextlib.contextmanager
def serving(
    setting: Setting, *, mapping: Mapping[str, Mapping[str, object]] | None = None, wait: bool = True
) -> Iterator[Server]:
    """Run ``python -m supervisor`` with the setting's model under the name ``MODEL``, or with a mapping of several.

    A mapping's entries need no ``name``: each is this model.
    """
    entries = mapping or {MODEL: {"precision": setting.precision}}
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="embbench-") as name:
        directory = Path(name)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EMB_PROVIDER_")} | {
            "EMB_PROVIDER_PORT": str(port),
            "EMB_PROVIDER_OFFLINE": "true",
            "EMB_PROVIDER_DEVICE": setting.device,
            "EMB_PROVIDER_MODEL_MAPPING": json.dumps(
                {alias: {"name": str(setting.model_directory), **entry} for alias, entry in entries.items()}
            ),
            "XDG_RUNTIME_DIR": name,
        }
        log = directory / "log.txt"
        with log.open("wb") as output:
            began_s = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "supervisor"],
                cwd=directory,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            server = Server(port, process, log, began_s)
            if wait:
                server.wait_ready()
            yield server
        finally:
            _stop(process)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        # Its children end with it.
        process.kill()
        process.wait()
