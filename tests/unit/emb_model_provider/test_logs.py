import json
import logging
import os
import shlex
import subprocess
import sys

import pytest

from emb_model_provider.logs import MARK, EventFormatter, EventLog, configure_child_logs, escape


def formatted(style: str, write) -> str:
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("test.logs")
    handler = logging.Handler()
    handler.emit = records.append
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    write(EventLog("test.logs"))
    return EventFormatter("shard[a#1]", style).format(records[0])


def test_a_plain_line_holds_time_level_process_event_and_values():
    line = formatted("plain", lambda log: log.info("model_loaded", dimension=384, note="two words", empty=""))
    assert line.endswith('INFO    shard[a#1] model_loaded dimension=384 note="two words" empty=""')


def test_a_value_with_a_backslash_is_in_quotes_so_that_it_cannot_join_the_next_one():
    line = formatted("plain", lambda log: log.info("failed", path="C:\\", status=500))
    assert shlex.split(line)[-2:] == ["path=C:\\", "status=500"]


def test_a_number_is_short_in_a_plain_line_and_what_has_no_value_is_left_out():
    line = formatted("plain", lambda log: log.info("measured", took_ms=1 / 3, count=1234567, who=None))
    assert line.endswith("measured took_ms=0.333333 count=1234567")


def test_what_the_terminal_has_said_already_is_marked_for_it():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.getMessage(), record.levelname, record.said))
    logger = logging.getLogger("test.logs.said")
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    log = EventLog("test.logs.said")
    log.said("told")
    log.info("new")
    log.debug("not wanted")
    assert said == [("told", "INFO", True), ("new", "INFO", False)]


def test_a_json_line_is_one_object_with_types_kept():
    line = formatted("json", lambda log: log.warning("slow", took_ms=1.5, ok=False, who=None))
    body = json.loads(line)
    assert (body["event"], body["level"], body["took_ms"], body["ok"], body["who"]) == (
        "slow",
        "warning",
        1.5,
        False,
        None,
    )


def test_a_value_from_outside_cannot_forge_a_second_line_or_reorder_the_terminal():
    line = formatted("plain", lambda log: log.error("bad", model="a\n2026 INFO forged\u202etxt\x1b[2J"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\\u000a" in line
    assert "\\u202e" in line


def test_a_traceback_stands_below_its_event_one_marked_line_each():
    def crash(log: EventLog) -> None:
        try:
            raise ValueError("broken\nline")
        except ValueError:
            log.exception("crashed")

    first, *rest = formatted("plain", crash).splitlines()
    assert first.endswith("crashed")
    assert rest[0] == "    | Traceback (most recent call last):"
    assert rest[-1] == "    | line"
    assert "broken" in json.loads(formatted("json", crash))["trace"]


def test_a_very_long_value_is_cut():
    assert len(escape("x" * 10_000)) < 2_100


def test_a_json_line_is_json_whatever_a_number_is_and_never_longer_than_the_supervisor_takes_at_once():
    def fail(log):
        try:
            raise ValueError("汉" * 100_000)
        except ValueError:
            log.exception("failed", cosine=float("nan"), least=float("-inf"))

    line = formatted("json", fail)
    body = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (body["cosine"], body["least"], body["trace"][-1]) == ("nan", "-inf", "汉")
    assert len(line) < 64 * 1024


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-8"])
def test_what_a_child_writes_is_utf_8_whatever_the_terminal_is(encoding):
    program = """
from emb_model_provider.logs import EventLog, configure_child_logs
configure_child_logs("shard", "INFO", "plain")
EventLog("shard").info("model_loaded", path="/数据/模型")
"""
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], env=env, stderr=subprocess.PIPE, timeout=30, check=True)
    assert "path=/数据/模型" in done.stderr.decode("utf-8")


@pytest.fixture
def own_logs():
    """Leave the logs of the tests as they were."""
    root, library = logging.getLogger(), logging.getLogger("httpx")
    handlers, levels = root.handlers[:], (root.level, library.level)
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    library.setLevel(levels[1])


@pytest.mark.usefixtures("own_logs")
@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("DEBUG", ["our debug", "our warning", "its warning", "its error"]),
        ("WARNING", ["our warning", "its warning", "its error"]),
        ("ERROR", ["its error"]),
    ],
)
def test_a_child_marks_each_line_and_of_a_library_shows_what_is_wrong_if_that_is_asked_for(capsys, level, events):
    configure_child_logs("shard[en]", level, "plain")
    ours, library = EventLog("ours"), logging.getLogger("httpx")
    assert ours.shows_debug() is (level == "DEBUG")
    ours.debug("our debug")
    ours.warning("our warning")
    library.info("its info")
    library.warning("its warning")
    library.error("its error")
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert [line.partition(" shard[en] ")[2] for line in lines] == events
    assert all(line.startswith(MARK) for line in lines)
