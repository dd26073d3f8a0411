"""One child process: what is told of one that cannot be made, and how one is asked to end."""

import asyncio
import errno
import os
import signal
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


async def test_a_child_that_a_signal_has_stopped_ends_by_itself_when_it_is_asked_to(tmp_path):
    code = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nsys.stderr.write('up\\n')\nsignal.pause()\n"
    (tmp_path / "sleeper.py").write_text(code)
    up = asyncio.Event()
    child = await spawn(Launch("sleeper", {"PYTHONPATH": str(tmp_path)}, ()), print, lambda _line: up.set())
    try:
        await asyncio.wait_for(up.wait(), 10)
        os.kill(child.pid, signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert child.is_stopped
        child.request_end()
        assert await asyncio.wait_for(child.wait(), 10) == 7
    finally:
        child.kill()


async def test_a_child_that_has_died_is_told_though_a_process_that_it_left_behind_holds_its_stderr(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("supervisor.child._LAST_WORDS_S", 0.05)
    number = tmp_path / "left"
    code = (
        "import os, pathlib, subprocess\n"
        "left = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"pathlib.Path({str(number)!r}).write_text(str(left.pid))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    before = open_descriptors()
    child = await spawn(Launch("parent", {"PYTHONPATH": str(tmp_path)}, ()), print, print)
    try:
        assert await asyncio.wait_for(child.wait(), 10) == -signal.SIGKILL
    finally:
        os.kill(int(number.read_text()), signal.SIGKILL)
    await asyncio.sleep(0)  # what was closed is let go of
    assert open_descriptors() == before
