import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn
from transformers import BertConfig, BertForSequenceClassification

from emb_model_provider.errors import LoadError, LoadReason
from shard import paths
from shard.device import ComputePlan
from shard.encoder import Results, Tokenized
from shard.encoders.score_head import ScoreHead
from shard.fidelity import compare_results
from shard.paths import Trial, choose_path

PROBES = [Tokenized((1, 2), 2), Tokenized((3,), 1)]
EXACT = ComputePlan("cpu", "fp32", "float32", "float32")
PLAN = ComputePlan("cuda:0", "fp16", "float16", "float16")


class Company:
    """A model's own code, of which nothing can be captured; it takes one text, and of several makes an error."""

    def __init__(self, error):
        self._error = error

    def split(self, batch):
        return [list(range(len(batch)))]

    def run(self, rows):
        if len(rows) > 1:
            raise self._error
        return Results(np.ones((1, 2), np.float32))


class Moving(Company):
    """A model's own code, by which each pass moves a vector of length 1 so far, and so does company."""

    def __init__(self, by_each_pass=0.0, by_company=0.0):
        self._by_each_pass, self._by_company, self._passes = by_each_pass, by_company, 0

    def run(self, rows):
        self._passes += 1
        moved = np.float32(self._by_each_pass * self._passes + self._by_company * (len(rows) - 1))
        return Results(np.tile(np.array([[1, moved]], np.float32), (len(rows), 1)))


def chosen_of(path, plan=PLAN):
    expected = Results(np.array([[1, 0], [1, 0]], np.float32))
    heads = SimpleNamespace(modules=nn.ModuleList(), takes_flat_output=False)
    parts = SimpleNamespace(transformer=nn.Module(), heads=heads, plain=path, wants_type_ids=False, rescaled=None)
    return choose_path(parts, plan, Trial(PROBES, expected, 8, compare_results), None)


def chosen(error):
    return chosen_of(Company(error))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=repr)
def test_too_little_memory_is_raised_as_that_and_not_taken_for_vectors_that_are_wrong(error):
    with pytest.raises(type(error)):
        chosen(error)


def test_texts_of_which_the_plain_path_makes_an_error_have_no_vectors():
    assert not chosen(RuntimeError("shapes")).results.is_finite


class CardPath(Company):
    """What a card makes of a graph, without one."""

    def __init__(self, _run, _heads, _device, **_options):
        super().__init__(None)

    def record_passes(self, _example, _max_tokens):
        pass

    def run(self, rows):
        return Results(np.ones((len(rows), 2), np.float32))


def test_a_rerankers_head_on_a_card_holds_no_matrices_beside_those_of_the_graph(monkeypatch):
    monkeypatch.setattr(paths, "CudaPackedPath", CardPath)
    monkeypatch.setattr(paths, "_capture", lambda *_: fx.symbolic_trace(lambda ids, positions: ids + positions))
    config = BertConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    parts = SimpleNamespace(transformer=nn.Module(), heads=None, wants_type_ids=False, rescaled=None)
    parts.transformer.model = BertForSequenceClassification(config)
    parts.heads = heads = ScoreHead(parts.transformer.model, "rerank")
    body, head = (weakref.ref(heads.body.embeddings), weakref.ref(parts.transformer.model.classifier))
    expected = Results(np.ones((2, 2), np.float32))
    assert choose_path(parts, PLAN, Trial(PROBES, expected, 8, compare_results), None).kernel == "varlen"
    del parts
    gc.collect()
    assert (body() is None, head() is None) == (True, False)
    assert heads.facts.task == "rerank"


def test_a_model_that_gives_a_text_another_vector_each_time_is_not_served():
    with pytest.raises(LoadError, match="another vector each time") as caught:
        chosen_of(Moving(by_each_pass=0.01), EXACT)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_model_by_which_company_alone_moves_a_vector_is_given_one_text_at_a_time():
    assert chosen_of(Moving(by_company=0.01), EXACT).batching == "alone"
