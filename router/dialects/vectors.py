"""Writes vectors as JSON, piece by piece, in every output type. Pure; used by the dialects.

32,768 numbers are some 0.7 ms of work as JSON. The library that writes them holds the interpreter's lock, as base64
does: another thread would keep the loop waiting just as long, so the loop does it itself, piece by piece.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from emb_model_provider.errors import RequestError
from emb_model_provider.messages.link import Encoded, InputError
from emb_model_provider.value import Value
from router.quantization import VectorType, quantize
from router.requests import EncodeResult

PIECE_BYTES: Final = 128 * 1024


class VectorForm(Value, frozen=True):
    """How a vector stands in the answer: its numbers' type, as a list or as base64 of their little-endian bytes."""

    kind: VectorType = "float"
    base64: bool = False


PLAIN: Final = VectorForm()


class Chunk(Value, frozen=True):
    """Rows ``begin`` up to ``end`` of one part; ``index`` is where the first of them stands in the request."""

    part: Encoded
    begin: int
    end: int
    index: int

    def dense(self) -> NDArray[np.float32]:
        """Return the dense rows, or the logits."""
        whole = np.frombuffer(self.part.vectors, dtype="<f4").reshape(len(self.part.tokens), self.part.dimension)
        return whole[self.begin : self.end]

    def errors(self) -> dict[int, InputError]:
        """Return the errors among these rows, counted from ``begin``."""
        return {error.index - self.begin: error for error in self.part.errors if self.begin <= error.index < self.end}

    def token_vectors(self) -> list[NDArray[np.float32]]:
        """Return each row's matrix of token vectors."""
        tokens = self.part.token_vectors
        assert tokens is not None
        # Of a part of nothing but errors the dimension is 0: nobody knows what the model would have made.
        flat = np.frombuffer(tokens.vectors, dtype="<f4").reshape(-1, tokens.dimension or 1)
        bounds = np.concatenate(([0], np.cumsum(tokens.counts)))
        return [flat[bounds[row] : bounds[row + 1]] for row in range(self.begin, self.end)]

    def sparse(self) -> list[tuple[NDArray[np.uint32], NDArray[np.float32]]]:
        """Return each row's indices and values."""
        rows = self.part.sparse
        assert rows is not None
        offsets = np.frombuffer(rows.offsets, dtype="<u4")
        indices, values = np.frombuffer(rows.indices, dtype="<u4"), np.frombuffer(rows.values, dtype="<f4")
        spans = [(offsets[row], offsets[row + 1]) for row in range(self.begin, self.end)]
        return [(indices[begin:end], values[begin:end]) for begin, end in spans]


def chunks(result: EncodeResult) -> Iterator[Chunk]:
    """Cut a result into runs of rows that take about a millisecond to write."""
    index = 0
    for part in result.parts:
        count = len(part.tokens)
        rows = max(1, PIECE_BYTES * count // max(1, _bytes_of(part)))
        for begin in range(0, count, rows):
            end = min(begin + rows, count)
            yield Chunk(part, begin, end, index)
            index += end - begin


def is_small(result: EncodeResult) -> bool:
    """Tell whether writing the whole answer takes about as long as one piece of a large one."""
    return sum(map(_bytes_of, result.parts)) <= PIECE_BYTES


def _bytes_of(part: Encoded) -> int:
    size = len(part.vectors)
    if part.sparse is not None:
        size += 2 * len(part.sparse.values)
    if part.token_vectors is not None:
        size += len(part.token_vectors.vectors)
    return size


def row_list(rows: NDArray[np.float32], form: VectorForm) -> list[object]:
    """Return each row as orjson writes it: an array or a string of base64."""
    made = rows if form.kind == "float" else quantize(rows, form.kind)
    if form.base64:
        return [b2a_base64(row.tobytes(), newline=False).decode() for row in made]
    return list(made)


def rows_json(result: EncodeResult, form: VectorForm) -> Iterator[bytes]:
    """Yield dense rows with commas between them; a row without a result is ``null``."""
    comma = b""
    for chunk in chunks(result):
        errors = chunk.errors()
        if errors:
            rows = row_list(chunk.dense(), form)
            for row in errors:
                rows[row] = None
            yield comma + to_json(rows)[1:-1]
        elif form.base64:
            yield comma + to_json(row_list(chunk.dense(), form))[1:-1]
        else:
            yield comma + to_json(quantize(chunk.dense(), form.kind))[1:-1]
        comma = b","


def token_vectors_json(result: EncodeResult) -> Iterator[bytes]:
    """Yield each input's list of token vectors, with commas between them; an input without any is ``null``."""
    comma = b""
    for chunk in chunks(result):
        rows: list[object] = list(chunk.token_vectors())
        for row in chunk.errors():
            rows[row] = None
        yield comma + to_json(rows)[1:-1]
        comma = b","


def list_json(values: Sequence[object], sizes: Iterable[int]) -> Iterator[bytes]:
    """Yield values with commas between them, in pieces of bounded size; ``sizes`` are about their bytes."""
    begin, waiting, comma = 0, 0, b""
    for end, size in enumerate(sizes, 1):
        waiting += size
        if waiting >= PIECE_BYTES:
            yield comma + to_json(values[begin:end])[1:-1]
            begin, waiting, comma = end, 0, b","
    if begin < len(values):
        yield comma + to_json(values[begin:])[1:-1]


def all_rows(result: EncodeResult) -> NDArray[np.float32]:
    """Return every dense row, or every input's logits, one below the other."""
    return np.concatenate([chunk.dense() for chunk in chunks(result)])


def all_errors(result: EncodeResult) -> list[tuple[int, InputError]]:
    """Return every input's error with its index in the request."""
    found: list[tuple[int, InputError]] = []
    offset = 0
    for part in result.parts:
        found.extend((offset + error.index, error) for error in part.errors)
        offset += len(part.tokens)
    return found


def error_object(error: InputError) -> dict[str, object]:
    """Return one input's error as it stands in answers: OpenAI's four fields and the status it would have had."""
    return {
        "message": error.message,
        "type": error.kind,
        "param": "input",
        "code": error.code,
        "status": error.status,
    }


def errors_json(result: EncodeResult) -> list[dict[str, object]]:
    """Return the errors of inputs for bodies that have no object for each input."""
    return [{"index": index, **error_object(error)} for index, error in all_errors(result)]


def refusal_object(error: RequestError) -> dict[str, object]:
    """Return the error of an input that was wrong already in the body."""
    return error_object(InputError(0, error.status, error.kind, error.code, error.message))


class ReadInput(NamedTuple):
    """What a model read of one input."""

    tokens: int
    original_tokens: int
    truncated: bool

    def with_second(self, second: ReadInput) -> ReadInput:
        """Return what it read of a pair."""
        tokens, original = self.tokens + second.tokens, self.original_tokens + second.original_tokens
        return ReadInput(tokens, original, self.truncated or second.truncated)


def read_inputs(result: EncodeResult) -> list[ReadInput]:
    """Return what was read of each input."""
    read: list[ReadInput] = []
    for part in result.parts:
        cut = frozenset(part.truncated)
        originals = part.original_tokens or part.tokens
        read.extend(
            ReadInput(tokens, original, row in cut)
            for row, (tokens, original) in enumerate(zip(part.tokens, originals, strict=True))
        )
    return read


def details_json(result: EncodeResult) -> list[dict[str, object]]:
    """Return what was read of each input, as it stands in answers."""
    return [one._asdict() for one in read_inputs(result)]


def to_json(value: object) -> bytes:
    """Return JSON; numpy's arrays are written without making Python numbers of theirs."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
