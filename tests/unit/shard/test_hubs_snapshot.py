import hashlib
import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.hubs.snapshot import (
    Marker,
    Progress,
    RemoteFile,
    damaged_file,
    is_structurally_complete,
    is_whole_safetensors,
    marker_path,
    note_begun,
    progress_of_another,
    read_marked,
    remove_file,
    select_files,
    write_marker,
)


def safetensors(data: bytes = b"\0" * 8) -> bytes:
    tensors = {"w": [0, len(data)], "nothing": [0, 0]}
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": ends} for name, ends in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    return struct.pack("<Q", len(header)) + header + data


def selected(*paths: str) -> list[str]:
    return [file.path for file in select_files(RemoteFile(path, 1) for path in paths)]


def test_only_what_loading_needs_is_fetched():
    assert selected(
        "config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt", "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin", "sentencepiece.bpe.model", "modeling.py",
    ) == [
        "config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "1_Pooling/config.json",
        "2_Dense/pytorch_model.bin", "sentencepiece.bpe.model", "modeling.py",
    ]  # fmt: skip
    assert selected("pytorch_model.bin", "config.json") == ["pytorch_model.bin", "config.json"]


def test_what_bge_m3_and_colbert_keep_beside_their_weights_is_fetched():
    heads = ["colbert_linear.pt", "sparse_linear.pt", "artifact.metadata"]
    assert selected(*heads, "other.pt") == heads


@pytest.mark.parametrize("other", ["consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"])
def test_safetensors_that_nobody_loads_are_no_reason_to_leave_the_weights_out(other):
    assert "pytorch_model.bin" in selected("config.json", "pytorch_model.bin", other)
    assert "pytorch_model.bin" not in selected("pytorch_model.bin", "model.safetensors.index.json", other)


@pytest.mark.parametrize(
    "path",
    [
        "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "tf_model.h5", "rust_model.ot",
        "flax_model.msgpack", "training_args.bin", "optimizer.bin", ".gitattributes", "README.md", "images/a.png",
        ".cache/config.json",
    ],
)  # fmt: skip
def test_other_formats_and_leftovers_of_training_are_not(path):
    assert selected(path) == []


@pytest.mark.parametrize("path", ["/elsewhere/config.json", "../config.json", "a/../../config.json"])
def test_a_hub_cannot_have_a_file_written_outside_of_the_model_s_directory(path):
    assert selected("config.json", path) == ["config.json"]


@given(st.binary(max_size=64))
def test_a_safetensors_file_is_whole_only_with_every_byte(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("s") / "model.safetensors"
    whole = safetensors(data)
    path.write_bytes(whole)
    assert is_whole_safetensors(path)
    for cut in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[: min(cut, len(whole) - 1)])
        assert not is_whole_safetensors(path)


@given(st.binary(max_size=200))
def test_garbage_is_never_a_whole_safetensors_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("s") / "model.safetensors"
    path.write_bytes(data)
    assert not is_whole_safetensors(path)


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "header",
    [
        b"\xff{",
        b"[]",
        b'{"w": {}}',
        b'{"w": {"data_offsets": [0]}}',
        b'{"w": {"data_offsets": [0, "8"]}}',
        b'{"w": 1}',
        NESTED.encode(),
    ],
    ids=range(7),
)
def test_a_file_whose_header_is_none_is_not_whole(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert not is_whole_safetensors(path)


def test_a_file_without_any_tensor_is_whole(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert is_whole_safetensors(tmp_path / "model.safetensors")


def test_each_damage_is_told_in_words(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"hello\n")
    good = RemoteFile("a.txt", 6, git_sha1="ce013625030ba8dba906f756967f9e9ca394464a")
    assert damaged_file(tmp_path, good, hashes=True) == ""
    assert damaged_file(tmp_path, RemoteFile("a.txt", 6, hashlib.sha256(b"hello\n").hexdigest()), hashes=True) == ""
    assert damaged_file(tmp_path, RemoteFile("b.txt", 6), hashes=True) == "missing"
    assert damaged_file(tmp_path, RemoteFile("a.txt", 7), hashes=True) == "6 bytes instead of 7"
    assert "SHA-256" in damaged_file(tmp_path, RemoteFile("a.txt", 6, "0" * 64), hashes=True)
    assert "hash" in damaged_file(tmp_path, RemoteFile("a.txt", 6, git_sha1="0" * 40), hashes=True)
    (tmp_path / "m.safetensors").write_bytes(b"\0" * 64)
    assert "header" in damaged_file(tmp_path, RemoteFile("m.safetensors", 64), hashes=False)


def test_the_content_is_held_against_its_own_hash_and_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"hello\n")
    # Of a large file git keeps a pointer, and hashes that.
    large = RemoteFile("a.txt", 6, hashlib.sha256(b"hello\n").hexdigest(), git_sha1="0" * 40)
    assert damaged_file(tmp_path, large, hashes=True) == ""
    assert damaged_file(tmp_path, RemoteFile("a.txt", 6, "0" * 64), hashes=False) == ""
    assert damaged_file(tmp_path, RemoteFile("a.txt", 6, git_sha1="0" * 40), hashes=False) == ""


def marked(repository, revision="main"):
    directory = repository / "snapshots" / "abc"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(safetensors())
    (directory / "config.json").write_bytes(b"{}")
    files = (RemoteFile("model.safetensors", len(safetensors())), RemoteFile("config.json", 2))
    write_marker(repository, revision, Marker("snapshots/abc", "abc", files))
    return directory


def test_a_marked_snapshot_is_found_again_by_the_revision_that_was_asked_for(tmp_path):
    directory = marked(tmp_path, "refs/pr/1")
    assert read_marked(tmp_path, "refs/pr/1") == (directory, "abc")
    assert read_marked(tmp_path, "main") is None


def test_a_snapshot_that_lost_a_byte_since_is_not_complete_any_more(tmp_path):
    directory = marked(tmp_path)
    (directory / "model.safetensors").write_bytes(safetensors()[:-1])
    assert read_marked(tmp_path, "main") is None


@given(st.text(max_size=80))
def test_a_marker_that_is_not_one_counts_as_none(tmp_path_factory, text):
    repository = tmp_path_factory.mktemp("r")
    marker_path(repository, "main").write_text(text, "utf-8", errors="replace")
    assert read_marked(repository, "main") is None


def test_a_bad_file_is_removed_together_with_what_it_links_to(tmp_path):
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "link").symlink_to("blob")
    remove_file(tmp_path / "link")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_another_tool_is_complete_only_with_configuration_and_whole_weights(tmp_path):
    assert not is_structurally_complete(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_structurally_complete(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    assert is_structurally_complete(tmp_path)
    (tmp_path / "model.safetensors.incomplete").touch()
    assert not is_structurally_complete(tmp_path)


def test_a_missing_part_of_an_index_or_a_missing_module_folder_makes_it_incomplete(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(safetensors())
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}'
    )
    assert not is_structurally_complete(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(safetensors())
    assert is_structurally_complete(tmp_path)
    modules = [
        {"path": "", "type": "T"},
        {"path": "1_Pooling", "type": "P"},
        {"path": "2_Normalize", "type": "Normalize"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert not is_structurally_complete(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    assert is_structurally_complete(tmp_path)


def test_a_cache_with_modules_needs_no_configuration_beside_them(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "0_Transformer", "type": "T"}]))
    assert not is_structurally_complete(tmp_path)
    (tmp_path / "0_Transformer" / "model.safetensors").write_bytes(safetensors())
    assert is_structurally_complete(tmp_path)


@pytest.mark.parametrize("name", ["modules.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["[", "[1]", '[{"type": "T"}]', NESTED], ids=range(4))
def test_a_cache_whose_list_of_parts_cannot_be_read_is_incomplete(tmp_path, name, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    assert is_structurally_complete(tmp_path)
    (tmp_path / name).write_text(content)
    assert not is_structurally_complete(tmp_path)


def test_every_file_of_weights_must_be_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(safetensors())
    (tmp_path / "b.safetensors").write_bytes(safetensors()[:-1])
    assert not is_structurally_complete(tmp_path)


def test_weights_of_the_older_format_count_unless_they_are_empty_or_lack_a_part(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    assert not is_structurally_complete(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert is_structurally_complete(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "pytorch_model-2.bin"}}')
    assert not is_structurally_complete(tmp_path)


def test_a_list_of_parts_in_the_format_that_was_not_fetched_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "pytorch_model-2.bin"}}')
    assert is_structurally_complete(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_link_to_a_blob_which_is_gone_are_missing(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).symlink_to("../../blobs/gone")
    assert not is_structurally_complete(tmp_path)


def test_the_progress_of_another_process_is_what_it_has_written_of_what_it_has_noted(tmp_path):
    assert progress_of_another(tmp_path) is None
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "older").write_bytes(b"x" * 50_000)
    os.utime(blobs / "older", (1, 1))
    files = (RemoteFile("model.safetensors", 1_000_000), RemoteFile("config.json", 2))
    note = note_begun(tmp_path, Marker("snapshots/c", "c", files))
    at_first = progress_of_another(tmp_path)
    assert at_first.total_bytes == 1_000_002
    assert at_first.done_bytes < 50_000
    with (blobs / "weights.incomplete").open("wb") as file:
        file.truncate(900_000)
        assert progress_of_another(tmp_path).done_bytes < 50_000, "room is no progress"
        file.write(b"x" * 300_000)
    (tmp_path / "snapshots").symlink_to(blobs)
    assert 300_000 <= progress_of_another(tmp_path).done_bytes < 400_000
    (blobs / "more").write_bytes(b"x" * 1_000_000)
    assert progress_of_another(tmp_path) == Progress(1_000_002, 1_000_002)
    note.write_text('{"files": 3}', "utf-8")
    assert progress_of_another(tmp_path) is None
