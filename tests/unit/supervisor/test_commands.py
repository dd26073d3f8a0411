"""Which server a command means, and when one that waits has what it waits for."""

import argparse
import sys
from pathlib import Path

import pytest

from emb_model_provider.errors import ConfigurationError
from supervisor.commands import _find, _outcome, add_commands
from supervisor.control import NotRunningError, Request
from supervisor.report import ModelReport, RouterReport, ServerReport

READY = ModelReport("en", "ready")
SETTLED = RouterReport()


def report(*models: ModelReport, router: RouterReport = SETTLED) -> ServerReport:
    return ServerReport("1", 1, "http://here", "/run/here", "serving", 1.0, 1.0, router=router, models=models)


@pytest.mark.parametrize(
    ("models", "outcome"),
    [
        ((READY, ModelReport("zh", "ready")), 0),
        ((READY, ModelReport("zh", "loading")), None),
        ((READY, ModelReport("zh", "ready", renewing=True)), None),
        ((READY, ModelReport("zh", "failed")), 1),
        ((READY, ModelReport("zh", "ready", reason="not_replaced")), 1),
        # What it failed of was with settings that are about to be replaced: its turn has not come.
        ((READY, ModelReport("zh", "failed", renewing=True)), None),
        ((READY, ModelReport("zh", "ready", reason="not_replaced", renewing=True)), None),
    ],
)
def test_a_reload_is_done_when_every_model_serves_with_the_newest_settings(models, outcome):
    assert _outcome(report(*models), Request("reload")) == outcome


def test_why_a_model_cannot_serve_gives_a_terminal_no_orders(capsys):
    _outcome(
        report(ModelReport("zh", "failed", reason="unsupported_model", detail="\x1b[2J\nen: ready")), Request("reload")
    )
    assert capsys.readouterr().err == "zh: unsupported_model: \\u001b[2J\\u000aen: ready\n"


def test_a_reload_is_not_done_while_a_router_with_older_settings_answers():
    before = report(READY, router=RouterReport(renewing=True))
    assert _outcome(before, Request("reload")) is None
    assert _outcome(before, Request("restart", "en")) == 0, "which router asks a model is all the same to it"


def test_who_changes_the_run_directory_under_a_running_server_is_told_how_to_reach_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EMB_PROVIDER_RUN_DIR", str(tmp_path / "new"))
    with pytest.raises(NotRunningError, match=r"with the run directory .*new\. .*name that one with --run-dir"):
        _find(None, None)
    with pytest.raises(NotRunningError, match=r"with the run directory .*other\.$"):
        _find(Path(tmp_path / "other"), None)


def test_a_run_directory_that_python_cannot_name_here_is_told_with_what_to_set(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setenv("EMB_PROVIDER_RUN_DIR", "/run/向量")
    with pytest.raises(ConfigurationError, match=r"EMB_PROVIDER_RUN_DIR='/run/向量' .*ascii lacks.*PYTHONUTF8=1"):
        _find(None, None)


def test_from_a_directory_that_is_gone_a_relative_one_is_no_running_server(tmp_path, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotRunningError):
        _find(Path("run"), None)


@pytest.mark.parametrize("text", ["soon", "nan", "inf", "1_000", "１２", "-5", ""])
def test_a_time_to_wait_that_is_none_is_refused_before_anything_is_asked_for(text, capsys):
    parser = argparse.ArgumentParser()
    add_commands(parser)
    assert parser.parse_args(["stop", "--wait", "2.5"]).wait == 2.5
    with pytest.raises(SystemExit):
        parser.parse_args(["stop", "--wait", text])
    assert "must be a number of seconds, such as 60" in capsys.readouterr().err
