import signal

import pytest

from supervisor import hang_up
from supervisor.hang_up import HangUp


def asked(monkeypatch, *, before: bool, after: bool) -> list[str]:
    """Return what a SIGHUP asks for, of a process that has a terminal at its start and when the signal comes."""
    done: list[str] = []
    monkeypatch.setattr(hang_up, "_has_terminal", lambda: before)
    handler = HangUp(lambda: done.append("stop"), lambda: done.append("reload"))
    monkeypatch.setattr(hang_up, "_has_terminal", lambda: after)
    handler()
    return done


@pytest.fixture(autouse=True)
def as_usual():
    """Whatever whoever runs the tests has made of the signal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def under_nohup(as_usual):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("before", "after", "asked_for"),
    [(True, False, "stop"), (True, True, "reload"), (False, False, "reload")],
)
def test_a_terminal_that_has_gone_means_stop_and_anything_else_reload(monkeypatch, before, after, asked_for):
    assert asked(monkeypatch, before=before, after=after) == [asked_for]


def test_who_was_started_to_outlive_the_terminal_does_and_can_still_be_told_to_reload(monkeypatch, under_nohup):
    assert asked(monkeypatch, before=True, after=False) == ["reload"]
    assert asked(monkeypatch, before=True, after=True) == ["reload"]
