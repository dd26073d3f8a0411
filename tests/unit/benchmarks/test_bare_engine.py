import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bare_engine import BATCH_TOKENS, batches, bert_flops
from shard.encoder import Tokenized


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 64))
def test_batches_hold_every_text_once_within_both_bounds(lengths, max_texts):
    texts = [Tokenized((index,) + (0,) * (length - 1), length) for index, length in enumerate(lengths)]
    cut = list(batches(texts, max_texts))
    assert sorted(one.ids[0] for batch in cut for one in batch) == list(range(len(texts)))
    for batch in cut:
        assert sum(len(one.ids) for one in batch) <= BATCH_TOKENS
        assert len(batch) <= max_texts


def test_a_text_longer_than_a_batch_has_one_to_itself():
    cut = list(batches([Tokenized((0,) * 5000, 5000), Tokenized((0,), 1)]))
    assert [len(batch) for batch in cut] == [1, 1]


def test_the_operations_of_minilm_are_those_of_its_matrices():
    # One token: per layer Q, K, V and output 384x384, feed-forward 384x1536 twice, and attention to itself.
    assert bert_flops(1, 6, 384, 1536) == pytest.approx(6 * (2 * (4 * 384 * 384 + 2 * 384 * 1536) + 4 * 384))
