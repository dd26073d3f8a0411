import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shard.encoder import Results
from shard.isolate import NonFiniteVectorError, encode_isolated


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
