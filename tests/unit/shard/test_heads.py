"""What follows the transformer, held against what each module makes of a text by itself."""

import numpy as np
import pytest
import torch
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from torch import nn

from shard.encoder import Tokenized
from shard.encoders.heads import BLOCK_ROWS, Heads, hidden_states, in_blocks, measure_dimension

SIZE = 8
LENGTHS = [3, 1, 2]


def dense(out: int = 4) -> Dense:
    return Dense(SIZE, out, activation_function=nn.Tanh())


def rows_of(*lengths: int, **options) -> list[Tokenized]:
    return [Tokenized((1,) * length, length, **options) for length in lengths]


def padded(lengths, dtype=torch.float32):
    """Return padded states and their mask, which hides numbers that no pooling may count."""
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    states = torch.randn(*mask.shape, SIZE, generator=torch.Generator().manual_seed(1)) + 100 * (1 - mask)[..., None]
    return {"token_embeddings": states.to(dtype), "attention_mask": mask}


def flat(features, lengths):
    """Return the same states end to end, as the quick path has them."""
    states = [one[:length] for one, length in zip(features["token_embeddings"], lengths, strict=True)]
    return {"token_embeddings": torch.cat(states)[None]}


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken", "weightedmean", ("mean", "cls")])
@pytest.mark.parametrize("make", [padded, lambda lengths: flat(padded(lengths), lengths)], ids=["padded", "flat"])
def test_every_text_has_the_vector_of_its_own_tokens_whatever_pools_it_and_follows(mode, make):
    layer = Dense(2 * SIZE, 4) if isinstance(mode, tuple) else dense()
    heads = Heads([Pooling(SIZE, mode), layer, Normalize()], SIZE)
    found = heads.run(make(LENGTHS), rows_of(*LENGTHS)).rows
    for row, length in enumerate(LENGTHS):
        own = padded(LENGTHS)["token_embeddings"][row : row + 1, :length]
        features = {"token_embeddings": own, "attention_mask": torch.ones(1, length, dtype=torch.int64)}
        for module in (Pooling(SIZE, mode), layer, Normalize()):
            features = module(features)
        np.testing.assert_allclose(found[row], features["sentence_embedding"][0].detach().numpy(), rtol=0, atol=1e-6)
    assert found.shape == (3, 4)


def test_raw_vectors_are_those_before_the_last_normalising_and_only_that():
    heads = Heads([Pooling(SIZE, "mean"), Normalize(), dense(), Normalize()], SIZE)
    raw, usual = (heads.pool(padded([2]), rows_of(2, raw=raw))[0] for raw in (True, False))
    own = padded([2])["token_embeddings"].mean(1)
    expected = torch.tanh(heads.modules[2].linear(nn.functional.normalize(own)))[0]
    torch.testing.assert_close(raw, expected)
    torch.testing.assert_close(usual, nn.functional.normalize(expected, dim=0))
    unnormalized = Heads([Pooling(SIZE, "mean"), dense()], SIZE)
    assert torch.equal(*(unnormalized.pool(padded([2]), rows_of(2, raw=raw)) for raw in (True, False)))


@pytest.mark.parametrize("counts", [True, False])
def test_the_tokens_of_a_prompt_count_where_the_pooling_says_so(counts):
    heads = Heads([Pooling(SIZE, "mean", include_prompt=counts)], SIZE)
    states = padded([4])["token_embeddings"][0]
    found = heads.pool(padded([4]), rows_of(4, prompt_tokens=3))[0]
    torch.testing.assert_close(found, states.mean(0) if counts else states[3])
    assert heads.pools_prompt is counts


def test_texts_share_a_pass_unless_it_would_have_to_treat_them_differently():
    ones = [Tokenized((1,) * 9, 9, prompt_tokens=tokens, raw=raw) for tokens in (0, 1, 2) for raw in (False, True)]
    outside, within = (Heads([Pooling(SIZE, "mean", include_prompt=one)], SIZE) for one in (False, True))
    assert len({outside.group(one) for one in ones}) == 6
    assert len({within.group(one) for one in ones}) == 2
    assert len({Heads([], SIZE).group(one) for one in ones}) == 2
    assert outside.group(ones[0]) == 0, "texts that ask for nothing are of the group that a head takes without rows"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_pooling_and_what_follows_is_in_fp32_whatever_the_transformer_computes_in(kind):
    heads = Heads([Pooling(SIZE, "mean"), Normalize()], SIZE)
    features = padded([3], kind) | {"all_layers": (torch.ones(1, dtype=kind), "x")}
    found = heads.pool(features, rows_of(3))[0]
    expected = nn.functional.normalize(features["token_embeddings"][0].float().mean(0), dim=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert found.dtype == torch.float32
    (end_to_end,) = heads.run(flat(padded([3], kind), [3]), rows_of(3)).rows
    np.testing.assert_allclose(end_to_end, expected.numpy(), rtol=0, atol=1e-7)


def test_nothing_behind_the_pooling_draws_random_numbers_or_is_trained():
    heads = Heads([Pooling(SIZE, "mean"), Dropout(0.5), dense().train()], SIZE)
    assert not any(module.training for module in heads.modules.modules())
    assert not any(parameter.requires_grad for parameter in heads.modules.parameters())


class TakesTuples(nn.Module):
    """A module that pools by itself, from one of several layers."""

    def forward(self, features):
        last, name = features["all_layers"]
        assert (last.dtype, name) == (torch.float32, "x")
        return features | {"sentence_embedding": last[:, 0]}


class GivesHalf(nn.Module):
    """A module that pools by itself, in 16 bit whatever it is given."""

    def forward(self, features):
        return features | {"sentence_embedding": features["token_embeddings"][:, 0].bfloat16()}


def test_vectors_of_a_module_that_computes_in_16_bit_are_fp32():
    found = Heads([GivesHalf()], SIZE).run(padded([2, 1]), rows_of(2, 1)).rows
    assert (found.dtype, found.shape) == (np.float32, (2, SIZE))


def test_a_layer_behind_the_pooling_is_given_full_blocks_of_rows(monkeypatch):
    seen, forward = [], Dense.forward
    monkeypatch.setattr(
        Dense,
        "forward",
        lambda self, features: seen.append(len(features["sentence_embedding"])) or forward(self, features),
    )
    found = Heads([Pooling(SIZE, "mean"), dense()], SIZE).run(padded(LENGTHS), rows_of(*LENGTHS)).rows
    assert (seen, found.shape) == ([BLOCK_ROWS], (3, 4))


def test_a_model_that_pools_by_itself_is_read_too_and_one_that_makes_nothing_is_told():
    features = {"all_layers": (torch.ones(2, 3, SIZE, dtype=torch.float16), "x")}
    assert Heads([TakesTuples()], SIZE).run(dict(features), rows_of(3, 3)).rows.shape == (2, SIZE)
    with pytest.raises(KeyError):
        Heads([], SIZE).pool(dict(features))
    with pytest.raises(TypeError, match="no sentence_embedding"):
        Heads([], SIZE).pool(features | {"sentence_embedding": None})


@pytest.mark.parametrize(
    ("modules", "pooling", "dimension", "normalized"),
    [
        ([Pooling(SIZE, "cls")], "cls", SIZE, False),
        ([Pooling(SIZE, ("mean", "max")), Normalize()], "mean+max", 2 * SIZE, True),
        ([Pooling(SIZE, "mean"), Normalize(), dense()], "mean", 4, False),
        ([Pooling(SIZE, "mean"), dense(), Dense(4, 5), Normalize()], "mean", 5, True),
        ([TakesTuples()], "none", SIZE, False),
        ([], "none", SIZE, False),
    ],
)
def test_a_head_tells_what_it_makes(modules, pooling, dimension, normalized):
    facts = Heads(modules, SIZE).facts
    assert (facts.pooling, facts.dimension, facts.normalized, facts.outputs) == (
        pooling,
        dimension,
        normalized,
        ("dense",),
    )


def test_a_dimension_is_a_modules_own_or_unknown():
    assert measure_dimension(Pooling(SIZE, ("mean", "max"))) == 2 * SIZE
    assert measure_dimension(Normalize()) is None


@pytest.mark.parametrize(
    ("modules", "takes"),
    [
        ([Pooling(SIZE, "mean")], True),
        ([Pooling(SIZE, "mean"), dense(), LayerNorm(4), Dropout(0.1), Normalize()], True),
        ([Pooling(SIZE, "mean"), TakesTuples()], False),
        ([dense(), Pooling(4, "mean")], False),
        ([TakesTuples()], False),
        ([], False),
    ],
)
def test_only_heads_that_read_nothing_but_the_last_states_take_texts_end_to_end(modules, takes):
    assert Heads(modules, SIZE).takes_flat_output is takes


@pytest.mark.parametrize(
    ("modules", "asks"),
    [
        ([Pooling(SIZE, "mean")], False),
        ([Pooling(SIZE, ("cls", "weightedmean"))], True),
        ([Pooling(SIZE, "weightedmean")], True),
        ([TakesTuples()], True),
    ],
)
def test_a_pooling_that_may_ask_the_device_for_a_number_is_known(modules, asks):
    assert Heads(modules, SIZE).pools_without_asking is not asks


@pytest.mark.parametrize("count", [1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_rows_are_filled_up_to_full_blocks_with_zeros_behind_them(count, shape):
    rows = torch.rand(count, *shape)
    found = in_blocks(rows)
    assert len(found) % BLOCK_ROWS == 0
    assert count <= len(found) < count + BLOCK_ROWS
    assert torch.equal(found[:count], rows)
    assert not found[count:].any()


def test_the_last_states_of_each_text_are_told_apart_padded_or_end_to_end():
    features = padded(LENGTHS, torch.float16)
    expected = [features["token_embeddings"][row, :length].float() for row, length in enumerate(LENGTHS)]
    for one in (features, flat(features, LENGTHS)):
        found = hidden_states(one, rows_of(*LENGTHS))
        assert all(map(torch.equal, found, expected))
        assert {states.dtype for states in found} == {torch.float32}
    (single,) = hidden_states(flat(features, LENGTHS), rows_of(3))
    assert torch.equal(single, expected[0])
    with pytest.raises(TypeError, match="no token_embeddings"):
        hidden_states({"token_embeddings": None}, rows_of(1))
