import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.positioned_json import (
    Array,
    JsonMistakeError,
    JsonValue,
    Node,
    Object,
    document_of_variable,
    parse_json,
    scan_json,
)

_TEXTS = st.text(st.sampled_from('a"\\ \n{}[],:你😀') | st.characters(exclude_categories=["Cs"]), max_size=8)
_SCALARS = (
    _TEXTS
    | st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4), max_leaves=20
)


def plain(value: JsonValue) -> object:
    if isinstance(value, Array):
        return [plain(item.value) for item in value.items]
    if isinstance(value, Object):
        return {member.key: plain(member.node.value) for member in value.members}
    return value


def nodes(node: Node) -> list[Node]:
    """Return a node and all that are in it."""
    inner: list[Node] = []
    if isinstance(node.value, Array):
        inner = list(node.value.items)
    elif isinstance(node.value, Object):
        inner = [member.node for member in node.value.members]
    return [node, *(one for child in inner for one in nodes(child))]


@given(_VALUES, st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", " ", "\n\t\r "]))
def test_json_is_read_as_by_json_and_each_value_stands_where_it_is_said_to(value, indent, ascii_only, room):
    text = room + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + room
    root = parse_json(text)
    assert plain(root.value) == value
    for node in nodes(root):
        written = text[node.at : node.end]
        assert written == written.strip()
        assert json.loads(written) == plain(node.value)
        if isinstance(node.value, Object):
            assert all(json.loads(text[m.at : text.index(":", m.at)].strip()) == m.key for m in node.value.members
                       if ":" not in m.key)  # fmt: skip


@given(_VALUES, st.data())
def test_text_that_is_damaged_is_read_as_by_json_or_refused_at_a_place_within_it(value, data):
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 2))
    text = (
        text[:at]
        + data.draw(st.text(st.sampled_from("{}[],:\"\\ 01.eE+-tNn#'，\ud800"), max_size=3))
        + text[at + cut :]
    )
    place = 0
    try:
        assert plain(parse_json(text).value) == json.loads(text)
    except JsonMistakeError as mistake:
        place = mistake.at
    assert 0 <= place <= len(text)


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("", 0, "ends too early"),
        ('{"a": 1', 7, "ends too early"),
        ("{'a': 1}", 1, "plain double quotes, not in '"),
        ('{"a": “b”}', 6, "plain double quotes, not in “"),
        ('{"a"： 1}', 4, "： is a full-width character"),
        ('{"a": 1， "b": 2}', 7, "， is a full-width character"),
        ('｛"a": 1}', 0, "｛ is a full-width character"),
        ("{＂a＂: 1}", 1, "＂ is a full-width character"),
        ('{\u3000"a": 1}', 1, "U+3000 stands here"),
        ('{"a":\u00a01}', 5, "U+00A0 stands here"),
        ('{"a": 1\u200b}', 7, "U+200B stands here"),
        ("{} \ufeff", 3, "U+FEFF stands here"),
        ('{"a": "C:\\models"}', 9, "a backslash within a string is written twice"),
        ('{"a": "C:\\users"}', 10, "a backslash within a string is written twice"),
        ('{"a": 1 # one\n}', 8, "no comments"),
        ('{"a": 1 /* one */}', 8, "no comments"),
        ('{"a": 1,}', 7, "the comma before the closing } is one too many"),
        ("[1, ]", 2, "the comma before the closing ] is one too many"),
        ("[1 2]", 3, "a comma or the closing ] is missing"),
        ('{"a": 1 "b": 2}', 8, "a comma or the closing } is missing"),
        ('{"a" 1}', 5, "a colon is missing after the key"),
        ("{a: 1}", 1, "a key in double quotes is missing"),
        ('{"a": 1, "a": 2}', 9, 'the key "a" stands here a second time'),
        ('{"a": NaN}', 6, "not written as JSON"),
        ('{"a": True}', 6, "not written as JSON"),
        ("01", 0, "not written as JSON"),
        ("1_000", 0, "not written as JSON"),
        ('"\\ud800"', 0, "half of a surrogate pair"),
        ('{"a": "\udce6\udca8\udca1"}', 6, "the string holds bytes that are not UTF-8"),
        ('{"a": "b\nc"}', 8, "the string is not valid JSON"),
        ("{} {}", 3, "text follows after the closing bracket"),
    ],
)
def test_a_mistake_is_named_where_it_shows(text, at, message):
    with pytest.raises(JsonMistakeError) as caught:
        parse_json(text)
    assert message in caught.value.message
    assert caught.value.at == at


def test_where_python_reads_the_environment_otherwise_what_to_set_is_said(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(JsonMistakeError, match=r"bytes that are not ascii, .* set PYTHONUTF8=1"):
        parse_json('"/models/\udce6\udca8\udca1"')


def test_a_value_may_stand_sixteen_deep_in_others_and_no_deeper():
    assert parse_json("[" * 17 + "]" * 17).end == 34
    with pytest.raises(JsonMistakeError, match="nested more than 16 deep") as caught:
        parse_json("[" * 18 + "]" * 18)
    assert caught.value.at == 17
    assert parse_json('{"a":' * 16 + "{}" + "}" * 16).at == 0
    with pytest.raises(JsonMistakeError, match="nested more than 16 deep"):
        parse_json('{"a":' * 17 + "{}" + "}" * 17)


def test_what_follows_a_value_is_not_looked_at_where_only_its_end_is_wanted():
    assert scan_json('x {"a": [1]} and more', 2).end == 12


def test_a_place_is_told_as_line_and_column_and_its_line_is_shown():
    document = document_of_variable('{"a": 1,\r\n "b": tru}', "the variable")
    assert document.where(15) == "the variable, line 2, column 7 of the value"
    assert document.excerpt(15) == '"b": tru}'
    long = document_of_variable("x" * 500 + "?" + "y" * 500, "the variable")
    assert long.excerpt(500) == "x" * 40 + "?" + "y" * 39
