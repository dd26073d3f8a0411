import asyncio
import json
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from supervisor import control
from supervisor.control import ControlError, ControlSocket, NotRunningError, Request, ask, read_request


@pytest.fixture
async def path():
    def answer(request: Request) -> dict[str, object]:
        if request.model == "unknown":
            raise ControlError("No model 'unknown'.")
        if request.model == "crash":
            raise KeyError("a mistake of ours")
        return {"heard": [request.command, request.model]}

    server = ControlSocket(answer)
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are too deep for Unix sockets
        await server.open(Path(directory) / "control.sock")
        yield Path(directory) / "control.sock"
        await server.close()


async def test_a_request_is_answered_and_the_socket_is_private(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await asyncio.to_thread(ask, path, Request("restart", "en")) == {"heard": ["restart", "en"]}


async def test_a_refusal_and_a_mistake_of_ours_are_told(path):
    with pytest.raises(ControlError, match="No model 'unknown'"):
        await asyncio.to_thread(ask, path, Request("restart", "unknown"))
    with pytest.raises(ControlError, match="its log has the details"):
        await asyncio.to_thread(ask, path, Request("restart", "crash"))
    assert await asyncio.to_thread(ask, path, Request("status"))


async def test_another_user_is_not_heard(path, monkeypatch):
    monkeypatch.setattr(control, "peer_user", lambda _peer: os.getuid() + 1)
    with pytest.raises(ControlError, match="hears only its own user and root"):
        await asyncio.to_thread(ask, path, Request("stop"))


async def test_somebody_who_says_nothing_holds_up_nobody(path, monkeypatch):
    monkeypatch.setattr(control, "_READ_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert await asyncio.to_thread(ask, path, Request("status"))
        silent.settimeout(5)
        assert await asyncio.to_thread(silent.recv, 10) == b"", "it is sent away"


async def test_a_server_that_is_gone_is_named(path, tmp_path):
    with pytest.raises(NotRunningError, match="No server answers"):
        ask(tmp_path / "nothing.sock", Request("status"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"hello\n", "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"\xff\xfe\n", "not a line of JSON"),
        (b"[]\n", "Unknown command 'None'"),
        (b'{"command": "destroy"}', "Unknown command 'destroy'; there are status, reload, restart, stop"),
        (b'{"command": ["status"]}', "Unknown command"),
        (b'{"command": "restart"}', "needs the name of a model"),
        (b'{"command": "restart", "model": 1}', "needs the name of a model"),
        (b'{"command": "stop", "model": "en"}', "only that"),
    ],
)
def test_what_is_no_request_is_refused_with_a_sentence(line, sentence):
    with pytest.raises(ControlError, match=sentence):
        read_request(line)


def test_requests_are_read():
    assert read_request(json.dumps({"command": "status"}).encode()) == Request("status")
    assert read_request(b'{"command": "restart", "model": "en"}\n') == Request("restart", "en")
