import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import texts

_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def test_there_are_more_than_six_hundred_texts_and_none_stands_there_twice():
    everything = texts.mixed()
    assert len(everything) > 600
    assert len(set(everything)) == len(everything)


def test_both_languages_are_there_in_equal_measure_and_are_what_they_say():
    assert abs(len(texts.zh()) - len(texts.en())) < 10
    assert all(_CHINESE.search(text) for text in texts.zh())
    assert not any(_CHINESE.search(text) for text in texts.en())


def test_lengths_run_from_a_word_to_two_thousand_characters():
    lengths = sorted(len(text) for text in texts.mixed())
    assert lengths[0] == 2
    assert lengths[-1] == 2000
    assert lengths[len(lengths) // 2] * 1.5 < sum(lengths) / len(lengths), "many short ones and few long ones"


def test_both_languages_stand_in_every_stretch_of_the_mixed_texts():
    for request in texts.requests(texts.mixed(), 64):
        chinese = sum(bool(_CHINESE.search(text)) for text in request)
        assert 0.25 < chinese / len(request) < 0.75


def test_short_texts_are_more_than_a_load_has_connections():
    short = texts.short()
    assert len(short) > 100
    assert max(map(len, short)) <= 60


@given(st.integers(1, 500), st.integers(1, 100))
def test_requests_hold_all_texts_in_their_order(count, per_request):
    selection = texts.mixed(count)
    cut = texts.requests(selection, per_request)
    assert [text for request in cut for text in request] == selection
    assert all(len(request) == per_request for request in cut[:-1])


@given(st.integers(16, 64))
def test_balanced_requests_hold_the_same_texts_in_equal_shares_of_work(per_request):
    dealt = texts.balanced(texts.mixed(), per_request)
    assert sorted(text for request in dealt for text in request) == sorted(texts.mixed())
    work = [sum(map(texts._work, request)) for request in dealt]
    assert max(work) < 1.1 * min(work)
    assert max(map(len, dealt)) < 1.3 * per_request


def test_texts_used_many_times_over_are_distinct_and_keep_what_they_say():
    often = texts.repeated(texts.mixed(), 16)
    assert len(set(often)) == len(often) == 16 * len(texts.mixed())
    assert all(long.endswith(f" {text}") for long, text in zip(often, texts.mixed() * 16, strict=True))


def test_sized_texts_are_distinct_and_spread_evenly_over_the_lengths():
    sized = texts.sized(2048, 10, 2000)
    lengths = [len(text) for text in sized]
    assert len(set(sized)) == 2048
    assert (min(lengths), max(lengths)) == (10, pytest.approx(2000, abs=2))
    assert sum(lengths) / 2048 == pytest.approx(1005, rel=0.02)
    assert sum(lengths[:64]) / 64 == pytest.approx(1005, rel=0.1), "long and short ones alternate"


def test_more_texts_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="only"):
        texts.zh(10_000)
