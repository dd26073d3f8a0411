"""Half a vocabulary is told by how many rows and merges a model has, and no whole one is taken for it."""

import json

import pytest
from transformers import BertTokenizer, RobertaTokenizer

from shard.encoders.cut_vocabulary import _is_far_below, warn_if_cut

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(directory, tokens):
    words = [*SPECIAL, *(f"w{number}" for number in range(tokens - len(SPECIAL)))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizer.from_pretrained(str(directory))


def pairs(directory, tokens, merges):
    letters = [chr(33 + number) for number in range(60)]
    made = [(one, other) for one in letters for other in letters][: tokens - len(letters)]
    (directory / "vocab.json").write_text(
        json.dumps({word: at for at, word in enumerate([*letters, *map("".join, made)])})
    )
    lines = [f"{one} {other}\n" for one, other in made[:merges]]
    (directory / "merges.txt").write_text("".join(["#version: 0.2\n", *lines]))
    return RobertaTokenizer.from_pretrained(str(directory))


def warnings(caplog):
    return [record.values for record in caplog.records if record.getMessage() == "vocabulary_short"]


def test_a_vocabulary_far_below_the_rows_of_its_table_is_warned_of(tmp_path, caplog):
    warn_if_cut(wordpiece(tmp_path, 2000), 3200)
    (said,) = warnings(caplog)
    assert (said["file"], said["tokens"], said["rows"]) == (str(tmp_path / "vocab.txt"), 2000, 3200)


def test_merges_far_below_the_tokens_that_they_make_are_warned_of(tmp_path, caplog):
    warn_if_cut(tokenizer := pairs(tmp_path, 3000, 1500), 3010)
    (said,) = warnings(caplog)
    assert (said["file"], said["lines"], said["tokens"]) == (str(tmp_path / "merges.txt"), 1501, len(tokenizer))


def test_merges_are_held_against_the_tokens_where_nobody_knows_how_many_rows_there_are(tmp_path, caplog):
    warn_if_cut(pairs(tmp_path, 3000, 1500), None)
    assert [said["file"] for said in warnings(caplog)] == [str(tmp_path / "merges.txt")]


def test_whole_ones_are_not(tmp_path, caplog):
    warn_if_cut(wordpiece(tmp_path, 2000), 2000)
    warn_if_cut(wordpiece(tmp_path, 2000), None)
    warn_if_cut(pairs(tmp_path, 3000, 2940), 3100)
    assert warnings(caplog) == []


def test_files_that_another_one_goes_before_do_not_count(tmp_path, caplog):
    tokenizer = wordpiece(tmp_path, 2000)
    tokenizer.save_pretrained(str(tmp_path))
    warn_if_cut(BertTokenizer.from_pretrained(str(tmp_path)), 9000)
    assert warnings(caplog) == []


@pytest.mark.parametrize("file", [None, "spiece.model"])
def test_a_vocabulary_that_is_no_plain_text_is_not_looked_at(tmp_path, caplog, file):
    tokenizer = wordpiece(tmp_path, 2000)
    tokenizer.init_kwargs["vocab_file"] = file and str(tmp_path / file)
    warn_if_cut(tokenizer, 9000)
    assert warnings(caplog) == []


@pytest.mark.parametrize(("expected", "least"), [(2000, 1000), (10_000, 9000), (20_000, 18_000), (30_000, 27_000)])
def test_a_thousand_or_a_tenth_of_what_is_expected_may_be_missing(expected, least):
    assert not _is_far_below(least, expected)
    assert _is_far_below(least - 1, expected)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (21128, 21128),  # bert-base-chinese
        (30522, 30528),  # nomic
        (39980, 40000),  # ERNIE 3
        (28996, 29056),  # Megatron's BERT
        (50257, 51200),  # Phi
        (151_643, 152_064),  # Qwen2 of 7B
        (151_387, 151_646),  # its merges
        (100_015, 102_400),  # DeepSeek
        (250_102, 251_000),  # mDeBERTa
        (259, 384),  # ByT5
        (48_895, 49_408),  # CLIP's merges
    ],
)
def test_tables_of_real_models_are_no_reason_to_warn(found, expected):
    assert not _is_far_below(found, expected)
