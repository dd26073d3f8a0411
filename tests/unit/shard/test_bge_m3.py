"""BGE-M3's sparse and token vectors, held against FlagEmbedding's definition on the hidden states of each text."""

import numpy as np
import pytest
import torch
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from emb_model_provider.errors import LoadError, LoadReason
from shard.encoder import Tokenized
from shard.encoders.bge_m3 import BgeM3Head, TokenLinears, largest_weights, read_token_linears
from shard.encoders.heads import Heads

SIZE, UNUSED = 8, frozenset({0, 1, 2, 3})
ALL = ("dense", "sparse", "multi_vector")
IDS = [(0, 7, 5, 7, 7, 3, 2), (0, 9, 2), (0, 2), (0, 5, 6, 5, 6, 5, 6, 1, 2)]


def linears(seed=4):
    torch.manual_seed(seed)
    return TokenLinears(nn.Linear(SIZE, 1), nn.Linear(SIZE, 3))


def given(outputs=ALL):
    states = torch.randn(len(IDS), max(map(len, IDS)), SIZE, generator=torch.Generator().manual_seed(8))
    return states, [Tokenized(ids, len(ids), outputs=outputs) for ids in IDS]


def flag_embedding(layers, states, ids):
    """``BGEM3FlagModel``: {id: weight} and token vectors of one text."""
    found = {}
    for one, weight in zip(ids, torch.relu(layers.sparse(states))[:, 0].tolist(), strict=True):
        if one not in UNUSED and weight > found.get(one, 0):
            found[one] = weight
    return found, nn.functional.normalize(layers.colbert(states[1:]), dim=-1).detach().numpy()


@pytest.mark.parametrize("is_flat", [False, True])
def test_every_output_is_that_of_flag_embeddings_definition(is_flat):
    layers = linears()
    head = BgeM3Head(Heads([Pooling(SIZE, "cls"), Normalize()], SIZE), layers, UNUSED)
    states, rows = given()
    features = {"token_embeddings": states, "attention_mask": torch.ones(states.shape[:2], dtype=torch.int64)}
    if is_flat:
        features = {"token_embeddings": torch.cat([own[: len(ids)] for own, ids in zip(states, IDS, strict=True)])}
        features["token_embeddings"].unsqueeze_(0)
    results = head.run(features, rows)
    for number, ids in enumerate(IDS):
        own = states[number, : len(ids)]
        sparse, tokens = flag_embedding(layers, own, ids)
        row = results.sparse[number]
        assert row.indices.tolist() == sorted(sparse)
        np.testing.assert_allclose(row.values, [sparse[one] for one in sorted(sparse)], rtol=1e-5)
        np.testing.assert_allclose(results.tokens[number], tokens, atol=1e-6)
        np.testing.assert_allclose(results.rows[number], nn.functional.normalize(own[0], dim=0), atol=1e-6)
    assert (head.facts.outputs, head.facts.token_dimension, head.facts.dimension) == (ALL, 3, SIZE)
    assert not any(parameter.requires_grad for parameter in head.modules.parameters())


@pytest.mark.parametrize("layer", ["sparse", "colbert"])
def test_layers_are_given_full_blocks_of_rows(layer):
    layers = linears()
    seen = []
    getattr(layers, layer).register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0]) % 16))
    states, rows = given()
    head = BgeM3Head(Heads([Pooling(SIZE, "cls")], SIZE), layers, UNUSED)
    head.run({"token_embeddings": states, "attention_mask": torch.ones(states.shape[:2])}, rows)
    assert seen == [0]


@pytest.mark.parametrize("prompt", [True, False])
def test_texts_share_a_pass_as_the_dense_vector_has_it(prompt):
    dense = Heads([Pooling(SIZE, "mean", include_prompt=prompt)], SIZE)
    head = BgeM3Head(dense, linears(), UNUSED)
    ones = [Tokenized((1,) * 9, 9, prompt_tokens=tokens, raw=raw) for tokens in (0, 2) for raw in (False, True)]
    assert [head.group(one) for one in ones] == [dense.group(one) for one in ones]
    assert head.takes_flat_output
    assert not BgeM3Head(Heads([nn.Identity()], SIZE), linears(), UNUSED).takes_flat_output


def weights(*numbers):
    return np.array(numbers, np.float32)


@pytest.mark.parametrize(
    ("ids", "numbers", "indices", "values"),
    [
        ((9, 7, 9, 8), (0.5, 0.25, 0.75, 0.0), [7, 9], [0.25, 0.75]),
        ((9, 7, 9), (0.75, 0.25, 0.5), [7, 9], [0.25, 0.75]),
        ((1, 2), (3, 4), [], []),
        ((7, 7), (0, 0), [], []),
        ((7, 1, 8), (0.5, 9, 0.25), [7, 8], [0.5, 0.25]),
        ((7, 7, 8), (0.5, np.nan, 0.25), [7, 8], [np.nan, 0.25]),
        ((7, 7, 8), (np.nan, 0.5, 0.25), [7, 8], [np.nan, 0.25]),
        ((7, 8), (np.inf, 0.25), [7, 8], [np.inf, 0.25]),
    ],
)
def test_of_each_id_the_largest_weight_is_kept_and_what_is_no_number_stays_to_be_found(ids, numbers, indices, values):
    row = largest_weights(np.array(ids, np.uint32), weights(*numbers), np.array(sorted(UNUSED), np.uint32))
    assert row.indices.tolist() == indices
    np.testing.assert_array_equal(row.values, weights(*values))


def save(directory, **layers):
    for name, tensors in layers.items():
        torch.save(tensors, directory / f"{name}_linear.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_read_in_fp32_with_the_bias_that_they_have(tmp_path, dtype, bias):
    wanted = linears(5)
    layers = {name: getattr(wanted, name).to(dtype).state_dict() for name in ("sparse", "colbert")}
    for tensors in layers.values():
        if not bias:
            del tensors["bias"]
    save(tmp_path, **layers)
    found = read_token_linears(tmp_path, SIZE)
    for name in ("sparse", "colbert"):
        assert (getattr(found, name).bias is not None) is bias
        for key, value in getattr(found, name).state_dict().items():
            assert torch.equal(value, layers[name][key].float())


@pytest.mark.parametrize(
    ("sparse", "words"),
    [
        ({"weight": torch.zeros(2, SIZE)}, "gives 2 numbers per token"),
        ({"weight": torch.zeros(1, SIZE + 1)}, "of size 8"),
        ({"weight": torch.zeros(SIZE)}, "of size 8"),
        ({"bias": torch.zeros(1)}, "of size 8"),
    ],
)
def test_layers_of_another_model_are_refused(tmp_path, sparse, words):
    save(tmp_path, sparse=sparse, colbert={"weight": torch.zeros(3, SIZE)})
    with pytest.raises(LoadError, match=words) as caught:
        read_token_linears(tmp_path, SIZE)
    assert caught.value.reason is LoadReason.WRONG_WEIGHTS
