"""Vectors are written in pieces: nothing of that may show in the answer, wherever a piece ends."""

from base64 import b64decode

import numpy as np
import orjson
import pytest

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Encoded, InputError, SparseRows, TokenVectors
from router.dialects import vectors
from router.dialects.openai import FORMS, Shape, render_embeddings
from router.dialects.vectors import (
    PIECE_BYTES,
    PLAIN,
    ReadInput,
    VectorForm,
    chunks,
    errors_json,
    is_small,
    list_json,
    refusal_object,
    rows_json,
    token_vectors_json,
)
from router.quantization import quantize
from router.requests import EncodeResult

DIMENSION = 1024
ROWS_A_PIECE = PIECE_BYTES // (4 * DIMENSION)
BAD = InputError(0, 422, "invalid_request_error", "bad_input", "no vector for this")


def part_of(rows: np.ndarray, bad: tuple[int, ...] = ()) -> Encoded:
    errors = tuple(BAD.replace(index=index) for index in bad)
    return Encoded(rows.astype("<f4").tobytes(), rows.shape[1], (1,) * len(rows), errors=errors)


def result_of(*parts: Encoded) -> EncodeResult:
    return EncodeResult("m", parts, 0, ())


@pytest.fixture
def rows() -> np.ndarray:
    """Eighths, which are the same number in JSON."""
    return ((np.arange(70)[:, None] * 7 + np.arange(DIMENSION)) % 17 - 8).astype(np.float32) / 8


@pytest.mark.parametrize("bad", [(), (0, ROWS_A_PIECE - 1, ROWS_A_PIECE, 69)])
@pytest.mark.parametrize("form", [PLAIN, VectorForm(base64=True), VectorForm("int8"), VectorForm("int8", base64=True)])
def test_every_row_or_the_null_of_its_error_stands_at_its_place(rows, form, bad):
    pieces = list(rows_json(result_of(part_of(rows, bad), part_of(rows[:1])), form))
    assert [piece.count(b"null") for piece in pieces] == ([0] * 4 if not bad else [2, 1, 1, 0])
    written = orjson.loads(b"[" + b"".join(pieces) + b"]")
    made = quantize(np.concatenate([rows, rows[:1]]), form.kind)
    if form.base64:
        assert all("\n" not in one for one in written if one)
        written = [one and np.frombuffer(b64decode(one), made.dtype).tolist() for one in written]
    assert written == [None if index in bad else row.tolist() for index, row in enumerate(made)]


@pytest.mark.parametrize("form", [PLAIN, VectorForm(base64=True)])
def test_each_embedding_has_its_index_in_the_request_and_so_has_each_error(rows, form):
    result = result_of(part_of(rows), part_of(rows, (ROWS_A_PIECE, 69)))
    data = orjson.loads(b"".join(render_embeddings(result, Shape(form))))["data"]
    assert [(one["object"], one["index"]) for one in data] == [("embedding", index) for index in range(140)]
    assert [one["index"] for one in data if one["embedding"] is None] == [70 + ROWS_A_PIECE, 139]
    assert [one["index"] for one in data if "error" in one] == [70 + ROWS_A_PIECE, 139]
    assert [one["index"] for one in errors_json(result)] == [70 + ROWS_A_PIECE, 139]


def test_an_error_of_one_input_has_openais_fields_and_the_status_it_would_have_had():
    (error,) = errors_json(result_of(part_of(np.zeros((1, 1)), (0,))))
    inner = {
        "message": "no vector for this",
        "type": "invalid_request_error",
        "param": "input",
        "code": "bad_input",
        "status": 422,
    }
    assert error == {"index": 0, **inner}
    refused = refusal_object(InvalidRequestError("no text", code="empty"))
    assert refused == inner | {"message": "no text", "code": "empty", "status": 400}


def test_sparse_and_token_vectors_count_for_the_size_of_a_piece():
    count = 8
    offsets = np.arange(count + 1, dtype="<u4") * (PIECE_BYTES // 8)
    numbers = bytes(4 * int(offsets[-1]))
    sparse = Encoded(b"", 0, (1,) * count, sparse=SparseRows(offsets.tobytes(), numbers, numbers))
    late = Encoded(b"", 0, (1,) * count, token_vectors=TokenVectors(bytes(PIECE_BYTES * count), 1024, (32,) * count))
    for part in (sparse, late):
        assert not is_small(result_of(part))
        assert [(one.index, one.begin, one.end) for one in chunks(result_of(part))] == [
            (index, index, index + 1) for index in range(count)
        ]


@pytest.mark.parametrize("piece_bytes", [1, 60, PIECE_BYTES])
def test_every_sparse_row_and_every_token_vector_is_that_of_its_input_wherever_a_piece_ends(monkeypatch, piece_bytes):
    monkeypatch.setattr(vectors, "PIECE_BYTES", piece_bytes)
    counts = [2, 0, 3, 1]
    numbers = [[10 * row + place for place in range(count)] for row, count in enumerate(counts)]
    own = np.array([number for row in numbers for number in row])
    part = Encoded(
        b"",
        0,
        (1,) * 4,
        sparse=SparseRows(
            np.cumsum([0, *counts]).astype("<u4").tobytes(),
            own.astype("<u4").tobytes(),
            (own / 8).astype("<f4").tobytes(),
        ),
        token_vectors=TokenVectors(np.stack([own, -own], 1).astype("<f4").tobytes(), 2, tuple(counts)),
        errors=(BAD.replace(index=3),),
    )
    result = result_of(part, part)
    sparse = [(indices.tolist(), values.tolist()) for one in chunks(result) for indices, values in one.sparse()]
    assert sparse == [(row, [number / 8 for number in row]) for row in numbers] * 2
    late = orjson.loads(b"[" + b"".join(token_vectors_json(result)) + b"]")
    assert late == [*([[number, -number] for number in row] for row in numbers[:3]), None] * 2
    assert len(list(chunks(result))) == {1: 8, 60: 4}.get(piece_bytes, 2)


@pytest.mark.parametrize("kind", ["float", "float16", "int8", "ubinary"])
def test_a_part_of_nothing_but_errors_has_them_in_place_of_token_vectors_of_no_dimension(kind):
    part = Encoded(b"", 0, (0, 0), token_vectors=TokenVectors(b"", 0, (0, 0)), errors=(BAD, BAD.replace(index=1)))
    shape = Shape(VectorForm(kind), outputs=("multi_vector",))
    data = orjson.loads(b"".join(render_embeddings(result_of(part), shape)))["data"]
    assert [(one["index"], one["embedding"], one["error"]["message"]) for one in data] == [
        (index, None, BAD.message) for index in range(2)
    ]
    assert b"".join(token_vectors_json(result_of(part))) == b"null,null"


def test_a_row_larger_than_a_piece_is_a_piece():
    rows = np.zeros((3, PIECE_BYTES), dtype=np.float32)
    assert [(one.begin, one.end) for one in chunks(result_of(part_of(rows)))] == [(0, 1), (1, 2), (2, 3)]


def test_an_answer_of_one_piece_is_small_and_one_that_is_larger_by_a_row_is_not(rows):
    assert is_small(result_of(part_of(rows[:ROWS_A_PIECE])))
    assert not is_small(result_of(part_of(rows[: ROWS_A_PIECE + 1])))


@pytest.mark.parametrize("sizes", [[1] * 9, [PIECE_BYTES] * 9, [PIECE_BYTES // 2] * 9, [1] * 8 + [PIECE_BYTES]])
def test_a_list_is_written_whole_in_pieces_that_hold_about_as_much_each(sizes):
    values = [f"text {index}" for index in range(9)]
    pieces = list(list_json(values, sizes))
    assert orjson.loads(b"[" + b"".join(pieces) + b"]") == values
    assert len(pieces) == max(1, -(-sum(sizes) // PIECE_BYTES)) - (sizes[0] == 1 and sizes[-1] > 1)
    assert list(list_json([], [])) == []


def test_of_a_pair_that_is_read_apart_each_number_is_that_of_both_and_either_may_have_been_cut():
    whole, cut = ReadInput(3, 3, truncated=False), ReadInput(8, 20, truncated=True)
    assert whole.with_second(cut) == cut.with_second(whole) == ReadInput(11, 23, truncated=True)
    assert whole.with_second(whole) == ReadInput(6, 6, truncated=False)


def test_words_for_types_mean_their_own_types():
    plain = {word: form for word, form in FORMS.items() if word != "base64"}
    assert {word: form.kind for word, form in plain.items()} == {word: word for word in plain}
    assert FORMS["base64"] == VectorForm("float", base64=True)
