"""SPLADE's weights, held against sentence-transformers' own pooling of the same logits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.util import select_max_active_dims
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import Tokenized
from shard.encoders import splade
from shard.encoders.splade import SpladeHead, split_language_model

SIZE, VOCABULARY = 8, 40
LENGTHS = [3, 16, 1, 21, 12]


class Logits(nn.Module):
    """Makes logits of hidden states, and keeps how many it was given at a time."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(SIZE, VOCABULARY, dtype=dtype)
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=VOCABULARY), dtype=dtype)
        self.seen = []

    def forward(self, states):
        self.seen.append(len(states))
        return self.linear(states)


def texts():
    states = torch.randn(len(LENGTHS), max(LENGTHS), SIZE, generator=torch.Generator().manual_seed(1))
    return states, [Tokenized((1,) * length, length) for length in LENGTHS]


def expected(logits, pooling):
    """Return what sentence-transformers makes of each text by itself, shape (texts, vocabulary)."""
    states, _ = texts()
    rows = []
    for own, length in zip(states, LENGTHS, strict=True):
        mask = torch.ones(1, length, dtype=torch.int64)
        features = {"token_embeddings": logits.linear(own[None, :length].to(logits.model.dtype)).float()}
        rows.append(pooling(features | {"attention_mask": mask})["sentence_embedding"][0].detach().numpy())
    return np.stack(rows)


def spread(rows):
    table = np.zeros((len(rows), VOCABULARY), np.float32)
    for number, row in enumerate(rows):
        assert (np.diff(row.indices.astype(int)) > 0).all()
        table[number, row.indices] = row.values
    return table


@pytest.mark.parametrize(("most", "step"), [(1, 16), (33 * VOCABULARY, 32), (splade.MAX_LOGITS, 64)])
@pytest.mark.parametrize(
    ("strategy", "activation"), [("max", "relu"), ("sum", "relu"), ("max", "log1p_relu"), ("sum", "log1p_relu")]
)
def test_weights_are_those_of_each_text_by_itself_however_few_logits_there_may_be(
    monkeypatch, strategy, activation, most, step
):
    monkeypatch.setattr(splade, "MAX_LOGITS", most)
    pooling, logits = SpladePooling(strategy, activation).eval(), Logits()
    head = SpladeHead(logits, pooling)
    states, rows = texts()
    found = head.run({"token_embeddings": states}, rows).sparse
    np.testing.assert_allclose(spread(found), expected(logits, pooling), rtol=1e-5, atol=1e-6)
    assert set(logits.seen) == {step}
    assert head.facts.pooling == f"splade-{strategy}"


@pytest.mark.parametrize("most", [1, 5, 39, 40, 41])
def test_of_few_weights_the_largest_are_kept_as_sentence_transformers_keeps_them(most):
    pooling, logits = SpladePooling("max").eval(), Logits()
    states, rows = texts()
    found = SpladeHead(logits, pooling, most).run({"token_embeddings": states}, rows).sparse
    wanted = select_max_active_dims(torch.from_numpy(expected(logits, pooling)), most)
    np.testing.assert_allclose(spread(found), wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_logits_are_made_in_the_format_of_the_language_model_and_added_up_in_fp32():
    pooling, logits = SpladePooling("sum").eval(), Logits(torch.bfloat16)
    states, rows = texts()
    found = SpladeHead(logits, pooling).run({"token_embeddings": states}, rows).sparse
    np.testing.assert_allclose(spread(found), expected(logits, pooling), rtol=1e-5, atol=1e-6)
    assert found[0].values.dtype == np.float32


def language_model(**options):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": SIZE, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 8, "max_position_embeddings": 20}  # fmt: skip
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**sizes, **options))


def test_a_language_model_is_split_without_what_it_leaves_out_at_random_in_training():
    model = language_model(hidden_dropout_prob=0.5).train()
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        transformer, head = split_language_model(model)
        found = head(transformer(ids).last_hidden_state[0])
        model.bert = transformer
        torch.testing.assert_close(found, model(ids).logits[0])


class Louder(BertForMaskedLM):
    """Makes more of its logits where it is given ids, by a hundredth."""

    def forward(self, input_ids=None, **options):
        output = super().forward(input_ids=input_ids, **options)
        output.logits = output.logits if input_ids is None else 1.01 * output.logits
        return output


def test_a_language_model_that_does_more_than_read_its_last_states_is_unsupported():
    model = language_model(initializer_range=1.0)
    model.__class__ = Louder
    with pytest.raises(LoadError, match="does more than read the last hidden states") as caught:
        split_language_model(model)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


@pytest.mark.parametrize("prefix", ["nothing", "cls"])
def test_a_language_model_of_which_no_part_is_a_transformer_is_unsupported(prefix):
    model = language_model()
    model.base_model_prefix = prefix
    with pytest.raises(LoadError, match="cannot be told from its transformer"):
        split_language_model(model)
