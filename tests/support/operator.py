"""An operator beside a server under test: the commands as one types them, and the same questions asked directly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

from supervisor.control import Request, ask
from supervisor.report import ModelReport, ServerReport, from_json
from tests.support.processes import wait_until
from tests.support.server import Server


def command(server: Server, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m supervisor …`` where the server was started."""
    return subprocess.run(
        [sys.executable, "-m", "supervisor", *arguments],
        cwd=server.directory,
        env=server._env | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def start(server: Server, out: BinaryIO) -> subprocess.Popen[bytes]:
    """Start the server without waiting for anything."""
    command_line = [sys.executable, "-m", "supervisor"]
    return subprocess.Popen(command_line, cwd=server.directory, env=server._env, stdout=out, stderr=out)


def control_path(server: Server) -> Path:
    if (fixed := server._env.get("EMB_PROVIDER_RUN_DIR")) is not None:
        return Path(fixed) / "control.sock"
    (path,) = server.run_directory.glob("*/control.sock")
    return path


def report(server: Server) -> ServerReport:
    return from_json(ask(control_path(server), Request("status"))["status"])


def model(server: Server, model_id: str) -> ModelReport:
    return next(one for one in report(server).models if one.model == model_id)


def reload(server: Server) -> str:
    """Have the settings read again; what has changed, in words."""
    return ask(control_path(server), Request("reload"))["summary"]


def restart(server: Server, model_id: str) -> None:
    ask(control_path(server), Request("restart", model_id))


def wait_settled(server: Server, timeout_s: float = 30.0) -> None:
    """Wait until nothing is being replaced, removed or loaded."""

    def settled() -> bool:
        return all(
            one.state in ("ready", "failed") and not one.renewing and not one.leaving for one in report(server).models
        )

    wait_until(settled, timeout_s, "everything has settled")
