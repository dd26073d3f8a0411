"""Results of inputs → the message of a request."""

import numpy as np
import pytest

from emb_model_provider.messages.link import Encode, InputError, Timing
from shard.batching.answers import Answer
from shard.encoder import Result, SparseRow, Tokenized

TIMING = Timing(1.0, 2.0, 3.0)


def row(*numbers):
    return np.array(numbers, dtype=np.float32)


def sparse(*entries):
    return SparseRow(np.array([i for i, _ in entries], np.uint32), np.array([v for _, v in entries], np.float32))


def encoded(request, inputs, results, dimension=2):
    answer = Answer(request, dimension)
    for index, result in results.items():
        answer.take(index, result)
    for one in inputs:
        if isinstance(one, InputError):
            answer.errors.append(one)
    return answer.encoded(request, inputs, TIMING)


def rows_of(message):
    return np.frombuffer(message.vectors, "<f4").reshape(-1, message.dimension).tolist()


def test_all_outputs_of_one_pass_are_in_one_message():
    request = Encode(("a", "b"), outputs=("dense", "sparse", "multi_vector"))
    inputs = [Tokenized((1, 2), 2), Tokenized((1, 2, 3), 9)]
    results = {
        1: Result(row(3, 4), sparse((2, 0.5), (7, 1.5)), np.ones((2, 3), np.float32)),
        0: Result(row(1, 2), sparse(), np.zeros((1, 3), np.float32)),
    }
    message = encoded(request, inputs, results)
    assert rows_of(message) == [[1, 2], [3, 4]]
    assert np.frombuffer(message.sparse.offsets, "<u4").tolist() == [0, 0, 2]
    assert np.frombuffer(message.sparse.indices, "<u4").tolist() == [2, 7]
    assert np.frombuffer(message.sparse.values, "<f4").tolist() == [0.5, 1.5]
    assert (message.token_vectors.dimension, message.token_vectors.counts) == (3, (1, 2))
    assert np.frombuffer(message.token_vectors.vectors, "<f4").tolist() == [0.0] * 3 + [1.0] * 6
    assert (message.tokens, message.original_tokens, message.truncated) == ((2, 3), (2, 9), (1,))
    assert message.timing == TIMING


def test_what_was_not_asked_for_is_not_sent():
    message = encoded(
        Encode(("a",), outputs=("sparse",)), [Tokenized((1,), 1)], {0: Result(row(1, 2), sparse((1, 1.0)))}
    )
    assert (message.vectors, message.dimension, message.token_vectors) == (b"", 0, None)
    # In a batch with others that did ask for them.
    message = encoded(
        Encode(("a",)), [Tokenized((1,), 1)], {0: Result(row(1, 2), sparse((1, 1.0)), np.ones((1, 3), np.float32))}
    )
    assert (rows_of(message), message.sparse, message.token_vectors) == ([[1, 2]], None, None)


def test_an_answer_of_nothing_but_errors_has_no_token_vectors_of_no_dimension():
    error = InputError(0, 400, "invalid_request_error", None, "bad")
    vectors = encoded(Encode(("a",), outputs=("multi_vector",), partial=True), [error], {}).token_vectors
    assert (vectors.vectors, vectors.dimension, vectors.counts) == (b"", 0, (0,))


def test_errors_are_in_the_order_of_their_inputs_whenever_they_were_found():
    errors = [InputError(index, 400, "invalid_request_error", None, "bad") for index in (2, 0, 1)]
    message = encoded(Encode(("a",) * 3, partial=True), errors, {})
    assert [error.index for error in message.errors] == [0, 1, 2]


def test_an_input_with_an_error_has_zeros_in_every_output():
    request = Encode(("a", "b"), outputs=("dense", "sparse", "multi_vector"), partial=True)
    error = InputError(0, 400, "invalid_request_error", None, "bad")
    results = {1: Result(row(1, 1), sparse((5, 2.0)), np.ones((1, 3), np.float32))}
    message = encoded(request, [error, Tokenized((1,), 1)], results)
    assert rows_of(message) == [[0, 0], [1, 1]]
    assert np.frombuffer(message.sparse.offsets, "<u4").tolist() == [0, 0, 1]
    assert message.token_vectors.counts == (0, 1)
    assert (message.tokens, message.original_tokens, message.errors) == ((0, 1), (0, 1), (error,))


@pytest.mark.parametrize(
    ("dimensions", "normalize", "expected"),
    [
        (None, None, [3, 4, 12]),
        (None, True, [3 / 13, 4 / 13, 12 / 13]),
        (2, None, [0.6, 0.8]),
        (2, True, [0.6, 0.8]),
        (2, False, [3, 4]),
    ],
)
def test_vectors_are_cut_and_normalised_as_asked(dimensions, normalize, expected):
    request = Encode(("a",), dimensions=dimensions, normalize=normalize)
    (found,) = rows_of(encoded(request, [Tokenized((1,), 1)], {0: Result(row(3, 4, 12))}, dimension=3))
    assert found == pytest.approx(expected)


def test_scores_are_never_normalised():
    request = Encode(("a",), seconds=("b",), outputs=("scores",), normalize=True)
    assert rows_of(encoded(request, [Tokenized((1,), 1)], {0: Result(row(3, 4))})) == [[3, 4]]
