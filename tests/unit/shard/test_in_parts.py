"""A list of texts is cut into parts that lose nothing and are of like size, and comes back in its order."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.encoders.in_parts import ALONE, Helpers, count_helpers, cut_evenly

SIZES = st.lists(st.integers(0, 3000), max_size=80)


@given(SIZES, st.integers(1, 9), st.integers(1, 2000))
def test_parts_put_together_are_the_list_and_none_is_empty(sizes, most, least_size):
    parts = cut_evenly(sizes, most, least_size)
    assert [size for part in parts for size in sizes[part]] == sizes
    assert all(sizes[part] for part in parts) or not sizes


@given(SIZES, st.integers(1, 9), st.integers(1, 2000))
def test_there_are_no_more_parts_than_threads_or_than_the_list_is_worth(sizes, most, least_size):
    assert len(cut_evenly(sizes, most, least_size)) <= max(1, min(most, sum(sizes) // least_size))


@given(SIZES.filter(bool), st.integers(1, 9), st.integers(1, 2000))
def test_no_part_is_above_its_share_by_more_than_one_item(sizes, most, least_size):
    wanted = max(1, min(most, sum(sizes) // least_size))
    for part in cut_evenly(sizes, most, least_size):
        assert sum(sizes[part]) <= sum(sizes) / wanted + max(sizes)


def test_all_threads_of_a_model_tokenise_up_to_eight():
    assert [count_helpers(threads) for threads in (1, 2, 8, 64)] == [0, 1, 7, 7]


def test_texts_of_one_length_are_shared_out_equally():
    assert [one.stop - one.start for one in cut_evenly([100] * 64, 8, 200)] == [8] * 8


def test_several_threads_encode_at_once_and_the_order_stays():
    meeting = threading.Barrier(4, timeout=10)

    def encode(texts):
        meeting.wait()
        return [text.upper() for text in texts]

    texts = [f"{number:04}" + "a" * 1000 for number in range(16)]
    assert Helpers(3).run(encode, texts) == [text.upper() for text in texts]


def test_few_characters_are_not_worth_another_thread():
    callers = []

    def encode(texts):
        callers.append(threading.current_thread())
        return texts

    assert Helpers(7).run(encode, ["a", "b"]) == ["a", "b"]
    assert callers == [threading.current_thread()]


def test_empty_texts_behind_the_last_share_belong_to_it():
    assert cut_evenly([1024, 1024, 0, 0], 2, 1024) == [slice(0, 1), slice(1, 4)]


@pytest.mark.parametrize("count", [0, 3])
def test_of_no_texts_there_is_nothing(count):
    assert Helpers(count).run(lambda texts: texts, []) == []


def test_without_helpers_the_caller_does_it_all():
    callers = []

    def encode(texts):
        callers.append(threading.current_thread())
        return texts

    texts = ["a" * 5000] * 4
    assert ALONE.run(encode, texts) == texts
    assert callers == [threading.current_thread()]


@pytest.mark.parametrize("wrong", [0, 15])
def test_the_error_of_any_part_is_raised(wrong):
    def encode(texts):
        if any(text.startswith("wrong") for text in texts):
            raise TypeError("not a text")
        return texts

    texts = ["a" * 1000] * 16
    texts[wrong] = "wrong" + "a" * 1000
    with pytest.raises(TypeError, match="not a text"):
        Helpers(3).run(encode, texts)


def test_texts_are_tokenised_also_where_no_thread_can_be_started(monkeypatch):
    def refuse_to_start(_thread):
        raise RuntimeError("can't start new thread")

    helpers, texts = Helpers(3), ["x" * 4096, "y" * 4096, "z"]
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    for _ in range(2):
        assert helpers.run(lambda some: [text[0] for text in some], texts) == ["x", "y", "z"]


def test_where_no_thread_can_be_started_it_is_tried_and_told_of_once(monkeypatch, caplog):
    tried = []

    def refuse_to_start(_thread):
        tried.append(1)
        raise RuntimeError("can't start new thread")

    helpers, texts = Helpers(3), ["x" * 4096] * 4
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    for _ in range(3):
        assert helpers.run(lambda some: some, texts) == texts
    assert (len(tried), caplog.messages) == (1, ["no_tokenizer_helpers"])
