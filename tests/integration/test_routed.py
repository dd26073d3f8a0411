"""Models whose queries and documents take different ways, against ``encode_query`` and ``encode_document``."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SparseEncoder

from emb_model_provider.errors import InvalidRequestError, LoadError, LoadReason
from shard.encoder import Reading
from tests.support.opening import opener
from tests.support.tiny_routed import make_dense, make_inference_free
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

TEXTS = SAMPLE_TEXTS[:12]
TOLERANCE = 1e-5
TASKS = ("query", "document", None)


@pytest.fixture
def opened(tmp_path):
    return opener(tmp_path / "cache", name="some/routed")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A sparse model and its encoder, neither of which a test may change."""
    folder = tmp_path_factory.mktemp("routed")
    directory = make_inference_free(folder / "model")
    return directory, opener(folder / "cache", name="some/routed")(directory)


@pytest.fixture
def copied(shared, tmp_path):
    return Path(shutil.copytree(shared[0], tmp_path / "model"))


def tokenized(encoder, texts, task):
    return encoder.tokenize(texts, Reading(encoder.resolve_prompt(task), encoder.info.outputs, prompt_name=task))


def spread(results, size):
    table = np.zeros((len(results), size), dtype=np.float32)
    for number, result in enumerate(results):
        assert (np.diff(result.sparse.indices.astype(int)) > 0).all()
        table[number, result.sparse.indices] = result.sparse.values
    return table


def encoded(encoder, batch):
    results = encoder.encode(batch)
    return results.rows if results.sparse is None else spread(results.each(), 30522)


def library(directory, kind=SparseEncoder, **options):
    model = kind(str(directory), device="cpu", local_files_only=True)
    encodes = {"query": model.encode_query, "document": model.encode_document, None: model.encode}

    def encode(task):
        return np.stack([encodes[task]([text], show_progress_bar=False, **options)[0] for text in TEXTS])

    return {task: encode(task) for task in TASKS}


def sparse_library(directory):
    return library(directory, convert_to_sparse_tensor=False)


@pytest.mark.parametrize(
    "options",
    [{"max_active": 4, "negative": True}, {"prompts": {"query": "问题：", "document": "文："}, "pooling": "sum"}],
)
def test_sparse_queries_and_documents_equal_the_reference(tmp_path, opened, options):
    directory = make_inference_free(tmp_path / "model", **options)
    encoder, expected = opened(directory), sparse_library(directory)
    for task in TASKS:
        found = encoded(encoder, tokenized(encoder, TEXTS, task))
        np.testing.assert_allclose(found, expected[task], rtol=TOLERANCE, atol=TOLERANCE)
    info = encoder.info
    assert (info.task, info.outputs, info.batching, info.max_tokens) == ("sparse", ("sparse",), "packed", 64)
    assert (set(info.routes), set(info.prompts)) == ({"query", "document"}, {"query", "document"})


def test_equal_texts_that_take_different_ways_in_one_batch_each_have_their_own_vector(shared):
    _, encoder = shared
    queries, documents = (tokenized(encoder, TEXTS, task) for task in ("query", "document"))
    mixed = [one for pair in zip(queries, documents, strict=True) for one in pair]
    together = encoded(encoder, mixed)
    for place, one in enumerate(mixed):
        alone = encoded(encoder, [one])[0]
        assert np.abs(together[place] - alone).max() <= 1e-6 * np.linalg.norm(alone)
    exactly = spread(encoder.encode_exactly(mixed).each(), 30522)
    np.testing.assert_allclose(exactly, together, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(exactly[::2], together[::2])


def test_a_router_whose_default_is_the_query_still_computes_documents_quickly(tmp_path, opened):
    directory = make_inference_free(tmp_path / "model", default_route=None)
    encoder, expected = opened(directory), sparse_library(directory)
    np.testing.assert_array_equal(expected[None], expected["query"])
    for task in TASKS:
        found = encoded(encoder, tokenized(encoder, TEXTS, task))
        np.testing.assert_allclose(found, expected[task], rtol=TOLERANCE, atol=TOLERANCE)
    assert (encoder.info.batching, encoder.info.cosine > 0.99999) == ("packed", True)


def test_int8_is_for_documents_and_leaves_queries_as_they_are(shared, opened):
    directory, exact = shared
    narrow = opened(directory, precision="int8")
    queries, documents = (tokenized(narrow, TEXTS, task) for task in ("query", "document"))
    np.testing.assert_array_equal(encoded(narrow, queries), encoded(exact, queries))
    found, expected = encoded(narrow, documents), encoded(exact, documents)
    assert np.abs(found - expected).max() > TOLERANCE
    assert exact.info.fingerprint != narrow.info.fingerprint


def test_the_weights_of_queries_and_the_default_way_are_part_of_the_fingerprint(shared, copied, opened):
    directory, prints = copied, [shared[1].info.fingerprint]
    path = next(directory.glob("query_*")) / "model.safetensors"
    save_file({name: value * 2 for name, value in load_file(path).items()}, path)
    prints.append(opened(directory).info.fingerprint)
    router = json.loads((directory / "router_config.json").read_text())
    router["parameters"]["default_route"] = "query"
    (directory / "router_config.json").write_text(json.dumps(router))
    prints.append(opened(directory).info.fingerprint)
    assert len({*prints}) == 3


def test_weights_of_another_vocabulary_and_missing_ones_are_refused(copied, opened):
    directory = copied
    path = next(directory.glob("query_*")) / "model.safetensors"
    save_file({"weight": torch.ones(7)}, path)
    with pytest.raises(LoadError) as caught:
        opened(directory)
    assert caught.value.reason == LoadReason.WRONG_WEIGHTS
    save_file({"weight": torch.full((30522,), float("nan"))}, path)
    with pytest.raises(LoadError, match="not a finite number"):
        opened(directory)
    path.unlink()
    with pytest.raises(LoadError, match="holds no weights") as caught:
        opened(directory)
    assert caught.value.reason == LoadReason.INCOMPLETE_DOWNLOAD
    (path.parent / "config.json").write_text('{"frozen": true, "path": "/etc/idf.json"}')
    with pytest.raises(LoadError, match="names another file"):
        opened(directory)


@pytest.mark.parametrize("behind", [False, True])
def test_dense_queries_and_documents_that_share_a_transformer_equal_the_reference(tmp_path, opened, behind):
    directory = make_dense(tmp_path / "model", behind=behind)
    encoder, expected = opened(directory), library(directory, SentenceTransformer)
    assert np.abs(expected["query"] - expected["document"]).max() > 0.1
    for task in TASKS:
        found = encoded(encoder, tokenized(encoder, TEXTS, task))
        np.testing.assert_allclose(found, expected[task], atol=TOLERANCE)
    queries, documents = (tokenized(encoder, TEXTS, task) for task in ("query", "document"))
    together = encoded(encoder, [*queries, *documents])
    np.testing.assert_allclose(together, [*expected["query"], *expected["document"]], atol=TOLERANCE)
    info = encoder.info
    assert (info.task, info.dimension, info.normalized, info.batching) == ("embed", 16, True, "packed")
    with pytest.raises(InvalidRequestError, match="has no prompt named 'clustering'"):
        tokenized(encoder, TEXTS, "clustering")


def test_routes_to_vectors_of_different_sizes_are_refused(tmp_path, opened):
    with pytest.raises(LoadError, match="different sizes: 8, 16"):
        opened(make_dense(tmp_path / "model", sizes=(8, 16)))
