"""A run directory that is full is a disk to be freed, and no crash."""

import errno
import os

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard.main import _make_box


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
