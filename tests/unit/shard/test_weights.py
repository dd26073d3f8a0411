"""Checkpoints: whole or not, hostile or not, converted once."""

import json
import os
import shutil
import tempfile
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_model_provider.errors import LoadError, LoadReason
from shard import weights
from shard.weights import check_filled, check_unscaled, convert_once, find_checkpoint, read_pickled, weight_files

TENSORS = {"a.weight": torch.arange(6).reshape(2, 3) / 7, "b.bias": torch.ones(3)}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def save_bin(folder, tensors=TENSORS, name="pytorch_model.bin"):
    torch.save({key: value.half() for key, value in tensors.items()}, folder / name)


def reason_of(action):
    with pytest.raises(LoadError) as caught:
        action()
    return caught.value.reason


def test_safetensors_are_preferred_to_a_pickle(folder):
    save_bin(folder)
    save_file(TENSORS, folder / "model.safetensors")
    assert not find_checkpoint(folder).pickled


def test_no_weights_at_all_is_an_incomplete_download(folder):
    assert reason_of(lambda: find_checkpoint(folder)) is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 40, 0.5, -1])
def test_a_short_file_is_an_incomplete_download_and_named(folder, name, keep):
    save_bin(folder) if name.endswith(".bin") else save_file(TENSORS, folder / name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * keep)] if isinstance(keep, float) else content[:keep])
    with pytest.raises(LoadError, match=name) as caught:
        find_checkpoint(folder)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


def test_a_git_lfs_pointer_is_recognised(folder):
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(LoadError, match="git-lfs"):
        find_checkpoint(folder)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"Invalid username or password.", b'{"error": "no"}'])
def test_a_page_that_was_saved_in_place_of_the_weights_is_no_hostile_pickle(folder, content):
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(LoadError, match="perhaps a hub's page") as caught:
        find_checkpoint(folder)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\x80\x02\x8a", "index out of range"), (b"\x80\x02", "it ends too early"), (b"\x80\x02h\x05", "5")],
)
def test_a_pickle_that_is_broken_is_called_that(folder, content, said):
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(LoadError, match=f"cannot be read as weights: .*{said}") as caught:
        read_pickled(find_checkpoint(folder).files[0])
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS


def test_a_missing_part_of_split_weights_is_named(folder):
    save_file({"a": TENSORS["a.weight"]}, folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"model-2\.safetensors"):
        find_checkpoint(folder)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"a": "../secret.safetensors"}}',
        '{"weight_map": {"a": "../secret.safetensors", "b": "part.safetensors"}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "..", "b": "part.safetensors"}}',
        "[" * 100_000 + "]" * 100_000,
        "[]",
        "{}",
        '{"weight_map": {}}',
    ],
    ids=["outside", "partly outside", "no name", "folder", "nested", "list", "empty", "nothing"],
)
def test_an_index_that_points_outside_or_is_none_is_refused(folder, index):
    for path in (folder.parent / "secret.safetensors", folder / "part.safetensors"):
        save_file(TENSORS, path)
    (folder / "model.safetensors.index.json").write_text(index)
    assert reason_of(lambda: find_checkpoint(folder)) is LoadReason.INCOMPLETE_DOWNLOAD


def test_a_hostile_pickle_is_refused_and_runs_nothing(folder, tmp_path):
    marker = tmp_path / "was-here"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({**TENSORS, "hostile": Hostile()}, folder / "pytorch_model.bin")
    assert reason_of(lambda: read_pickled(folder / "pytorch_model.bin")) is LoadReason.WRONG_WEIGHTS
    assert not marker.exists()


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
        killed.setattr("shard.weights._flush", stop)
        killed.setattr("shard.weights.shutil.rmtree", lambda *_arguments, **_options: None)
        assert convert_once(find_checkpoint(folder), cache) is None
    assert len(list((cache / "converted").iterdir())) == 1
    converted = convert_once(find_checkpoint(folder), cache)
    assert list((cache / "converted").iterdir()) == [converted]


def test_a_conversion_that_another_process_is_at_is_left_alone(folder, cache, monkeypatch):
    save_bin(folder)
    flush, others = weights._flush, []

    def meanwhile(path):
        monkeypatch.setattr("shard.weights._flush", flush)
        others.append(convert_once(find_checkpoint(folder), cache))
        flush(path)  # raises where the file is gone

    monkeypatch.setattr("shard.weights._flush", meanwhile)
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
        monkeypatch.setattr("shard.weights.tempfile.mkdtemp", make)
        made = make(*arguments, **options)
        other.start()
        other.join(0.1)
        return made

    monkeypatch.setattr("shard.weights.tempfile.mkdtemp", make_while_another_begins)
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


def test_the_weights_of_several_folders_are_each_file_once_and_a_folder_may_have_none(folder, tmp_path):
    save_bin(folder)
    assert weight_files([tmp_path, folder, folder]) == [folder / "pytorch_model.bin"]


def test_without_a_writable_cache_nothing_is_converted(folder, tmp_path):
    save_bin(folder)
    (tmp_path / "file").touch()
    assert convert_once(find_checkpoint(folder), tmp_path / "file" / "cache") is None


def test_a_failed_conversion_leaves_nothing_behind(folder, cache):
    torch.save([1, 2, 3], folder / "pytorch_model.bin")
    assert reason_of(lambda: convert_once(find_checkpoint(folder), cache)) is LoadReason.WRONG_WEIGHTS
    assert list((cache / "converted").iterdir()) == []


def test_a_missing_parameter_is_wrong_weights_and_named(folder):
    with pytest.raises(LoadError, match=r"5 parameter.*encoder\.k0.*and 1 more") as caught:
        check_filled([f"encoder.k{number}" for number in range(5)], [], folder, needs_pooler=False)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS


def test_four_names_are_all_that_are_missing(folder):
    with pytest.raises(LoadError, match=r"4 parameter.*\(a, b, c, d\)"):
        check_filled(list("dbac"), [], folder, needs_pooler=False)


def test_a_parameter_of_another_shape_is_wrong_weights_and_named(folder):
    with pytest.raises(LoadError, match=r"do not fit .* 1 parameter\(s\) have another shape \(a\.weight\)") as caught:
        check_filled([], ["a.weight"], folder, needs_pooler=False)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS


@pytest.mark.parametrize("scales", ["weight_scale", "weight_scale_inv", "weight_scale_2", "SCB"])
def test_scales_that_are_left_over_are_those_of_weights_that_nobody_scaled(folder, scales):
    with pytest.raises(LoadError, match=rf"2 scale\(s\) \(a\.0\.{scales}\)") as caught:
        check_unscaled([f"a.1.{scales}", f"a.0.{scales}", "embeddings.position_ids"], folder)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
    check_unscaled(["logit_scale", "weight_scale", "a.weight_scaled", "a.SCBs"], folder)


def test_a_missing_pooler_matters_only_where_it_is_read(folder):
    check_filled(["pooler.dense.weight"], [], folder, needs_pooler=False)
    reason = reason_of(lambda: check_filled(["pooler.dense.weight"], [], folder, needs_pooler=True))
    assert reason is LoadReason.WRONG_WEIGHTS
    reason = reason_of(lambda: check_filled(["head.pooler.weight"], [], folder, needs_pooler=False))
    assert reason is LoadReason.WRONG_WEIGHTS


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv", "weight_scale_2", "SCB"])
def test_a_scale_that_is_left_over_with_its_weight_says_nothing_of_the_weights_that_were_read(folder, scale):
    pooler = ["pooler.dense.weight", f"pooler.dense.{scale}"]  # of one that is not loaded
    check_unscaled(pooler, folder)
    with pytest.raises(LoadError, match=rf"without their 1 scale\(s\) \(a\.0\.{scale}\)"):
        check_unscaled([*pooler, f"a.0.{scale}"], folder)
