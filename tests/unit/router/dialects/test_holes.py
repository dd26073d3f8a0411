import struct
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Encoded, InputError, SparseRows, TokenVectors
from router.dialects.holes import with_holes
from router.requests import EncodeResult


def part_of(rows: list[int]) -> Encoded:
    """Return what a shard would answer for inputs of which each is known by its number: in every field."""
    counts = [number % 4 for number in rows]
    entries = [number for number, count in zip(rows, counts, strict=True) for _ in range(count)]
    return Encoded(
        vectors=np.array([[number, -number] for number in rows], "<f4").tobytes(),
        dimension=2,
        tokens=tuple(rows),
        truncated=tuple(row for row, number in enumerate(rows) if number % 3 == 0),
        original_tokens=tuple(number + 1 for number in rows),
        sparse=SparseRows(
            struct.pack(f"<{len(rows) + 1}I", *accumulate(counts, initial=0)),
            np.array(entries, "<u4").tobytes(),
            np.array(entries, "<f4").tobytes(),
        ),
        token_vectors=TokenVectors(np.array([[n, n, n] for n in entries], "<f4").tobytes(), 3, tuple(counts)),
        errors=tuple(
            InputError(row, 500, "e", None, f"of {number}") for row, number in enumerate(rows) if number % 5 == 0
        ),
    )


def rows_of(part: Encoded) -> list[tuple[object, ...]]:
    """Return each row of a part with all that belongs to it."""
    assert part.sparse is not None
    assert part.token_vectors is not None
    dense = np.frombuffer(part.vectors, "<f4").reshape(-1, part.dimension).tolist()
    offsets = struct.unpack(f"<{len(part.tokens) + 1}I", part.sparse.offsets)
    indices = np.frombuffer(part.sparse.indices, "<u4").tolist()
    values = np.frombuffer(part.sparse.values, "<f4").tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(indices) == len(values)
    tokens = np.frombuffer(part.token_vectors.vectors, "<f4").reshape(-1, part.token_vectors.dimension).tolist()
    ends = list(accumulate(part.token_vectors.counts, initial=0))
    assert ends[-1] == len(tokens)
    errors = {error.index: error.message for error in part.errors}
    return [
        (
            dense[row],
            part.tokens[row],
            part.original_tokens[row] if part.original_tokens else None,
            indices[offsets[row] : offsets[row + 1]],
            values[offsets[row] : offsets[row + 1]],
            tokens[ends[row] : ends[row + 1]],
            errors.get(row),
        )
        for row in range(len(part.tokens))
    ]


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_every_good_row_keeps_all_that_is_its_own_and_every_hole_is_where_the_client_left_it(slices, data):
    parts = tuple(part_of(rows) for rows in slices)
    good = [row for part in parts for row in rows_of(part)]
    cut = [row % 3 == 0 for rows in slices for row in rows]
    total = len(good) + data.draw(st.integers(0, 5))
    at = sorted(data.draw(st.permutations(range(total)))[: total - len(good)])
    holes = {index: InvalidRequestError(f"hole {index}", code="bad") for index in at}
    result = with_holes(EncodeResult("m", parts, 7, tuple(np.flatnonzero(cut).tolist()), "f00d"), holes)
    left = iter(zip(good, cut, strict=True))
    expected = [
        (([0, 0], 0, None, [], [], [], f"hole {index}"), False) if index in holes else next(left)
        for index in range(total)
    ]
    found = [row for part in result.parts for row in rows_of(part)]
    assert found == [row for row, _ in expected]
    assert result.truncated == tuple(index for index, (_, is_cut) in enumerate(expected) if is_cut)
    assert (result.model_id, result.prompt_tokens, result.fingerprint) == ("m", 7, "f00d")
    errors = [error for part in result.parts for error in part.errors if error.message.startswith("hole")]
    assert [(error.status, error.code) for error in errors] == [(400, "bad")] * len(holes)
