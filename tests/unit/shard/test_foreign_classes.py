"""Classes of other repositories come from the directories that were fetched, one process at a time."""

import fcntl
import os
import threading

import pytest
from transformers import dynamic_module_utils

from emb_model_provider.errors import LoadError
from shard.encoders import foreign_classes
from shard.encoders.foreign_classes import take_classes_from


@pytest.fixture(autouse=True)
def asked(monkeypatch, tmp_path):
    """What transformers is asked for in the end, by whoever asks it from now on."""
    places = []
    monkeypatch.setattr(foreign_classes, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(
        dynamic_module_utils, "get_cached_module_file", lambda place, file, **_: places.append(place) or file
    )
    return places


def find(repository: object) -> object:
    return dynamic_module_utils.get_cached_module_file(repository, "modeling.py", revision=None)


def test_files_of_a_repository_are_those_of_its_directory_and_others_are_asked_for_as_ever(tmp_path, asked):
    (tmp_path / "code").mkdir()
    take_classes_from({"o/code": tmp_path / "code"})
    assert find("o/code") == "modeling.py"
    find(str(tmp_path))
    find("o/other")
    assert asked == [tmp_path / "code", tmp_path, "o/other"]


def test_code_that_has_changed_since_is_not_taken_for_what_was_fetched(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/modeling.py").write_text("factor = 1\n")
    take_classes_from({"o/code": tmp_path / "code"})
    find("o/code")
    (tmp_path / "code/modeling.py").write_text("factor = 10\n")
    with pytest.raises(LoadError, match="has changed since"):
        find("o/code")


def test_one_process_at_a_time_looks_into_the_copies_that_all_share(tmp_path, asked):
    take_classes_from({})
    find(tmp_path)
    lock = os.open(tmp_path / "modules/.emb-provider.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    second = threading.Thread(target=find, args=(tmp_path,))
    second.start()
    second.join(0.1)
    assert (second.is_alive(), len(asked)) == (True, 1)
    os.close(lock)
    second.join(10)
    assert len(asked) == 2


def test_copies_that_cannot_be_locked_or_written_are_read_all_the_same(tmp_path, asked):
    (tmp_path / "modules").write_text("a file in its place")
    take_classes_from({})
    find(tmp_path)
    assert asked == [tmp_path]
