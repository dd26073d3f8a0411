"""What the files of a language model that ranks say of its answers and of its prompt, from JSON alone."""

import json

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from shard.model_files.generative import GenerativeFiles, read_generative_modules

KINDS = ("Transformer", "LogitScore")
ANSWERS = {"true_token_id": 9, "false_token_id": 4}


def read(directory, *, transformer=None, answers=None, kinds=KINDS):
    """Write each module's file into a folder of its own, beside files of the same names that are of neither."""
    wrong = {"true_token_id": 1, "false_token_id": 2, "modality_config": {"message": {"format": "flat"}}}
    files = {"": wrong, "the_transformer": transformer or {}, "the_score": ANSWERS if answers is None else answers}
    for folder, said in files.items():
        (directory / folder).mkdir(exist_ok=True)
        for name in ("sentence_bert_config.json", "config.json"):
            (directory / folder / name).write_text(json.dumps(said), encoding="utf-8")
    return read_generative_modules(directory, list(zip(kinds, ("the_transformer", "the_score", "x"), strict=False)))


def test_each_module_says_its_part_in_its_own_folder_and_sizes_are_not_told_to_the_template(tmp_path):
    template = {"add_generation_prompt": True, "max_length": 64, "padding": "longest", "truncation": True}
    template |= {"return_tensors": "pt", "restore_suffix": True, "enable_thinking": False}
    said = {"processing_kwargs": {"chat_template": template, "text": {"max_length": 7}}}
    said |= {"modality_config": {"text": {"format": "flat"}, "message": {"format": "structured"}}}
    assert read(tmp_path, transformer=said) == GenerativeFiles(
        true_id=9,
        false_id=4,
        template_options=(("add_generation_prompt", True), ("enable_thinking", False)),
        message_format="structured",
    )


@pytest.mark.parametrize(
    ("message", "message_format"), [({"format": "flat"}, "flat"), ({"format": "auto"}, None), ({}, None)]
)
def test_a_format_that_is_to_be_found_out_is_left_to_the_template(tmp_path, message, message_format):
    assert read(tmp_path, transformer={"modality_config": {"message": message}}).message_format == message_format


def test_without_messages_pairs_are_read_by_the_tokenizer_alone(tmp_path):
    assert not read(tmp_path, transformer={"modality_config": {"text": {"format": "flat"}}}).uses_template


@pytest.mark.parametrize("answers", [{"true_token_id": 0}, {"true_token_id": 0, "false_token_id": None}])
def test_one_answer_is_enough(tmp_path, answers):
    found = read(tmp_path, answers=answers)
    assert (found.true_id, found.false_id) == (0, None)


@pytest.mark.parametrize(
    "answers",
    [{}, {"false_token_id": 4}, ANSWERS | {"true_token_id": "yes"}, ANSWERS | {"true_token_id": True},
     ANSWERS | {"false_token_id": "no"}, ANSWERS | {"false_token_id": False}],
)  # fmt: skip
def test_answers_that_are_no_ids_are_unsupported(tmp_path, answers):
    with pytest.raises(LoadError, match="names no token for a relevant document") as caught:
        read(tmp_path, answers=answers)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("Transformer", "LogitScore", "Dense"), "a language model and LogitScore, Dense;"),
        (("LogitScore", "Transformer"), "a language model and Transformer;"),
        (("Transformer",), "a language model and nothing else;"),
    ],
)
def test_other_modules_than_those_two_are_unsupported(tmp_path, kinds, words):
    with pytest.raises(LoadError, match=words) as caught:
        read(tmp_path, kinds=kinds)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL
