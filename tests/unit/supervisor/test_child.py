"""What is told of a child that cannot be made."""

import asyncio
import errno
from pathlib import Path

import pytest

from emb_model_provider.messages.status import LoadFailed
from supervisor.child import Launch, spawn


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_process_without_a_thread_to_wait_for_it_is_one_that_could_not_be_made(monkeypatch):
    async def no_thread(*_command, **_options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_thread)
    before = open_descriptors()
    with pytest.raises(OSError, match="can't start new thread") as caught:
        await spawn(Launch("shard", {}, ()), lambda _message: None, lambda _line: None)
    assert caught.value.errno == errno.EAGAIN, "the keeper names the limits for it"
    assert open_descriptors() == before


@pytest.mark.parametrize(("is_gone", "is_replaced"), [(False, False), (True, False), (True, True)])
async def test_a_process_has_a_directory_to_work_in_also_where_ours_is_gone(
    monkeypatch, tmp_path, is_gone, is_replaced
):
    made_in = []

    async def make(*_command, cwd, **_options):
        made_in.append(cwd)
        raise RuntimeError("no thread")

    (home := tmp_path / "home").mkdir()
    monkeypatch.chdir(home)
    if is_gone:
        home.rmdir()
    if is_replaced:  # what the settings name relative to it is there again
        home.mkdir()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", make)
    with pytest.raises(OSError, match="no thread"):
        await spawn(Launch("shard", {}, ()), print, print)
    assert made_in == [None if not is_gone else str(home) if is_replaced else "/"]


async def test_what_cannot_be_packed_leaves_no_process_that_waits_for_it(monkeypatch):
    made = []

    async def make(*command, **_options):
        made.append(command)
        raise RuntimeError

    monkeypatch.setattr(asyncio, "create_subprocess_exec", make)
    before = open_descriptors()
    with pytest.raises(UnicodeEncodeError):
        await spawn(Launch("shard", {}, (LoadFailed("internal", "/home/\udcd5\udcc5"),)), print, print)
    assert not made
    assert open_descriptors() == before
