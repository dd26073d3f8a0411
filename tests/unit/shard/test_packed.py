from itertools import accumulate, islice

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from shard.encoder import Results, Tokenized
from shard.encoders.graph import attention
from shard.encoders.graph.attention import Rule, attend, attend_joint, attend_plainly
from shard.encoders.graph.segments import FEWEST_PLACES, Segment, find_segments
from shard.encoders.packed import PackedPath, by_tokens, packed_batches, round_up
from tests.support.company import sums_keep_their_order

lengths_of = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def test_neighbours_of_equal_length_share_a_segment():
    assert find_segments([500, 500, 20, 20, 20, 500], 64) == [
        Segment(0, 1000, 2, 500),
        Segment(1000, 1060, 3, 20),
        Segment(1060, 1560, 1, 500),
    ]


def test_only_texts_that_take_the_plain_steps_share_a_segment_with_others_or_get_more_places():
    assert [(one.count, one.length) for one in find_segments([70, 69, 64, 60, 3, 2, 2], 64)] == [
        (1, 70),
        (1, 69),
        (3, 64),
        (2, FEWEST_PLACES),
    ]
    assert [(one.count, one.length) for one in find_segments([4, 3, 3], 0)] == [(1, 4), (2, 3)]


def test_what_a_segment_is_padded_does_not_count_against_the_next():
    assert [(one.count, one.length) for one in find_segments([64, 20, 20, *[16] * 6], 64)] == [(2, 64), (7, 20)]


@given(lengths_of, st.sampled_from([0, 16, 64]))
def test_segments_cover_every_token_once_and_in_order(lengths, plain_tokens):
    segments = find_segments(lengths, plain_tokens)
    covered = []
    texts = iter(lengths)
    for one in segments:
        own = list(range(one.start, one.end))
        held = list(islice(texts, one.count))
        if one.padding is None:
            assert len(own) == one.count * one.length
        else:
            assert one.padding.gather[one.padding.places].tolist() == own
            assert len(one.padding.gather) - sum(max(length, FEWEST_PLACES) for length in held) <= 64
        covered += own
    assert covered == list(range(sum(lengths)))
    assert sum(one.count for one in segments) == len(lengths)


@given(lengths_of, st.integers(1, 200), st.data())
def test_every_text_is_in_one_batch_within_the_budget_and_among_its_group(lengths, budget, data):
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths)))
    batches = packed_batches(lengths, groups, max_tokens=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget
        assert len({groups[index] for index in batch}) == 1
        assert [lengths[index] for index in batch] == sorted((lengths[index] for index in batch), reverse=True)


def test_texts_share_a_batch_until_it_is_full():
    assert packed_batches([1, 3, 2, 5], [0] * 4, max_tokens=5) == [[3], [1, 2], [0]]
    assert packed_batches([1, 3, 2, 5], [0, 1, 1, 0], max_tokens=6) == [[1, 2], [3, 0]]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([0, 16]),
    st.integers(0, 2**31),
)
def test_attention_within_each_text_equals_that_of_the_text_alone(lengths, is_causal, plain_tokens, seed):
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, 2, sum(lengths), 4) for _ in range(3))
    packed = attend(query, key, value, Rule(0.3, is_causal, None, plain_tokens), find_segments(lengths, plain_tokens))
    start = 0
    for length in lengths:
        alone = [tensor[:, :, start : start + length] for tensor in (query, key, value)]
        expected = scaled_dot_product_attention(*alone, scale=0.3, is_causal=is_causal).transpose(1, 2)
        torch.testing.assert_close(packed[:, start : start + length], expected, atol=1e-6, rtol=0)
        start += length


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=24),
    st.booleans(),
    st.sampled_from([0, 16, 64]),
    st.integers(0, 4),
    st.integers(0, 2**31),
)
@example([20], False, 64, 3, 0)
def test_attention_over_joint_heads_equals_that_of_each_text_alone_at_any_length(
    lengths, is_causal, plain_tokens, spare, seed
):
    torch.manual_seed(seed)
    joint = torch.randn(1, sum(lengths) + spare, 3 * 2 * 4)
    packed = attend_joint(joint, 4, Rule(None, is_causal, None, plain_tokens), find_segments(lengths, plain_tokens))
    start = 0
    for length in lengths:
        alone = joint[0, start : start + length].view(length, 3, 2, 4).permute(1, 2, 0, 3)[:, None]
        expected = scaled_dot_product_attention(*alone, is_causal=is_causal).transpose(1, 2)
        torch.testing.assert_close(packed[:, start : start + length], expected, atol=1e-6, rtol=0)
        start += length
    assert packed.shape == (1, start + spare, 2, 4)
    assert packed.isfinite().all()


def seen_by_hand(query, key, value, scale, visible):
    """Attention of one text, shapes (heads, tokens, size), where ``visible`` says which key each query sees."""
    scores = (query @ key.transpose(1, 2) * scale).masked_fill(~visible, -torch.inf)
    return (torch.softmax(scores, -1) @ value).transpose(0, 1)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4, 12])
@pytest.mark.parametrize("plain_tokens", [0, 16])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("lengths", [[12, 12, 5, 4, 1], [12], [3]])
def test_no_token_sees_beyond_the_window_of_its_layer_nor_what_comes_after_it_where_that_is_causal(
    is_causal, window, plain_tokens, key_heads, lengths
):
    torch.manual_seed(1)
    query = torch.randn(1, 4, sum(lengths) + 1, 8)
    key, value = (torch.randn(1, key_heads, sum(lengths) + 1, 8) for _ in range(2))
    rule = Rule(None, is_causal, window, plain_tokens)
    packed = attend(query, key, value, rule, find_segments(lengths, plain_tokens))
    start = 0
    for length in lengths:
        own = [tensor[0, :, start : start + length] for tensor in (query, key, value)]
        own[1:] = [tensor.repeat_interleave(4 // key_heads, 0) for tensor in own[1:]]
        distance = torch.arange(length)[:, None] - torch.arange(length)
        visible = (distance.abs() < window) if window else torch.ones_like(distance, dtype=torch.bool)
        expected = seen_by_hand(*own, 8**-0.5, visible & (distance >= 0) if is_causal else visible)
        torch.testing.assert_close(packed[0, start : start + length], expected, atol=1e-5, rtol=0)
        start += length
    assert packed.shape == (1, start + 1, 4, 8)
    assert not packed[0, start:].any(), "what is of no text is finite"


def test_a_text_that_is_no_longer_than_the_window_of_a_layer_is_seen_whole_by_the_plain_steps():
    rule = Rule(None, causal=False, window=12, plain_tokens=16)
    assert [(rule.cuts(length), rule.is_plain(length)) for length in (12, 13)] == [(False, True), (True, False)]
    unbounded = Rule(None, causal=False, window=None, plain_tokens=16)
    assert [(unbounded.cuts(length), unbounded.is_plain(length)) for length in (16, 17)] == [
        (False, True),
        (False, False),
    ]
    assert not Rule(None, causal=True, window=None, plain_tokens=16).is_plain(1)


@pytest.mark.parametrize("plain_tokens", [0, 16])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("lengths", "unseen"), [([9, 9, 6], [4, 0, 5]), ([9], [4]), ([20], [7]), ([6, 6], [1, 1])])
def test_tokens_that_no_token_attends_to_still_attend_themselves(plain_tokens, window, is_causal, lengths, unseen):
    """As ColBERT's questions have them, which are filled up with [MASK]."""
    torch.manual_seed(1)
    joint = torch.randn(1, sum(lengths), 3 * 2 * 4)
    segments = find_segments(lengths, plain_tokens, unseen)
    parts = joint.view(-1, 3, 2, 4).permute(1, 2, 0, 3)
    rule = Rule(0.3, causal=is_causal, window=window, plain_tokens=plain_tokens)
    for packed in (attend_joint(joint, 4, rule, segments), attend(*(one[None] for one in parts), rule, segments)):
        start = 0
        for length, hidden in zip(lengths, unseen, strict=True):
            visible = (torch.arange(length) < length - hidden).expand(length, length)
            visible = visible.tril() if is_causal else visible
            own = [tensor[:, start : start + length] for tensor in parts]
            expected = seen_by_hand(*own, 0.3, visible)
            torch.testing.assert_close(packed[0, start : start + length], expected, atol=1e-5, rtol=0)
            start += length


@pytest.mark.parametrize("plain_tokens", [0, 16])
@pytest.mark.parametrize(("lengths", "unseen"), [([9, 6], [4, 5]), ([9], [4]), ([16], [0]), ([20], [7])])
def test_in_16_bit_attention_is_that_of_fp32_for_any_number_of_heads_and_lies_in_one_piece(
    plain_tokens, lengths, unseen
):
    torch.manual_seed(1)
    joint = torch.randn(1, sum(lengths), 3 * 5 * 4).bfloat16()
    segments = find_segments(lengths, plain_tokens, unseen)
    rule = Rule(None, causal=False, window=None, plain_tokens=plain_tokens)
    parts = [one[None] for one in joint.view(-1, 3, 5, 4).permute(1, 2, 0, 3)]
    expected = attend(*(one.float() for one in parts), rule, segments)
    for found in (attend_joint(joint, 4, rule, segments), attend(*parts, rule, segments)):
        assert found.dtype == torch.bfloat16
        assert found.is_contiguous(), "what follows takes a view of it"
        torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


def test_what_memory_held_before_does_not_come_into_the_scores(monkeypatch):
    monkeypatch.setattr(attention, "_nothing", lambda dtype: torch.full((1,), torch.nan, dtype=dtype))
    assert attend_plainly(*torch.randn(3, 2, 5, 4), None).isfinite().all()


@given(st.lists(st.integers(1, 64), min_size=1, max_size=24), st.integers(0, 2**31))
def test_the_plain_steps_give_a_text_the_same_numbers_alone_and_in_any_company(lengths, seed):
    torch.manual_seed(seed)
    joint = torch.randn(1, sum(lengths), 3 * 2 * 32)
    rule = Rule(None, causal=False, window=None, plain_tokens=64)
    packed = attend_joint(joint, 32, rule, find_segments(lengths, 64))
    apart = joint.view(-1, 3, 2, 32).permute(1, 2, 0, 3)[:, None]
    packed_apart = attend(*apart, rule, find_segments(lengths, 64))
    ends = list(accumulate(lengths))
    for length, end in zip(lengths, ends, strict=True):
        own = slice(end - length, end)
        alone = attend_joint(joint[:, own], 32, rule, find_segments([length], 64))
        for found in (packed, packed_apart):
            torch.testing.assert_close(found[:, own], alone, atol=0 if sums_keep_their_order() else 1e-6, rtol=0)


@given(st.integers(1, 100_000))
def test_a_pass_is_rounded_up_by_little_and_to_few_sizes(tokens):
    rounded = round_up(tokens)
    assert tokens <= rounded < max(3, tokens * 4 / 3)
    assert rounded % (64 if tokens > 256 else 16 if tokens > 128 else 8 if tokens > 32 else 1) == 0


def test_all_sizes_of_a_pass_are_few_and_each_is_its_own():
    sizes = sorted({round_up(tokens) for tokens in range(1, 2049)})
    assert len(sizes) < 64
    assert [round_up(size) for size in sizes] == sizes


@pytest.mark.parametrize(("tokens", "expected"), [(4, "few"), (5, "many")])
def test_a_pass_of_as_many_tokens_as_are_few_takes_the_graph_for_few(tokens, expected):
    run = by_tokens(lambda *_: "few", lambda *_: "many", 4)
    assert run(torch.zeros(1, tokens), None) == expected


class PositionsAsStates:
    """Stands for a model and its head: the results are the positions that each token was given."""

    def graph(self, ids, positions, _segments):
        assert ids.shape == positions.shape
        return positions[..., None]

    def run(self, features, rows):
        own = features["token_embeddings"][0, :, 0].split([len(row.ids) for row in rows])
        return Results(tokens=[positions.numpy() for positions in own])


@pytest.mark.parametrize(
    ("first_position", "expected"),
    [(2, [[2, 3, 1, 4, 1, 5], [2, 3, 4], [1]]), (0, [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0]])],
)
def test_tokens_of_padding_within_a_text_are_not_counted_where_positions_start_behind_padding(first_position, expected):
    """As transformers' ``create_position_ids_from_input_ids`` with padding 1 has it."""
    model = PositionsAsStates()
    path = PackedPath(
        model.graph, model, plain_tokens=0, first_position=first_position, max_tokens=8, wants_type_ids=False
    )
    texts = [(0, 7, 1, 8, 1, 2), (0, 0, 2), (1,)]
    found = path.run([Tokenized(ids, len(ids)) for ids in texts]).tokens
    assert [positions.tolist() for positions in found] == expected


class TypesAsStates(PositionsAsStates):
    """The same with the type of each token; every token, the spare ones too, has to have one and a position."""

    def __init__(self, tokens: int = 20) -> None:
        self.tokens = tokens

    def graph(self, ids, positions, types, _segments):
        assert ids.shape == positions.shape == types.shape == (1, self.tokens)
        return types[..., None]


@pytest.mark.parametrize("own", [None, (0,) * 4 + (1,) * 6])
def test_a_text_without_types_is_of_the_first_type_beside_whatever_others(own):
    model = TypesAsStates()
    path = PackedPath(model.graph, model, plain_tokens=0, first_position=0, max_tokens=16, wants_type_ids=True)
    pair, single = Tokenized((5,) * 10, 10, type_ids=own), Tokenized((5,) * 7, 7)
    found = path.run([pair, single]).tokens
    assert [types.tolist() for types in found] == [list(own or [0] * 10), [0] * 7]


def test_a_text_longer_than_a_usual_pass_has_types_for_all_of_it():
    model = TypesAsStates(tokens=round_up(2500))
    path = PackedPath(model.graph, model, plain_tokens=0, first_position=0, max_tokens=2500, wants_type_ids=True)
    (types,) = path.run([Tokenized((5,) * 2500, 2500)]).tokens
    assert types.tolist() == [0] * 2500


def test_tokens_that_no_token_attends_to_are_those_of_their_own_text():
    passes = []

    def graph(ids, _positions, segments):
        passes.append(segments)
        return ids[..., None]

    path = PackedPath(
        graph, PositionsAsStates(), plain_tokens=16, first_position=0, max_tokens=32, wants_type_ids=False
    )
    path.run([Tokenized((5,) * 20, 20), Tokenized((5,) * 18, 18, expanded=3), Tokenized((5,) * 17, 17, expanded=1)])
    seen = [one.length if one.padding is None else int((one.padding.bias == 0).sum()) for one in passes[0]]
    assert seen == [20, 15, 16]


class InGroups(PositionsAsStates):
    def group(self, row):
        return row.prompt_tokens


def test_texts_that_their_head_tells_apart_share_no_pass():
    model = InGroups()
    path = PackedPath(model.graph, model, plain_tokens=0, first_position=0, max_tokens=8, wants_type_ids=False)
    rows = [Tokenized((1, 2, 3), 3, prompt_tokens=number) for number in (0, 1, 0, 1)]
    assert sorted(map(sorted, path.split(rows))) == [[0, 2], [1, 3]]
    assert path.split(rows[:1]) == [[0]]
