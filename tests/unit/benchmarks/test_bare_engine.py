from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bare_engine
from benchmarks.bare_engine import BATCH_TOKENS, BATCH_TOKENS_ON_CARD, BareEngine, batches, bert_flops, torch_dtype
from shard.encoder import Tokenized


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 64))
def test_batches_hold_every_text_once_within_both_bounds(lengths, max_texts):
    texts = [Tokenized((index,) + (0,) * (length - 1), length) for index, length in enumerate(lengths)]
    cut = list(batches(texts, max_texts))
    assert sorted(one.ids[0] for batch in cut for one in batch) == list(range(len(texts)))
    for batch in cut:
        assert sum(len(one.ids) for one in batch) <= BATCH_TOKENS
        assert len(batch) <= max_texts


def test_a_text_longer_than_a_batch_has_one_to_itself():
    cut = list(batches([Tokenized((0,) * 5000, 5000), Tokenized((0,), 1)]))
    assert [len(batch) for batch in cut] == [1, 1]


def test_the_operations_of_minilm_are_those_of_its_matrices():
    # One token: per layer Q, K, V and output 384x384, feed-forward 384x1536 twice, and attention to itself.
    assert bert_flops(1, 6, 384, 1536) == pytest.approx(6 * (2 * (4 * 384 * 384 + 2 * 384 * 1536) + 4 * 384))


class Encoder:
    """Reads a thousand tokens of every text, and notes what it does."""

    def __init__(self, events):
        self.events = events

    def tokenize(self, texts):
        return [Tokenized((0,) * 1000, 1000) for _ in texts]

    def encode(self, batch):
        self.events.append(len(batch))


@pytest.fixture
def on_device(monkeypatch, tmp_path):
    """Make an engine whose encoder and products only leave a trace; the device ``meta`` computes nothing."""
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}', encoding="utf-8"
    )

    def make(device, precision):
        events = []
        multiply = torch.mm

        def mm(a, b, *, out):
            events.append((a.device.type, a.dtype, *a.shape))
            return multiply(a, b, out=out)

        monkeypatch.setattr(bare_engine, "load_encoder", lambda *_: Encoder(events))
        monkeypatch.setattr(torch, "mm", mm)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(f"wait for {device}"))
        return SimpleNamespace(engine=BareEngine(str(tmp_path), precision, 1, device), events=events)

    return make


def test_products_on_a_card_are_large_and_in_the_precision_that_is_measured_and_waited_for(on_device):
    found = on_device("meta", "fp16")
    _, _, rate = found.engine.seconds_beside_products(["a"] * 40)
    product = ["wait for meta", *[("meta", torch.float16, 8192, 8192)] * 4, "wait for meta"]
    assert found.events == [*product, BATCH_TOKENS_ON_CARD // 1000, *product, 8, *product]
    assert rate > 0


def test_products_on_the_cpu_are_in_fp32(on_device):
    found = on_device("cpu", "fp32")
    found.engine.seconds_beside_products(["a"] * 3)
    product = ("cpu", torch.float32, 2048, 2048)
    assert found.events == [product, BATCH_TOKENS // 1000, product, 1, product]


def test_the_time_of_products_is_not_the_engines(on_device, monkeypatch):
    found = on_device("cpu", "fp32")
    now = [0.0]
    monkeypatch.setattr(bare_engine.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(found.engine, "_encoder", Encoder(found.events))
    monkeypatch.setattr(found.engine._encoder, "encode", lambda batch: now.__setitem__(0, now[0] + 1.0), raising=False)
    monkeypatch.setattr(torch, "mm", lambda *_, out: now.__setitem__(0, now[0] + 10.0))
    tokenize_s, encode_s, rate = found.engine.seconds_beside_products(["a"] * 6)
    assert (tokenize_s, encode_s) == (0.0, 3.0)
    assert rate == pytest.approx(2 * 2048**3 / 10)


def test_only_full_batches_are_slices(on_device):
    found = on_device("meta", "fp16")
    assert len(found.engine.slice_seconds(["a"] * 100)) == 3
    assert found.events == [32, 32, 32, 4]


def test_precisions_have_torchs_names():
    assert [torch_dtype(name) for name in bare_engine.PRECISIONS] == [torch.float32, torch.float16, torch.bfloat16]
