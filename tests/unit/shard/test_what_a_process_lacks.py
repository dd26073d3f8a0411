"""What a process does not find that it was to have: room, files of any size, its CPUs. None of it is a crash."""

import errno
import os
from types import SimpleNamespace

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard import main
from shard.hubs.client import disk_error
from shard.main import _bind, _make_box, _pin


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_run_directory_without_room_is_named_as_a_full_disk(tmp_path, monkeypatch, number):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(LoadError, match=str(tmp_path)) as caught:
        _make_box(tmp_path / "s0-1.sock", 1)
    assert caught.value.reason == LoadReason.DISK_FULL


def test_a_limit_of_the_size_of_files_is_named_and_no_full_disk(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(LoadError, match=rf"{tmp_path}.*ulimit -f") as caught:
        _make_box(tmp_path / "s0-1.sock", 1)
    in_cache = disk_error(OSError(errno.EFBIG, os.strerror(errno.EFBIG)), tmp_path)
    assert (caught.value.reason, str(caught.value)) == (in_cache.reason, str(in_cache))
    assert in_cache.reason is LoadReason.NO_PERMISSION


def test_any_other_failure_is_left_to_the_log(tmp_path):
    with pytest.raises(FileNotFoundError):
        _make_box(tmp_path / "gone" / "s0-1.sock", 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_so_it_is_where_the_box_took_the_last_room_and_the_socket_finds_none(monkeypatch, tmp_path, number):
    def no_room(_path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(main, "bind_private", no_room)
    with pytest.raises(LoadError, match=f"run directory {tmp_path} is full") as caught:
        _bind(tmp_path / "s0-1.sock")
    assert caught.value.reason is LoadReason.DISK_FULL


def test_cpus_that_are_all_gone_are_told_of_and_the_process_goes_on_where_it_may():
    before = os.sched_getaffinity(0)
    assert not _pin((1000,))
    assert os.sched_getaffinity(0) == before
    assert _pin(())


def test_why_a_model_cannot_be_loaded_is_told_at_some_length_and_no_more():
    told = []
    control = SimpleNamespace(send=told.append)
    assert main._report(control, LoadReason.UNSUPPORTED_MODEL, "its type is " + "A" * 5_000_000) == 78
    assert told[0].message.startswith("its type is AAA")
    assert len(told[0].message) < 5000
