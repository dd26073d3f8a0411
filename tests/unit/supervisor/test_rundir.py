import os
import stat

import pytest

from emb_model_provider.errors import ConfigurationError
from supervisor.rundir import RunDirectory


def test_the_directory_is_private_and_goes_with_its_owner(tmp_path):
    directory = RunDirectory(tmp_path)
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert directory.socket_path(0, 1) != directory.socket_path(0, 2)
    directory.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_supervisor_left_is_swept_and_nothing_else(tmp_path):
    living = RunDirectory(tmp_path)
    dead = RunDirectory(tmp_path)
    (dead.path / "s0-1.sock").touch()
    os.close(dead._lock)  # what the kernel does when a process is killed
    foreign = tmp_path / "emb-provider-notes"
    foreign.mkdir()
    (foreign / "keep.txt").touch()
    fresh = RunDirectory(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {living.path.name, fresh.path.name, "emb-provider-notes"}
    assert (foreign / "keep.txt").exists()
    living.remove()
    fresh.remove()


def test_a_path_too_long_for_a_unix_socket_is_refused_at_start(tmp_path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(ConfigurationError, match="too deep for Unix sockets"):
        RunDirectory(deep)
