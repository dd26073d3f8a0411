import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

from shard.encoder import Tokenized
from shard.encoders.flat_pooling import find_flat_pooling
from shard.encoders.heads import Heads

SIZE = 8
modes = st.sampled_from(["mean", "cls", "lasttoken"])
lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def rows_of(lengths, *, raw=False, prompt=0):
    return [Tokenized((1,) * length, length, prompt_tokens=prompt, raw=raw) for length in lengths]


def of_modules(heads, hidden, lengths, rows):
    """What sentence-transformers' own modules make of each text alone, as the plain path runs them."""
    parts = torch.split(hidden[0], lengths)
    masks = [torch.ones(1, length, dtype=torch.int64) for length in lengths]
    features = [
        {"token_embeddings": part[None], "attention_mask": mask} for part, mask in zip(parts, masks, strict=True)
    ]
    return np.concatenate([heads.run(one, [row]).rows for one, row in zip(features, rows, strict=True)])


@given(modes, lengths_of, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_flat_pooling_makes_what_the_modules_make_of_each_text_alone(mode, lengths, normalizes, raw, seed):
    hidden = torch.randn(1, sum(lengths), SIZE, generator=torch.Generator().manual_seed(seed))
    heads = Heads([Pooling(SIZE, mode), *([Normalize()] if normalizes else [])], SIZE)
    rows = rows_of(lengths, raw=raw)
    found = heads.run({"token_embeddings": hidden}, rows).rows
    np.testing.assert_allclose(found, of_modules(heads, hidden, lengths, rows), rtol=0, atol=1e-6)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


@given(modes, lengths_of, st.integers(0, 2**32 - 1))
def test_flat_pooling_of_a_text_never_depends_on_its_neighbours(mode, lengths, seed):
    hidden = np.random.default_rng(seed).standard_normal((sum(lengths), SIZE)).astype(np.float32)
    pooling = find_flat_pooling([Pooling(SIZE, mode), Normalize()])
    together = pooling.run(hidden, lengths, raw=False)
    for row, part, length in zip(together, np.split(hidden, np.cumsum(lengths)[:-1]), lengths, strict=True):
        assert row.tolist() == pooling.run(part, [length], raw=False)[0].tolist()


def test_a_row_of_zeros_stays_one():
    pooling = find_flat_pooling([Pooling(SIZE, "mean"), Normalize()])
    assert not pooling.run(np.zeros((3, SIZE), np.float32), [1, 2], raw=False).any()


class Doubled(Normalize):
    """A forward of its own."""

    def forward(self, features):
        return features | {"sentence_embedding": 2 * super().forward(features)["sentence_embedding"]}


@pytest.mark.parametrize(
    "modules",
    [
        [],
        [Pooling(SIZE, "max")],
        [Pooling(SIZE, ["mean", "cls"])],
        [Pooling(SIZE, "mean"), Dense(SIZE, SIZE)],
        [Normalize()],
        [Pooling(SIZE, "mean"), Normalize(), Normalize()],
        [Pooling(SIZE, "mean"), Doubled()],
    ],
    ids=["none", "max", "two modes", "a layer", "no pooling", "of which raw rows would have the first", "its own"],
)
def test_what_flat_pooling_does_not_know_is_left_to_the_modules(modules):
    assert find_flat_pooling(modules) is None


def test_a_prompt_that_does_not_count_is_left_to_the_modules():
    heads = Heads([Pooling(SIZE, "mean", include_prompt=False)], SIZE)
    hidden = torch.randn(1, 5, SIZE)
    found = heads.run({"token_embeddings": hidden}, rows_of([5], prompt=2)).rows
    np.testing.assert_allclose(found[0], hidden[0, 2:].mean(0).numpy(), atol=1e-6)
