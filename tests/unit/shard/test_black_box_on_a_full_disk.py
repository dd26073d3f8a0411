"""A run directory that is full is a disk to be freed, and no crash."""

import errno
import os

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard import main
from shard.main import _bind, _make_box


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_run_directory_without_room_is_named_as_a_full_disk(tmp_path, monkeypatch, number):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(LoadError, match=str(tmp_path)) as caught:
        _make_box(tmp_path / "s0-1.sock", 1)
    assert caught.value.reason == LoadReason.DISK_FULL


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
