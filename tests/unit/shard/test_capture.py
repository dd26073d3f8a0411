"""What keeps a model from being captured, and what is left of one that is, beside ``integration/test_graph``."""

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import BertConfig, BertModel

from shard.encoders.graph.capture import (
    ATTEND,
    CaptureError,
    _drop_copies,
    _mark_attention,
    _numbers_tokens,
    capture,
)
from shard.encoders.graph.lowering import lower
from shard.encoders.graph.program import compile_graph
from shard.encoders.graph.segments import find_segments

aten = torch.ops.aten
SIZES = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


def make():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES, num_hidden_layers=1, initializer_range=0.3, layer_norm_eps=0.5)).eval()


def test_a_captured_model_reads_its_types_and_norms_by_its_own_epsilon():
    model, ids, types = make(), torch.tensor([[3, 4, 5]]), torch.tensor([[0, 1, 1]])
    with torch.inference_mode():
        run = compile_graph(lower(capture(model, type_ids=True), "stock"))
        found = run(ids, torch.arange(3)[None], types, find_segments([3], 0))
        expected = model(input_ids=ids, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("message", "shown"), [((), "RuntimeError: $"), (("one\ntwo",), "RuntimeError: one$")])
def test_whatever_a_model_raises_it_is_not_captured(message, shown, monkeypatch):
    def forward(**_inputs):
        raise RuntimeError(*message)

    model = make()
    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(CaptureError, match=shown):
        capture(model, type_ids=False)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "position_bias_table", "head_mask"])
def test_of_a_foreign_option_only_none_is_taken(name):
    tensors = [torch.zeros(1, 2, 3, 4, device="meta")] * 3
    _mark_attention(nn.Identity(), *tensors, None, **{name: None})
    with pytest.raises(CaptureError, match=f"its attention takes {name}$"):
        _mark_attention(nn.Identity(), *tensors, None, **{name: 1.0})


def test_attention_is_marked_with_the_rule_that_it_is_asked_for():
    module = nn.Identity()
    module.is_causal = True
    query, key, value = (torch.zeros(1, heads, 3, size) for heads, size in ((4, 8), (2, 8), (2, 6)))

    def attend(*tensors):
        return _mark_attention(module, *tensors, None, scaling=0.3, sliding_window=7)[0]

    graph = make_fx(attend, tracing_mode="fake")(query, key, value)
    (marked,) = [node for node in graph.graph.nodes if node.target is ATTEND]
    assert marked.args[3:] == (0.3, True, 7)
    assert marked.meta["val"].shape == (1, 3, 4, 6)


def test_a_mask_that_a_model_makes_by_itself_is_not_taken():
    tensors = [torch.zeros(1, 2, 3, 4)] * 3
    with pytest.raises(CaptureError, match="its attention takes a mask of its own"):
        _mark_attention(nn.Identity(), *tensors, torch.zeros(1, 1, 3, 3))


def numbering(table_read, *before_rows, reads_positions: bool, computes: bool) -> fx.Graph:
    graph = fx.Graph()
    ids, positions, table = graph.placeholder("ids"), graph.placeholder("positions"), graph.get_attr("table")
    read = [ids, *[graph.call_function(aten.cumsum.default, (ids, 1))] * computes, *[positions] * reads_positions]
    graph.output([graph.call_function(table_read, (table, *before_rows, rows)) for rows in read])
    return graph


@pytest.mark.parametrize("read", [(aten.embedding.default,), (aten.index_select.default, 0)])
@pytest.mark.parametrize("computes", [False, True])
@pytest.mark.parametrize("reads_positions", [False, True])
def test_a_model_numbers_its_tokens_that_reads_no_positions_and_a_table_by_what_it_computes(
    read, computes, reads_positions
):
    found = _numbers_tokens(numbering(*read, reads_positions=reads_positions, computes=computes))
    assert found is (computes and not reads_positions)


@pytest.mark.parametrize("is_changed", [False, True])
def test_copies_go_unless_something_is_changed_in_place(is_changed):
    graph = fx.Graph()
    x = graph.placeholder("x")
    copy, detached = graph.call_function(aten.clone.default, (x,)), graph.call_function(aten.detach.default, (x,))
    ordered = graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
    if is_changed:
        copy = graph.call_function(aten.relu_.default, (copy,))
    graph.output((copy, detached, ordered))
    _drop_copies(graph)
    left = [node.target for node in graph.nodes if node.op == "call_function"]
    everything = [aten.clone.default, aten.detach.default, aten.clone.default, aten.relu_.default]
    assert left == (everything if is_changed else [aten.clone.default])
