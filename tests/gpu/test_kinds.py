"""Every kind of model and every family of architectures, packed on a device: what the CPU says of each text alone."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from emb_model_provider.modelmap import ModelSpec
from shard.encoder import Reading
from shard.encoders.graph import lowering
from shard.encoders.graph.attention import Rule
from shard.encoders.graph.capture import capture
from shard.encoders.graph.normed_sum import find_normed_sum
from shard.encoders.graph.program import compile_graph
from shard.encoders.graph.varlen import Bounds, attend_varlen
from shard.encoders.positions import find_first_position
from shard.fidelity import compare_results, compare_scores
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.integration.test_graph import FAMILIES, LENGTHS, make
from tests.support.attending import attend_one_by_one
from tests.support.cards import NO_CARD
from tests.support.tiny_classifiers import make_bert_classifier, make_xlm_roberta_classifier
from tests.support.tiny_heads import make_bge_m3, make_multi_vector, make_splade
from tests.support.tiny_language_models import make_qwen3
from tests.support.tiny_models import make_corom, make_gte, make_sentence_transformers, make_xlm_roberta
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

#: 16-bit attention of numbers around 1.
ATTENTION_TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
KINDS = {
    "gte": make_gte,
    "corom": make_corom,
    "sentence-transformers": make_sentence_transformers,
    "xlm-roberta": make_xlm_roberta,
    "bge-m3": make_bge_m3,
    "splade": make_splade,
    "multi-vector": make_multi_vector,
    "bert-reranker": make_bert_classifier,
    "xlm-roberta-reranker": make_xlm_roberta_classifier,
    "qwen3-reranker": make_qwen3,
}


@pytest.mark.parametrize("dtype", list(ATTENTION_TOLERANCE), ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("keys", [4, 2])
@NO_CARD
def test_attention_on_a_card_is_that_of_each_text_alone(dtype, causal, window, keys):
    torch.manual_seed(0)
    lengths = torch.tensor([60, 1, 40, 0, 16, 5])
    starts = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int().cuda()
    tokens = int(lengths.sum()) + 3
    query, key, value = (torch.randn(1, heads, tokens, 8, device="cuda", dtype=dtype) for heads in (4, keys, keys))
    rule, bounds = Rule(0.3, causal, window, 0), Bounds(starts, 64)
    if dtype == torch.float32 and window is not None:
        with pytest.raises(NotImplementedError):
            attend_varlen(query, key, value, rule, bounds)
        return
    found = attend_varlen(query, key, value, rule, bounds)[:, :-3]
    expected = attend_one_by_one(query, key, value, rule, bounds)[:, :-3]
    torch.testing.assert_close(found, expected, atol=ATTENTION_TOLERANCE[dtype], rtol=0)


@NO_CARD
def test_attention_on_a_card_leaves_out_what_is_not_seen():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, 48, 16, device="cuda", dtype=torch.float16) for _ in range(3))
    starts, seen = (torch.tensor(numbers, dtype=torch.int32, device="cuda") for numbers in ([0, 32, 48], [20, 16]))
    rule, bounds = Rule(None, False, None, 0), Bounds(starts, 32, seen)
    found = attend_varlen(query, key, value, rule, bounds)
    torch.testing.assert_close(found, attend_one_by_one(query, key, value, rule, bounds), atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "size"), [(1, 8), (7, 384), (33, 1000), (5, 4096)])
@NO_CARD
def test_a_kernel_of_triton_norms_sums_as_torch_does(dtype, rows, size):
    normed_sum = find_normed_sum()
    assert normed_sum is not None, "Triton does not work on this machine: see without_triton in the log"
    torch.manual_seed(0)
    left, right = (torch.randn(1, rows, size, device="cuda", dtype=dtype) for _ in range(2))
    weight, bias = (torch.randn(size, device="cuda", dtype=dtype) for _ in range(2))
    expected = torch.layer_norm(left + right, [size], weight, bias, 1e-12)
    found = normed_sum(left, right, [size], weight, bias, 1e-12)
    torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 8e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_of_every_family_computes_each_text_as_the_model_alone(device, family, monkeypatch):
    is_windowed = "sliding_window" in FAMILIES[family] or "local_attention" in FAMILIES[family]
    if device == "cpu" or is_windowed:  # the CPU packs in its own way, and in fp32 a card has no windows
        monkeypatch.setattr(lowering, "attend_varlen", attend_one_by_one)
    model = make(family).to(device)
    graph = compile_graph(lowering.lower(capture(model, type_ids=False), "varlen"))
    texts = [torch.randint(3, 300, (length,), device=device) for length in LENGTHS]
    first = find_first_position(model)
    positions = torch.cat([torch.arange(first, first + len(text), device=device) for text in texts])[None]
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int().to(device)
    with torch.inference_mode():
        found = graph(torch.cat(texts)[None], positions, Bounds(starts, max(LENGTHS)))[0].split(LENGTHS)
        for text, states in zip(texts, found, strict=True):
            expected = model(input_ids=text[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(states, expected, atol=2e-4, rtol=1e-3)


def opened(directory, device, cache, precision="fp32"):
    spec = ModelSpec(id="m", name="some/model", device=device, precision=precision)
    return load(Fetched(directory), spec, threads=2, cache_directory=cache)


def read(encoder):
    reading = Reading(None, encoder.info.outputs)
    if encoder.info.task == "rerank":
        return encoder.tokenize(SAMPLE_TEXTS, reading, SAMPLE_TEXTS[::-1])
    found = encoder.tokenize(SAMPLE_TEXTS, reading)
    if encoder.info.task == "multi_vector":
        found += encoder.tokenize(SAMPLE_TEXTS, Reading(None, encoder.info.outputs, prompt_name="query"))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_on_a_device_what_it_gives_on_the_cpu(device, kind, tmp_path):
    directory = KINDS[kind](tmp_path / "model")
    encoder, exact = (opened(directory, one, tmp_path / "cache") for one in (device, "cpu"))
    texts = read(encoder)
    compare = compare_scores if encoder.info.task in ("rerank", "classify") else compare_results
    nearness = compare(encoder.encode(texts), exact.encode(texts))
    assert nearness.cosine > 0.9999
    assert nearness.deviation < 1e-3
    assert encoder.info.batching == exact.info.batching


@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean"])
def test_what_is_pooled_in_another_way_than_usual_is_that_of_the_reference_library_on_the_device(
    device, pooling, tmp_path
):
    """Recorded passes pool whole texts and normalise; what is wanted otherwise is done behind them."""
    directory = make_sentence_transformers(tmp_path / "model", pooling=pooling, prompts={"query": "query: "})
    config = directory / "1_Pooling" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"include_prompt": False}), "utf-8")
    encoder, reference = (
        opened(directory, device, tmp_path / "cache"),
        SentenceTransformer(str(directory), device=device),
    )
    readings = {None: Reading(), "query": Reading("query: "), "raw": Reading(raw=True)}
    rows = {name: encoder.tokenize(SAMPLE_TEXTS, reading) for name, reading in readings.items()}
    mixed = encoder.encode([one for three in zip(*rows.values(), strict=True) for one in three]).rows
    found = {name: mixed[number :: len(rows)] for number, name in enumerate(rows)}
    for name in (None, "query"):
        expected = np.concatenate([reference.encode([text], prompt_name=name) for text in SAMPLE_TEXTS])
        np.testing.assert_allclose(found[name], expected, atol=1e-4)
    lengths = np.linalg.norm(found["raw"], axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    np.testing.assert_allclose(found["raw"] / lengths, found[None], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@NO_CARD
def test_every_kind_of_model_is_packed_in_16_bit_where_it_is_in_fp32(kind, tmp_path):
    directory = KINDS[kind](tmp_path / "model")
    encoder, exact = (opened(directory, "cuda:0", tmp_path / "cache", precision) for precision in ("fp16", "fp32"))
    texts = read(encoder)
    compare = compare_scores if encoder.info.task in ("rerank", "classify") else compare_results
    assert compare(encoder.encode(texts), exact.encode(texts)).cosine > 0.99
    assert encoder.info.batching == exact.info.batching
