"""A graph as one Python function: every argument is what it was, and no value is held for longer than it is needed."""

import weakref

import pytest
import torch
from torch import fx

from shard.encoders.graph.program import compile_graph

aten = torch.ops.aten
X = torch.arange(6.0).view(2, 3)


def run(target, *arguments, **options):
    """Return what the function of one call makes of ``X``."""
    graph = fx.Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"), *arguments), options))
    return compile_graph(fx.GraphModule({}, graph))(X)


@pytest.mark.parametrize(
    ("target", "arguments", "options"),
    [
        (aten.view.default, ([3, 2],), {}),
        (aten.transpose.int, (0, 1), {}),
        (aten.add.Tensor, (2.5,), {"alpha": 3}),
        (aten.mul.Tensor, (float("inf"),), {}),
        (aten.sym_size.int, (1,), {}),
        (aten.unsqueeze.default, (1,), {}),
        (aten.sum.dim_IntList, ([0],), {"keepdim": True, "dtype": torch.float64}),
        (aten.clamp.default, (None, 2), {}),
        (aten.div.Tensor_mode, (2,), {"rounding_mode": "floor"}),
    ],
)
def test_a_call_takes_the_arguments_that_the_graph_has(target, arguments, options):
    expected = target(X, *arguments, **options)
    torch.testing.assert_close(run(target, *arguments, **options), expected, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("given", [None, True, 3, "a 'name'", -0.0, [1, (2,), []], (), (None, [2.5])])
def test_what_is_written_down_is_the_same_when_it_is_read(given):
    assert repr(run(lambda _x, one: one, given)) == repr(given)


def test_equal_constants_of_several_kinds_stay_several():
    given = (1.0, torch.float32, 1, True, 0.0, -0.0, 1.0)
    assert repr(run(lambda _x, *values: values, *given)) == repr(given)


def test_a_value_goes_as_soon_as_nobody_needs_it():
    graph, seen = fx.Graph(), []

    def make(*_values):
        made = X.clone()
        seen.append(weakref.ref(made))
        return made

    def count(*_values, **_more):
        return sum(one() is not None for one in seen)

    x = graph.placeholder("x")
    first, second = graph.call_function(make, (x,)), graph.call_function(make, (x,))
    both = graph.call_function(count, ([first],), {"more": second})
    graph.output((both, second, graph.call_function(count, ()), x))
    found = compile_graph(fx.GraphModule({}, graph))(X)
    assert (found[0], found[2]) == (2, 1)
    assert found[1] is seen[1]()


def test_what_is_no_call_is_refused():
    graph = fx.Graph()
    graph.output(graph.call_module("layer", (graph.placeholder("x"),)))
    with pytest.raises(ValueError, match="has no call_module"):
        compile_graph(fx.GraphModule({"layer": torch.nn.ReLU()}, graph))
