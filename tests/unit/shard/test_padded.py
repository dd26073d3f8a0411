"""What the model's own code is given: rows padded as the tokenizers library pads them, in groups that may share one."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn

from shard.encoder import Tokenized
from shard.encoders.padded import PaddedPath

PAD = 7


class Told(nn.Module):
    """Stands for a transformer: what it makes of a pass is what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    def forward(self, features):
        return dict(features)


class Seen:
    """Stands for a head: texts with prompts of one length may share a pass."""

    def group(self, one):
        return one.prompt_tokens

    def run(self, features, rows):
        return features, rows


def make_path(device="cpu", **options):
    return PaddedPath(Told(), Seen(), device, **{"pad_id": PAD, "wants_type_ids": True} | options)


def lists(features, *names):
    return [features[name].tolist() for name in names]


def test_rows_are_padded_on_the_right_as_the_library_pads_them():
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "a": 2, "b": 3}))
    tokenizer.pre_tokenizer = Whitespace()
    special = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", special)
    pairs = [("a b a", "b"), ("b", "a a a a"), ("a", "b")]
    rows = [
        Tokenized(tuple(one.ids), len(one.ids), type_ids=tuple(one.type_ids)) for one in tokenizer.encode_batch(pairs)
    ]
    tokenizer.enable_padding(pad_id=PAD)
    padded = tokenizer.encode_batch(pairs)
    features, seen = make_path().run(rows)
    assert lists(features, "input_ids", "attention_mask", "token_type_ids") == [
        [one.ids for one in padded],
        [one.attention_mask for one in padded],
        [one.type_ids for one in padded],
    ]
    assert (features["modality"], seen) == ("text", rows)
    assert {features[name].dtype for name in ("input_ids", "attention_mask", "token_type_ids")} == {torch.int64}


def test_a_row_without_types_is_of_the_first_and_a_model_that_wants_none_is_given_none():
    rows = [Tokenized((1, 2), 2), Tokenized((3,), 1, type_ids=(1,))]
    assert lists(make_path().run(rows)[0], "token_type_ids") == [[[0, 0], [1, 0]]]
    assert set(make_path(wants_type_ids=False).run(rows)[0]) == {"input_ids", "attention_mask", "modality"}


def test_what_a_question_was_filled_up_with_is_there_and_no_token_attends_to_it():
    rows = [Tokenized((1, 2, 5, 5), 4, expanded=2), Tokenized((3, 4, 6), 3)]
    assert lists(make_path().run(rows)[0], "input_ids", "attention_mask") == [
        [[1, 2, 5, 5], [3, 4, 6, PAD]],
        [[1, 1, 0, 0], [1, 1, 1, 0]],
    ]


def test_texts_that_their_head_tells_apart_share_no_pass():
    rows = [Tokenized((1, 2, 3), 3, prompt_tokens=number) for number in (0, 1, 0, 1)]
    assert sorted(map(sorted, make_path().split(rows))) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(("device", "passes"), [("cpu", [[0, 1], [2]]), ("cuda:0", [[0, 1, 2]])])
def test_a_pass_is_as_large_as_its_device_wants_it(device, passes):
    assert make_path(device).split([Tokenized((1,) * 1024, 1024)] * 3) == passes


def test_a_model_draws_no_random_numbers_and_keeps_nothing_for_training():
    PaddedPath(model := Told().train(), Seen(), "cpu", pad_id=PAD, wants_type_ids=False)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
