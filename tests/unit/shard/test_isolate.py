import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.batching.isolate import NonFiniteVectorError, encode_isolated
from shard.encoder import FatalDeviceError, Results, SparseRow


def never(batch):
    raise AssertionError(f"{batch} needed no second pass")


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_only_the_guilty_inputs_fail_and_the_others_get_their_own_vectors(guilty):
    def encode(batch):
        if any(guilty[index] for index in batch):
            raise RuntimeError("poison")
        return Results(np.array([[index, 1.0] for index in batch], dtype=np.float32))

    results = encode_isolated(encode, never, list(range(len(guilty))))
    for index, (result, is_guilty) in enumerate(zip(results, guilty, strict=True)):
        if is_guilty:
            assert isinstance(result, RuntimeError)
        else:
            assert result.row.tolist() == [index, 1.0]


def test_one_bad_input_among_thirty_two_costs_a_handful_of_extra_passes():
    passes = []

    def encode(batch):
        passes.append(len(batch))
        if 13 in batch:
            raise RuntimeError("poison")
        return Results(np.ones((len(batch), 2), dtype=np.float32))

    encode_isolated(encode, never, list(range(32)))
    assert len(passes) == 11


def test_a_vector_with_nan_or_infinity_is_made_exactly_once_more_and_else_an_error_for_its_input_alone():
    vectors = np.array([[1, 1], [np.nan, 1], [1, np.inf], [-np.inf, 1]], dtype=np.float32)
    exact = {"b": [2, 2], "c": [np.nan, 2]}
    asked = []

    def exactly(batch):
        asked.append(batch)
        return Results(np.array([exact[item] for item in batch], dtype=np.float32))

    first, second, third, fourth = encode_isolated(lambda _batch: Results(vectors), exactly, ["a", "b", "c", "d"])
    assert first.row.tolist() == [1, 1]
    assert second.row.tolist() == [2, 2]
    assert isinstance(third, NonFiniteVectorError)
    assert isinstance(fourth, KeyError)
    assert asked == [["b"], ["c"], ["d"]]


def test_another_number_of_results_than_of_inputs_is_a_failure_and_shifts_nobodys():
    def encode(batch):
        return Results(np.array([[index] for index in batch[:2]], dtype=np.float32))

    assert [result.row.tolist() for result in encode_isolated(encode, never, [0, 1, 2])] == [[0], [1], [2]]
    (error,) = encode_isolated(lambda _batch: Results(np.ones((2, 1), np.float32)), never, [0])
    assert str(error) == "the model made 2 results of 1 inputs"


@pytest.mark.parametrize("kind", ["sparse", "tokens"])
def test_weights_and_token_vectors_that_are_not_finite_are_made_exactly_once_more(kind):
    def results(value):
        values = np.array([value], dtype=np.float32)
        return SparseRow(np.array([7], np.uint32), values) if kind == "sparse" else values[None]

    def exactly(batch):
        assert list(batch) == ["b"]
        return Results(**{kind: [results(2)]})

    first, second = encode_isolated(lambda _batch: Results(**{kind: [results(1), results(np.nan)]}), exactly, "ab")
    values = [one.sparse.values if kind == "sparse" else one.tokens for one in (first, second)]
    assert [float(one.sum()) for one in values] == [1, 2]


def test_a_device_that_breaks_while_an_input_is_made_once_more_is_nobodys_failure():
    def exactly(_batch):
        raise FatalDeviceError("lost card")

    with pytest.raises(FatalDeviceError):
        encode_isolated(lambda _batch: Results(np.array([[np.nan]], np.float32)), exactly, ["a"])


class Activations:
    """Stands for the memory of a pass, which its frames hold."""


def test_what_a_failed_pass_has_held_is_free_before_the_next_one_and_while_its_error_waits():
    held = []

    def encode(batch):
        assert not [one for one in held if one() is not None], "there would be no room for this pass"
        activations = Activations()
        held.append(weakref.ref(activations))
        try:
            raise MemoryError("of a helper")
        except MemoryError as error:
            raise RuntimeError("out of memory") from error

    errors = encode_isolated(encode, never, range(4))
    assert len(held) == 7
    assert [str(error) for error in errors] == ["out of memory"] * 4
    assert all(isinstance(error.__cause__, MemoryError) for error in errors)
    assert [one() for one in held] == [None] * 7


def test_what_a_failed_exact_pass_has_held_is_free_while_its_error_waits():
    held = []

    def exactly(_batch):
        activations = Activations()
        held.append(weakref.ref(activations))
        raise RuntimeError("out of memory")

    errors = encode_isolated(lambda _batch: Results(np.full((2, 1), np.nan, np.float32)), exactly, range(2))
    assert [str(error) for error in errors] == ["out of memory"] * 2
    assert [one() for one in held] == [None] * 2


def test_a_device_that_breaks_in_a_batch_is_not_asked_for_its_halves():
    passes = []

    def encode(batch):
        passes.append(batch)
        raise FatalDeviceError("lost card")

    with pytest.raises(FatalDeviceError):
        encode_isolated(encode, never, ["a", "b"])
    assert passes == [["a", "b"]]
