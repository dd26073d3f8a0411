import gc
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.black_box import MAX_ENTRIES, BlackBox, BlackBoxReader, box_path

pairs = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2**63)), max_size=30)


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), pairs)), max_size=30))
def test_the_reader_sees_what_each_slot_is_at_and_no_other_links_requests(tmp_path_factory, steps):
    path = box_path(tmp_path_factory.mktemp("box") / "s.sock")
    box, reader = BlackBox(path, 5), BlackBoxReader(path)
    expected: dict[int, list[tuple[int, int]]] = {}
    for slot, entered in steps:
        if entered is None:
            box.leave(slot)
            expected.pop(slot, None)
        else:
            box.enter(slot, entered)
            expected[slot] = entered
    for link in (1, 2, 3):
        assert reader.requests_of(link) == {i for slot in expected.values() for number, i in slot if number == link}
    reader.close()


def test_more_requests_than_a_slot_holds_are_unknown_and_not_none_at_all(tmp_path):
    box, reader = BlackBox(tmp_path / "b", 2), BlackBoxReader(tmp_path / "b")
    box.enter(1, [(1, i) for i in range(MAX_ENTRIES)])
    assert len(reader.requests_of(1)) == MAX_ENTRIES
    box.enter(1, [(1, i) for i in range(MAX_ENTRIES + 1)])
    assert reader.requests_of(1) is None


def test_its_pages_are_there_before_they_are_written_to(tmp_path):
    """A run directory that is full later is no reason to die in the midst of a batch."""
    BlackBox(tmp_path / "b", 5)
    found = (tmp_path / "b").stat()
    assert found.st_blocks * 512 >= found.st_size > 0


def test_each_side_holds_one_descriptor_and_none_once_it_is_closed(tmp_path):
    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    box, reader = BlackBox(tmp_path / "b", 1), BlackBoxReader(tmp_path / "b")
    assert held() == before + 2
    reader.close()
    assert held() == before + 1
    del box
    gc.collect()
    assert held() == before


def test_what_a_killed_process_was_at_can_be_read_afterwards_even_when_the_file_is_gone(tmp_path):
    path = tmp_path / "b"
    BlackBox(path, 1)
    reader = BlackBoxReader(path)
    path.unlink()
    code = (
        "import os, signal; from pathlib import Path; from emb_model_provider.black_box import BlackBox;"
        f"BlackBox(Path({str(path)!r}), 1).enter(0, [(7, 42)]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert BlackBoxReader(path).requests_of(7) == {42}
    assert reader.requests_of(7) == frozenset()


def test_the_file_is_its_owners_alone_and_never_taken_from_another(tmp_path):
    BlackBox(tmp_path / "b", 1)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        BlackBox(tmp_path / "b", 1)
