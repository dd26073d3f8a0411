"""SPLADE models against ``sentence_transformers.SparseEncoder.encode``, each text by itself."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SparseEncoder

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.batching.isolate import encode_isolated
from shard.encoder import Reading
from shard.encoders import splade
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support import tiny_models
from tests.support.opening import opener
from tests.support.tiny_heads import make_masked_language_model, make_splade, write_modules
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

SPARSE = Reading(outputs=("sparse",))
TEXTS = SAMPLE_TEXTS[:8]
TOLERANCE = 1e-5


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache", name="some/splade")


def reference(directory, texts, **options):
    model = SparseEncoder(str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32})
    rows = [model.encode([text], convert_to_sparse_tensor=False, show_progress_bar=False, **options) for text in texts]
    return torch.cat(rows).numpy()


def spread(rows, size):
    table = np.zeros((len(rows), size), dtype=np.float32)
    for number, row in enumerate(rows):
        table[number, row.indices] = row.values
    return table


def sparse(encoder, texts, reading=SPARSE):
    return [result.sparse for result in encoder.encode(encoder.tokenize(texts, reading)).each()]


def assert_reference(encoder, directory, texts=TEXTS):
    expected = reference(directory, texts)
    np.testing.assert_allclose(
        spread(sparse(encoder, texts), expected.shape[1]), expected, rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize(
    ("pooling", "activation", "legacy"),
    [("max", "relu", False), ("sum", "relu", True), ("max", "log1p_relu", True), ("sum", "log1p_relu", False)],
)
def test_every_kind_of_splade_pooling_equals_the_reference(tmp_path, opened, pooling, activation, legacy):
    directory = make_splade(tmp_path / "model", pooling=pooling, activation=activation, legacy=legacy)
    encoder = opened(directory)
    assert_reference(encoder, directory)
    info = encoder.info
    assert (info.task, info.outputs, info.pooling) == ("sparse", ("sparse",), f"splade-{pooling}")
    assert (info.dimension, info.max_tokens, info.batching) == (0, 64, "packed")


def test_a_plain_masked_language_model_is_splade_where_the_mapping_says_so(tmp_path, opened):
    directory = make_masked_language_model(tmp_path / "model")
    encoder = opened(directory, task="sparse")
    assert_reference(encoder, directory)
    assert opened(directory, pooling="mean").info.outputs == ("dense",)


def test_prompts_and_cutting_are_as_for_vectors(tmp_path, opened):
    directory = make_splade(tmp_path / "model", prompts={"query": "问题：", "document": ""})
    encoder = opened(directory)
    text = "北京是中国的首都。" * 30
    found = sparse(encoder, [text], Reading(encoder.resolve_prompt("query"), ("sparse",)))
    expected = reference(directory, [text], prompt_name="query")
    np.testing.assert_allclose(spread(found, expected.shape[1]), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_model_that_keeps_few_weights_keeps_the_largest(tmp_path, opened):
    directory = make_splade(tmp_path / "model", max_active=5)
    encoder = opened(directory)
    assert_reference(encoder, directory)
    assert {len(row.indices) for row in sparse(encoder, TEXTS)} == {5}


def test_logits_of_few_tokens_exist_at_a_time_and_change_nothing(tmp_path, opened, monkeypatch):
    directory = make_splade(tmp_path / "model", pooling="sum")
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    monkeypatch.setattr(splade, "MAX_LOGITS", 17 * vocabulary)
    seen = []
    forward = splade.LanguageHead.forward
    monkeypatch.setattr(
        splade.LanguageHead, "forward", lambda self, states: seen.append(len(states)) or forward(self, states)
    )
    encoder = opened(directory)
    seen.clear()
    assert_reference(encoder, directory)
    assert set(seen) == {16}


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(st.text("天气很好ab cd.，1", max_size=60), min_size=1, max_size=9), data=st.data())
def test_no_row_depends_on_its_neighbours(shared, texts, data):
    order = data.draw(st.permutations(range(len(texts))))
    size = shared.info.vocabulary_size + 1  # one token of the tiny vocabulary has two ids
    together = spread(sparse(shared, [texts[index] for index in order]), size)
    for place, index in enumerate(order):
        alone = spread(sparse(shared, [texts[index]]), size)[0]
        # Logits are far from length 1, so what differs is measured by the length of the vector.
        assert np.abs(together[place] - alone).max() <= 1e-6 * np.linalg.norm(alone)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splade")
    return load(
        Fetched(make_splade(folder / "model")),
        ModelSpec(id="m", name="some/splade", device="cpu", precision="fp32"),
        threads=2,
        cache_directory=folder / "cache",
    )


def test_indices_ascend_and_weights_are_above_zero(shared):
    for row in sparse(shared, TEXTS):
        assert (np.diff(row.indices.astype(int)) > 0).all()
        assert (row.values > 0).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_other_precisions_come_near(tmp_path, opened, precision):
    directory = make_splade(tmp_path / "model")
    encoder = opened(directory, precision=precision)
    expected = reference(directory, TEXTS)
    found = spread(sparse(encoder, TEXTS), expected.shape[1])
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.97


def test_a_row_that_is_not_finite_is_computed_exactly(shared):
    texts = shared.tokenize(TEXTS[:3], SPARSE)

    def with_a_hole(batch):
        results = shared.encode(batch)
        results.sparse[0].values[0] = np.nan
        return results

    results = encode_isolated(with_a_hole, shared.encode_exactly, texts)
    assert all(np.isfinite(result.sparse.values).all() for result in results)


@pytest.mark.parametrize(("max_active", "indices"), [(None, [0, 1]), (2, [0, 1]), (1, [1]), (0, [])])
def test_a_logit_that_is_not_a_number_stays_in_the_row_to_be_found(max_active, indices):
    class Head(torch.nn.Module):
        model = torch.nn.Linear(1, 1)
        model.config = type("C", (), {"vocab_size": 3})
        model.dtype = torch.float32

        def forward(self, states):
            return states

    head = splade.SpladeHead(Head(), splade.SpladePooling("max"), max_active)
    states = torch.tensor([[[1.0, -1.0, 0.0], [0.0, float("nan"), -2.0]]])
    (row,) = head.run({"token_embeddings": states}, [type("T", (), {"ids": (1, 2)})]).sparse
    assert row.indices.tolist() == indices
    assert np.isnan(row.values[-1:]).all()


def test_a_language_head_that_hands_on_attentions_is_split_from_its_transformer():
    from transformers import LongformerConfig, LongformerForMaskedLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "attention_window": [4], "max_position_embeddings": 20}  # fmt: skip
    model = LongformerForMaskedLM(LongformerConfig(**sizes)).eval()
    ids = torch.arange(4, 11)[None]
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0]
        transformer, head = splade.split_language_model(model)
        torch.testing.assert_close(head(transformer(input_ids=ids).last_hidden_state[0]), expected)


def test_what_is_no_masked_language_model_is_refused(tmp_path, opened):
    with pytest.raises(LoadError, match="needs a masked language model") as caught:
        opened(tiny_models.make_plain(tmp_path / "plain"), task="sparse")
    assert caught.value.reason == LoadReason.UNSUPPORTED_MODEL


def test_an_untrained_language_head_is_refused(tmp_path, opened):
    directory = tiny_models.make_plain(tmp_path / "plain")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(LoadError) as caught:
        opened(directory, task="sparse")
    assert caught.value.reason == LoadReason.WRONG_WEIGHTS


def test_sparse_models_of_other_modules_are_refused_by_name(tmp_path, opened):
    directory = make_splade(tmp_path / "model")
    home = "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding"
    write_modules(directory, {"": home})
    with pytest.raises(LoadError, match="SparseStaticEmbedding"):
        opened(directory)


def test_a_mapping_entry_cannot_make_a_sparse_model_a_dense_one(tmp_path, opened):
    with pytest.raises(LoadError, match='model for "embed"'):
        opened(make_splade(tmp_path / "model"), task="embed")
