"""A router that can start no thread ends with a code by which the supervisor knows what to tell the operator."""

import faulthandler

import pytest

from emb_model_provider.errors import EXIT_NO_THREAD
from emb_model_provider.messages.configs import LogConfig, RouterConfig, Surroundings
from emb_model_provider.messages.status import ShardTable
from router import main


class Control:
    """Stands for the channel to the supervisor, which finds no thread to hear it."""

    def __init__(self, *told) -> None:
        self._told = list(told)

    def receive_first(self, _kind):
        return self._told.pop(0)

    def post(self, _message) -> None:
        raise RuntimeError("can't start new thread")

    watch = post


def test_without_a_thread_that_hears_the_supervisor(monkeypatch, tmp_path):
    around = Surroundings(run_directory=str(tmp_path))
    config = RouterConfig(LogConfig("INFO", "plain"), (), 1.0, 1, 1.0, around=around)
    monkeypatch.setattr(main, "start_child", lambda _arguments: Control(config, ShardTable(())))
    monkeypatch.setattr(main, "configure_child_logs", lambda *_arguments: None)
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    with pytest.raises(SystemExit) as caught:
        main.main([])
    assert caught.value.code == EXIT_NO_THREAD
