"""What a model's files add to the call of its tokenizer is followed, or the model is refused."""

from types import SimpleNamespace

import pytest
from sentence_transformers.base.modules import Transformer
from torch import nn

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoders.checked_transformer import CheckedTransformer
from shard.encoders.text_options import check_length, check_text_options, text_options

MASKED = ("input_ids", "attention_mask")


def transformer(options, names=MASKED):
    made = Transformer.__new__(Transformer)
    nn.Module.__init__(made)
    made.processing_kwargs = options
    made.processor = SimpleNamespace(tokenizer=SimpleNamespace(model_input_names=list(names)))
    return made


def test_what_is_common_to_all_modalities_counts_more_than_what_is_said_of_texts():
    said = {"text": {"max_length": 7, "padding": True}, "common": {"max_length": 8}, "image": {"size": 9}}
    assert text_options(transformer(said)) == {"max_length": 8, "padding": True}
    assert text_options(transformer({})) == {}
    of_template = {"max_length": 9, "truncation": True, "add_generation_prompt": True}
    assert text_options(transformer({**said, "chat_template": of_template})) == {
        "max_length": 9, "truncation": True, "padding": True,
    }  # fmt: skip


@pytest.mark.parametrize("said", [{}, {"truncation": True}, {"truncation": "longest_first"}, {"max_length": 7},
                                  {"max_length": None}, {"padding": False}, {"padding": "max_length"},
                                  {"padding": "longest"}, {"padding": "do_not_pad"}])  # fmt: skip
def test_what_changes_nothing_or_is_followed_is_taken(said):
    for takes_pairs in (False, True):
        check_text_options(transformer({"text": said}), takes_pairs=takes_pairs)


def test_of_pairs_the_longer_text_is_cut_first_which_of_one_text_is_no_matter():
    check_text_options(transformer({"text": {"truncation": "only_first"}}), takes_pairs=False)
    with pytest.raises(LoadError, match='"truncation": "only_first"'):
        check_text_options(transformer({"text": {"truncation": "only_first"}}), takes_pairs=True)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"text": {"truncation": False}}, '"truncation": false'),
        ({"common": {"truncation": "only_second"}}, '"truncation": "only_second"'),
        ({"text": {"truncation": True}, "common": {"truncation": "do_not_truncate"}}, "do_not_truncate"),
        ({"text": {"padding": "widest"}}, '"padding": "widest"'),
        ({"text": {"max_length": "64"}}, '"max_length": "64", which is no number'),
        ({"text": {"stride": 2, "add_special_tokens": False}}, "not supported: add_special_tokens, stride"),
        ({"text": {"logits_to_keep": 1}}, "not supported: logits_to_keep"),
        ({"chat_template": {"add_generation_prompt": True}}, "not supported: chat_template"),
    ],
)
def test_what_would_be_read_otherwise_is_unsupported(said, words):
    with pytest.raises(LoadError, match=words) as caught:
        check_text_options(transformer(said), takes_pairs=False)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_language_model_may_be_told_of_its_template_and_its_answers_unless_its_prompt_loses_its_end():
    said = {"chat_template": {"add_generation_prompt": True, "max_length": 64}, "text": {"logits_to_keep": 1}}
    check_text_options(transformer(said), takes_pairs=False, is_asked=True)
    check_text_options(transformer({"chat_template": {"restore_suffix": True}}), takes_pairs=False, is_asked=True)
    with pytest.raises(LoadError, match="restore_suffix"):
        check_text_options(transformer({"chat_template": {"restore_suffix": False}}), takes_pairs=False, is_asked=True)
    with pytest.raises(LoadError, match="not supported: add_special_tokens"):
        check_text_options(transformer({"text": {"add_special_tokens": True}}), takes_pairs=False, is_asked=True)


def test_padding_to_the_full_length_is_text_where_no_mask_tells_it_from_text():
    with pytest.raises(LoadError, match='"padding": "max_length"'):
        check_text_options(transformer({"text": {"padding": "max_length"}}, ["input_ids"]), takes_pairs=False)


@pytest.mark.parametrize("length", ["abc", [64], {"a": 1}, float("inf")])
def test_a_length_of_sentence_transformers_that_is_no_number_is_refused_with_its_file(length):
    with pytest.raises(
        LoadError, match=r"sentence_bert_config\.json has max_seq_length .*, which is no number"
    ) as caught:
        check_length(length)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("length", [None, 64, "64", 64.0])
def test_a_length_that_sentence_transformers_takes_is_left_to_it(length):
    check_length(length)


def test_the_length_is_looked_at_before_a_model_is_made(tmp_path):
    with pytest.raises(LoadError, match="max_seq_length 'abc'"):
        CheckedTransformer(str(tmp_path), max_seq_length="abc")
