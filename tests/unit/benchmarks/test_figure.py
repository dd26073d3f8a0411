import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figure import Figure, interleaved, median_ratio, percentile

positive = st.floats(min_value=1e-3, max_value=1e6)


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [("at least", 0.9, True), ("at least", 0.89, False), ("at most", 0.9, True), ("at most", 0.91, False)],
)
def test_a_target_is_met_from_the_right_side(bound, value, met):
    assert Figure("x", value, 0.9, "x", bound).met is met


@pytest.mark.parametrize("bound", ["at least", "at most"])
def test_without_a_target_nothing_is_missed(bound):
    assert Figure("x", 0.1, None, "x", bound).met


def test_both_sides_are_measured_in_turns():
    order = []
    first, second = interleaved(3, lambda: order.append("a") or 1, lambda: order.append("b") or 2)
    assert order == ["a", "b"] * 3
    assert (first, second) == ([1, 1, 1], [2, 2, 2])


@given(st.lists(positive, min_size=3, max_size=9), positive)
def test_a_ratio_does_not_change_when_the_whole_machine_slows_down_for_some_rounds(speeds, ratio):
    assert median_ratio([ratio * speed for speed in speeds], speeds) == pytest.approx(ratio)


def test_one_disturbed_round_does_not_change_a_ratio():
    assert median_ratio([2.0, 2.0, 0.1], [1.0, 1.0, 1.0]) == 2.0


@given(st.lists(positive, min_size=1), st.integers(min_value=1, max_value=100))
def test_a_percentile_is_a_value_that_so_many_are_at_or_below(values, percent):
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)


@given(st.lists(positive, min_size=1))
def test_the_extremes_and_the_middle_are_percentiles(values):
    assert percentile(values, 100) == max(values)
    assert percentile(values, 50) == statistics.median_low(values)


def test_nothing_measured_is_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
