"""Whatever is joined of a graph, it computes what it did: sums and orders that ``integration/test_graph`` has not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from shard.encoders.graph import attention, lowering
from shard.encoders.graph import normed_sum as normed_sums
from shard.encoders.graph.attention import Rule
from shard.encoders.graph.capture import ATTEND, LAYER_NORM, LINEAR
from shard.encoders.graph.lowering import lower
from shard.encoders.graph.program import compile_graph
from shard.encoders.graph.segments import find_segments
from shard.encoders.graph.varlen import attend_varlen

TOKENS, SIZE = 5, 8
GENERATOR = torch.Generator().manual_seed(3)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


X = numbers(1, TOKENS, SIZE)
W = [numbers(SIZE, SIZE) for _ in range(4)]
WIDE = numbers(3 * SIZE, SIZE)
B = [numbers(SIZE) for _ in range(4)]
aten = torch.ops.aten


def heads(tensor: torch.Tensor, size: int = 4) -> torch.Tensor:
    return tensor.view(1, TOKENS, tensor.shape[-1] // size, size).transpose(1, 2)


def attend(query, key, value, scale=0.3, causal=False, window=None):
    return ATTEND(query, key, value, scale, causal, window).view(1, TOKENS, -1)


class Eager(fx.Interpreter):
    """Runs a captured graph as it stands, each mark by torch's own function."""

    def call_function(self, target, args, kwargs):
        if target is ATTEND:
            query, key, value, scale, causal, window = args
            distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
            seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
            seen = seen if window is None else seen & (distance.abs() < window)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)
            return attended.transpose(1, 2).contiguous()
        usual = {LINEAR: functional.linear, LAYER_NORM: torch.layer_norm}.get(target, target)
        return super().call_function(usual, args, kwargs)


def run_both(build, kernel) -> tuple[fx.GraphModule, torch.Tensor, torch.Tensor]:
    """Return the lowered graph, what it computes, and what the captured one does."""
    with torch.inference_mode():
        graph = make_fx(build, tracing_mode="fake", _allow_non_fake_inputs=True)(X)
        lowered = lower(graph, kernel)
        return lowered, compile_graph(lowered)(X, find_segments([TOKENS], 0)), Eager(graph).run(X)


def assert_computes_the_same(build, kernel) -> fx.GraphModule:
    lowered, found, expected = run_both(build, kernel)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    return lowered


def layer(x, number: int = 0, *, biased: bool = True):
    return LINEAR(x, W[number], B[number] if biased else None)


def thrice(x):
    """Return queries, keys and values, each a layer of its own."""
    return [heads(layer(x, number)) for number in range(3)]


def times_itself(use, one):
    """Return what is made of a value that is read twice."""
    return use(one) * one


def gated(x):
    gate = layer(x, 3)
    return attend(*thrice(x)) * gate


def gated_behind(x):
    return attend(*thrice(x)) * layer(x, 3)


def crossed(x):
    one, other = layer(x, biased=False), layer(x, 1)
    return (one + other) * (other + x)


def reordered(x, *places: int):
    parts = thrice(x)
    return attend(*(parts[place] for place in places))


SUMS = {
    "the sum of a layer and its input": lambda x: layer(x) + x,
    "the other way round": lambda x: x + layer(x),
    "twice the input": lambda x: aten.add.Tensor(layer(x), x, alpha=2),
    "twice the layer": lambda x: aten.add.Tensor(x, layer(x), alpha=2),
    "a layer and itself": lambda x: aten.add.Tensor(*[layer(x)] * 2),
    "a layer and a row": lambda x: layer(x, biased=False) + B[1],
    "a layer and a number": lambda x: layer(x) + 1.5,
    "two layers": lambda x: layer(x) + layer(x, 1, biased=False),
    "a layer that is read twice": lambda x: times_itself(lambda one: one + x, layer(x)),
    "a difference": lambda x: layer(x) - x,
    "a layer that is part of two sums": crossed,
    "a sum of sums": lambda x: layer(x + layer(x), 1) + (x + layer(x, 2, biased=False)),
}
ACTIVATIONS = {
    "gelu": lambda x: functional.gelu(layer(x)),
    "gelu by tanh": lambda x: functional.gelu(layer(x), approximate="tanh"),
    "relu without a bias": lambda x: functional.relu(layer(x, biased=False)),
    "of a layer that is read twice": lambda x: times_itself(functional.gelu, layer(x)),
    "before a sum": lambda x: functional.gelu(layer(x)) + x,
    "behind a sum": lambda x: functional.gelu(layer(x) + x),
    "of two layers": lambda x: layer(functional.relu(layer(x)), 1),
    "one of two that read one input": lambda x: functional.gelu(layer(x)) * layer(x, 1),
    "silu": lambda x: functional.silu(layer(x)) * layer(x, 1),
}
MERGED = {
    "of unlike widths": lambda x: torch.cat([LINEAR(x, WIDE, None), layer(x, biased=False)], -1),
    "three of unlike widths": lambda x: torch.cat(
        [layer(x, biased=False), LINEAR(x, WIDE, None), layer(x, 1, biased=False)], -1
    ),
    "one without a bias": lambda x: torch.cat([layer(x), layer(x, 1, biased=False)], -1),
    "of two inputs": lambda x: torch.cat([layer(x), layer(x * 2, 1)], -1),
    "a weight that is computed": lambda x: torch.cat([LINEAR(x, W[0] * x.mean(), B[0]), layer(x, 1)], -1),
}
ATTENTION = {
    "in their order": lambda x: attend(*thrice(x)),
    "keys first": lambda x: reordered(x, 1, 0, 2),
    "values first": lambda x: reordered(x, 2, 0, 1),
    "keys that are values": lambda x: reordered(x, 0, 1, 1),
    "a fourth layer first": gated,
    "a fourth layer last": gated_behind,
    "other queries": lambda x: attend(heads(layer(x)) * 2, *thrice(x)[1:]),
    "values of another width": lambda x: attend(*thrice(x)[:2], heads(LINEAR(x, WIDE[:16], None), 8)),
}


@pytest.mark.parametrize("kernel", ["stock", "onednn", "onednn-packed"])
@pytest.mark.parametrize(
    "build", [pytest.param(one, id=name) for name, one in (SUMS | ACTIVATIONS | MERGED | ATTENTION).items()]
)
def test_what_is_joined_computes_what_it_did(build, kernel):
    assert_computes_the_same(build, kernel)


@pytest.mark.parametrize("kernel", ["int8-dynamic", "int8-weight-only"])
@pytest.mark.parametrize(
    "build", [pytest.param(one, id=name) for name, one in (SUMS | ACTIVATIONS | MERGED | ATTENTION).items()]
)
def test_in_8_bit_it_computes_nearly_what_it_did(build, kernel):
    _, found, expected = run_both(build, kernel)
    assert found.shape == expected.shape
    assert functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("kernel", ["int8-dynamic", "int8-weight-only"])
def test_of_matrices_in_8_bit_none_is_kept_as_it_was(kernel):
    lowered, *_ = run_both(MERGED["of two inputs"], kernel)
    held = [*lowered.parameters(), *lowered.buffers()]
    assert {one.dtype for one in held if one.dim() > 1} == {torch.int8}


@pytest.mark.parametrize("kernel", ["int8-dynamic", "int8-weight-only", "onednn-packed"])
def test_nor_is_a_parameter_of_which_the_kernel_has_made_another(kernel):
    weight = torch.nn.Parameter(W[0], requires_grad=False)
    lowered, *_ = run_both(lambda x: LINEAR(x, weight, None), kernel)
    assert not list(lowered.parameters())


@pytest.mark.parametrize("activation", [("none", ""), ("relu", ""), ("gelu", "none"), ("gelu", "tanh")])
def test_the_product_that_is_raced_is_activated_as_it_says(activation):
    name, algorithm = activation
    made = functional.linear(X, W[0])
    made = {"none": made, "relu": made.relu(), "gelu": functional.gelu(made, approximate=algorithm or "none")}[name]
    torch.testing.assert_close(lowering.onednn_linear(X, W[0], *activation), made, atol=1e-5, rtol=1e-5)


def test_a_layer_that_shares_its_input_with_no_other_keeps_its_weight_to_itself():
    weight = torch.nn.Parameter(W[0], requires_grad=False)
    lowered = assert_computes_the_same(lambda x: LINEAR(x, weight, None), "varlen")
    assert [one.data_ptr() for one in (*lowered.parameters(), *lowered.buffers())] == [weight.data_ptr()]


def test_layers_that_several_places_have_in_common_are_joined_once():
    def twice(x):
        one, other = (torch.cat([layer(y), layer(y, 1)], -1) for y in (x, x * 2))
        return one * other

    lowered = assert_computes_the_same(twice, "varlen")
    assert [tuple(one.shape) for one in lowered.buffers() if one.dim() > 1] == [(2 * SIZE, SIZE)]


@pytest.mark.parametrize(("kernel", "sign"), [("int8-dynamic", "attend_joint"), ("varlen", "slice")])
def test_query_key_and_value_are_one_layer(kernel, sign):
    with torch.inference_mode():
        graph = make_fx(ATTENTION["in their order"], tracing_mode="fake", _allow_non_fake_inputs=True)(X)
        assert sign in str(lower(graph, kernel).graph)


@pytest.mark.parametrize("kernel", ["stock", "onednn-packed"])
@pytest.mark.parametrize("rule", [(None, False, None), (0.5, True, None), (0.3, False, 2), (0.3, True, 3)])
def test_every_layer_attends_by_its_own_rule(rule, kernel):
    assert_computes_the_same(lambda x: attend(*thrice(x), *rule), kernel)


def test_attention_is_told_how_long_short_texts_are_and_nothing_is_kept_of_what_tracing_noted():
    with torch.inference_mode():
        graph = make_fx(ATTENTION["in their order"], tracing_mode="fake", _allow_non_fake_inputs=True)(X)
        for kernel, function in (("stock", attention.attend), ("varlen", attend_varlen)):
            nodes = lower(graph, kernel, 16).graph.nodes
            (attending,) = [node for node in nodes if node.target is function]
            assert attending.args[3] == Rule(0.3, causal=False, window=None, plain_tokens=16)
            assert not any(node.meta for node in nodes)


@pytest.mark.parametrize(("kernel", "kept"), [("onednn-packed", 1), ("int8-weight-only", 2)])
def test_what_a_kernel_makes_of_a_weight_is_made_once_however_many_layers_share_it(kernel, kept):
    lowered, *_ = run_both(lambda x: layer(layer(x, biased=False), biased=False), kernel)
    assert len([*lowered.parameters(), *lowered.buffers()]) == kept


@pytest.mark.parametrize("kernel", ["stock", "int8-weight-only", "varlen"])
def test_a_weight_that_is_computed_is_multiplied_by_torchs_own_product_where_onednn_was_not_chosen(kernel):
    lowered, *_ = run_both(MERGED["a weight that is computed"], kernel)
    assert "pointwise" not in str([node.target for node in lowered.graph.nodes])


def test_parts_of_what_is_no_layer_are_handed_on_as_well():
    def build(x):
        joint = LINEAR(x, WIDE, None).sin()
        return attend(*(heads(aten.slice.Tensor(joint, -1, start, start + SIZE)) for start in range(0, 3 * SIZE, SIZE)))

    assert "attend_joint" in str(assert_computes_the_same(build, "onednn-packed").graph)


@pytest.mark.parametrize("name", ATTENTION)
def test_one_output_for_three_is_handed_on_whole_only_in_the_order_of_its_parts(name):
    lowered = str(assert_computes_the_same(ATTENTION[name], "onednn-packed").graph)
    assert ("attend_joint" in lowered) is (name == "in their order")


@pytest.mark.parametrize(
    ("name", "kept"),
    [("the other way round", 0), ("twice the layer", 1), ("a layer and itself", 1), ("a layer and a row", 1)],
)
def test_a_sum_is_part_of_a_layer_where_it_is_plainly_one(name, kept):
    lowered = assert_computes_the_same(SUMS[name], "onednn")
    assert [node.target for node in lowered.graph.nodes].count(aten.add.Tensor) == kept


def test_a_sum_with_what_a_joined_layer_makes_is_part_of_the_layer_that_it_is_added_to():
    lowered = assert_computes_the_same(lambda x: layer(layer(x), 2) + layer(x, 1), "onednn-packed")
    assert aten.add.Tensor not in {node.target for node in lowered.graph.nodes}


@pytest.mark.parametrize(
    ("name", "kept"),
    [("gelu", 0), ("gelu by tanh", 0), ("relu without a bias", 0), ("of a layer that is read twice", 1)],
)
def test_an_activation_is_part_of_a_layer_that_feeds_nothing_else(name, kept):
    lowered = assert_computes_the_same(ACTIVATIONS[name], "stock")
    assert sum(node.target in (aten.gelu.default, aten.relu.default) for node in lowered.graph.nodes) == kept


@pytest.mark.parametrize("kernel", ["stock", "onednn", "onednn-packed", "varlen"])
def test_with_every_kernel_of_floats_both_are(kernel):
    lowered = assert_computes_the_same(lambda x: x + layer(functional.gelu(layer(x)), 1), kernel)
    assert not {node.target for node in lowered.graph.nodes} & {aten.gelu.default, aten.add.Tensor}


def norm(x):
    return LAYER_NORM(x, [SIZE], B[0], B[1], 1e-5)


NORMS = {
    "a sum": (1, lambda x: norm(x + x.sin())),
    "a sum that is read elsewhere, too": (0, lambda x: times_itself(norm, x + x.sin())),
    "a sum and twice another": (0, lambda x: norm(aten.add.Tensor(x, x.sin(), alpha=2))),
    "a sum with a row": (0, lambda x: norm(x + B[2])),
    "a sum with a number": (0, lambda x: norm(x + 1.5)),
    "a difference": (0, lambda x: norm(x - x.sin())),
    "of another precision": (0, lambda x: norm(x.bfloat16() + x.bfloat16().sin())),
    "without weights": (0, lambda x: LAYER_NORM(x + x.sin(), [SIZE], None, None, 1e-5)),
    "over two dimensions": (0, lambda x: LAYER_NORM(x + x.sin(), [TOKENS, SIZE], X[0], X[0].sin(), 1e-5)),
}


def normed_sum(left, right, shape, weight, bias, eps):
    return torch.layer_norm(left + right, shape, weight, bias, eps)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_a_plain_sum_of_two_and_nothing_else(name, monkeypatch):
    monkeypatch.setattr(lowering, "find_normed_sum", lambda: normed_sum)
    joined, build = NORMS[name]
    lowered = assert_computes_the_same(build, "varlen")
    assert [node.target for node in lowered.graph.nodes].count(normed_sum) == joined


def test_what_a_norm_has_made_may_be_part_of_the_next_sum(monkeypatch):
    monkeypatch.setattr(lowering, "find_normed_sum", lambda: normed_sum)
    lowered = assert_computes_the_same(lambda x: norm(norm(x + x.sin()) + layer(x)), "varlen")
    assert [node.target for node in lowered.graph.nodes].count(normed_sum) == 2


@pytest.mark.parametrize("kernel", ["stock", "onednn", "onednn-packed", "int8-dynamic", "int8-weight-only"])
def test_off_a_card_nobody_asks_for_its_norm(kernel, monkeypatch):
    monkeypatch.setattr(lowering, "find_normed_sum", lambda: pytest.fail("it would be compiled, or run on the CPU"))
    run_both(NORMS["a sum"][1], kernel)


@pytest.fixture
def find_with(monkeypatch):
    """Asks for the norm of a card anew, where Triton's is what is given and a card is there."""

    def find(kernel):
        made = ModuleType("shard.encoders.graph.normed_sum_triton")
        made.triton_normed_sum = kernel
        monkeypatch.setitem(sys.modules, made.__name__, made)
        monkeypatch.setattr(normed_sums, "torch", SimpleNamespace(ones=lambda shape, device: torch.ones(shape)))
        return normed_sums.find_normed_sum()

    normed_sums.find_normed_sum.cache_clear()
    yield find
    normed_sums.find_normed_sum.cache_clear()


def test_the_norm_of_a_card_is_tried_once_before_it_is_used(find_with):
    tried = []

    def kernel(*given):
        tried.append(normed_sum(*given).shape)

    assert [find_with(kernel), find_with(kernel)] == [kernel, kernel]
    assert tried == [(1, 8)]


def test_where_it_cannot_be_compiled_torchs_own_is_left_and_that_is_told_once(find_with, caplog):
    def kernel(*_given):
        raise SystemError("no compiler")

    caplog.set_level("INFO")
    assert [find_with(kernel), find_with(kernel)] == [None, None]
    assert caplog.messages == ["without_triton"]
