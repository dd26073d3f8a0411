"""A shard that is to stop answers first what it has been asked."""

import threading

import pytest

from shard import main


class Scene:
    """Stands for channel and engine; what comes is asked in the moment after all before it was answered."""

    has_links = True

    def __init__(self, *comes: bool) -> None:
        self.requests_taken = 0
        self.has_answered = True
        self._comes = list(comes)

    def is_idle(self) -> bool:
        self.has_answered = not (self._comes and self._comes.pop(0))
        self.requests_taken += not self.has_answered
        return True


@pytest.mark.parametrize("comes", [(), (True,), (True, True), (False,)])
async def test_what_is_asked_in_the_moment_after_all_was_answered_is_waited_for(monkeypatch, comes):
    monkeypatch.setattr(main, "_QUIET_S", 0.001)
    scene = Scene(*comes)
    assert await main._drain(scene, scene, 10)
    assert scene.has_answered


async def test_no_thread_is_needed_to_wait_for_what_is_being_answered(monkeypatch):
    monkeypatch.setattr(main, "_QUIET_S", 0.001)
    looks = [False, False, True]
    scene = Scene()
    monkeypatch.setattr(scene, "is_idle", lambda: looks.pop(0))

    def refuse_to_start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    assert await main._drain(scene, scene, 10)
    assert looks == []


async def test_what_takes_too_long_is_not_waited_for(monkeypatch):
    scene = Scene()
    monkeypatch.setattr(scene, "is_idle", lambda: False)
    assert not await main._drain(scene, scene, 0.03)
