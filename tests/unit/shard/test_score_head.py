"""Heads of transformers' classifiers on texts end to end, held against the whole model on each text by itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from shard.encoder import Tokenized
from shard.encoders.heads import BLOCK_ROWS
from shard.encoders.score_head import SCORES, ScoreHead

SIZE = 8
SIZES = {"vocab_size": 20, "hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 8, "max_position_embeddings": 30, "initializer_range": 0.5, "num_labels": 3}  # fmt: skip
#: The last two end like padding, and hold nothing else.
IDS = [(5, 6, 7), (9,), (3, 8, 5), (4, 8, 3, 3), (3, 3)]
ROWS = [Tokenized(ids, len(ids)) for ids in IDS]


class Ranks(BertForSequenceClassification):
    """A model of its own code with a method of the name under which language models keep their heads."""

    def score(self, pairs):
        raise NotImplementedError


KINDS = {
    "bert": (BertForSequenceClassification, BertConfig),
    "of-its-own-code": (Ranks, BertConfig),
    "roberta": (RobertaForSequenceClassification, RobertaConfig),
    "qwen2": (Qwen2ForSequenceClassification, Qwen2Config),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config),
}


def made(kind, **options):
    model, config = KINDS[kind]
    torch.manual_seed(4)
    made = model(config(**SIZES | {"num_key_value_heads": 1} | options)).eval().requires_grad_(requires_grad=False)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize(
    ("kind", "padding", "takes_company"),
    [("bert", 0, True), ("of-its-own-code", 0, True), ("roberta", 1, True), ("qwen2", 3, True), ("gpt2", 3, True),
     ("qwen2", None, False)],
)  # fmt: skip
def test_the_scores_of_texts_end_to_end_are_those_of_the_whole_model_for_each_by_itself(kind, padding, takes_company):
    model = made(kind, pad_token_id=padding)
    head = ScoreHead(model, "classify")
    assert (head.takes_company, head.takes_flat_output) == (takes_company, True)
    expected = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in IDS])
    states = [head.body(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in IDS]
    features = {"token_embeddings": torch.cat(states)[None]}
    found = torch.from_numpy(head.run(dict(features), ROWS).rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    head.let_go_of_body()
    torch.testing.assert_close(torch.from_numpy(head.run(features, ROWS).rows), found, rtol=0, atol=0)
    assert model.config.pad_token_id == padding


def test_the_head_is_given_full_blocks_of_rows():
    seen, model = [], made("bert")
    model.classifier.register_forward_hook(lambda _module, given, _made: seen.append(len(given[0])))
    ScoreHead(model, "rerank").run({"token_embeddings": torch.rand(1, 13, SIZE)}, ROWS)
    assert seen == [BLOCK_ROWS]


def test_scores_that_the_models_own_code_made_are_taken_as_they_are():
    head = ScoreHead(made("bert"), "rerank")
    given = torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16)
    assert head.run({SCORES: given}, ROWS[:2]).rows.tolist() == [[1.5], [2.5]]
    with pytest.raises(TypeError, match="no scores"):
        head.run({SCORES: "x"}, ROWS[:2])
    with pytest.raises(TypeError, match="no token_embeddings"):
        head.run({"token_embeddings": None}, ROWS[:2])


def test_a_model_whose_body_is_not_found_is_run_as_a_whole():
    model = made("bert")
    model.base_model_prefix = "nothing"
    assert not ScoreHead(model, "rerank").takes_flat_output


def test_labels_are_in_the_order_of_their_numbers_whatever_that_of_the_file_and_of_their_digits():
    names = {str(number): f"label {number}" for number in (10, 2, 0, 1, *range(3, 10))}
    model = SimpleNamespace(config=SimpleNamespace(id2label=names))
    assert ScoreHead(model, "classify").facts.labels == tuple(f"label {number}" for number in range(11))


def test_labels_hold_no_half_of_a_surrogate_pair_which_could_be_sent_to_nobody():
    model = SimpleNamespace(config=SimpleNamespace(id2label={"1": "是", "0": "no\ud800"}))
    assert ScoreHead(model, "classify").facts.labels == ("no?", "是")
