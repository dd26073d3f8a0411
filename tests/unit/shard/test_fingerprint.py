"""What a fingerprint is made of, beside the facts that the loader gives it."""

import json

import pytest

from shard.fingerprint import name_fingerprint, start_hashing
from shard.trust import own_code
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
        ("added_tokens.json", "{}", '{"weather": 30000}'),
        ("special_tokens_map.json", "{}", '{"cls_token": "the"}'),
        ("merges.txt", "t h\nth e\n", "t h\n"),
        ("vocab.json", '{"a": 5, "b": 6}', '{"a": 6, "b": 5}'),
        ("spiece.model", "one", "two"),
        ("chat_template.jinja", "{{ query }}", "{{ document }}"),
    ],
)
def test_whatever_decides_how_texts_are_read_is_part_of_it(directory, name, before, after):
    (directory / name).write_text(before)
    first = fingerprint(directory)
    (directory / name).write_text(after)
    assert fingerprint(directory) != first


def test_who_wrote_the_configuration_and_how_is_not(directory):
    config = json.loads((directory / "config.json").read_text("utf-8"))
    before = fingerprint(directory)
    written = dict(reversed(config.items())) | {"transformers_version": "9.9", "_name_or_path": "elsewhere"}
    (directory / "config.json").write_text(json.dumps(written, indent=1))
    assert fingerprint(directory) == before


def test_an_index_of_today_has_the_same_fingerprint_after_an_update_of_the_server():
    facts = {"pooling": "cls", "prompts": {"query": "查询: ", "document": ""}}
    backwards = {"prompts": {"document": "", "query": "查询: "}, "pooling": "cls"}
    assert name_fingerprint("00ff", facts) == name_fingerprint("00ff", backwards) == "e2ccffd465327867"
    assert name_fingerprint("00fe", facts) != name_fingerprint("00ff", facts)
    assert name_fingerprint("00ff", facts | {"pooling": "mean"}) != name_fingerprint("00ff", facts)
