"""What a fingerprint is made of, beside the facts that the loader gives it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from shard.model_files.fingerprint import hash_code, hash_files, name_fingerprint, start_hashing
from shard.model_files.trust import own_code
from tests.support.tiny_models import make_plain


@pytest.fixture
def directory(tmp_path):
    make_plain(tmp_path)
    (tmp_path / "modeling_own.py").write_text("factor = 1\n")
    return tmp_path


def fingerprint(directory):
    return start_hashing(directory, [directory], own_code(directory)).result(10)


def test_a_models_own_code_is_part_of_what_makes_its_vectors(directory):
    config = json.loads((directory / "config.json").read_text("utf-8"))
    asking = config | {"auto_map": {"AutoModel": "modeling_own.OwnModel"}}
    (directory / "config.json").write_text(json.dumps(asking))
    before = fingerprint(directory)
    (directory / "modeling_own.py").write_text("factor = 2\n")
    assert fingerprint(directory) != before


def test_code_of_another_repository_is_known_by_its_name_its_files_and_what_they_say(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/modeling.py").write_text("factor = 1\n")
    (tmp_path / "README.md").write_text("one")
    first = hash_code({"o/code": tmp_path})
    (tmp_path / "README.md").write_text("two")
    assert hash_code({"o/code": tmp_path}) == first
    others = [hash_code({"o/other": tmp_path}), hash_code({"o/code": tmp_path / "sub"})]
    (tmp_path / "sub/modeling.py").write_text("factor = 2\n")
    others.append(hash_code({"o/code": tmp_path}))
    assert len({first, *others}) == 4


def test_a_script_that_nothing_names_is_not(directory):
    before = fingerprint(directory)
    (directory / "modeling_own.py").write_text("factor = 2\n")
    assert fingerprint(directory) == before


def test_what_the_configuration_says_of_the_arithmetic_is_part_of_it(directory):
    config = json.loads((directory / "config.json").read_text("utf-8"))
    before = fingerprint(directory)
    (directory / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    assert fingerprint(directory) != before


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("tokenizer.json", '{"version": "1.0"}', '{"version": "1.1"}'),
        ("tokenizer_config.json", "{}", '{"do_lower_case": false}'),
        ("added_tokens.json", "{}", '{"weather": 30000}'),
        ("special_tokens_map.json", "{}", '{"cls_token": "the"}'),
        ("merges.txt", "t h\nth e\n", "t h\n"),
        ("vocab.json", '{"a": 5, "b": 6}', '{"a": 6, "b": 5}'),
        ("vocab.txt", "a\nb\n", "b\na\n"),
        ("spiece.model", "one", "two"),
        ("spm.model", "one", "two"),
        ("tokenizer.model", "one", "two"),
        ("sentencepiece.model", "one", "two"),
        ("sentencepiece.bpe.model", "one", "two"),
        ("chat_template.jinja", "{{ query }}", "{{ document }}"),
    ],
)
def test_whatever_decides_how_texts_are_read_is_part_of_it(directory, name, before, after):
    (directory / name).write_text(before)
    first = fingerprint(directory)
    (directory / name).write_text(after)
    assert fingerprint(directory) != first


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt", "artifact.metadata", "model.safetensors"])
def test_so_are_weights_and_what_stands_beside_them(directory, name):
    before = fingerprint(directory)
    if name == "model.safetensors":
        save_file({"w": torch.ones(1)}, directory / name)
    else:
        (directory / name).write_text("other")
    assert fingerprint(directory) != before


@pytest.mark.parametrize("name", ["config.json", "sentence_bert_config.json"])
def test_who_wrote_a_configuration_and_how_is_not(directory, name):
    told = {"transformers_version": "9.9", "_name_or_path": "elsewhere", "_commit_hash": "0", "dtype": "float16"}
    told |= {"torch_dtype": "float16", "transformers.js_config": {"dtype": "q8"}}
    path = directory / name
    config = json.loads(path.read_text("utf-8")) if path.exists() else {"max_seq_length": 8, "do_lower_case": False}
    path.write_text(json.dumps(config))
    before = fingerprint(directory)
    path.write_text(json.dumps(dict(reversed(config.items())) | told, indent=1))
    assert fingerprint(directory) == before


def test_where_a_model_lies_is_not_but_which_of_its_files_is_which_is(directory, tmp_path_factory):
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("elsewhere") / "model")
    assert fingerprint(copy) == fingerprint(directory)
    (copy / "spm.model").write_text("one")
    first = fingerprint(copy)
    (copy / "spm.model").rename(copy / "spiece.model")
    assert fingerprint(copy) != first


def test_the_folder_of_a_module_is_part_of_it_and_one_that_is_named_twice_counts_once(directory):
    folders = [directory, directory / "2_Dense"]
    folders[1].mkdir()
    seen = []
    for activation in ("Tanh", "Identity"):
        (folders[1] / "config.json").write_text(json.dumps({"activation_function": activation}))
        seen += [start_hashing(directory, one).result(10) for one in (folders, [*folders, directory])]
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_an_index_of_today_has_the_same_fingerprint_after_an_update_of_the_server():
    facts = {"pooling": "cls", "prompts": {"query": "查询: ", "document": ""}}
    backwards = {"prompts": {"document": "", "query": "查询: "}, "pooling": "cls"}
    assert name_fingerprint("00ff", facts) == name_fingerprint("00ff", backwards) == "e2ccffd465327867"
    assert name_fingerprint("00fe", facts) != name_fingerprint("00ff", facts)
    assert name_fingerprint("00ff", facts | {"pooling": "mean"}) != name_fingerprint("00ff", facts)


def test_its_files_count_after_an_update_of_the_server_as_they_did_before(tmp_path):
    (tmp_path / "2_Dense").mkdir()
    written = {"config.json": '{"dtype": "x", "size":1}', "2_Dense/config.json": '{"in":2}', "vocab.txt": "a\n"}
    for name, content in written.items():
        (tmp_path / name).write_text(content)
    found = hash_files([tmp_path / name for name in written], tmp_path)
    assert found == "6cf0b80341927ac369de56d20afca724418d0176b5b8f6236d11506d4c35d7f7"
