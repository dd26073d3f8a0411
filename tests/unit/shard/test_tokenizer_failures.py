"""Of what a tokenizer's files fail, and which of them; transformers forgets the one and does not tell the other."""

import json

import pytest
from transformers import AutoProcessor, AutoTokenizer

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoders.tokenizer_failures import naming_failures


def write(directory, config=None, **files):
    (directory / "config.json").write_text('{"model_type": "roberta"}')
    said = {"tokenizer_class": "RobertaTokenizer"} if config is None else config
    (directory / "tokenizer_config.json").write_text(json.dumps(said))
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


def make(directory):
    options = {"local_files_only": True}
    with naming_failures(str(directory), options):
        AutoProcessor.from_pretrained(str(directory), **options)


@pytest.mark.parametrize("file", ["tokenizer__json", "special_tokens_map__json", "added_tokens__json", "vocab__json"])
def test_a_file_of_a_tokenizer_that_is_cut_off_is_incomplete_and_named(tmp_path, file):
    write(tmp_path, **{"vocab__json": '{"a": 0}', "merges__txt": "", file: '{"a": '})
    with pytest.raises(LoadError, match=f"{file.replace('__', '.')} cannot be read") as caught:
        make(tmp_path)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


def test_the_configuration_of_a_tokenizer_that_is_cut_off_is_named_too(tmp_path):
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(LoadError, match=r"tokenizer_config\.json cannot be read") as caught:
        make(tmp_path)
    assert caught.value.reason is LoadReason.INCOMPLETE_DOWNLOAD


def test_what_a_tokenizer_fails_of_is_told_where_no_file_is_to_be_blamed_for_being_no_json(tmp_path):
    write(tmp_path, vocab__json='{"a": 0, "b": 1}', merges__txt="a")
    with pytest.raises(LoadError, match=r"Merges text file invalid at line 1\): one of them may be cut off") as caught:
        make(tmp_path)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_package_that_a_tokenizer_needs_is_told_of_as_missing(tmp_path, monkeypatch):
    def lack(*_names, **_options):
        raise ImportError("You need to install fugashi")

    write(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lack)
    with pytest.raises(ImportError, match="fugashi"):
        make(tmp_path)


@pytest.mark.parametrize("length", ["64", [64]])
def test_a_length_that_is_no_number_is_refused_with_its_key(tmp_path, length):
    write(tmp_path, {"model_max_length": length})
    with (
        pytest.raises(LoadError, match=r"has model_max_length .*64.*, which") as caught,
        naming_failures(str(tmp_path), {}),
    ):
        min(length, 512)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_files_are_those_in_the_folder_of_the_module(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    write(tmp_path / "0_Transformer", {"model_max_length": "64"})
    with pytest.raises(LoadError, match="no number"), naming_failures(str(tmp_path), {"subfolder": "0_Transformer"}):
        min("64", 512)


def test_a_mistake_that_no_file_explains_goes_through_as_it_is(tmp_path):
    write(tmp_path, {"model_max_length": 64})
    with pytest.raises(TypeError), naming_failures(str(tmp_path), {}):
        min("64", 512)
    with pytest.raises(ValueError, match="other"), naming_failures(str(tmp_path), {}):
        raise ValueError("other")
