"""The command: read settings, refuse what cannot work, bind the port, run the tree."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import io
import logging
import os
import signal
import stat
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from emb_model_provider.dotenv_file import PREFIX, read_dotenv
from emb_model_provider.errors import EXIT_ALREADY_RUNNING, EXIT_CONFIGURATION, ConfigurationError
from emb_model_provider.key_file import read_key_file
from emb_model_provider.lifecycle import forbid_core_dumps
from emb_model_provider.logs import EventLog
from emb_model_provider.positioned_json import lost_bytes
from emb_model_provider.setting_table import NAMES, RUN_DIR
from emb_model_provider.settings import Settings, load_settings
from supervisor.commands import add_commands, complain, run_command, tell
from supervisor.console import Console
from supervisor.descriptors import require_descriptors
from supervisor.listening import Listening, bind_tcp, bind_unix, exposure, open_host
from supervisor.machine import read_machine
from supervisor.output import Output, OutputHandler
from supervisor.plan import Placement, place, warn_of_threads
from supervisor.rundir import DirectoryInUseError, RunDirectory, runtime_parent
from supervisor.sdnotify import Notifier, forget, passed_listeners
from supervisor.settings_in_use import Load
from supervisor.shards import own_cache
from supervisor.tls import read_certificate
from supervisor.tree import OBEYED, Ground, Tree

log = EventLog("supervisor")

DISTRIBUTION = "emb-model-provider"
_STRANGER = "supervisor"
_EXIT_FAILURE = 1
_BEFORE_COMMANDS = ("--check", "--env-file")


def main(arguments: list[str] | None = None) -> int:
    """Run the server, or a command for one that runs, and return the exit code.

    0 after an orderly stop, 78 for settings that cannot be used, 75 where another server holds the run directory.
    """
    _fill_standard_streams()
    _accept_every_character()
    _fill_home()
    _keep_own_rights()
    parser = _parser()
    _refuse_settings_as_options(parser, sys.argv[1:] if arguments is None else arguments)
    options = _parse(parser, arguments)
    if options.command not in (None, "serve"):
        return run_command(options)

    try:
        _check_package_owner()
        load = _loader(options.env_file)
        settings, places = load()
    except ConfigurationError as error:
        _print_problems(error)
        return EXIT_CONFIGURATION
    if options.check:
        open_to = exposure(open_host(settings.server.host), needs_key=bool(settings.server.api_keys))
        for warning in filter(None, [*settings.warnings, open_to]):
            complain(f"warning: {warning}")
        return tell(f"The settings are valid: {len(settings.models)} model(s).")
    return _serve(settings, places, load)


def _loader(env_file: Path | None) -> Load:
    """Return what reads the settings: the first time at the start, then at each reload."""
    path, again = env_file, False

    def load() -> tuple[Settings, dict[str, Placement]]:
        nonlocal path, again
        dotenv = read_dotenv(path, again=again)
        settings = load_settings(os.environ, dotenv, partial(read_key_file, again=again), read_certificate)
        if dotenv is not None:
            # Once read it must be there: gone, it would be settings without models and keys.
            path = Path(dotenv.label)
        again = True
        machine = read_machine(os.environ)
        places = place(settings.models, machine)
        slow = warn_of_threads(settings.models, places, machine)
        return replace(settings, warnings=(*settings.warnings, *slow)), places

    return load


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emb-provider",
        description="Serve embedding models over an OpenAI-compatible API, one process per model.",
        epilog="All settings are EMB_PROVIDER_* variables, from the environment or a .env file: docs/configuration.md.",
    )
    parser.add_argument("--env-file", metavar="PATH", type=Path, help="read this file instead of ./.env")
    parser.add_argument("--check", action="store_true", help="check the settings and exit, starting nothing")
    parser.add_argument("--version", action="version", version=f"emb-provider {_version()}")
    add_commands(parser)
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    options, left = parser.parse_known_args(arguments)
    for argument in left:
        if argument.partition("=")[0] in _BEFORE_COMMANDS:
            parser.error(f"{argument} belongs before the command: emb-provider {argument} …")
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if options.check and options.command not in (None, "serve"):  # it would stop or reload all the same
        parser.error(f"--check does nothing but check the settings: leave out either it or {options.command!r}")
    return options


def _refuse_settings_as_options(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """End with what to write where ``--port 9000`` stands: argparse would take the number for an unknown command."""
    for argument in arguments:
        option = argument.partition("=")[0]
        name = PREFIX + option.removeprefix("--").upper().replace("-", "_")
        if option.startswith("--") and name in NAMES and name != RUN_DIR.name:
            parser.error(f"{option} is no option but a setting: set {name} in the environment or in .env")


def _serve(settings: Settings, places: dict[str, Placement], load: Load) -> int:
    forbid_core_dumps()
    # A signal that comes now waits until the tree can obey it: nothing is left half made.
    signal.pthread_sigmask(signal.SIG_BLOCK, OBEYED)
    # Who started us may have ignored it, which is inherited: the kernel would then keep no exit code of a child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    notifier = Notifier(os.environ)
    with contextlib.ExitStack() as stack:
        try:
            run_directory = _open_run_directory(settings)
            stack.callback(run_directory.remove)
            _check_told("EMB_PROVIDER_RUN_DIR", run_directory.path)
            _check_told("XDG_CACHE_HOME", own_cache())
            _fill_temporary_directory(run_directory.path)
            listening = _listen(settings)
            stack.callback(listening.close)
            require_descriptors(settings.server.around.routers + len(settings.models))
            output = Output(settings.logs.file, sys.stdout, sys.stderr)
            stack.callback(_close, output)
        except DirectoryInUseError as error:
            complain(f"emb-provider cannot start: {error}")
            return EXIT_ALREADY_RUNNING
        except ConfigurationError as error:
            _print_problems(error)
            return EXIT_CONFIGURATION
        except OSError as error:
            complain(f"emb-provider cannot start: {error}")
            return _EXIT_FAILURE
        forget(os.environ)
        _configure_logs(settings, output)
        console = Console(output, silent=settings.logs.format == "json")
        is_tls = settings.server.around.certificate is not None
        console.open(_version(), listening.address(is_tls=is_tls), settings.models, places)
        open_to = exposure(listening.open_host, needs_key=bool(settings.server.api_keys))
        for warning in filter(None, [*settings.warnings, output.problem, open_to]):
            log.warning(warning)
        ground = Ground(_version(), listening, run_directory, output, console, notifier, load)
        return asyncio.run(Tree(settings, places, ground).run())


def _open_run_directory(settings: Settings) -> RunDirectory:
    path = settings.processes.run_dir
    return RunDirectory.fixed(Path(path)) if path else RunDirectory.fresh(runtime_parent(os.environ))


def _close(output: Output) -> None:
    """End the output; what a full disk did not take, Python would write once more, fail, and exit with 120."""
    if not output.close():
        return  # its thread still holds a stream, and whoever flushes it waits, too
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, None)


def _check_told(advice: str, path: Path) -> None:
    """Refuse a path, such as one in a home named in GBK, that is no text: processes could not be told of it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"The directory {str(path)!a} cannot be used: its name holds {lost_bytes()}. Set {advice} to another one."
        ) from None


def _fill_standard_streams() -> None:
    """Open /dev/null wherever a standard stream was closed.

    Else the first sockets would get their numbers, and what a library prints would go to a client.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is the one that is missing.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _accept_every_character() -> None:
    """Print a question mark for what a terminal's encoding lacks; by default the whole line would be an error.

    Latin-1 lacks the Chinese of the line to try, GBK what the path of a model may hold.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _fill_home() -> None:
    """Name a home where there is none, as in a container that runs under a number without an account.

    Every library would fail in its own way for want of one; below this one caches cannot be written, which is said.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def _keep_own_rights() -> None:
    """Leave our own files to us whatever the umask, such as a unit's ``UMask=0777``; others get no more than before."""
    os.umask(os.umask(0o077) & ~stat.S_IRWXU)


def _fill_temporary_directory(run_directory: Path) -> None:
    """Name one where there is none, as in a container whose root is read-only: torch cannot be imported without."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = str(run_directory)


def _listen(settings: Settings) -> Listening:
    server = settings.server
    passed = passed_listeners(os.environ)
    tcp = passed[:1] or bind_tcp(server.host, server.port, server.around.routers)
    try:
        unix = bind_unix(Path(server.unix_socket), int(server.unix_socket_mode, 8)) if server.unix_socket else None
    except (OSError, ConfigurationError):
        Listening(tcp, more=passed[1:]).close()
        raise
    return Listening(tcp, unix, passed[1:])


def _configure_logs(settings: Settings, output: Output) -> None:
    root = logging.getLogger()
    root.handlers[:] = [OutputHandler(output, settings.logs.format)]
    root.setLevel(settings.logs.level)
    logging.captureWarnings(capture=True)


def _check_package_owner() -> None:
    """Refuse to run from a ``supervisor`` folder that pip has merged with supervisord's, whose name is the same.

    Asked by name: to look which distributions own the folder would read the lists of all, a tenth of a second.
    """
    try:
        importlib.metadata.version(_STRANGER)
    except importlib.metadata.PackageNotFoundError:
        return
    raise ConfigurationError(
        f"The package {_STRANGER!r} (supervisord) is installed in this environment and also owns the folder "
        f"'supervisor', which pip has mixed with ours. Run 'pip uninstall {_STRANGER}' and 'pip install "
        f"--force-reinstall {DISTRIBUTION}', or use an environment of its own."
    )


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _print_problems(error: ConfigurationError) -> None:
    for problem in error.problems:
        complain(f"configuration error: {problem}")
