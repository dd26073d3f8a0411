from itertools import accumulate

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shard.encoder import Tokenized
from shard.encoders.cuda.flat_texts import Layout, exact_layout

texts_of = st.lists(st.lists(st.integers(0, 30_000), min_size=1, max_size=12), min_size=1, max_size=10)


def rows_of(texts, *, typed=False):
    types = [tuple(number % 2 for number in text) if typed and len(text) % 2 else None for text in texts]
    return [Tokenized(tuple(ids), len(ids), type_ids=own) for ids, own in zip(texts, types, strict=True)]


def read_back(layout, rows, first_position=0):
    block = torch.full((layout.size,), -1)
    layout.fill(block.numpy(), rows, first_position)
    assert (block >= 0).all(), "not every number was written"
    return layout.read(block)


@given(texts_of, st.booleans(), st.integers(0, 3), st.integers(1, 20), st.integers(1, 5))
def test_a_block_holds_every_text_and_what_is_spare_belongs_to_none(texts, typed, first, tokens, spare):
    rows = rows_of(texts, typed=typed)
    used = exact_layout(rows, typed=typed)
    layout = Layout(used.tokens + tokens, used.texts + spare, used.longest, typed)
    assert layout.has_room_for(used)
    flat = read_back(layout, rows, first)
    starts = flat.starts.tolist()
    assert starts[len(rows) :] == [used.tokens] * (spare + 1)
    for number, (row, start, end) in enumerate(zip(rows, starts, starts[1:], strict=False)):
        ids, positions, *types = (tensor[0, start:end].tolist() for tensor in flat.inputs)
        assert tuple(ids) == row.ids
        counts = accumulate(one != first - 1 for one in ids)
        assert positions == [first - 1 + count * (one != first - 1) for one, count in zip(ids, counts, strict=True)]
        assert types == ([list(row.type_ids or [0] * len(ids))] if typed else [])
        assert flat.owners[0, start:end].tolist() == [number] * len(ids)
    assert (flat.owners[0, used.tokens :] == layout.texts - 1).all()
    assert flat.inputs[1].max() < first + used.longest


def test_tokens_of_padding_within_a_text_are_not_counted_where_positions_start_behind_padding():
    rows = rows_of([[0, 7, 1, 8, 1, 2], [0, 0, 2], [1]])
    _, positions = read_back(Layout(12, 4, 6, typed=False), rows, first_position=2).inputs
    assert positions[0, :10].tolist() == [2, 3, 1, 4, 1, 5, 2, 3, 4, 1]
    assert read_back(exact_layout(rows, typed=False), rows).inputs[1][0].tolist() == [*range(6), *range(3), 0]


@given(texts_of, st.booleans())
def test_an_exact_layout_has_nothing_spare(texts, typed):
    rows = rows_of(texts, typed=typed)
    layout = exact_layout(rows, typed=typed)
    flat = read_back(layout, rows)
    assert flat.starts.tolist() == [0, *np.cumsum([len(text) for text in texts])]
    assert flat.longest == max(map(len, texts))
    assert not layout.has_room_for(layout), "one token and one text must be spare"


@given(texts_of)
def test_features_of_the_first_texts_are_those_of_an_exact_block(texts):
    rows = rows_of(texts)
    used = exact_layout(rows, typed=False)
    layout = Layout(used.tokens + 7, used.texts + 3, used.longest, typed=False)
    hidden = torch.randn(1, layout.tokens, 2)
    found = read_back(layout, rows).features(hidden, used.tokens, used.texts)
    expected = read_back(used, rows).features(hidden[:, : used.tokens])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
