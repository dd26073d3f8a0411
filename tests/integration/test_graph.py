"""A captured graph computes what the model's own code computes, for the families that people embed with."""

import gc
import weakref

import pytest
import torch
import transformers
from torch.nn.functional import cosine_similarity
from transformers import AlbertConfig, AlbertModel

from shard.encoders.graph import kernels, lowering
from shard.encoders.graph.capture import ATTEND, LINEAR, CaptureError, capture
from shard.encoders.graph.fusion import fuse_residuals
from shard.encoders.graph.kernels import choose_float_kernels, find_plain_tokens
from shard.encoders.graph.lowering import lower
from shard.encoders.graph.program import compile_graph
from shard.encoders.graph.segments import find_segments
from shard.encoders.graph.varlen import Bounds
from shard.encoders.packed import by_tokens
from shard.encoders.positions import find_first_position
from shard.loading.parts import count_bytes
from tests.support.attending import attend_one_by_one
from tests.support.company import sums_keep_their_order

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "Bert": {},
    "XLMRoberta": {"pad_token_id": 1},
    "Electra": {"embedding_size": 32},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "Albert": {"embedding_size": 16},
    "ModernBert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "Qwen2": GROUPED,
    "Qwen3": GROUPED,
    "Gemma3Text": {**GROUPED, "sliding_window": 16},
}
#: Longest first, as packed: two longer than the windows above, two of equal length, one token; the last four share a
#: segment with padding.
LENGTHS = [60, 40, 15, 5, 5, 1]


def make(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family]})
    name = {"Gemma3Text": "Gemma3TextModel"}.get(family, f"{family}Model")
    return getattr(transformers, name)(config).eval().requires_grad_(requires_grad=False)


def run_packed(model, graph, texts, plain_tokens=0):
    first = find_first_position(model)
    positions = torch.cat([torch.arange(first, first + len(text)) for text in texts])[None]
    with torch.inference_mode():
        hidden = graph(torch.cat(texts)[None], positions, find_segments([len(text) for text in texts], plain_tokens))[0]
    return hidden.split([len(text) for text in texts])


@pytest.fixture(scope="module", params=FAMILIES)
def captured(request):
    model = make(request.param)
    texts = [torch.randint(5, 300, (length,)) for length in LENGTHS]
    with torch.inference_mode():
        alone = [model(input_ids=text[None]).last_hidden_state[0] for text in texts]
    return model, capture(model, type_ids=False), texts, alone


@pytest.mark.parametrize("kernel", ["stock", "onednn", "onednn-packed"])
@pytest.mark.parametrize("plain_tokens", [0, 50])
def test_every_text_has_the_hidden_states_it_has_alone(captured, kernel, plain_tokens):
    model, graph, texts, alone = captured
    run = compile_graph(lower(graph, kernel, plain_tokens))
    together = run_packed(model, run, texts, plain_tokens)
    for one, text, expected in zip(together, texts, alone, strict=True):
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(run_packed(model, run, [text], plain_tokens)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["onednn", "onednn-packed"])
@pytest.mark.skipif(not sums_keep_their_order(), reason="this processor's libraries sum up few rows in another order")
def test_with_one_library_for_all_products_a_text_is_the_same_in_any_company_bit_for_bit(captured, kernel):
    model, graph, texts, _ = captured
    plain_tokens = find_plain_tokens(graph)
    run = compile_graph(lower(graph, kernel, plain_tokens))
    together = run_packed(model, run, texts, plain_tokens)
    for one, text in zip(together, texts, strict=True):
        if len(text) > 1:  # a pass has two tokens at least
            assert torch.equal(one, run_packed(model, run, [text], plain_tokens)[0]), len(text)


@pytest.mark.parametrize(("kernel", "least"), [("int8-dynamic", 0.98), ("int8-weight-only", 0.99)])
def test_int8_stays_near_and_is_not_fp32_under_another_name(captured, kernel, least):
    model, graph, texts, alone = captured
    found = run_packed(model, compile_graph(lower(graph, kernel)), texts)
    near = [float(cosine_similarity(one.mean(0), own.mean(0), dim=0)) for one, own in zip(found, alone, strict=True)]
    assert min(near) > least
    assert max((one - own).abs().max() for one, own in zip(found, alone, strict=True)) > 1e-3


def test_in_int8_too_a_text_does_not_depend_on_its_company():
    model = make("Bert")
    run = compile_graph(lower(capture(model, type_ids=False), "int8-dynamic"))
    texts = [torch.randint(5, 300, (length,)) for length in (7, 31, 12)]
    together = run_packed(model, run, texts)
    for text, found in zip(texts, together, strict=True):
        torch.testing.assert_close(found, run_packed(model, run, [text])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["onednn-packed", "int8-dynamic", "int8-weight-only"])
def test_layers_that_share_their_matrices_share_what_is_made_of_them(kernel):
    kinds = {"embedding_size": 16, "initializer_range": 0.3}
    one, many = [
        lower(
            capture(AlbertModel(AlbertConfig(**SIZES | kinds | {"num_hidden_layers": count})).eval(), type_ids=False),
            kernel,
        )
        for count in (1, 6)
    ]
    biases = 5 * 32 * 4  # of each further layer, where int8 has moved its input
    assert count_bytes([many]) <= count_bytes([one]) + biases


def test_capturing_leaves_the_model_as_it_was():
    model = make("Bert")
    text = torch.randint(5, 300, (1, 9))
    before, implementation = model(input_ids=text).last_hidden_state, model.config._attn_implementation
    capture(model, type_ids=True)
    assert model.config._attn_implementation == implementation
    torch.testing.assert_close(model(input_ids=text).last_hidden_state, before, atol=0, rtol=0)


def test_a_model_that_was_captured_goes_when_nobody_needs_it():
    model = make("Bert")
    is_there = weakref.ref(model)
    capture(model, type_ids=False)
    del model
    gc.collect()
    assert is_there() is None, "in int8 all of its matrices in fp32 are in memory beside those in 8 bit"


def test_lowering_leaves_the_captured_graph_for_the_next_kernel():
    graph = capture(make("Bert"), type_ids=False)
    before = str(graph.graph)
    lower(graph, "onednn-packed")
    assert str(graph.graph) == before


def test_three_layers_on_one_input_become_one_and_activation_and_sum_are_part_of_theirs():
    lowered = str(lower(capture(make("Bert"), type_ids=False), "onednn-packed").graph)
    assert lowered.count("mkldnn._linear_pointwise.default") == 2 * 2
    assert lowered.count("mkldnn._linear_pointwise.binary") == 2 * 2
    assert "gelu.default" not in lowered
    assert "attend_joint" in lowered


def test_what_torch_multiplies_itself_is_activated_and_summed_in_place():
    lowered = str(lower(capture(make("Bert"), type_ids=False), "stock").graph)
    assert lowered.count("activated_linear") == 2
    assert lowered.count("summed_linear") == 2 * 2
    assert "gelu.default" not in lowered


@pytest.mark.parametrize(("other", "left"), [(torch.float32, 1), (torch.bfloat16, 0)])
def test_a_sum_of_two_precisions_stays_a_step_of_its_own(other, left):
    graph = torch.fx.Graph()
    x, wide = graph.placeholder("x"), graph.placeholder("wide")
    linear = graph.call_function(LINEAR, (x, graph.get_attr("weight"), None))
    graph.output(graph.call_function(torch.ops.aten.add.Tensor, (linear, wide)))
    linear.meta["val"], wide.meta["val"] = torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(2, 4, dtype=other)
    torch.fx.GraphModule({"weight": torch.ones(4, 4, dtype=torch.bfloat16)}, graph)
    fuse_residuals(graph)
    assert [node.target for node in graph.nodes].count(torch.ops.aten.add.Tensor) == left


@pytest.mark.parametrize("kernel", ["stock", "onednn"])
def test_a_layer_that_two_sums_take_stands_before_both(kernel):
    graph, add = torch.fx.Graph(), torch.ops.aten.add.Tensor
    x = graph.placeholder("x")
    one, other = [graph.call_function(LINEAR, (x, graph.get_attr(name), None)) for name in ("one", "other")]
    total = graph.call_function(torch.ops.aten.sin.default, (graph.call_function(add, (one, other)),))
    graph.output(graph.call_function(add, (total, other)))
    value, weights = torch.rand(2, 4), {"one": torch.rand(4, 4), "other": torch.rand(4, 4)}
    for node in (one, other, total):
        node.meta["val"] = value
    run = compile_graph(lower(torch.fx.GraphModule(weights, graph), kernel))
    left, right = (value @ weight.T for weight in weights.values())
    with torch.inference_mode():
        torch.testing.assert_close(run(value, []), torch.sin(left + right) + right)


def test_few_tokens_go_one_way_and_many_another():
    run = by_tokens(lambda ids, more: ("few", more), lambda ids, more: ("many", more), 3)
    assert [run(torch.zeros(1, tokens), tokens) for tokens in (1, 3, 4)] == [("few", 1), ("few", 3), ("many", 4)]


def test_a_model_with_attention_of_its_own_is_not_captured():
    config = transformers.MPNetConfig(**{**SIZES, "pad_token_id": 1})
    model = transformers.MPNetModel(config).eval()
    with pytest.raises(CaptureError, match="attention is not transformers' own"):
        capture(model, type_ids=False)


@pytest.mark.parametrize("family", ["Bart", "M2M100"])  # places that are learned, and places that are computed once
def test_a_model_that_numbers_its_tokens_by_itself_is_not_captured(family):
    size = {"d_model": 32, "decoder_start_token_id": 2, "pad_token_id": 0, "vocab_size": 300}
    parts = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = getattr(transformers, f"{family}Config")(**size, **parts, encoder_ffn_dim=64, decoder_ffn_dim=64)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with pytest.raises(CaptureError, match="numbers its tokens by itself"):
        capture(model if family == "Bart" else model.get_encoder(), type_ids=False)


def test_a_score_that_attend_does_not_know_keeps_a_model_from_being_captured():
    config = transformers.Gemma2Config(**{**SIZES, **GROUPED, "attn_logit_softcapping": 50.0})
    with pytest.raises(CaptureError, match="softcap"):
        capture(transformers.Gemma2Model(config).eval(), type_ids=False)


@pytest.mark.parametrize(("family", "options"), [
    ("Mistral", {"sliding_window": 100, "is_causal": False}),  # sees 100 tokens on either side, and is told 100 in all
    ("Llama4Text", {"attention_chunk_size": 100, "intermediate_size_mlp": 64}),  # chunks, of which it is not told
])  # fmt: skip
def test_a_mask_that_attention_is_not_told_of_keeps_a_model_from_being_captured(family, options):
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **GROUPED, **options})
    model = getattr(transformers, f"{family}Model")(config).eval()
    with pytest.raises(CaptureError, match="its masks let tokens see others"):
        capture(model, type_ids=False)


@pytest.mark.parametrize("family", ["Bert", "Qwen3"])  # a layer with an activation right behind it, and without
def test_the_processor_is_asked_and_the_answer_is_a_kernel_that_runs(family):
    graph = capture(make(family), type_ids=False)
    packed, unpacked = (choose_float_kernels(graph, prepack=prepack) for prepack in (True, False))
    assert packed.kernel == "onednn-packed"  # as wished, for few tokens at least
    assert unpacked.kernel in ("stock", "onednn")
    for chosen in (packed, unpacked):
        assert chosen.max_tokens in (None, 128, 64, 32, 16, 8)
        assert str(chosen) == "+".join(chosen.all)
    assert sum(node.target is ATTEND for node in graph.graph.nodes) == 2


LOST, WON = [2.0, 1.0], [1.0, 1.0]


@pytest.mark.parametrize(
    ("races", "taken"),
    [([LOST, LOST, WON], "onednn"), ([LOST, LOST, LOST, WON], "onednn+stock"), ([LOST] * 8, "stock")],
)
def test_a_machine_that_is_busy_at_the_start_does_not_take_equal_vectors_from_a_model(monkeypatch, races, taken):
    to_come = iter(races)
    monkeypatch.setattr(kernels, "_race", lambda *_runners: next(to_come))
    assert str(choose_float_kernels(capture(make("Bert"), type_ids=False), prepack=False)) == taken
    assert not list(to_come)


def test_how_texts_attend_is_the_same_at_every_start_whatever_the_processor_does_besides(monkeypatch):
    monkeypatch.setattr(kernels, "_race", lambda *_runners: pytest.fail("a race decides about the last bit of vectors"))
    assert find_plain_tokens(capture(make("Bert"), type_ids=False)) == 128
    assert find_plain_tokens(capture(make("Qwen3"), type_ids=False)) == 0


def test_in_16_bit_no_text_takes_the_plain_steps():
    assert find_plain_tokens(capture(make("Bert").bfloat16(), type_ids=False)) == 0


def test_a_norm_of_a_sum_is_one_operation_and_computes_the_same(monkeypatch):
    def normed_sum(left, right, shape, weight, bias, eps):
        return torch.layer_norm(left + right, shape, weight, bias, eps)

    monkeypatch.setattr(lowering, "find_normed_sum", lambda: normed_sum)
    monkeypatch.setattr(lowering, "attend_varlen", attend_one_by_one)
    model = make("Bert")
    module = lower(capture(model, type_ids=False), "varlen")
    assert [node.target for node in module.graph.nodes].count(normed_sum) == 5  # of the embeddings, and two a layer
    assert torch.layer_norm not in [node.target for node in module.graph.nodes]
    ids = torch.randint(3, 300, (1, 9))
    bounds = Bounds(torch.tensor([0, 9], dtype=torch.int32), 9)
    with torch.inference_mode():
        found = compile_graph(module)(ids, torch.arange(9)[None], bounds)
        torch.testing.assert_close(found, model(input_ids=ids).last_hidden_state, atol=1e-5, rtol=0)
