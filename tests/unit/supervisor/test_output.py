import errno
import io
import logging
import os
import threading
import time

import pytest

from supervisor import output as output_module
from supervisor.output import ChildLines, Output, OutputHandler

DUMP = ["Fatal Python error: Aborted", "", "Thread 0x1 (most recent call first):", '  File "a.py", line 1 in encode']


class Tty(io.StringIO):
    def isatty(self):
        return False


@pytest.fixture
def written(tmp_path):
    """Feed lines of a child's stderr; return what stands in the log file."""

    def feed(lines, style="plain"):
        path = tmp_path / "log"
        output = Output(str(path), Tty(), Tty())
        child = ChildLines("shard[en]", output, style)
        for line in lines:
            child.take(line)
        child.end()
        output.close()
        return path.read_text("utf-8").splitlines()

    return feed


def test_the_stacks_of_a_crash_are_one_block_under_the_name_of_the_process(written):
    head, *block = written(["before", *DUMP, "\x1eour own line"])[-3:]
    assert "shard[en] stacks of=Aborted" in head
    assert block == ["    | Thread 0x1 (most recent call first):", '    |   File "a.py", line 1 in encode']


def test_lines_of_ours_pass_in_between(written):
    assert "our own line" in written([*DUMP, "\x1eour own line"])


def test_in_json_the_block_is_one_event(written):
    (line,) = written(DUMP, "json")
    assert '"event": "stacks"' in line
    assert "in encode" in line


def test_a_dump_without_end_fills_no_memory(written):
    assert len(written([DUMP[0], *["  File"] * 5000])) <= 1001


def test_any_other_line_is_wrapped_as_it_comes(written):
    (line,) = written(["terminate called without an active exception"])
    assert "shard[en] stderr line=" in line


class Stuck(Tty):
    """A pipe whose reader has stopped: a write ends when ``go_on`` is set."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text):
        self.go_on.wait(20)
        return super().write(text)


def test_an_end_does_not_wait_for_an_output_that_takes_nothing_more(monkeypatch):
    monkeypatch.setattr(output_module, "_MAX_WAITING_LINES", 3)
    monkeypatch.setattr(output_module, "_LAST_LINES_S", 0.1)
    screen = Stuck()
    output = Output("", Tty(), screen)
    for number in range(10):
        output.log(f"line {number}")
    began_s = time.monotonic()
    output.close()
    assert time.monotonic() - began_s < 5
    screen.go_on.set()
    output._thread.join(10)  # or what it says last would fall into another test


def test_a_file_that_cannot_be_renamed_goes_on_and_it_is_said_once_in_a_while(tmp_path, monkeypatch, caplog):
    def refuse(_from, _to):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(output_module, "_MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(os, "rename", refuse)  # as in a directory of somebody else's
    path = tmp_path / "log"
    output = Output(str(path), Tty(), Tty())
    for number in range(40):
        output.log(f"line {number:02d} {'x' * 42}")
    output.close()
    assert [line[:7] for line in path.read_text("utf-8").splitlines()] == [f"line {number:02d}" for number in range(40)]
    assert [record.message for record in caplog.records] == ["log_not_rotated", "log_not_rotated"]


def test_five_files_are_kept_the_one_that_is_written_among_them(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module, "_MAX_FILE_BYTES", 100)
    output = Output(str(tmp_path / "log"), Tty(), Tty())
    for number in range(40):
        output.note(f"line {number:02d} {'x' * 42}")
    output.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3", "log.4"]


@pytest.mark.parametrize("away", [lambda path: path.rename(f"{path}.1"), lambda path: path.unlink()])
def test_a_file_that_somebody_has_renamed_or_deleted_is_made_anew(tmp_path, away):
    path = tmp_path / "log"
    file = output_module.RotatedFile(str(path))
    file.emit(logging.makeLogRecord({"msg": "before"}))
    away(path)
    file.emit(logging.makeLogRecord({"msg": "after"}))
    file.close()
    assert path.read_text("utf-8") == "after\n"


def test_two_servers_that_share_a_file_rotate_it_once_when_it_is_full(tmp_path):
    path = tmp_path / "log"
    files = [output_module.RotatedFile(str(path), maxBytes=500, backupCount=50) for _ in range(2)]
    for number in range(200):
        files[number % 2].emit(logging.makeLogRecord({"msg": f"line {number:03d}"}))
    for file in files:
        file.close()
    lines = [line for one in tmp_path.iterdir() for line in one.read_text("utf-8").splitlines()]
    assert sorted(lines) == [f"line {number:03d}" for number in range(200)]
    assert len(list(tmp_path.iterdir())) == 4  # 1800 bytes


def test_a_file_on_a_disk_without_room_ends_without_a_traceback():
    output = Output("/dev/full", Tty(), Tty())
    output.note("line")
    output.close()
    assert not output._thread.is_alive()


def test_lines_that_were_dropped_are_told_of_as_an_event(monkeypatch, caplog):
    monkeypatch.setattr(output_module, "_MAX_WAITING_LINES", 3)
    screen = Stuck()
    output = Output("", Tty(), screen)
    for number in range(10):
        output.log(f'{{"line": {number}}}')
    screen.go_on.set()
    output.close()
    assert [record.message for record in caplog.records] == ["lines_dropped"]
    assert all(line.startswith("{") and line.endswith("}") for line in screen.getvalue().splitlines())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_progress_stands_below_all_lines_and_is_gone_at_the_end():
    screen = Terminal()
    output = Output("", screen, screen)
    output.say("first")
    output.progress("50 %")
    output.say("said")
    output.log("logged")
    output.note("noted")
    output.progress("")
    output.say("last")
    output.progress("100 %")
    output.close()
    clear = "\r\x1b[K"
    below = f"{clear}50 %{clear}said\n50 %{clear}logged\n50 %{clear}"
    assert screen.getvalue() == f"first\n{below}last\n{clear}100 %{clear}"


def test_in_a_file_there_is_no_progress():
    screen = Tty()
    output = Output("", screen, screen)
    output.progress("50 %")
    output.say("said")
    output.close()
    assert screen.getvalue() == "said\n"


def test_a_log_file_that_cannot_be_made_is_told_of_and_the_screen_has_every_line(tmp_path):
    (tmp_path / "file").touch()
    screen = Tty()
    output = Output(str(tmp_path / "file" / "log"), screen, screen)
    output.log("logged")
    output.close()
    assert output.problem.startswith("no log file: ")
    assert screen.getvalue() == "logged\n"
    whole = Output(str(tmp_path / "log"), screen, screen)
    whole.close()
    assert whole.problem == ""


def test_a_named_pipe_takes_the_log_where_somebody_reads_it_and_holds_up_nobody_where_not(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    unread = Output(str(path), Tty(), Tty())
    unread.close()
    assert "no log file: " in unread.problem
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        output = Output(str(path), Tty(), Tty())
        output.note("a line")
        output.close()
        assert (output.problem, os.read(reader, 100)) == ("", b"a line\n")
    finally:
        os.close(reader)


@pytest.mark.parametrize(("style", "shown"), [("plain", ["heard"]), ("json", ["said", "heard"])])
def test_what_the_screen_says_in_other_words_is_for_the_file_alone_unless_the_screen_says_nothing(
    tmp_path, style, shown
):
    screen = Tty()
    output = Output(str(tmp_path / "log"), Tty(), screen)
    handler = OutputHandler(output, style)
    for event in ("said", "heard"):
        handler.emit(logging.makeLogRecord({"msg": event, "levelname": "INFO", "said": event == "said"}))
    output.close()
    for lines, events in ((screen.getvalue(), shown), ((tmp_path / "log").read_text("utf-8"), ["said", "heard"])):
        assert [event for event in ("said", "heard") if event in lines] == events


def test_a_second_process_of_the_same_name_does_not_write_the_stacks_of_the_first(tmp_path):
    output = Output(str(tmp_path / "log"), Tty(), Tty())
    child = ChildLines("shard[en]", output, "plain")
    for line in DUMP:
        child.take(line)
    child.end()
    child.end()
    output.close()
    assert (tmp_path / "log").read_text("utf-8").count("stacks of=Aborted") == 1
