"""Code of a model that reads texts otherwise than the Rust core of its tokenizer does."""

from types import SimpleNamespace

import pytest
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, Whitespace
from torch import nn
from transformers import PreTrainedTokenizerFast

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoders.own_reading import check_reading


def tokenizer_of(kind=PreTrainedTokenizerFast):
    backend = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "The": 2, "the": 3, "It": 4, "is": 5}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    return kind(tokenizer_object=backend, unk_token="[UNK]", model_max_length=4)


def transformer():
    module = Transformer.__new__(Transformer)
    nn.Module.__init__(module)
    return module


class Lowering(PreTrainedTokenizerFast):
    def __call__(self, text, **options):
        return super().__call__([one.lower() for one in text], **options)


class Ending(PreTrainedTokenizerFast):
    def _encode_plus(self, *arguments, **options):
        read = super()._encode_plus(*arguments, **options)
        return {**read, "input_ids": [[*ids, 1] for ids in read["input_ids"]]}


class Plain(PreTrainedTokenizerFast):
    pass


@pytest.mark.parametrize("kind", [PreTrainedTokenizerFast, Plain])
def test_a_class_that_adds_nothing_to_its_core_is_served_whatever_it_cuts_at(kind):
    check_reading(transformer(), tokenizer_of(kind), 4)


@pytest.mark.parametrize("kind", [Lowering, Ending])
def test_a_class_that_changes_texts_or_ids_in_python_is_unsupported(kind):
    with pytest.raises(LoadError, match=f"its {kind.__name__} reads texts by code of its own") as caught:
        check_reading(transformer(), tokenizer_of(kind), 4)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def own_module(tokenizer, name="tokenize", before="", length=6):
    def read(texts):
        return tokenizer(
            [f"{before}{text.strip()}" for text in texts], truncation=True, max_length=length, return_tensors="pt"
        )

    return SimpleNamespace(**{name: read})


@pytest.mark.parametrize("name", ["tokenize", "preprocess"])
def test_a_module_of_the_models_own_that_reads_as_the_core_does_is_served_and_cuts_where_it_likes(name):
    tokenizer = tokenizer_of()
    check_reading(own_module(tokenizer, name), tokenizer, 6)


def test_a_module_of_the_models_own_may_take_blanks_off_the_ends_of_a_text():
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.pre_tokenizer = Split(" ", "isolated")  # to which a blank is a piece
    check_reading(own_module(tokenizer, length=999), tokenizer, 999)


@pytest.mark.parametrize(("before", "length"), [("the ", 6), ("", 5)])
def test_a_module_of_the_models_own_that_changes_texts_or_cuts_them_too_early_is_unsupported(before, length):
    tokenizer = tokenizer_of()
    with pytest.raises(LoadError, match="its SimpleNamespace reads texts by code of its own"):
        check_reading(own_module(tokenizer, before=before, length=length), tokenizer, 6)


def test_a_module_of_the_models_own_that_reads_nothing_is_unsupported():
    with pytest.raises(LoadError, match="neither preprocess nor tokenize"):
        check_reading(nn.Linear(1, 1), tokenizer_of(), 6)
