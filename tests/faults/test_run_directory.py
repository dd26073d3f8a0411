"""Cases 35 to 39 and 44: the directory with the sockets is one server's and one user's, and its loss costs nothing."""

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import operator
from tests.support.asking import SteadyLoad
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import alive, wait_until

_NOBODY = 65534
_CONNECTED, _REFUSED, _NOT_HEARD = 10, 11, 12


@pytest.fixture
def run_dir():
    """A directory of our own: pytest's are too deep for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="emb-fixed-"))
    yield path / "run"
    shutil.rmtree(path, ignore_errors=True)


def make_server(tmp_path, run_dir, name="server", **manner) -> FaultyServer:
    models = {"en": FaultyModel(tmp_path / "en", **manner)}
    return FaultyServer(tmp_path / name, models, env={"EMB_PROVIDER_RUN_DIR": str(run_dir)})


def refused_start(tmp_path, run_dir) -> subprocess.CompletedProcess[str]:
    server = make_server(tmp_path, run_dir, "refused")
    return operator.command(server)


def test_case_35_after_a_kill_the_next_start_sweeps_the_sockets_and_leaves_foreign_files(tmp_path, run_dir):
    first = make_server(tmp_path, run_dir).start()
    first.wait_ready()
    family = first.family()
    (run_dir / "notes.txt").write_text("not ours")
    first.kill()
    wait_until(lambda: not any(alive(pid) for pid in family), 5, "every child is gone")
    stale = {path.name for path in run_dir.iterdir()}
    assert {"control.sock", "s0-1.sock", "pid", "notes.txt"} <= stale
    with make_server(tmp_path, run_dir) as second:
        second.wait_ready()
        assert "s0-1.sock" in {path.name for path in run_dir.iterdir()}
        second.check("en", ["after it"])
        assert second.stop() == 0
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]


def test_case_36_a_second_server_is_refused_with_the_holders_pid_and_the_first_is_undisturbed(tmp_path, run_dir):
    with make_server(tmp_path, run_dir) as first:
        first.wait_ready()
        before = {path.name: path.stat().st_ino for path in run_dir.iterdir() if path.is_socket()}
        second = refused_start(tmp_path, run_dir)
        assert second.returncode == 75
        assert re.search(rf"a server that is running \(process {first.process.pid}\)", second.stderr)
        assert {path.name: path.stat().st_ino for path in run_dir.iterdir() if path.is_socket()} == before
        assert "control.sock" in before
        first.check("en", ["undisturbed"])
        done = operator.command(first, "status")
        assert f"process {first.process.pid}" in done.stdout
    assert not run_dir.exists(), "what the server made, it removes"


def test_case_37_a_directory_that_cannot_keep_sockets_private_is_refused_with_a_sentence(tmp_path, run_dir):
    run_dir.mkdir(mode=0o777)
    run_dir.chmod(0o777)
    too_open = refused_start(tmp_path, run_dir)
    too_deep = refused_start(tmp_path, run_dir / ("x" * 100))
    assert (too_open.returncode, too_deep.returncode) == (78, 78)
    assert "writable by other users (mode 0777)" in too_open.stderr
    assert "too deep for Unix sockets" in too_deep.stderr
    if os.getuid() == 0:  # only root can give a directory away
        run_dir.chmod(0o700)
        os.chown(run_dir, _NOBODY, _NOBODY)
        foreign = refused_start(tmp_path, run_dir)
        assert foreign.returncode == 78
        assert f"belongs to another user (uid {_NOBODY}" in foreign.stderr


def connect_as_nobody(path: Path) -> int:
    """Return how a connection of another user ended."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(5)
            try:
                link.connect(str(path))
                link.sendall(b'{"command": "status"}\n')
                code = _CONNECTED if link.recv(100) else _NOT_HEARD
            except PermissionError:
                code = _REFUSED
            except ConnectionError:
                code = _NOT_HEARD
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_case_38_sockets_are_private_to_their_user(tmp_path, run_dir):
    with make_server(tmp_path, run_dir) as server:
        server.wait_ready()
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        sockets = [path for path in run_dir.iterdir() if path.is_socket()]
        assert {path.name for path in sockets} == {"control.sock", "s0-1.sock"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user to try it")
def test_case_38_another_user_cannot_connect_and_where_the_modes_were_opened_is_not_heard(tmp_path, run_dir):
    with make_server(tmp_path, run_dir) as server:
        server.wait_ready()
        sockets = [run_dir / "control.sock", run_dir / "s0-1.sock"]
        assert [connect_as_nobody(path) for path in sockets] == [_REFUSED, _REFUSED]
        run_dir.parent.chmod(0o755)
        run_dir.chmod(0o755)
        for path in sockets:
            path.chmod(0o666)
        assert [connect_as_nobody(path) for path in sockets] == [_NOT_HEARD, _NOT_HEARD]
        wait_until(lambda: "control_refused" in server.stderr and "link_refused" in server.stderr, 5, "it is logged")
        server.check("en", ["as before"])


def test_case_39_a_socket_file_deleted_under_a_living_shard_costs_no_request(tmp_path, run_dir):
    with make_server(tmp_path, run_dir) as server:
        server.wait_ready()
        before = server.shard_pid("en")
        with SteadyLoad(server, "en", "a") as load:
            load.wait_for(lambda: len(load.done) > 3, 10, "the link is open")
            (run_dir / "s0-1.sock").unlink()
            wait_until(lambda: operator.model(server, "en").pid not in (0, before), 20, "it is noticed and replaced")
            seen = len(load.done)
            load.wait_for(lambda: len(load.done) > seen + 3, 10, "it goes on")
        assert load.statuses() == {200}
        assert (run_dir / "s0-2.sock").is_socket()
        operator.wait_settled(server)
        assert not (run_dir / "s0-1.box").exists() or not alive(before)


def test_a_directory_that_is_deleted_whole_is_made_again_with_all_that_belongs_into_it(tmp_path, run_dir):
    with make_server(tmp_path, run_dir) as server:
        server.wait_ready()
        with SteadyLoad(server, "en", "a") as load:
            shutil.rmtree(run_dir)
            wait_until(lambda: any(run_dir.glob("s0-[2-9].sock")), 60, "a fresh process is reachable again")
        assert load.statuses() == {200}
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        assert operator.command(server, "status").returncode == 0
        assert refused_start(tmp_path, run_dir).returncode == 75, "it is held again"


def test_sockets_of_processes_that_have_ended_are_tidied_away(tmp_path, run_dir):
    with make_server(tmp_path, run_dir) as server:
        server.wait_ready()
        os.kill(server.shard_pid("en"), signal.SIGKILL)
        wait_until(lambda: not (run_dir / "s0-1.sock").exists(), 20, "the dead one's is gone")
        server.wait_ready()
        wait_until(lambda: len(list(run_dir.glob("s0-*"))) <= 2, 5, "one socket and one black box are left")


def test_several_servers_are_told_apart_by_their_directory(tmp_path, run_dir):
    first = FaultyServer(tmp_path / "one", {"en": FaultyModel(tmp_path / "en")})
    second = FaultyServer(tmp_path / "two", {"zh": FaultyModel(tmp_path / "zh")})
    second._env["XDG_RUNTIME_DIR"] = first._env["XDG_RUNTIME_DIR"]
    with first, second:
        asked = operator.command(first, "status")
        assert asked.returncode == 1
        assert "Several servers are running" in asked.stderr
        paths = dict(re.findall(r"--run-dir (\S+) +\(process (\d+)\)", asked.stderr))
        assert set(paths.values()) == {str(first.process.pid), str(second.process.pid)}
        for path, pid in paths.items():
            assert f"process {pid}" in operator.command(first, "status", "--run-dir", path).stdout


def test_case_44_serving_goes_on_when_nobody_can_take_the_log(tmp_path):
    """The terminal is closed, the disk is full."""
    server = FaultyServer(
        tmp_path / "server", {"en": FaultyModel(tmp_path / "en")}, env={"EMB_PROVIDER_LOG_FILE": "/dev/full"}
    )
    server._env["EMB_PROVIDER_PORT"] = str(port := free_port())
    server.url = f"http://127.0.0.1:{port}"
    closed = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, '-m', 'supervisor'])"
    server.process = subprocess.Popen([sys.executable, "-c", closed], cwd=server.directory, env=server._env)
    try:
        wait_until(lambda: can_connect(port), 20, "the port is open")
        server.wait_ready()
        for number in range(20):
            server.check("en", [f"text {number}"])
        assert server.post("/v1/embeddings", {"model": "en", "input": "!raise"}).status == 500
    finally:
        assert server.stop() == 0


def test_case_44_serving_goes_on_when_the_reader_of_the_terminal_has_gone_and_a_full_disk_is_written_to_again(tmp_path):
    server = FaultyServer(tmp_path / "server", {"en": FaultyModel(tmp_path / "en")})
    server._env["EMB_PROVIDER_PORT"] = str(port := free_port())
    server.url = f"http://127.0.0.1:{port}"
    reading, writing = os.pipe()
    server.process = subprocess.Popen(
        [sys.executable, "-m", "supervisor"], cwd=server.directory, env=server._env, stdout=writing, stderr=writing
    )
    os.close(writing)
    os.close(reading)
    try:
        wait_until(lambda: can_connect(port), 20, "the port is open")
        server.wait_ready()
        server.check("en", ["still here"])
    finally:
        assert server.stop() == 0
    assert "accepting" in (server.directory / "logs" / "emb_model_provider.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def can_connect(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
