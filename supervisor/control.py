"""The operator's socket: status, reload, restart and stop, answered from memory.

A private Unix socket in the run directory; only the server's own user and root are heard. One line of JSON asks, one
answers: ``{"command": "restart", "model": "bge"}``, ``{"ok": true, …}`` or ``{"ok": false, "error": "…"}``. An answer
never waits for a child: whatever those do, the operator hears at once. ``tree`` opens it, ``commands`` asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from emb_model_provider.errors import ProviderError
from emb_model_provider.logs import EventLog
from emb_model_provider.private_socket import bind_private, peer_user

log = EventLog("supervisor.control")

Command = Literal["status", "reload", "restart", "stop"]
COMMANDS: Final[tuple[Command, ...]] = get_args(Command)

_NOT_HEARD: Final = "The server closed the connection without an answer: it hears only its own user and root."
_MAX_REQUEST_BYTES: Final = 64 * 1024
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_MAX_CONNECTIONS: Final = 16
_READ_S: Final = 5.0
_ANSWER_S: Final = 10.0


class ControlError(ProviderError):
    """A request that cannot be carried out; the message is for the operator."""


class NotRunningError(ControlError):
    """Nobody answers."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an operator asks for; ``model`` only with ``restart``."""

    command: Command
    model: str = ""


class ControlSocket:
    """Takes requests and gives them to ``answer``, which returns at once or raises ``ControlError``."""

    def __init__(self, answer: Callable[[Request], dict[str, object]]) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._open = 0

    async def open(self, path: Path) -> None:
        """Listen at ``path``, in the place of what stood there."""
        await self.close()
        self._server = await asyncio.start_unix_server(self._serve, sock=bind_private(path), limit=_MAX_REQUEST_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._open >= _MAX_CONNECTIONS:
                return
            self._open += 1
            try:
                await self._serve_one(reader, writer)
            finally:
                self._open -= 1
        except (OSError, TimeoutError, ValueError) as error:
            log.info("control_connection_lost", error=error or type(error).__name__)
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = peer_user(writer.get_extra_info("socket"))
        if user not in (0, os.getuid()):
            log.warning("control_refused", uid=user)
            return
        async with asyncio.timeout(_READ_S):
            line = await reader.readline()
        if line:
            writer.write(json.dumps(self._reply(line)).encode() + b"\n")
            async with asyncio.timeout(_READ_S):
                await writer.drain()

    def _reply(self, line: bytes) -> dict[str, object]:
        try:
            return {"ok": True} | self._answer(read_request(line))
        except ControlError as error:
            return {"ok": False, "error": str(error)}
        except Exception:  # a mistake of ours must not end the server, nor leave the operator without an answer
            log.exception("control_crashed")
            return {"ok": False, "error": "The server made a mistake; its log has the details."}


def read_request(line: bytes) -> Request:
    """Return the request in one line of JSON; raise ``ControlError`` where there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError("The request is not a line of JSON.") from None
    command = value.get("command") if isinstance(value, dict) else None
    known = next((one for one in COMMANDS if one == command), None)
    if known is None:
        raise ControlError(f"Unknown command {str(command)[:64]!r}; there are {', '.join(COMMANDS)}.")
    model = value.get("model", "")
    if not isinstance(model, str) or (command == "restart") != bool(model):
        raise ControlError("'restart', and only that, needs the name of a model in 'model'.")
    return Request(known, model)


def ask(path: Path, request: Request) -> dict[str, Any]:
    """Send a request to a server and return its answer; raise ``ControlError`` for one that cannot be carried out."""
    line = json.dumps({"command": request.command, "model": request.model}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_ANSWER_S)
        try:
            link.connect(str(path))
            link.sendall(line)
            answer = _receive(link)
        except TimeoutError:
            raise ControlError(
                f"The server at {path.parent} does not answer within {_ANSWER_S:.0f} s, though it runs."
            ) from None
        except (ConnectionResetError, BrokenPipeError):  # hung up after, or before, it was asked
            raise ControlError(_NOT_HEARD) from None
        except PermissionError:
            raise ControlError(f"{path} belongs to another user: run this as the server's user, or as root.") from None
        except OSError as error:
            raise NotRunningError(f"No server answers at {path}: {error.strerror or error}.") from None
    if not answer.pop("ok", False):
        raise ControlError(str(answer.get("error", "The server has refused the request.")))
    return answer


def _receive(link: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_ANSWER_BYTES:
        piece = link.recv(256 * 1024)
        if not piece:
            break
        data += piece
    with contextlib.suppress(ValueError):
        answer = json.loads(data)
        if isinstance(answer, dict):
            return answer
    raise ControlError(_NOT_HEARD)
