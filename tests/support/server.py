"""Runs the installed command as a user would, in a directory of its own, and checks that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import alive, children_of, command_line

#: How OpenMP's threads wait. The tests choose for themselves, not for the servers that they start.
WAIT_POLICY = "OMP_WAIT_POLICY"
_ADDRESS = re.compile(r"on (https?://\S+) \(accepting")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """``python -m supervisor`` on a free port; use as a context manager."""

    def __init__(self, directory: Path, *, env: dict[str, str] | None = None, dotenv: str | None = None) -> None:
        self.directory = directory
        # Not below ``directory``: pytest's directories are too deep for Unix sockets.
        own_run_directory = tempfile.mkdtemp(prefix="emb-")
        weakref.finalize(self, shutil.rmtree, own_run_directory, ignore_errors=True)
        foreign = (name for name in os.environ if not name.startswith("EMB_PROVIDER_") and name != WAIT_POLICY)
        self._env = {name: os.environ[name] for name in foreign}
        self._env |= {
            "EMB_PROVIDER_PORT": "0",
            "EMB_PROVIDER_SHUTDOWN_GRACE_S": "10",
            "XDG_RUNTIME_DIR": own_run_directory,
            "XDG_CACHE_HOME": str(self._make("cache")),
            "HF_HOME": str(self._make("hf")),
            "MODELSCOPE_CACHE": str(self._make("ms")),
        }
        self._env |= env or {}
        self.run_directory = Path(self._env["XDG_RUNTIME_DIR"])
        if dotenv is not None:
            (directory / ".env").write_text(dotenv, encoding="utf-8")
        self.stdout_path = directory / "stdout.txt"
        self.stderr_path = directory / "stderr.txt"
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, command: tuple[str, ...] = (sys.executable, "-m", "supervisor")) -> Server:
        with self.stdout_path.open("wb") as out, self.stderr_path.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=self.directory, env=self._env, stdout=out, stderr=err)
        self.url = self.wait_for_output(_ADDRESS).group(1)
        return self

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        if self.process is not None and self.process.poll() is None:
            family = self.family()
            try:
                assert self.stop() == 0, self.story()
            finally:
                self.kill()
            assert not [pid for pid in family if alive(pid)], "processes are left"
            assert list(self.run_directory.iterdir()) == [], "a run directory is left"

    def stop(self, timeout_s: float = 20.0) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    # ------------------------------------------------------------------------------------------------- looking in

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text("utf-8")

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text("utf-8")

    def story(self) -> str:
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    def wait_for_output(self, pattern: re.Pattern[str], timeout_s: float = 60.0) -> re.Match[str]:
        assert self.process is not None
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if match := pattern.search(self.stdout):
                return match
            assert self.process.poll() is None, self.story()
            time.sleep(0.01)
        raise AssertionError(f"{pattern.pattern!r} was not printed\n{self.story()}")

    def states(self) -> dict[str, str]:
        return {model["id"]: model["state"] for model in self.get("/v1/models").json["data"]}

    def wait_for_states(self, timeout_s: float = 90.0, **wanted: str) -> None:
        """Wait until models are in these states."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            states = self.states()
            if all(states[name] == state for name, state in wanted.items()):
                return
            time.sleep(0.05)
        raise AssertionError(f"states are {self.states()}, not {wanted}\n{self.story()}")

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.get("/ready").status == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.get('/ready').body!r}\n{self.story()}")

    def shard_pid(self, model_id: str) -> int:
        pid = self.get("/ready").json["models"][model_id]["pid"]
        assert isinstance(pid, int)
        return pid

    def family(self) -> list[int]:
        """The supervisor's pid and those of its children."""
        assert self.process is not None
        return [self.process.pid, *children_of(self.process.pid)]

    def router_pid(self) -> int:
        """The pid of its router."""
        return next(pid for pid in self.family() if "router" in command_line(pid))

    # --------------------------------------------------------------------------------------------------- requests

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self._send(urllib.request.Request(self.url + path, headers=headers or {}))

    def post(self, path: str, body: object, headers: dict[str, str] | None = None, timeout_s: float = 60.0) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"} | (headers or {})
        )
        return self._send(request, timeout_s)

    def embed(self, model: str, texts: list[str], **fields: object) -> list[list[float]]:
        answer = self.post("/v1/embeddings", {"model": model, "input": texts} | fields)
        assert answer.status == 200, (answer.body, self.story())
        return [item["embedding"] for item in answer.json["data"]]

    @staticmethod
    def _send(request: urllib.request.Request, timeout_s: float = 60.0) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def _make(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path


class KeyedServer(Server):
    """Sends ``key`` with every request that brings none."""

    key = ""

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return super().get(path, self._keyed(headers))

    def post(self, path: str, body: object, headers: dict[str, str] | None = None, timeout_s: float = 60.0) -> Answer:
        return super().post(path, body, self._keyed(headers), timeout_s)

    def _keyed(self, headers: dict[str, str] | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} | (headers or {})
