"""BGE-M3's three outputs from one pass, against FlagEmbedding's definition written out in plain transformers code."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.batching.isolate import NonFiniteVectorError, encode_isolated
from shard.encoder import Reading
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support.tiny_heads import make_bge_m3
from tests.support.tiny_models import make_xlm_roberta
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

ALL = ("dense", "sparse", "multi_vector")
TOLERANCE = 1e-5


def opened(directory, cache, **settings):
    return load(
        Fetched(directory),
        ModelSpec(id="m", name="BAAI/bge-m3", device="cpu", **({"precision": "fp32"} | settings)),
        threads=2,
        cache_directory=cache,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_bge_m3(tmp_path_factory.mktemp("bge") / "model", colbert_dimension=24)


@pytest.fixture(scope="module")
def encoder(directory, tmp_path_factory):
    return opened(directory, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def reference(directory):
    """``FlagEmbedding.BGEM3FlagModel.encode``, one text at a time: dense, {id: weight}, token vectors."""
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    sparse = torch.load(directory / "sparse_linear.pt", weights_only=True)
    colbert = torch.load(directory / "colbert_linear.pt", weights_only=True)
    unused = {
        tokenizer.convert_tokens_to_ids(tokenizer.special_tokens_map[name])
        for name in ("cls_token", "eos_token", "pad_token", "unk_token")
        if name in tokenizer.special_tokens_map
    }

    def encode(text):
        inputs = tokenizer([text], return_tensors="pt", truncation=True, max_length=128, padding=True)
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
            dense = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
            weights = torch.relu(hidden @ sparse["weight"].T + sparse["bias"]).squeeze(-1)
            vectors = hidden[:, 1:] @ colbert["weight"].T + colbert["bias"]
            vectors = torch.nn.functional.normalize(vectors * inputs["attention_mask"][:, 1:, None].float(), dim=-1)
        result = {}
        for weight, token in zip(weights[0].tolist(), inputs["input_ids"][0].tolist(), strict=True):
            if token not in unused and weight > 0 and weight > result.get(token, 0):
                result[token] = weight
        kept = int(inputs["attention_mask"][0].sum()) - 1
        return dense[0].numpy(), result, vectors[0, :kept].numpy()

    return encode


def encode(encoder, texts, outputs=ALL):
    return encoder.encode(encoder.tokenize(texts, Reading(outputs=outputs))).each()


def assert_near(result, expected, tolerance=TOLERANCE):
    dense, sparse, tokens = expected
    np.testing.assert_allclose(result.row, dense, atol=tolerance)
    found = dict(zip(result.sparse.indices.tolist(), result.sparse.values.tolist(), strict=True))
    for token in found.keys() | sparse.keys():  # a weight may be just above 0 here and just not there
        # Not normalised: it comes of hidden states of length 6 and a layer of length 2.
        assert found.get(token, 0) == pytest.approx(sparse.get(token, 0), abs=10 * tolerance)
    assert result.tokens.shape == tokens.shape
    np.testing.assert_allclose(result.tokens, tokens, atol=tolerance)


def test_all_three_outputs_are_flag_embeddings_own_in_any_language(encoder, reference):
    results = encode(encoder, SAMPLE_TEXTS)
    assert any(len(result.sparse.indices) > 3 for result in results)
    for text, result in zip(SAMPLE_TEXTS, results, strict=True):
        assert_near(result, reference(text))


def test_what_it_gives_is_told(encoder):
    info = encoder.info
    assert (info.task, info.outputs) == ("embed", ALL)
    assert (info.dimension, info.token_dimension) == (32, 24)
    assert (info.pooling, info.normalized, info.batching) == ("cls", True, "packed")


def test_an_overlong_text_keeps_its_end_token_in_all_outputs(encoder, reference):
    text = "北京是中国的首都。" * 40
    (result,) = encode(encoder, [text])
    assert_near(result, reference(text))
    assert len(result.tokens) == 127


def test_sentence_transformers_files_beside_it_change_nothing(tmp_path, reference, directory):
    encoder = opened(make_bge_m3(tmp_path / "model", colbert_dimension=24, modules=True), tmp_path)
    for text, result in zip(SAMPLE_TEXTS[:4], encode(encoder, SAMPLE_TEXTS[:4]), strict=True):
        assert_near(result, reference(text))


@pytest.mark.parametrize("outputs", [("dense",), ("sparse",), ("multi_vector",), ("dense", "sparse")])
def test_only_what_is_asked_for_is_made(encoder, outputs):
    results = encoder.encode(encoder.tokenize(SAMPLE_TEXTS[:3], Reading(outputs=outputs)))
    made = {"dense": results.rows, "sparse": results.sparse, "multi_vector": results.tokens}
    assert {name for name, part in made.items() if part is not None} == set(outputs)


def test_one_batch_may_hold_inputs_that_ask_for_different_outputs(encoder, reference):
    one = encoder.tokenize(SAMPLE_TEXTS[:2], Reading(outputs=("sparse",)))
    other = encoder.tokenize(SAMPLE_TEXTS[2:4], Reading(outputs=("dense", "multi_vector")))
    results = encoder.encode([*one, *other]).each()
    dense, sparse, _ = reference(SAMPLE_TEXTS[0])
    assert set(results[0].sparse.indices.tolist()) == set(sparse)
    dense, _, tokens = reference(SAMPLE_TEXTS[2])
    np.testing.assert_allclose(results[2].row, dense, atol=TOLERANCE)
    np.testing.assert_allclose(results[2].tokens, tokens, atol=TOLERANCE)


@settings(max_examples=12, deadline=None)
@given(
    texts=st.lists(st.text("天气很好ab cd.，1", max_size=60), min_size=1, max_size=9),
    data=st.data(),
)
def test_no_output_depends_on_its_neighbours(encoder, texts, data):
    order = data.draw(st.permutations(range(len(texts))))
    together = encode(encoder, [texts[index] for index in order])
    for place, index in enumerate(order):
        (alone,) = encode(encoder, [texts[index]])
        sparse = dict(zip(alone.sparse.indices.tolist(), alone.sparse.values.tolist(), strict=True))
        assert_near(together[place], (alone.row, sparse, alone.tokens), tolerance=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_other_precisions_come_near(directory, tmp_path, reference, precision):
    encoder = opened(directory, tmp_path, precision=precision)
    for text, result in zip(SAMPLE_TEXTS[:4], encode(encoder, SAMPLE_TEXTS[:4]), strict=True):
        dense, _, tokens = reference(text)
        assert float(result.row @ dense) > 0.97
        assert ((result.tokens * tokens).sum(axis=1) > 0.9).all()
    assert encoder.info.outputs == ALL


def test_an_output_that_is_not_finite_is_computed_exactly_and_else_an_error_of_its_input_alone(encoder):
    texts = encoder.tokenize(SAMPLE_TEXTS[:3], Reading(outputs=ALL))

    def with_a_hole(batch):
        results = encoder.encode(batch)
        if texts[1] in batch:
            results.tokens[list(batch).index(texts[1])][0, 0] = np.nan
        return results

    repaired = encode_isolated(with_a_hole, encoder.encode_exactly, texts)
    assert all(np.isfinite(result.tokens).all() for result in repaired)
    broken = encode_isolated(with_a_hole, with_a_hole, texts)
    assert [isinstance(one, NonFiniteVectorError) for one in broken] == [False, True, False]


def test_changed_layers_change_the_fingerprint(directory, tmp_path, encoder):
    other = make_bge_m3(tmp_path / "model", colbert_dimension=24)
    linear = torch.load(other / "sparse_linear.pt", weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in linear.items()}, other / "sparse_linear.pt")
    assert opened(other, tmp_path).info.fingerprint != encoder.info.fingerprint


class Opens:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def test_a_layer_that_is_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    directory = make_bge_m3(tmp_path / "model")
    torch.save({"weight": torch.zeros(1, 32), "bias": Opens(tmp_path / "ran")}, directory / "sparse_linear.pt")
    with pytest.raises(LoadError) as caught:
        opened(directory, tmp_path)
    assert caught.value.reason == LoadReason.WRONG_WEIGHTS
    assert not (tmp_path / "ran").exists()


def test_a_layer_of_another_model_or_cut_off_is_refused(tmp_path):
    directory = make_bge_m3(tmp_path / "model")
    torch.save({"weight": torch.zeros(1, 64)}, directory / "sparse_linear.pt")
    with pytest.raises(LoadError, match="does not belong to this model"):
        opened(directory, tmp_path)
    (directory / "sparse_linear.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(LoadError) as caught:
        opened(directory, tmp_path)
    assert caught.value.reason == LoadReason.INCOMPLETE_DOWNLOAD


def test_without_both_layers_it_is_a_plain_transformer(tmp_path):
    directory = make_xlm_roberta(tmp_path / "model")
    torch.save({"weight": torch.zeros(1, 32)}, directory / "sparse_linear.pt")
    assert opened(directory, tmp_path).info.outputs == ("dense",)


def test_no_two_tokens_of_a_row_share_an_index_and_all_ascend(encoder):
    for result in encode(encoder, SAMPLE_TEXTS):
        assert all(one < other for one, other in itertools.pairwise(result.sparse.indices.tolist()))
