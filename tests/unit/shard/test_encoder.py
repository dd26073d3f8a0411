"""Values beside the encoder: the cut to fewer dimensions, and batches with little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.encoder import Tokenized, cut
from shard.encoders.padded_batches import padded_batches


def test_a_cut_vector_has_length_one_again():
    short = cut(np.array([[3.0, 4.0, 12.0], [1.0, 0.0, 0.0]], dtype=np.float32), 2)
    assert short.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [1.0, 0.0]]
    assert short.dtype == np.float32
    assert short.flags.c_contiguous


def test_a_vector_of_zeros_stays_zero():
    assert cut(np.array([[0.0, 0.0, 5.0]], dtype=np.float32), 2).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dimensions", [0, -1, 4])
def test_a_cut_beyond_the_vector_is_refused(dimensions):
    with pytest.raises(ValueError, match="3 dimensions"):
        cut(np.ones((1, 3), dtype=np.float32), dimensions)


def test_the_original_is_not_changed_by_the_cut():
    vectors = np.full((1, 4), 2.0, dtype=np.float32)
    cut(vectors, 4)
    assert vectors.tolist() == [[2.0] * 4]


def test_an_input_is_truncated_when_it_had_more_tokens():
    assert Tokenized((1, 2, 3), original_tokens=4).truncated
    assert not Tokenized((1, 2, 3), original_tokens=3).truncated


@given(st.lists(st.tuples(st.integers(1, 512), st.integers(0, 2)), max_size=200), st.sampled_from([512, 2048, 9000]))
def test_batches_hold_every_row_once_within_both_bounds(rows, max_tokens):
    lengths, groups = [row[0] for row in rows], [row[1] for row in rows]
    batches = padded_batches(lengths, groups, max_tokens=max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        padded = max(lengths[index] for index in batch) * len(batch)
        wasted = padded - sum(lengths[index] for index in batch)
        assert len(batch) == 1 or padded <= max_tokens
        assert wasted <= max(0.1 * padded, 64)
        assert len({groups[index] for index in batch}) == 1


def test_equal_lengths_share_one_batch():
    assert padded_batches([5, 5, 5], [0, 0, 0], max_tokens=100) == [[0, 1, 2]]


def test_a_batch_is_as_large_as_may_be_and_texts_of_one_group_are_not_torn_apart_by_those_of_another():
    assert padded_batches([5, 5], [0, 0], max_tokens=10) == [[0, 1]]
    assert padded_batches([9, 8, 7, 6], [0, 1, 0, 1], max_tokens=100) == [[1, 3], [0, 2]]


def test_a_long_text_does_not_make_short_ones_as_long():
    assert len(padded_batches([500, *[3] * 20], [0] * 21, max_tokens=100_000)) == 2


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([100, 36], [[0, 1]]),  # 64 tokens of padding are nothing
        ([100, 35], [[0], [1]]),
        ([1000, 1000, 700], [[0, 1, 2]]),  # and of many tokens a tenth is
        ([1000, 1000, 699], [[0, 1], [2]]),
        ([70, 1000, 100, 1000], [[1, 3], [2, 0]]),  # padded to their own longest
    ],
)
def test_texts_share_a_batch_as_long_as_little_of_it_is_padding(lengths, batches):
    assert padded_batches(lengths, [0] * len(lengths), max_tokens=100_000) == batches
