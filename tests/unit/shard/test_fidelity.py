"""How near two ways of computing are said to be: a precision that loses too much must not look near."""

import numpy as np
import pytest

from shard.encoder import Results, SparseRow
from shard.fidelity import Nearness, compare, compare_results, compare_scores

EQUAL = Nearness(1.0, 0.0)


def matrix(*rows):
    return np.array(rows, dtype=np.float32)


def sparse(**weights):
    return SparseRow(np.array([int(name[1:]) for name in weights], np.uint32), matrix(*weights.values()))


def test_the_farthest_row_counts_by_its_angle_and_by_its_largest_difference_in_either_direction():
    near = compare(matrix([1, 0], [0.6, 0.8], [0, 1]), matrix([1, 0], [1, 0], [0, 1]))
    assert (near.cosine, near.deviation) == pytest.approx((0.6, 0.8))
    near = compare(matrix([0.6, -0.8]), matrix([1, 0]))
    assert (near.cosine, near.deviation) == pytest.approx((0.6, 0.8))


def test_a_difference_is_measured_by_the_length_of_a_vector_that_is_longer_than_1_and_by_1_otherwise():
    assert compare(matrix([9, 0]), matrix([10, 0])).deviation == pytest.approx(0.1)
    assert compare(matrix([0.4, 0]), matrix([0.5, 0])).deviation == pytest.approx(0.1)


def test_a_cosine_is_1_at_most_and_of_a_vector_that_is_nothing_no_error():
    rows = np.random.default_rng(1).normal(size=(50, 1, 7)).astype(np.float32)
    cosines = [compare(row, row).cosine for row in rows]
    assert cosines == pytest.approx([1.0] * 50)
    assert max(cosines) <= 1
    assert compare(matrix([1, 0], [0, 0]), matrix([1, 0], [0, 0])).cosine == 0


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_one_number_that_is_none_is_as_far_as_can_be(number):
    far = Nearness(-1.0, float("inf"))
    assert compare(matrix([1, 0], [number, 1]), matrix([1, 0], [0, 1])) == far
    for expected in (matrix([1], [2]), matrix([1], [1])):
        assert compare_scores(Results(matrix([1], [number])), Results(expected)) == far


def test_of_several_kinds_of_results_the_farthest_counts():
    expected = Results(matrix([1, 0]), [sparse(i3=1.0, i7=1.0)], [matrix([1, 0], [0, 1])])
    assert compare_results(expected, expected) == EQUAL
    for found in (
        Results(matrix([0.6, 0.8]), expected.sparse, expected.tokens),
        Results(expected.rows, expected.sparse, [matrix([1, 0], [0.8, 0.6])]),
    ):
        near = compare_results(found, expected)
        assert (near.cosine, near.deviation) == pytest.approx((0.6, 0.8))
    assert compare_results(Results(), Results()) == EQUAL


@pytest.mark.parametrize(
    ("found", "cosine"),
    [
        (sparse(i3=1.0, i7=1.0), 1),
        (sparse(i3=1.0), 0.5**0.5),
        (sparse(i3=1.0, i8=1.0), 0.5),
        (sparse(i4=1.0), 0),
        (sparse(), 0),
    ],
)
def test_sparse_vectors_are_compared_over_what_either_has(found, cosine):
    expected = sparse(i3=1.0, i7=1.0)
    for one, other in ((found, expected), (expected, found)):
        assert compare_results(Results(sparse=[one]), Results(sparse=[other])).cosine == pytest.approx(cosine)


def test_texts_of_which_nothing_is_left_are_equal_and_those_with_more_or_fewer_tokens_are_not():
    assert compare_results(Results(sparse=[sparse()]), Results(sparse=[sparse()])) == EQUAL
    none, one = np.empty((0, 2), np.float32), matrix([1, 0])
    assert compare_results(Results(tokens=[none]), Results(tokens=[none])) == EQUAL
    assert compare_results(Results(tokens=[one]), Results(tokens=[matrix([1, 0], [1, 0])])).cosine == -1


def test_scores_are_compared_by_how_they_tell_texts_apart():
    expected = Results(matrix([5], [6], [7]))
    shifted = compare_scores(Results(matrix([5.1], [6.1], [7.1])), expected)
    assert shifted.cosine == pytest.approx(2 / (2 * 2.03) ** 0.5, rel=1e-5)
    assert shifted.deviation == pytest.approx(0.02, rel=1e-3)
    reversed_ = compare_scores(Results(matrix([7], [6], [5])), expected)
    assert reversed_.cosine == pytest.approx(-1)
    assert reversed_.deviation == pytest.approx(0.4)


def test_a_head_that_says_the_same_of_everything_has_no_angle_but_a_difference():
    near = compare_scores(Results(matrix([0.5], [0.75])), Results(matrix([0.5], [0.5])))
    assert near == Nearness(1.0, 0.25)


def test_of_scores_each_label_counts():
    expected = Results(matrix([1, 0.5], [0, 1.5], [-1, 1]))
    found = Results(matrix([1, 1.5], [0, 0.5], [-1, 1]))
    assert compare_scores(found, expected).cosine == pytest.approx(-1)
