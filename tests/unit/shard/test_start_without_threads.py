"""A shard that can start no thread ends with a code by which the supervisor knows what to tell the operator."""

import faulthandler
import sys
import threading

import pytest

from emb_model_provider.errors import EXIT_NO_THREAD
from emb_model_provider.messages.configs import Hubs, LogConfig, ShardConfig
from emb_model_provider.modelmap import ModelSpec
from shard import main

SPEC = ModelSpec(id="m", name="owner/model", source="local")
CONFIG = ShardConfig(SPEC, Hubs(), LogConfig("INFO", "plain"), 1, "cpu", 1, (), (), "/nowhere/s0-1.sock", "", 1.0)


def refuse(*_arguments):
    raise RuntimeError("can't start new thread")


class Control:
    """Stands for the channel to the supervisor."""

    def receive_first(self, _kind):
        return CONFIG

    def watch(self, _on_message) -> None:
        """Listen to nobody."""


@pytest.fixture
def begun(monkeypatch):
    """The channel of a shard that begins and leaves this process as it is."""
    control = Control()
    monkeypatch.setattr(main, "start_child", lambda _arguments: control)
    monkeypatch.setattr(main, "configure_child_logs", lambda *_arguments: None)
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda _s: None)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    return control


def ended() -> object:
    with pytest.raises(SystemExit) as caught:
        main.main([])
    return caught.value.code


def test_without_a_thread_that_hears_the_supervisor(begun, monkeypatch):
    monkeypatch.setattr(begun, "watch", refuse)
    assert ended() == EXIT_NO_THREAD


def test_without_a_lane(begun, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert ended() == EXIT_NO_THREAD


def test_without_the_threads_that_serve(begun, monkeypatch):
    monkeypatch.setattr(main, "_prepare", lambda *_arguments: None)
    monkeypatch.setattr(main, "_serve", refuse)
    assert ended() == EXIT_NO_THREAD


def test_any_other_mistake_keeps_its_traceback(begun, monkeypatch):
    def fail(_on_message):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(begun, "watch", fail)
    with pytest.raises(RuntimeError, match="no such thing"):
        main.main([])
