"""A reader that stops costs lines, which are counted, and nobody's time."""

import fcntl
import os

import pytest

from emb_model_provider.log_pipe import LogPipe, open_log_pipe

LINE = b"x" * 99 + b"\n"
CAPACITY = 64 * 1024


@pytest.fixture
def ends():
    """The reading end and the writer of a small pipe."""
    reading, writing = os.pipe()
    pipe = open_log_pipe(writing, lambda lines: f"dropped {lines}\n")
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, CAPACITY)
    yield reading, pipe
    for descriptor in (reading, writing, pipe.fileno()):
        os.close(descriptor)


def read_all(reading: int) -> bytes:
    os.set_blocking(reading, False)
    found = b""
    while True:
        try:
            found += os.read(reading, 1 << 20)
        except BlockingIOError:
            return found


def test_a_line_is_in_the_pipe_when_the_call_returns_so_that_it_outlives_a_crash(ends):
    reading, pipe = ends
    assert pipe.write(LINE) == len(LINE)
    assert os.read(reading, 1000) == LINE


def test_lines_that_find_the_pipe_full_are_dropped_counted_and_told_of_without_another_line(ends):
    reading, pipe = ends
    for _ in range(2000):
        pipe.write(LINE)
    kept = read_all(reading)
    assert kept == LINE * (len(kept) // len(LINE))
    assert CAPACITY // 2 < len(kept) <= CAPACITY
    pipe.flush()
    assert read_all(reading) == f"dropped {2000 - len(kept) // len(LINE)}\n".encode()
    pipe.write(LINE)
    pipe.flush()
    assert read_all(reading) == LINE


def test_the_count_stands_before_the_next_line(ends):
    reading, pipe = ends
    for _ in range(2000):
        pipe.write(LINE)
    kept = len(read_all(reading)) // len(LINE)
    pipe.write(b"next\n")
    assert read_all(reading) == f"dropped {2000 - kept}\nnext\n".encode()


def test_a_text_longer_than_the_pipe_arrives_in_parts_and_nothing_comes_between_them(ends):
    reading, pipe = ends
    text = b"".join(b"%d\n" % number for number in range(30_000))
    pipe.write(text)
    pipe.write(LINE)
    found = b""
    while part := read_all(reading):
        found += part
        pipe.flush()
    assert found == text + b"dropped 1\n"


class NarrowPipe(LogPipe):
    """A pipe that takes four bytes at a time, as one does whose reader reads between two writes."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, lambda lines: f"-{lines}\n")
        self.taken, self.has_room = b"", True

    def _has_room(self) -> bool:
        return self.has_room

    def _put(self, data: bytes) -> int:
        self.taken += data[:4]
        return len(data[:4])


@pytest.fixture
def narrow(ends):
    return NarrowPipe(ends[1].fileno())


def test_nothing_comes_between_the_parts_of_a_line_however_they_are_taken(narrow):
    for line in (b"0123456789abcdef\n", b"x\n", b"y\n"):
        narrow.write(line)
    for _ in range(4):
        narrow.flush()
    assert narrow.taken == b"0123456789abcdef\n-2\n"


def test_no_line_overtakes_the_count_of_those_before_it(narrow):
    narrow.has_room = False
    for line in (b"01234567\n", b"x\n", b"y\n", b"z\n"):
        narrow.write(line)
    narrow.has_room = True
    narrow.write(b"end")
    assert narrow.taken == b"01234567\n-3\nend"


def test_what_others_write_to_the_same_pipe_still_waits():
    reading, writing = os.pipe()
    again = open_log_pipe(writing, str)
    assert os.get_blocking(writing)
    assert not os.get_blocking(again.fileno())
    for descriptor in (reading, writing, again.fileno()):
        os.close(descriptor)


def test_a_reader_that_has_gone_is_no_error():
    reading, writing = os.pipe()
    orphan = open_log_pipe(writing, str)
    os.close(reading)
    assert orphan.write(LINE) == len(LINE)
    for descriptor in (writing, orphan.fileno()):
        os.close(descriptor)


def test_what_is_no_pipe_stays_what_it_is(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        assert open_log_pipe(file.fileno(), str) is None
