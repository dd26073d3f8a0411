"""Late-interaction models against ``sentence_transformers.MultiVectorEncoder``, each text by itself."""

import json
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import MultiVectorEncoder
from transformers import Qwen3Config, Qwen3Model

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.messages.link import Encode, Failed
from emb_model_provider.modelmap import ModelSpec
from shard.batching.intake import tokenize
from shard.batching.isolate import encode_isolated
from shard.encoder import Reading
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support import tiny_models
from tests.support.tiny_heads import make_multi_vector, make_pylate, make_stanford_colbert, write_modules
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

TOLERANCE = 1e-5
TEXTS = [*SAMPLE_TEXTS[:6], "Well, well: it's (almost) 100%!", "北京是中国的首都。" * 12]
MASKED = {"strategy": "fixed", "attend": False, "length": 24}


def opened(directory, cache, **settings):
    return load(
        Fetched(directory),
        ModelSpec(id="m", name="some/colbert", device="cpu", **({"precision": "fp32"} | settings)),
        threads=2,
        cache_directory=cache,
    )


def reading(encoder, role):
    return Reading(encoder.resolve_prompt(role), ("multi_vector",), prompt_name=role)


def vectors(encoder, texts, role=None):
    return encoder.encode(encoder.tokenize(texts, reading(encoder, role))).tokens


def assert_reference(encoder, directory, texts=TEXTS):
    model = MultiVectorEncoder(
        str(directory), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    ways = {"query": model.encode_query, "document": model.encode_document, None: model.encode_document}
    for role, encode in ways.items():
        expected = [encode([text], convert_to_numpy=True, show_progress_bar=False)[0] for text in texts]
        found = vectors(encoder, texts, role)
        assert [one.shape for one in found] == [one.shape for one in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expansion": MASKED, "skiplist": tuple(string.punctuation)},
        {"expansion": MASKED | {"attend": True}, "lengths": (None, 30)},
        {"expansion": MASKED | {"strategy": "min", "token": "[SEP]"}, "lengths": (40, 20)},
        {"skiplist": ("的", ","), "skiplist_tasks": ("query", "document"), "lengths": (16, None)},
    ],
    ids=["plain", "filled-up", "filled-up-and-seen", "filled-up-at-least", "skipping-in-both"],
)
def test_every_kind_of_mask_length_and_filling_equals_the_reference(tmp_path, options):
    directory = make_multi_vector(tmp_path / "model", **options)
    encoder = opened(directory, tmp_path)
    assert_reference(encoder, directory)
    info = encoder.info
    assert (info.task, info.outputs, info.batching) == ("multi_vector", ("multi_vector",), "packed")
    assert (info.dimension, info.token_dimension, info.prompts) == (0, 16, ("query", "document"))


def test_a_causal_model_that_fills_questions_up_equals_the_reference_on_the_quick_path(tmp_path):
    directory = make_multi_vector(tmp_path / "model", expansion=MASKED)
    vocabulary = json.loads((directory / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(3)
    Qwen3Model(Qwen3Config(vocab_size=vocabulary, **sizes, **heads, pad_token_id=0)).save_pretrained(directory)
    encoder = opened(directory, tmp_path)
    assert encoder.info.batching == "packed"
    assert_reference(encoder, directory)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attend_to_expansion_tokens": True, "skiplist_words": []},
        {"do_query_expansion": False, "query_prefix": "[Q] ", "document_prefix": "[D] "},
        {"prompts": {"query": "问题：", "document": ""}},
    ],
    ids=["usual", "seen", "no-filling-no-known-marker", "with-prompts"],
)
def test_pylate_checkpoints_equal_the_reference(tmp_path, options):
    directory = make_pylate(tmp_path / "model", **options)
    assert_reference(opened(directory, tmp_path), directory)


@pytest.mark.parametrize(
    "metadata",
    [None, {"query_maxlen": 16, "doc_maxlen": 40, "attend_to_mask_tokens": True, "mask_punctuation": False}],
)
def test_stanfords_colbert_equals_the_reference(tmp_path, metadata):
    directory = make_stanford_colbert(tmp_path / "model", metadata=metadata)
    assert_reference(opened(directory, tmp_path), directory, TEXTS[:5])


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colbert")
    return opened(make_multi_vector(folder / "model", expansion=MASKED, skiplist=(",", "。")), folder)


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(st.text("天气很好ab cd.，1", max_size=60), min_size=1, max_size=8), data=st.data())
def test_no_token_vector_depends_on_other_texts(shared, texts, data):
    roles = [data.draw(st.sampled_from(["query", "document"])) for _ in texts]
    batch = [shared.tokenize([text], reading(shared, role))[0] for text, role in zip(texts, roles, strict=True)]
    for one, together in zip(batch, shared.encode(batch).tokens, strict=True):
        np.testing.assert_allclose(together, shared.encode([one]).tokens[0], atol=1e-6)


def test_equal_texts_of_different_roles_are_different_inputs(shared):
    assert len(set(shared.tokenize(["好"], reading(shared, "query"))) | set(shared.tokenize(["好"]))) == 2


def test_a_filled_up_query_is_not_called_cut(shared):
    short, long = shared.tokenize(["好", "好" * 70], reading(shared, "query"))
    assert (len(short.ids), short.truncated) == (24, False)
    assert (len(long.ids), long.truncated) == (24, True)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_other_precisions_come_near(tmp_path, shared, precision):
    encoder = opened(
        make_multi_vector(tmp_path / "model", expansion=MASKED, skiplist=(",", "。")), tmp_path, precision=precision
    )
    for role in ("query", "document"):
        for one, other in zip(vectors(encoder, TEXTS[:4], role), vectors(shared, TEXTS[:4], role), strict=True):
            assert ((one * other).sum(axis=1) > 0.9).all()


def test_vectors_that_are_not_finite_are_computed_exactly(shared):
    texts = shared.tokenize(TEXTS[:3], reading(shared, "query"))

    def with_a_hole(batch):
        results = shared.encode(batch)
        results.tokens[0][0, 0] = np.inf
        return results

    results = encode_isolated(with_a_hole, shared.encode_exactly, texts)
    assert all(np.isfinite(result.tokens).all() for result in results)


def test_a_model_without_a_projection_is_refused_and_not_made_up(tmp_path):
    plain = tiny_models.make_plain(tmp_path / "plain")
    with pytest.raises(LoadError, match="random") as caught:
        opened(plain, tmp_path, task="multi_vector")
    assert caught.value.reason == LoadReason.UNSUPPORTED_MODEL
    dense = tiny_models.make_sentence_transformers(tmp_path / "dense")
    with pytest.raises(LoadError, match="random"):
        opened(dense, tmp_path, task="multi_vector")


def test_a_single_vector_model_with_a_dense_layer_may_be_read_token_by_token(tmp_path):
    directory = tiny_models.make_sentence_transformers(tmp_path / "model", dense=8)
    assert opened(directory, tmp_path, task="multi_vector").info.token_dimension == 8


def test_a_module_that_joins_tokens_is_refused_by_name(tmp_path):
    directory = make_multi_vector(tmp_path / "model")
    home = "sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling"
    write_modules(directory, {"": "sentence_transformers.models.Transformer", "1_Dense": home})
    with pytest.raises(LoadError, match="HierarchicalTokenPooling"):
        opened(directory, tmp_path)


@pytest.mark.parametrize(("role", "length"), [("query", 16), ("document", 20)])
def test_a_text_over_the_length_of_its_kind_is_refused_with_that_length(tmp_path, role, length):
    encoder = opened(make_multi_vector(tmp_path / "model", lengths=(16, 20)), tmp_path)
    request = Encode(("好" * 30,), prompt_name=role, outputs=("multi_vector",), overlong="error")
    refused = tokenize(encoder, request)
    assert isinstance(refused, Failed)
    assert f"maximum context length is {length} tokens" in refused.message
