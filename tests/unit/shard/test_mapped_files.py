"""Who writes into a file that a model computes from changes the model; who puts another in its place does not."""

import mmap
import os
from pathlib import Path

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import FatalDeviceError
from shard.mapped_files import MappedFiles, have_changed, states_below


@pytest.fixture
def weights(tmp_path):
    """A mapped file of weights."""
    path = tmp_path / "模型 1" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"w" * 5000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        yield path


@pytest.fixture
def watch():
    made = []

    def begin(before) -> MappedFiles:
        made.append(MappedFiles(before))
        return made[-1]

    yield begin
    for files in made:
        files.close()


def write_into(path, data=b"x"):
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # clocks of file systems are coarse


def replace(path):
    successor = path.with_name("new")
    successor.write_bytes(b"n" * 5000)
    successor.rename(path)


def test_a_file_that_is_written_to_is_not_computed_from_any_more(weights, watch, caplog):
    files = watch(states_below(weights.parent))
    files.check()
    write_into(weights)
    with pytest.raises(FatalDeviceError, match=r"model\.safetensors was written to"):
        files.check()
    assert caplog.messages == ["weights_changed"]


def test_so_is_one_that_is_cut_off(weights, watch):
    files = watch(states_below(weights.parent))
    os.truncate(weights, 4096)
    with pytest.raises(FatalDeviceError):
        files.check()


def test_a_file_that_is_replaced_or_removed_still_serves(weights, watch):
    files = watch(states_below(weights.parent))
    replace(weights)
    files.check()
    weights.unlink()
    files.check()


@pytest.mark.parametrize("change", [write_into, replace])
def test_a_file_that_changes_while_it_is_loaded_is_loaded_once_more(weights, change):
    before = states_below(weights.parent)
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        change(weights)
        with weights.open("rb") as newer, mmap.mmap(newer.fileno(), 0, access=mmap.ACCESS_READ):
            refuse(before)


def refuse(before):
    with pytest.raises(LoadError, match="has changed while it was being loaded") as caught:
        MappedFiles(before)
    assert caught.value.reason is LoadReason.CORRUPT_DOWNLOAD


def test_a_cache_of_links_to_files_without_an_ending_is_watched_too(weights, watch, tmp_path):
    blob = tmp_path / "5eb63bbbe01eeed0"
    weights.rename(blob)
    weights.symlink_to(blob)
    files = watch(states_below(weights.parent))
    write_into(blob)
    with pytest.raises(FatalDeviceError):
        files.check()


def test_one_that_is_gone_before_anybody_looks_cannot_be_written_to(weights, watch):
    before = states_below(weights.parent)
    weights.unlink()
    watch(before).check()


@pytest.mark.parametrize("name", [b"\xff", b"a\nb"], ids=["no text", "two lines"])
def test_a_mapped_file_of_a_name_that_cannot_be_read_keeps_no_model_from_being_loaded(name, watch, tmp_path):
    odd = tmp_path / os.fsdecode(name) / "model.safetensors"
    odd.parent.mkdir()
    odd.write_bytes(b"o" * 5000)
    with odd.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        watch({}).check()


def test_weights_that_were_made_of_a_models_files_are_watched_and_files_of_others_are_not(weights, watch, tmp_path):
    other = tmp_path / "library.so"
    other.write_bytes(b"o" * 5000)
    with other.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        files = watch({})
        write_into(other)
        files.check()
    write_into(weights)
    with pytest.raises(FatalDeviceError):
        files.check()


def count_open(path) -> int:
    return sum(one.is_symlink() and one.resolve() == path.resolve() for one in Path("/proc/self/fd").iterdir())


def test_whoever_has_looked_holds_no_file_open_any_longer(weights, watch):
    before, held = states_below(weights.parent), count_open(weights)
    files = watch(before)
    assert count_open(weights) == held + 1
    for _ in range(2):
        files.close()
    write_into(weights)
    refuse(before)
    assert count_open(weights) == held
    files.check()


def test_files_that_are_written_to_replaced_cut_off_or_gone_have_changed_and_new_ones_are_no_change(weights):
    directory = weights.parent
    (directory / "sub").mkdir()
    before = states_below(directory)
    (directory / "sub" / "new").write_text("")
    (directory / "nowhere").symlink_to(directory / "gone")
    assert not have_changed(directory, before)
    assert set(states_below(directory)) - set(before) == {directory.resolve() / "sub" / "new"}
    for change in (write_into, replace, lambda path: os.truncate(path, 10), lambda path: path.unlink()):
        before, state = states_below(directory), weights.stat()
        change(weights)
        if weights.exists() and change is not write_into:
            os.utime(weights, ns=(0, state.st_mtime_ns))  # as rsync -t and cp -p have it
        assert have_changed(directory, before), change
