"""What ``emb-provider status``, ``reload``, ``restart`` and ``stop`` do: find the running server, ask it, print.

Only words cross: nothing here starts, signals or reads a process. ``cli`` is the caller.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

from emb_model_provider.dotenv_file import read_dotenv
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.logs import escape
from emb_model_provider.setting_table import RUN_DIR
from emb_model_provider.value_kinds import WrongValueError, read_number
from supervisor.control import ControlError, NotRunningError, Request, ask
from supervisor.report import ServerReport, from_json, render
from supervisor.rundir import RunningServer, find_running, running_in, runtime_parent

#: As ``systemctl status`` and the LSB have it: the program does not run.
EXIT_NOT_RUNNING: Final = 3
_EXIT_FAILURE: Final = 1
_POLL_S: Final = 0.2


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the commands to the command line of the server."""
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands (none: serve)", required=False)
    commands.add_parser("serve", help="start the server; the same as no command")
    status = commands.add_parser("status", help="show what the running server and its models are at")
    status.add_argument("--json", action="store_true", help="print all of it as JSON")
    reload = commands.add_parser("reload", help="have the settings read again; models that did not change stay")
    restart = commands.add_parser("restart", help="replace one model's process by a fresh one, successor first")
    restart.add_argument("model", metavar="MODEL", help="the model's id, as in status")
    stop = commands.add_parser("stop", help="finish what is in flight and stop")
    for command in (reload, restart, stop):
        command.add_argument(
            "--wait", metavar="SECONDS", type=_seconds, default=0.0, help="wait so long at most until it is done"
        )
    for command in (status, reload, restart, stop):
        command.add_argument("--run-dir", metavar="PATH", type=Path, help="the server with this run directory")


def _seconds(text: str) -> float:
    value = read_number(text)
    if value is None or value < 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, such as 60, not {text!r}")
    return value


def run_command(options: argparse.Namespace) -> int:
    """Carry out a command and return its exit code: 3 where no server runs, 1 where it refuses."""
    try:
        server = _find(options.run_dir, options.env_file)
        request = Request(options.command, getattr(options, "model", ""))
        answer = ask(server.control_path, request)
        if options.command == "status":
            return _print_status(answer["status"], as_json=options.json)
        told = tell(answer["summary"])
        return _wait(server, request, options.wait) or told if options.wait else told
    except NotRunningError as error:
        complain(str(error))
        return EXIT_NOT_RUNNING
    except (ControlError, ConfigurationError) as error:
        complain(str(error))
        return _EXIT_FAILURE


def tell(text: str) -> int:
    """Print a command's result and return its exit code: 1 where it cannot be written, as on a full disk."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        complain(f"The result cannot be written: {error}")
        sys.stdout = None  # Python would try once more at its end, and trace that
        return _EXIT_FAILURE
    return 0


def complain(text: str) -> None:
    """Print what is wrong; where it cannot be written either, the exit code has to do."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text + "\n")
    except OSError:
        sys.stderr = None  # Python would try once more at its end, and that code would be 120


def _find(run_dir: Path | None, env_file: Path | None) -> RunningServer:
    """Return the server meant: that of the directory named, here or in the settings, else the only one there is."""
    path = run_dir or _configured(env_file)
    if path is not None:
        found = running_in(path)
        if found is None:
            advice = "" if run_dir else f" If it was started with another {RUN_DIR.name}, name that one with --run-dir."
            raise NotRunningError(f"No server is running with the run directory {path}.{advice}")
        return found
    parent = runtime_parent(os.environ)
    servers = find_running(parent)
    if not servers:
        raise NotRunningError(
            f"No server of this user is running (looked in {parent}). If it was started with another "
            "EMB_PROVIDER_RUN_DIR, XDG_RUNTIME_DIR or TMPDIR, name its directory with --run-dir."
        )
    if len(servers) > 1:
        listed = "".join(f"\n  --run-dir {server.path}   (process {server.pid})" for server in servers)
        raise ControlError(f"Several servers are running; say which one:{listed}")
    return servers[0]


def _configured(env_file: Path | None) -> Path | None:
    """Return the run directory of the settings; the other settings may be wrong, and often are when one asks."""
    text = os.environ.get(RUN_DIR.name)
    if text is None:
        dotenv = read_dotenv(env_file)
        assignment = dotenv.assignments.get(RUN_DIR.name) if dotenv else None
        text = assignment.value if assignment else ""
    try:
        return Path(RUN_DIR.kind.parse(text.strip())).expanduser() if text.strip() else None
    except WrongValueError as error:
        raise ConfigurationError(f"{RUN_DIR.name}={text.strip()!r} cannot be used: {error}.") from None


def _print_status(status: dict[str, Any], *, as_json: bool) -> int:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return tell(json.dumps(status, indent=2) if as_json else render(from_json(status), columns=columns))


def _wait(server: RunningServer, request: Request, limit_s: float) -> int:
    """Wait until what was asked for is done; 1 where it is not in time, or cannot be."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        if request.command == "stop":
            if running_in(server.path) is None:
                return 0
            continue
        report = from_json(ask(server.control_path, Request("status"))["status"])
        if (outcome := _outcome(report, request)) is not None:
            return outcome
    complain(f"Not done within {limit_s:g} s; it goes on. 'status' shows how far it is.")
    return _EXIT_FAILURE


def _outcome(report: ServerReport, request: Request) -> int | None:
    """Return 0 once every model concerned serves with the newest settings, 1 once one cannot, ``None`` before."""
    models = [model for model in report.models if not request.model or model.model == request.model]
    # What one that is to be replaced says is of the settings before, or of an earlier try: its turn is still to come.
    tried = [model for model in models if not model.renewing]
    bad = [model for model in tried if model.state == "failed" or model.reason == "not_replaced"]
    if bad:
        for model in bad:
            complain(f"{model.model}: {model.reason}: {escape(model.detail)}")
        return _EXIT_FAILURE
    is_answered_by_others = request.command == "reload" and report.router.renewing
    is_settled = all(model.state == "ready" and not model.renewing for model in models)
    return 0 if is_settled and not is_answered_by_others else None
