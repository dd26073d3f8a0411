"""The command: read settings, refuse what cannot work, bind the port, run the tree."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib.metadata
import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path

from emb_model_provider.dotenv_file import read_dotenv
from emb_model_provider.errors import EXIT_CONFIGURATION, ConfigurationError
from emb_model_provider.logs import EventLog
from emb_model_provider.settings import Settings, load_settings
from supervisor.console import Console
from supervisor.machine import read_machine
from supervisor.output import Output, OutputHandler
from supervisor.plan import Placement, place
from supervisor.rundir import RunDirectory, runtime_parent
from supervisor.tree import Tree, address_of

log = EventLog("supervisor")

DISTRIBUTION = "emb-model-provider"
_BACKLOG = 2048
_EXIT_FAILURE = 1
_BIND_ADVICE = {
    errno.EADDRINUSE: "Stop the program that uses it, or set EMB_PROVIDER_PORT to another port.",
    errno.EADDRNOTAVAIL: "Set EMB_PROVIDER_HOST to an address of this machine.",
    errno.EACCES: "Ports below 1024 need a privilege: set EMB_PROVIDER_PORT to a higher one.",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the server and return its exit code: 0 after an orderly stop, 78 for settings that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        _check_package_owner()
        settings = load_settings(os.environ, read_dotenv(options.env_file))
        places = place(settings.models, read_machine(os.environ))
    except ConfigurationError as error:
        _print_problems(error)
        return EXIT_CONFIGURATION
    if options.check:
        for warning in settings.warnings:
            sys.stderr.write(f"warning: {warning}\n")
        sys.stdout.write(f"The settings are valid: {len(settings.models)} model(s).\n")
        return 0
    return _serve(settings, places)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emb-provider",
        description="Serve embedding models over an OpenAI-compatible API, one process per model.",
        epilog="All settings are EMB_PROVIDER_* variables, from the environment or a .env file: docs/configuration.md.",
    )
    parser.add_argument("--env-file", metavar="PATH", type=Path, help="read this file instead of ./.env")
    parser.add_argument("--check", action="store_true", help="check the settings and exit, starting nothing")
    parser.add_argument("--version", action="version", version=f"emb-provider {_version()}")
    return parser


def _serve(settings: Settings, places: dict[str, Placement]) -> int:
    with contextlib.ExitStack() as stack:
        try:
            listener = _bind(settings.server.host, settings.server.port)
            stack.callback(listener.close)
            run_directory = RunDirectory(runtime_parent(os.environ))
            stack.callback(run_directory.remove)
        except ConfigurationError as error:
            _print_problems(error)
            return EXIT_CONFIGURATION
        except OSError as error:
            sys.stderr.write(f"emb-provider cannot start: {error}\n")
            return _EXIT_FAILURE
        output = Output(settings.logs.file)
        stack.callback(output.close)
        _configure_logs(settings, output)
        console = Console(output, silent=settings.logs.format == "json")
        console.open(_version(), address_of(listener), settings.models, places)
        for warning in [*settings.warnings, output.problem, _exposure(settings)]:
            if warning:
                log.warning(warning)
        return asyncio.run(Tree(settings, places, listener, run_directory, output, console).run())


def _bind(host: str, port: int) -> socket.socket:
    """Return the listening socket; bound here so that a router's death queues clients instead of refusing them."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG, reuse_port=False)
    except socket.gaierror as error:
        raise ConfigurationError(
            f"EMB_PROVIDER_HOST={host} is not an address of this machine: {error.strerror}."
        ) from None
    except OSError as error:
        number = error.errno or 0
        advice = _BIND_ADVICE.get(number, "Set EMB_PROVIDER_HOST and EMB_PROVIDER_PORT.")
        raise OSError(f"{host}:{port} cannot be bound: {os.strerror(number)}. {advice}") from None


def _configure_logs(settings: Settings, output: Output) -> None:
    root = logging.getLogger()
    root.handlers[:] = [OutputHandler(output, settings.logs.format)]
    root.setLevel(settings.logs.level)
    logging.captureWarnings(capture=True)


def _exposure(settings: Settings) -> str:
    """Return a warning when anybody on the network may use the server."""
    host = settings.server.host
    try:
        is_local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = False
    if is_local or settings.server.api_keys:
        return ""
    return (
        f"open to the network: listening on {host} without a key; "
        "set EMB_PROVIDER_API_KEYS, or EMB_PROVIDER_HOST=127.0.0.1"
    )


def _check_package_owner() -> None:
    """Refuse to run from a ``supervisor`` folder that pip has merged with another distribution's files."""
    owners = set(importlib.metadata.packages_distributions().get("supervisor", []))
    strangers = sorted(owners - {DISTRIBUTION})
    if strangers:
        raise ConfigurationError(
            f"The package {strangers[0]!r} is installed in this environment and also owns the folder 'supervisor', "
            f"which pip has mixed with ours. Run 'pip uninstall {strangers[0]}' and 'pip install --force-reinstall "
            f"{DISTRIBUTION}', or use an environment of its own."
        )


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def _print_problems(error: ConfigurationError) -> None:
    for problem in error.problems:
        sys.stderr.write(f"configuration error: {problem}\n")
