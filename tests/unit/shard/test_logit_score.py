"""The score of a language model's answers, held against sentence-transformers' ``LogitScore`` and the whole model."""

import pytest
import torch
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import Tokenized
from shard.encoders.heads import BLOCK_ROWS
from shard.encoders.logit_score import LogitScoreHead, split_answers

VOCABULARY, SIZE = 5, 8
LENGTHS = [3, 1, 4]
SIZES = {"vocab_size": VOCABULARY, "hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "intermediate_size": 8, "max_position_embeddings": 20, "initializer_range": 0.5,
         "tie_word_embeddings": False}  # fmt: skip


def language_model(*, bias=False, kind=Qwen2ForCausalLM, config=Qwen2Config, **options):
    torch.manual_seed(2)
    model = kind(config(**SIZES, **options))
    if bias:
        model.lm_head = nn.Linear(SIZE, VOCABULARY)
    return model.requires_grad_(requires_grad=False)


def rows():
    return [Tokenized(tuple(range(length)), length) for length in LENGTHS]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [(4, 0), (0, 4), (3, None), (0, None)])
def test_the_score_is_the_logit_of_one_answer_less_that_of_the_other_at_the_last_token(ids, dtype, bias):
    model = language_model(bias=bias).to(dtype)
    expected, states = [], []
    for one in rows():
        given = torch.tensor([one.ids])
        features = {"causal_logits": model(given).logits}
        expected.append(LogitScore(*ids)(features)["scores"])
        states.append(model.model(given).last_hidden_state[0])
    transformer, answers = split_answers(model.train(), *ids)
    assert transformer is model.model
    assert not transformer.training
    head = LogitScoreHead(answers)
    padded = nn.utils.rnn.pad_sequence(states, batch_first=True, padding_value=9.0)
    for features in ({"token_embeddings": padded}, {"token_embeddings": torch.cat(states)[None]}):
        found = torch.from_numpy(head.run(features, rows()).rows)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, torch.cat(expected).float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("ids", [(VOCABULARY, 0), (0, VOCABULARY), (-1, 0), (1, -1), (VOCABULARY, None)])
def test_an_answer_that_the_model_has_no_logit_for_is_unsupported(ids):
    with pytest.raises(LoadError, match="are not among its 5") as caught:
        split_answers(language_model(), *ids)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("cap", [0.05, 2.0])
def test_a_model_that_caps_its_logits_is_unsupported(cap):
    model = language_model(kind=Gemma2ForCausalLM, config=Gemma2Config, final_logit_softcapping=cap, head_dim=4)
    with pytest.raises(LoadError, match="does more than read the last hidden states"):
        split_answers(model, 3, 1)
    with pytest.raises(LoadError, match="does more than read the last hidden states"):
        split_answers(model.bfloat16(), 3, 1)


class Louder(Qwen2ForCausalLM):
    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = 1.02 * output.logits
        return output


def test_a_difference_that_a_narrow_format_may_have_made_is_none_of_fp32():
    model = language_model(kind=Louder)
    with pytest.raises(LoadError, match="does more than read the last hidden states"):
        split_answers(model, 3, 1)
    split_answers(model.bfloat16(), 3, 1)


def test_the_rows_of_the_answers_are_given_full_blocks():
    seen, answers = [], nn.Linear(SIZE, 2)
    answers.register_forward_hook(lambda _module, given, _made: seen.append(len(given[0])))
    LogitScoreHead(answers).run({"token_embeddings": torch.rand(3, 4, SIZE)}, rows())
    assert seen == [BLOCK_ROWS]


def test_what_has_no_head_apart_from_its_transformer_is_unsupported():
    model = language_model()
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(LoadError, match="cannot be told from its transformer"):
        split_answers(model, 1, 0)
    model = language_model()
    model.base_model_prefix = ""
    with pytest.raises(LoadError, match="cannot be told from its transformer"):
        split_answers(model, 1, 0)
