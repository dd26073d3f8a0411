"""Checkpoints: whole or not, hostile or not, filling the model or not."""

import json

import pytest
import torch
from safetensors.torch import save_file

from emb_model_provider.errors import LoadError, LoadReason
from shard.model_files.weights import check_filled, check_unscaled, find_checkpoint, read_pickled, weight_files
from tests.support.checkpoints import TENSORS, save_bin


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    return path


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


def test_the_weights_of_several_folders_are_each_file_once_and_a_folder_may_have_none(folder, tmp_path):
    save_bin(folder)
    assert weight_files([tmp_path, folder, folder]) == [folder / "pytorch_model.bin"]


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
