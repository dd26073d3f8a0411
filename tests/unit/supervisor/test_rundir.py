import errno
import fcntl
import os
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.private_socket import bind_private
from supervisor.rundir import DirectoryInUseError, RunDirectory, find_running, running_in, runtime_parent
from tests.support.leaks import open_files


def die(directory: RunDirectory) -> None:
    """Do what the kernel does when a process is killed."""
    os.close(directory._descriptor)


def leave_socket(directory: RunDirectory, name: str = "s0-1.sock") -> None:
    bind_private(directory.path / name).close()


def test_the_directory_is_private_and_goes_with_its_owner(short_path):
    directory = RunDirectory.fresh(short_path)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert directory.socket_path(0, 1) != directory.socket_path(0, 2)
    leave_socket(directory)
    directory.remove()
    assert list(short_path.iterdir()) == []


def test_what_a_killed_supervisor_left_is_swept_and_nothing_else(short_path):
    living = RunDirectory.fresh(short_path)
    dead = RunDirectory.fresh(short_path)
    leave_socket(dead)
    die(dead)
    foreign, empty = short_path / "emb-provider-notes", short_path / "emb-provider-empty"
    foreign.mkdir()
    (foreign / "keep.txt").touch()
    empty.mkdir()
    fresh = RunDirectory.fresh(short_path)
    stayed = {living.path, fresh.path, foreign, empty}
    assert set(short_path.iterdir()) == stayed
    assert (foreign / "keep.txt").exists()
    living.remove()
    fresh.remove()


def test_a_path_too_long_for_a_unix_socket_is_refused_at_start(short_path):
    deep = short_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(ConfigurationError, match=r"too deep for Unix sockets.*XDG_RUNTIME_DIR"):
        RunDirectory.fresh(deep)
    with pytest.raises(ConfigurationError, match=r"too deep for Unix sockets.*EMB_PROVIDER_RUN_DIR"):
        RunDirectory.fixed(deep)


def test_a_fixed_directory_is_made_private_and_removed_again(short_path):
    directory = RunDirectory.fixed(short_path / "run")
    assert stat.S_IMODE((short_path / "run").stat().st_mode) == 0o700
    leave_socket(directory)
    directory.remove()
    assert list(short_path.iterdir()) == []


def test_a_fixed_directory_that_was_there_stays_with_what_others_put_into_it(short_path):
    (short_path / "s0-1.sock").write_text("a file of this name is no socket of ours")
    (short_path / "notes.txt").touch()
    directory = RunDirectory.fixed(short_path)
    leave_socket(directory, "s1-1.sock")
    directory.remove()
    assert {path.name for path in short_path.iterdir()} == {"s0-1.sock", "notes.txt"}


def test_a_second_server_is_refused_with_the_holders_pid_and_touches_nothing(short_path):
    first = RunDirectory.fixed(short_path)
    leave_socket(first, "control.sock")
    with pytest.raises(DirectoryInUseError, match=rf"process {os.getpid()}\b"):
        RunDirectory.fixed(short_path)
    assert {path.name for path in short_path.iterdir()} == {"pid", "control.sock"}
    assert running_in(short_path).pid == os.getpid()
    first.remove()
    assert running_in(short_path) is None


def test_a_dead_servers_sockets_are_swept_from_a_fixed_directory_and_foreign_files_are_not(short_path):
    dead = RunDirectory.fixed(short_path)
    leave_socket(dead)
    leave_socket(dead, "s12-345.tmp")
    (short_path / "notes.txt").touch()
    foreign = socket.socket(socket.AF_UNIX)
    foreign.bind(str(short_path / "other.sock"))
    foreign.close()
    die(dead)
    fresh = RunDirectory.fixed(short_path)
    assert {path.name for path in short_path.iterdir()} == {"pid", "notes.txt", "other.sock"}
    fresh.remove()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777, 0o722])
def test_a_directory_that_others_may_write_to_is_refused_with_a_sentence(short_path, mode):
    short_path.chmod(mode)
    with pytest.raises(ConfigurationError, match=r"writable by other users \(mode .*chmod 700"):
        RunDirectory.fixed(short_path)
    short_path.chmod(0o700)
    RunDirectory.fixed(short_path).remove()  # the refusal has left no lock


def test_a_directory_of_another_user_is_refused_with_a_sentence(short_path, monkeypatch):
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(ConfigurationError, match=rf"belongs to another user \(uid {me};"):
        RunDirectory.fixed(short_path)


def test_a_link_a_file_and_a_place_that_does_not_exist_are_refused_with_a_sentence(short_path):
    (short_path / "file").touch()
    (short_path / "link").symlink_to(short_path, target_is_directory=True)
    for name in ("file", "link", "missing/run"):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            RunDirectory.fixed(short_path / name)


def test_of_a_link_it_is_told_where_it_leads(short_path):
    (short_path / "link").symlink_to(short_path / "real", target_is_directory=True)
    (short_path / "real").mkdir()
    with pytest.raises(ConfigurationError, match=f"cannot be used: a link to {short_path.resolve()}/real and no dir"):
        RunDirectory.fixed(short_path / "link")


def test_a_directory_that_somebody_removed_is_made_again_and_is_held_again(short_path):
    directory = RunDirectory.fixed(short_path / "run")
    assert not directory.restore()
    (directory.path / "pid").unlink()
    directory.path.rmdir()
    held = directory._descriptor
    assert directory.restore()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert running_in(directory.path).pid == os.getpid()
    with pytest.raises(DirectoryInUseError):
        RunDirectory.fixed(short_path / "run")
    directory.remove()
    assert list(short_path.iterdir()) == []


@pytest.mark.parametrize("is_another_users", [True, False], ids=["another user's", "open to all"])
def test_a_directory_that_others_have_put_in_its_place_is_not_taken(short_path, monkeypatch, is_another_users):
    path = short_path / "run"
    directory = RunDirectory.fixed(path)
    shutil.rmtree(path)
    path.mkdir()
    if is_another_users:
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    else:
        path.chmod(0o777)
    before = open_files(os.getpid())
    for _ in range(2):
        with pytest.raises(PermissionError, match="could replace its sockets"):
            directory.restore()
    assert open_files(os.getpid()) == before
    assert list(path.iterdir()) == []
    monkeypatch.undo()
    path.rmdir()
    assert directory.restore()
    directory.remove()


def test_a_server_starts_in_a_directory_that_somebody_is_just_looking_into(short_path):
    path = short_path / "run"
    path.mkdir(mode=0o700)
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as ``running_in`` does for a moment
    threading.Timer(0.03, os.close, [looking]).start()
    directory = RunDirectory.fixed(path)
    assert running_in(path) is not None
    directory.remove()


def test_who_looks_into_a_directory_does_not_look_like_a_server_to_another_who_does(short_path):
    looking = os.open(short_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert running_in(short_path) is None
    os.close(looking)


def test_a_directory_that_may_not_be_looked_into_is_not_one_without_a_server(short_path, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        running_in(short_path)


def test_living_servers_are_found_and_dead_ones_are_not(short_path):
    living, dead = RunDirectory.fresh(short_path), RunDirectory.fresh(short_path)
    die(dead)
    assert [server.path for server in find_running(short_path)] == [living.path]
    living.remove()


def test_what_ended_shards_left_is_tidied_away_and_living_ones_and_strangers_stay(short_path):
    directory = RunDirectory.fixed(short_path)
    for name in ("s0-1.sock", "s0-2.sock", "s1-1.sock"):
        leave_socket(directory, name)
    for name in ("s0-1.box", "s0-2.box", "s1-1.txt"):
        (short_path / name).touch()
    directory.tidy([directory.socket_path(0, 2)])
    assert {path.name for path in short_path.iterdir()} == {"pid", "s0-2.sock", "s0-2.box", "s1-1.txt"}
    directory.remove()
    assert {path.name for path in short_path.iterdir()} == {"s1-1.txt"}


@pytest.mark.parametrize("others", [True, False])
def test_a_directory_that_is_ours_no_more_is_left_to_whoever_has_it(short_path, others):
    ours = RunDirectory.fixed(short_path / "run")
    (ours.path / "pid").unlink()
    ours.path.rmdir()
    theirs = RunDirectory.fixed(short_path / "run") if others else None
    ours.remove()
    assert (running_in(short_path / "run") is not None) is others
    if theirs is not None:
        theirs.remove()


def test_a_directory_that_is_exchanged_before_it_is_locked_is_not_taken(short_path, monkeypatch):
    path = short_path / "run"
    lock = fcntl.flock

    def exchange(descriptor, kind):
        path.rmdir()
        path.mkdir(mode=0o700)
        lock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", exchange)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        RunDirectory.fixed(path)


def test_run_directories_go_into_the_users_own_if_it_may_be_written_to(short_path):
    assert runtime_parent({"XDG_RUNTIME_DIR": str(short_path)}) == short_path
    elsewhere = Path(tempfile.gettempdir())
    assert runtime_parent({"XDG_RUNTIME_DIR": str(short_path / "missing")}) == elsewhere
    assert runtime_parent({"XDG_RUNTIME_DIR": ""}) == runtime_parent({}) == elsewhere


def test_where_nothing_can_be_written_to_the_setting_is_named(monkeypatch):
    def refuse():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(ConfigurationError, match="Set EMB_PROVIDER_RUN_DIR to one that can"):
        runtime_parent({})


def test_a_file_system_without_sockets_is_named_and_nothing_is_left_behind(short_path, monkeypatch):
    def refuse(_self, _address):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    for make, path in ((RunDirectory.fixed, short_path / "run"), (RunDirectory.fresh, short_path)):
        with pytest.raises(ConfigurationError, match=rf"{short_path}/\S+ cannot hold Unix sockets: Operation not supp"):
            make(path)
    assert list(short_path.iterdir()) == []


def test_a_disk_without_room_is_named_and_nothing_is_left_behind(short_path, monkeypatch):
    def refuse(_path, _text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match=rf"No space left on device: '{short_path}/run'"):
        RunDirectory.fixed(short_path / "run")
    with pytest.raises(OSError, match=rf"No space left on device: '{short_path}/emb-provider"):
        RunDirectory.fresh(short_path)
    assert list(short_path.iterdir()) == []
