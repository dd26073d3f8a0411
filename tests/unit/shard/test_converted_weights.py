"""Pickled weights that are converted once, and what replicas and dead processes leave of that."""

import json
import os
import shutil
import tempfile
import threading

import pytest
import torch
from safetensors.torch import load_file

from emb_model_provider.errors import LoadError, LoadReason
from shard.model_files import converted_weights
from shard.model_files.converted_weights import convert_once
from shard.model_files.weights import find_checkpoint, read_pickled
from tests.support.checkpoints import TENSORS, save_bin


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_pickle_is_converted_to_fp32_safetensors_once(folder, cache):
    save_bin(folder)
    converted = convert_once(find_checkpoint(folder), cache)
    tensors = load_file(converted / "model.safetensors")
    assert {key: value.dtype for key, value in tensors.items()} == dict.fromkeys(TENSORS, torch.float32)
    assert torch.equal(tensors["a.weight"], TENSORS["a.weight"].half().float())
    written_ns = (converted / "model.safetensors").stat().st_mtime_ns
    assert convert_once(find_checkpoint(folder), cache) == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == written_ns


def test_a_changed_pickle_is_converted_anew_and_the_old_result_is_deleted(folder, cache):
    save_bin(folder)
    first = convert_once(find_checkpoint(folder), cache)
    save_bin(folder, {"a.weight": torch.zeros(2, 3)})
    os.utime(folder / "pytorch_model.bin", ns=(1, 1))
    second = convert_once(find_checkpoint(folder), cache)
    assert second != first
    assert not first.exists()
    assert torch.count_nonzero(load_file(second / "model.safetensors")["a.weight"]) == 0
    assert [path.name for path in (cache / "converted").iterdir()] == [second.name]


@pytest.mark.parametrize("change", ["size", "time", "link"])
def test_whatever_tells_a_pickle_from_another_has_it_converted_anew(folder, cache, change):
    def write(name, tensors=TENSORS):
        save_bin(folder, tensors, name)
        os.utime(folder / name, ns=(5, 5))

    write("one")
    write("two")
    link = folder / "pytorch_model.bin"
    link.symlink_to("one")
    first = convert_once(find_checkpoint(folder), cache)
    if change == "size":
        write("one", {"a": torch.zeros(900)})
    elif change == "time":
        os.utime(folder / "one", ns=(6, 6))
    else:
        link.unlink()
        link.symlink_to("two")
    assert convert_once(find_checkpoint(folder), cache) != first


def test_what_a_killed_conversion_has_left_is_deleted_by_the_next(folder, cache, monkeypatch):
    def stop(_path):
        raise OSError

    save_bin(folder)
    with monkeypatch.context() as killed:
        killed.setattr("shard.model_files.converted_weights._flush", stop)
        killed.setattr("shard.model_files.converted_weights.shutil.rmtree", lambda *_arguments, **_options: None)
        assert convert_once(find_checkpoint(folder), cache) is None
    assert len(list((cache / "converted").iterdir())) == 1
    converted = convert_once(find_checkpoint(folder), cache)
    assert list((cache / "converted").iterdir()) == [converted]


def test_a_conversion_that_another_process_is_at_is_left_alone(folder, cache, monkeypatch):
    save_bin(folder)
    flush, others = converted_weights._flush, []

    def meanwhile(path):
        monkeypatch.setattr("shard.model_files.converted_weights._flush", flush)
        others.append(convert_once(find_checkpoint(folder), cache))
        flush(path)  # raises where the file is gone

    monkeypatch.setattr("shard.model_files.converted_weights._flush", meanwhile)
    assert convert_once(find_checkpoint(folder), cache) == others[0]
    assert list((cache / "converted").iterdir()) == others


@pytest.mark.parametrize("gone", ["complete", "model.safetensors"])
def test_a_conversion_of_which_a_part_is_gone_is_made_anew(folder, cache, gone):
    save_bin(folder)
    converted = convert_once(find_checkpoint(folder), cache)
    (converted / gone).unlink()
    assert convert_once(find_checkpoint(folder), cache) == converted
    assert load_file(converted / "model.safetensors").keys() == TENSORS.keys()
    written_ns = (converted / "model.safetensors").stat().st_mtime_ns
    assert convert_once(find_checkpoint(folder), cache) == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == written_ns
    assert list((cache / "converted").iterdir()) == [converted]


def test_two_that_begin_to_convert_in_the_same_moment_leave_each_other_alone(folder, cache, monkeypatch):
    save_bin(folder)
    make, others = tempfile.mkdtemp, []
    other = threading.Thread(target=lambda: others.append(convert_once(find_checkpoint(folder), cache)))

    def make_while_another_begins(*arguments, **options):
        monkeypatch.setattr("shard.model_files.converted_weights.tempfile.mkdtemp", make)
        made = make(*arguments, **options)
        other.start()
        other.join(0.1)
        return made

    monkeypatch.setattr("shard.model_files.converted_weights.tempfile.mkdtemp", make_while_another_begins)
    converted = convert_once(find_checkpoint(folder), cache)
    other.join()
    assert [converted] == others == list((cache / "converted").iterdir())


def test_tensors_that_share_memory_are_converted(folder, cache):
    weight = torch.ones(4, 2)
    torch.save({"a": weight, "tied": weight, "turned": weight.T}, folder / "pytorch_model.bin")
    tensors = load_file(convert_once(find_checkpoint(folder), cache) / "model.safetensors")
    assert tensors["turned"].shape == (2, 4)


def test_split_pickles_are_converted_to_split_safetensors(folder, cache):
    save_bin(folder, {"a": torch.ones(2)}, "pytorch_model-1.bin")
    save_bin(folder, {"b": torch.ones(3)}, "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    checkpoint = find_checkpoint(convert_once(find_checkpoint(folder), cache))
    assert [sorted(load_file(file)) for file in checkpoint.files] == [["a"], ["b"]]


def test_a_pickle_of_before_2020_is_read_and_what_is_no_tensor_is_left_out(folder, cache):
    path = folder / "pytorch_model.bin"
    torch.save({**TENSORS, "steps": 7}, path, _use_new_zipfile_serialization=False)
    assert read_pickled(path).keys() == TENSORS.keys()
    assert load_file(convert_once(find_checkpoint(folder), cache) / "model.safetensors").keys() == TENSORS.keys()


def test_whole_numbers_stay_whole(folder, cache):
    torch.save({"position_ids": torch.arange(3)}, folder / "pytorch_model.bin")
    tensors = load_file(convert_once(find_checkpoint(folder), cache) / "model.safetensors")
    assert tensors["position_ids"].dtype == torch.int64


def test_what_is_converted_may_be_read_by_whom_the_umask_lets(folder, cache):
    save_bin(folder)
    before = os.umask(0o027)
    try:
        converted = convert_once(find_checkpoint(folder), cache)
        assert (converted.stat().st_mode & 0o777, os.umask(0o027)) == (0o750, 0o027)
    finally:
        os.umask(before)


def test_models_in_two_folders_are_converted_side_by_side(folder, cache, tmp_path):
    save_bin(folder)
    shutil.copytree(folder, other := tmp_path / "other")
    both = {convert_once(find_checkpoint(one), cache) for one in (folder, other)}
    assert set((cache / "converted").iterdir()) == both
    assert len(both) == 2


def test_without_a_writable_cache_nothing_is_converted(folder, tmp_path):
    save_bin(folder)
    (tmp_path / "file").touch()
    assert convert_once(find_checkpoint(folder), tmp_path / "file" / "cache") is None


def test_a_failed_conversion_leaves_nothing_behind(folder, cache):
    torch.save([1, 2, 3], folder / "pytorch_model.bin")
    with pytest.raises(LoadError) as caught:
        convert_once(find_checkpoint(folder), cache)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS
    assert list((cache / "converted").iterdir()) == []
