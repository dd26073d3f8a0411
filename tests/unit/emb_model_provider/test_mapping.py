from __future__ import annotations

import json

import pytest

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.mapping import parse_mapping
from emb_model_provider.modelmap import BatchLimits, ModelSpec
from emb_model_provider.positioned_json import document_of_variable
from emb_model_provider.settings import load_settings

DEFAULTS = ModelSpec(id="", name="", source="modelscope", precision="fp32", device="cpu", batch=BatchLimits(16, 2, 7.0))


def parse(value: object, *, quantize: bool = False, defaults: ModelSpec = DEFAULTS) -> tuple[ModelSpec, ...]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return parse_mapping(document_of_variable(text, "the environment"), defaults, quantize=quantize)


def problems(value: object) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse(value)
    return caught.value.problems


def problem_of(**entry: object) -> str:
    (problem,) = problems({"a": {"name": "x", **entry}})
    return problem


def test_an_entry_takes_from_the_defaults_what_it_leaves_out() -> None:
    assert parse({"a": {"name": " x/y "}, "b/c": {"name": "z", "source": "auto", "max_batch_size": 8}}) == (
        ModelSpec("a", "x/y", "modelscope", precision="fp32", device="cpu", batch=BatchLimits(16, 2, 7.0)),
        ModelSpec("b/c", "z", "auto", precision="fp32", device="cpu", batch=BatchLimits(8, 2, 7.0)),
    )


def test_every_key_of_an_entry_arrives_in_its_field() -> None:
    entry = {
        "name": "x",
        "source": "huggingface",
        "precision": "bf16",
        "device": "cuda:1",
        "cpus": "0,2,4-6",
        "threads": 4,
        "revision": "v1",
        "code_revision": "v2",
        "pooling": "mean",
        "normalize": False,
        "max_length": 256,
        "prompts": {"query": "查询：", "document": ""},
        "default_prompt_name": "query",
        "trust_remote_code": True,
        "overlong": "error",
        "max_batch_size": 64,
        "min_batch_size": 8,
        "max_wait_time_ms": 2.5,
        "enable_dynamic_batching": False,
    }
    assert parse({"a": entry}) == (
        ModelSpec(
            id="a",
            name="x",
            source="huggingface",
            precision="bf16",
            device="cuda:1",
            cpus=(0, 2, 4, 5, 6),
            threads=4,
            revision="v1",
            code_revision="v2",
            pooling="mean",
            normalize=False,
            max_length=256,
            prompts=(("query", "查询："), ("document", "")),
            default_prompt_name="query",
            trust_remote_code=True,
            overlong="error",
            batch=BatchLimits(64, 8, 2.5, dynamic=False),
        ),
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("threads", True, "threads = true; it must be a whole number from 1 to 1024, without quotes"),
        ("threads", "4", 'threads = "4"; it must be a whole number'),
        ("threads", 4.0, "threads = 4.0; it must be a whole number"),
        ("threads", 10**39, "it must be a whole number from 1 to 1024"),
        ("max_wait_time_ms", 1e300, "it must be a number from 0 to 10000"),
        ("max_wait_time_ms", False, "it must be a number"),
        ("normalize", "true", "it must be true or false, without quotes"),
        ("normalize", 1, "it must be true or false"),
        ("precision", "fp8", "it must be one of auto, fp32"),
        ("precision", None, "it must be a string"),
        ("source", "local", "auto; a model in a directory of this machine needs none of them"),
        ("source", ["auto"], "it must be a string"),
        ("revision", "", "it must be a string that is not empty"),
        ("cpus", "3-0", "no range backwards"),
        ("cpus", "0-99999", "numbers up to 4095"),
        ("cpus", "", "it must be"),
        ("cpus", [], "it must be"),
        ("cpus", [0, True], "a whole number from 0 to 4095"),
        ("cpus", 3, "it must be"),
        ("prompts", "query: ", "an object of names and texts"),
        ("prompts", {"query": 1}, "an object of names and texts"),
        ("prompts", {}, "an object of names and texts"),
    ],
)
def test_types_are_strict_and_a_wrong_value_is_shown_as_it_was_written(key: str, value: object, words: str) -> None:
    problem = problem_of(**{key: value})
    assert problem.startswith("EMB_PROVIDER_MODEL_MAPPING (the environment, line 1, column ")
    assert f"'a' has {key} = " in problem
    assert words in problem


def test_a_list_of_cpus_is_sorted_and_each_counted_once() -> None:
    assert parse({"a": {"name": "x", "cpus": [3, 1, 3]}})[0].cpus == (1, 3)


def test_the_nearest_known_key_is_offered_for_an_unknown_one() -> None:
    assert problem_of(Precison="fp32").endswith("'a' has an unknown key 'Precison'; did you mean 'precision'?")
    assert "the keys are name, source" in problem_of(zzz=1)


def test_all_mistakes_are_reported_each_at_its_own_place() -> None:
    text = '{\n  "模型": {"name": "x"},\n  "b": {},\n  "c": "x/y",\n  "d": {"name": "x", "device": "gpu"}\n}'
    assert [problem.partition(" of the value")[0].rpartition(", line ")[2] for problem in problems(text)] == [
        "2, column 3",
        "3, column 3",
        "4, column 8",
        "5, column 32",
    ]


@pytest.mark.parametrize("alias", ["模型", "a b", "-a", "a/", "a..b", "", "x" * 129, "a\n"])
def test_an_alias_that_is_not_safe_everywhere_is_refused_with_the_characters_allowed(alias: str) -> None:
    (problem,) = problems({alias: {"name": "x"}})
    assert "A-Z a-z 0-9 . _ - /" in problem


def test_an_empty_object_and_what_is_no_object_are_refused() -> None:
    for text in ("{}", "[]", '"a"', "null"):
        assert "must be an object with at least one alias" in problems(text)[0]


def test_a_batch_limit_that_contradicts_an_inherited_one_is_refused_where_it_stands() -> None:
    assert "min_batch_size is 17 and max_batch_size 16" in problem_of(min_batch_size=17)
    assert "min_batch_size is 2 and max_batch_size 1" in problem_of(max_batch_size=1)


def test_quantization_turns_auto_into_int8_and_a_named_precision_stays() -> None:
    auto = ModelSpec(id="", name="")
    value = {"a": {"name": "x"}, "b": {"name": "x", "precision": "auto"}, "c": {"name": "x", "precision": "fp16"}}
    assert [spec.precision for spec in parse(value, quantize=True, defaults=auto)] == ["int8", "int8", "fp16"]
    assert [spec.precision for spec in parse(value, quantize=True)] == ["fp32", "int8", "fp16"]


def test_int8_in_an_entry_is_allowed_although_quantization_is_off() -> None:
    env = {
        "EMB_PROVIDER_ENABLE_QUANTIZATION": "false",
        "EMB_PROVIDER_MODEL_MAPPING": '{"a": {"name": "x", "precision": "int8"}, "b": {"name": "y"}}',
    }
    assert [model.precision for model in load_settings(env, None).models] == ["int8", "auto"]


def test_only_the_first_line_of_the_json_is_explained_by_what_people_did() -> None:
    assert "reads one line per variable" in problems("{")[0]
