import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import large_json
from router.large_json import LARGE_BYTES

_ESCAPES = st.sampled_from(["\\", '"', "]", ",", "[", "\n", "\\u0041", "\\\\", "你", "😀", " ", "a"])
_TEXTS = st.lists(_ESCAPES, max_size=12).map("".join)
_ITEMS = st.one_of(
    _TEXTS,
    st.integers(-5, 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(_TEXTS, max_size=2),
    st.none(),
    st.booleans(),
)
_MEMBERS = st.dictionaries(
    st.sampled_from(["model", "user", "x", "input", "in put"]), st.one_of(_ITEMS, st.lists(_ITEMS, max_size=3))
)


def run(body: bytes) -> tuple[object, int]:
    """Return the outcome and the number of pauses; a refused body's outcome is the error's text."""
    steps = large_json.read(body)
    pauses = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, pauses
        except orjson.JSONDecodeError as error:
            return str(error), pauses
        pauses += 1


def whole(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return str(error)


@given(
    before=_MEMBERS,
    items=st.lists(_ITEMS, min_size=1, max_size=60),
    after=_MEMBERS,
    ascii_only=st.booleans(),
    damage=st.none() | st.tuples(st.integers(0, 400), st.binary(min_size=0, max_size=2)),
    room=st.sampled_from([b"", b" ", b"\n\t"]),
)
def test_a_body_read_in_pieces_has_the_outcome_of_one_read_at_once(before, items, after, ascii_only, damage, room):
    def written(value: object) -> bytes:
        return json.dumps(value, ensure_ascii=ascii_only).encode()

    members = [written(key) + room + b":" + room + written(value) for key, value in before.items()]
    filler = written("z" * 900 * (1 + LARGE_BYTES // 900 // len(items)))
    listed = (room + b",").join(piece for item in items for piece in (written(item), filler))
    members.append(b'"input"' + room + b":" + room + b"[" + listed + room + b"]")
    members += [written(key) + b":" + written(value) for key, value in after.items()]
    body = room + b"{" + (b"," + room).join(members) + b"}" + room
    if damage is not None:
        at, with_ = damage
        body = body[:-at] + with_ + body[len(body) - at + 1 :] if at else body + with_
    assert len(body) >= LARGE_BYTES
    assert run(body)[0] == whole(body)


@pytest.mark.parametrize(
    ("item", "least_pauses"), [("x" * 2000, 30), ("中" * 2000, 90), ('\\"' * 500, 20), (list(range(1000, 1256)), 20)]
)
def test_a_large_plain_body_is_read_in_many_pieces(item, least_pauses):
    body = orjson.dumps({"model": "m", "input": [item] * 2048, "encoding_format": "base64"})
    outcome, pauses = run(body)
    assert outcome == orjson.loads(body)
    assert least_pauses <= pauses <= 4 * least_pauses


def test_a_piece_of_short_items_is_no_longer_in_the_making_than_one_of_long_ones():
    body = orjson.dumps({"model": "m", "input": ["a"] * 100 * 1024})
    outcome, pauses = run(body)
    assert outcome == orjson.loads(body)
    assert pauses == 100


@pytest.mark.parametrize(
    "tail",
    [
        b'],"input":["b"]}',
        b'],"\\u0069nput":[]}',
        b'],"input":"x"}',
        b",]}",
        b"],}",
        b"]",
        b'"]}',
        b'\x00"]}',
        b"\xff]}",
    ],
)
def test_a_second_input_and_a_broken_end_are_judged_as_if_read_at_once(tail):
    body = b'{"input":["a",' + b'"' + b"y" * LARGE_BYTES + b'"' + tail
    assert run(body)[0] == whole(body)


@pytest.mark.parametrize("name", ["inputs", "documents", "texts", "text_2", "other"])
def test_lists_of_other_dialects_are_read_in_pieces_too(name):
    body = orjson.dumps(
        {"model": "m", "types": ["float", "int8"], "none": [], "query": "q", name: ["x" * 2000] * 500, "top_n": 3}
    )
    outcome, pauses = run(body)
    assert outcome == orjson.loads(body)
    assert (pauses > 10) == (name != "other")


def test_a_short_body_is_read_at_once():
    assert run(b'{"input":["a"]}') == ({"input": ["a"]}, 0)
