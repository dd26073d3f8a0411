"""What is asked of the processor, and what its answer does: which products are taken, and up to how many rows."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from shard.encoders.graph import kernels
from shard.encoders.graph.capture import ATTEND, LINEAR
from shard.encoders.graph.kernels import choose_float_kernels, find_plain_tokens, is_onednn_quicker

SMALL, WIDE = torch.zeros(4, 8), torch.zeros(16, 8)


def captured(build, *inputs):
    return make_fx(build, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def layers(x):
    """Two small layers of one weight behind a larger one, which has a bias and an activation."""
    wide = functional.gelu(LINEAR(x, WIDE, torch.zeros(16)), approximate="tanh")
    return wide.sum() + LINEAR(x, SMALL, None).sum() * LINEAR(x, SMALL, None).sum()


def computed(x):
    return LINEAR(x, WIDE * x.mean(), None)


GRAPH = captured(layers, torch.zeros(1, 3, 8))


class Races:
    """Stands for the processor: oneDNN takes ``share`` of torch's time with up to ``most_rows``, else twice that."""

    def __init__(self, most_rows: int, share: float = 1.0) -> None:
        self.most_rows, self.share, self.seen = most_rows, share, []

    def __call__(self, ours, stock):
        rows, held, *activation = ours.args
        assert stock.args == (rows, stock.args[1], None, *activation)
        assert ours().shape == stock().shape
        self.seen.append((len(rows), tuple(stock.args[1].shape), held.is_mkldnn, *activation))
        return [self.share if len(rows) <= self.most_rows else 2.0, 1.0]


@pytest.fixture
def race(monkeypatch):
    def start(*how):
        races = Races(*how)
        monkeypatch.setattr(kernels, "_race", races)
        return races

    return start


@pytest.mark.parametrize(
    ("most_rows", "prepack", "chosen"),
    [
        (256, True, ("onednn-packed", None)),
        (256, False, ("onednn", None)),
        (256, None, ("onednn-packed", None)),
        (64, None, ("onednn-packed", 64)),
        (64, False, ("onednn", 64)),
        (0, True, ("onednn-packed", 8)),
        (0, False, ("stock", None)),
        (0, None, ("stock", None)),
    ],
)
def test_the_first_number_of_rows_that_is_won_decides_and_who_asks_for_a_copy_has_it(race, most_rows, prepack, chosen):
    race(most_rows)
    found = choose_float_kernels(GRAPH, prepack=prepack)
    assert (found.kernel, found.max_tokens) == chosen
    assert found.all == (found.kernel, "stock")[: 1 if found.max_tokens is None else 2]
    assert str(found) == "+".join(found.all)


@pytest.mark.parametrize(("lacking", "kernel"), [(0, "onednn-packed"), (1, "onednn")])
def test_unasked_only_small_matrices_are_copied(race, monkeypatch, lacking, kernel):
    race(256)
    monkeypatch.setattr(kernels, "_MAX_PREPACKED_BYTES", SMALL.nbytes + WIDE.nbytes - lacking)
    assert choose_float_kernels(GRAPH, prepack=None).kernel == kernel


def test_the_largest_matrix_is_raced_as_it_is_used(race):
    races = race(256)
    choose_float_kernels(GRAPH, prepack=True)
    assert races.seen == [(256, (16, 8), True, "gelu", "tanh")]


@pytest.mark.parametrize(("prepack", "most_rows", "kernel"), [(True, 256, "onednn"), (True, 0, "stock")])
def test_of_a_matrix_that_is_computed_on_the_way_no_copy_is_kept(race, prepack, most_rows, kernel):
    race(most_rows)
    assert choose_float_kernels(captured(computed, torch.zeros(1, 3, 8)), prepack=prepack).kernel == kernel


def test_in_16_bit_nobody_races(race):
    races = race(0)
    graph = captured(lambda x: LINEAR(x, WIDE.bfloat16(), None), torch.zeros(1, 3, 8, dtype=torch.bfloat16))
    assert str(choose_float_kernels(graph, prepack=False)) == "onednn"
    assert races.seen == []


def test_without_a_library_or_a_product_there_is_nothing_to_ask(race, monkeypatch):
    races = race(256)
    model = nn.Linear(8, 4)
    assert str(choose_float_kernels(captured(torch.sin, torch.zeros(1, 3, 8)), prepack=True)) == "stock"
    assert not is_onednn_quicker(nn.Sequential(nn.modules.linear.NonDynamicallyQuantizableLinear(8, 4)))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert str(choose_float_kernels(GRAPH, prepack=True)) == "stock"
    assert not is_onednn_quicker(model)
    assert races.seen == []


@pytest.mark.parametrize(("share", "kernel"), [(1.04, "onednn"), (1.06, "stock")])
def test_equal_vectors_in_any_company_are_worth_a_little_time(race, share, kernel):
    race(256, share)
    assert str(choose_float_kernels(GRAPH, prepack=False)) == kernel


@pytest.mark.parametrize(
    ("most_rows", "share", "is_quicker"), [(256, 0.89, True), (256, 0.91, False), (128, 0.5, False), (0, 0.5, False)]
)
def test_where_vectors_gain_nothing_it_has_to_be_much_quicker_with_most_rows(race, most_rows, share, is_quicker):
    races = race(most_rows, share)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 64), nn.Linear(64, 4))
    assert is_onednn_quicker(model) is is_quicker
    assert races.seen[0] == (256, (64, 16), False, "none", "")


def test_the_best_of_several_rounds_counts_and_each_has_its_own(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(kernels, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def runner(*durations_s):
        to_come = iter([*durations_s, *[9.0] * 9])

        def run():
            now_s[0] += next(to_come)

        return run

    assert kernels._race(runner(4.0, 1.0, 2.0), runner(3.0, 5.0)) == [1.0, 3.0]


def attending(*layers, dtype=torch.float32):
    """Return a graph of layers that attend, each by (causal, window, heads of keys)."""

    def build(query, *keys):
        rules = zip(keys, layers, strict=True)
        return sum(ATTEND(query, key, key, None, causal, window) for key, (causal, window, _) in rules)

    heads = [4, *(heads for *_, heads in layers)]
    return captured(build, *(torch.zeros(1, count, 3, 2, dtype=dtype) for count in heads))


@pytest.mark.parametrize(
    ("layers", "tokens"),
    [
        ([(False, None, 4)], 128),
        ([(False, None, 4), (True, None, 4)], 0),
        ([(False, None, 4), (False, None, 2)], 0),
        ([(False, 100, 4), (False, 90, 4), (False, None, 4)], 90),
        ([(False, 200, 4)], 128),
        ([(False, 16, 4)], 16),
        ([(False, 15, 4)], 0),  # fewer are not summed up in the order of more
    ],
)
def test_texts_take_the_plain_steps_as_far_as_every_layer_lets_them(layers, tokens):
    assert find_plain_tokens(attending(*layers)) == tokens


def test_in_16_bit_no_text_takes_them():
    assert find_plain_tokens(attending((False, None, 4), dtype=torch.bfloat16)) == 0
