import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn
from transformers import BertConfig, BertForSequenceClassification

from emb_model_provider.errors import LoadError, LoadReason
from shard.device import ComputePlan
from shard.encoder import Results, Tokenized
from shard.encoders.filled_passes import FULL_TOKENS, FilledPasses
from shard.encoders.score_head import ScoreHead
from shard.encoders.sentence_transformer import run_path
from shard.fidelity import compare_results
from shard.loading import paths
from shard.loading.paths import choose_path
from shard.loading.trial import Trial, run_alone

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


class RefusedPath(CardPath):
    """One of whose kernels takes more than the card has."""

    def run(self, _rows):
        raise torch.AcceleratorError("CUDA error: too many resources requested for launch\nSearch for ...")


def test_a_model_whose_quick_path_the_driver_does_not_begin_is_served_by_its_own_code(monkeypatch):
    monkeypatch.setattr(paths, "CudaPackedPath", RefusedPath)
    monkeypatch.setattr(paths, "_capture", lambda *_: fx.symbolic_trace(lambda ids, positions: ids + positions))
    heads = SimpleNamespace(modules=nn.ModuleList(), takes_flat_output=True)
    plain = CardPath(None, None, None)
    parts = SimpleNamespace(transformer=nn.Module(), heads=heads, plain=plain, wants_type_ids=False, rescaled=None)
    expected = Results(np.ones((2, 2), np.float32))
    found = choose_path(parts, PLAN, Trial(PROBES, expected, 8, compare_results), None)
    assert (found.path, found.batching) == (plain, "padded")


def test_a_model_that_gives_a_text_another_vector_each_time_is_not_served():
    with pytest.raises(LoadError, match="another vector each time") as caught:
        chosen_of(Moving(by_each_pass=0.01), EXACT)
    assert caught.value.reason is LoadReason.UNSUPPORTED_MODEL


def test_a_model_by_which_company_alone_moves_a_vector_is_given_one_text_at_a_time():
    assert chosen_of(Moving(by_company=0.01), EXACT).batching == "alone"


class Shifted:
    """A model's own code whose vectors are turned by so much where texts share a pass, and at once by ``always``."""

    def __init__(self, by_company, always=0.0):
        self._angles = by_company + always, always

    def split(self, batch):
        return [list(range(len(batch)))]

    def run(self, rows):
        angle = self._angles[len(rows) == 1]
        return Results(np.array([[np.cos(angle), np.sin(angle)]] * len(rows), np.float32))


CPU = ComputePlan("cpu", "fp32", "float32", "float32")
EXPECTED = Results(np.array([[1.0, 0.0]] * 2, np.float32))


def padded(plan, path):
    heads = SimpleNamespace(modules=nn.ModuleList(), takes_flat_output=False)
    parts = SimpleNamespace(transformer=nn.Module(), heads=heads, plain=path, wants_type_ids=False, rescaled=None)
    return choose_path(parts, plan, Trial(PROBES, EXPECTED, 8, compare_results), None)


@pytest.mark.parametrize(
    ("plan", "path", "batching"),
    [
        (CPU, Shifted(0.0), "padded"),
        (CPU, Shifted(1e-3), "alone"),
        (CPU, Shifted(0.0, 1e-3), "padded"),  # one text at a time would be no nearer
        (PLAN, Shifted(1e-2), "padded"),  # by rounding, of which there is more on a card
        (PLAN, Shifted(0.1), "alone"),
        (ComputePlan("cuda:0", "fp32", "float32", "float32"), Shifted(1e-3), "padded"),
        (ComputePlan("cuda:0", "fp32", "float32", "float32"), Shifted(0.1), "alone"),
    ],
)
def test_texts_are_given_one_at_a_time_only_where_their_company_moves_their_vectors(plan, path, batching):
    found = padded(plan, path)
    assert found.batching == batching
    apart = found.path.split(PROBES)
    assert apart == ([[0], [1]] if batching == "alone" else [[0, 1]])
    rows = np.concatenate([found.path.run([PROBES[index] for index in one]).rows for one in apart])
    np.testing.assert_array_equal(found.results.rows, rows)


class Small(Shifted):
    """A model's own code whose vectors are turned by so much in passes of few tokens, and by ``large`` in others."""

    def __init__(self, small, large=0.0):
        self._by_size = small, large

    def run(self, rows):
        angle = self._by_size[len(rows) * max(len(row.ids) for row in rows) >= FULL_TOKENS]
        return Results(np.array([[np.cos(angle), np.sin(angle)]] * len(rows), np.float32))


LONG_PROBES = [Tokenized((1, 2), 2), Tokenized((3,) * 9, 9)]


def filled(plan, path):
    heads = SimpleNamespace(modules=nn.ModuleList(), takes_flat_output=False)
    parts = SimpleNamespace(transformer=nn.Module(), heads=heads, plain=path, wants_type_ids=False, rescaled=None)
    found = choose_path(parts, plan, Trial(LONG_PROBES, run_alone(path, LONG_PROBES), 8, compare_results), None)
    alone = run_alone(found.path, LONG_PROBES).rows
    np.testing.assert_array_equal(found.results.rows, run_path(found.path, LONG_PROBES).rows)
    return np.array_equal(alone, found.results.rows), isinstance(found.path, FilledPasses)


def test_where_a_short_text_has_another_vector_by_itself_passes_are_filled_with_copies_of_it():
    assert filled(CPU, Small(5e-7)) == (True, True)


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        (CPU, Small(1e-7)),  # nobody could see it, and a full pass takes longer
        (CPU, Small(0.0, float("nan"))),
        (ComputePlan("cpu", "bf16", "bfloat16", "bfloat16"), Small(5e-7)),
        (ComputePlan("cuda:0", "fp32", "float32", "float32"), Small(5e-7)),
    ],
)
def test_passes_are_left_as_they_are_where_to_fill_them_gives_nothing(plan, path):
    assert filled(plan, path)[1] is False


def test_a_way_that_fails_on_one_text_by_itself_is_as_far_as_one_that_fails_on_many():
    class Alone(Shifted):
        def run(self, rows):
            if len(rows) == 1:
                raise NotImplementedError("a kernel that wants more rows")
            return super().run(rows)

    _, nearness = Trial(PROBES, EXPECTED, 8, compare_results).run(Alone(0.0))
    assert (nearness.cosine, nearness.deviation) == (-1.0, float("inf"))


def test_a_way_that_makes_another_vector_of_a_text_by_itself_is_that_far():
    class Alone(Shifted):
        def run(self, rows):
            return Results(-super().run(rows).rows) if len(rows) == 1 else super().run(rows)

    results, nearness = Trial(PROBES, EXPECTED, 8, compare_results).run(Alone(0.0))
    np.testing.assert_array_equal(results.rows, EXPECTED.rows)
    assert nearness.cosine == -1.0


@pytest.mark.parametrize(("turned", "kernel"), [(0.0, "onednn"), (1e-3, "stock")])
def test_onednn_multiplies_where_it_is_quicker_and_the_vectors_stay_and_else_the_layers_are_put_back(
    monkeypatch, turned, kernel
):
    monkeypatch.setattr(paths, "is_onednn_quicker", lambda _model: True)
    model = nn.Sequential(nn.Linear(2, 2))
    layer = type(model[0])

    class Multiplying(Shifted):
        def run(self, rows):
            return Shifted(0.0, 0.0 if type(model[0]) is layer else turned).run(rows)

    heads = SimpleNamespace(modules=nn.ModuleList(), takes_flat_output=False)
    parts = SimpleNamespace(transformer=model, heads=heads, plain=Multiplying(0.0), wants_type_ids=False, rescaled=None)
    found = choose_path(parts, CPU, Trial(PROBES, EXPECTED, 8, compare_results), None)
    assert (found.kernel, type(model[0]) is layer) == (kernel, kernel == "stock")
    assert choose_path(parts, PLAN, Trial(PROBES, EXPECTED, 8, compare_results), None).kernel == "stock"
