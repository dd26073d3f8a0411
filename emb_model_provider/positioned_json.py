"""JSON that remembers where each value stands, so that a mistake is shown with its line and column.

``dotenv_file`` uses it to find where the JSON of a ``.env`` file ends, ``mapping`` to read it. Stricter than
``json.loads``: no duplicate keys, no ``NaN``, no lone surrogates, a bounded depth.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from emb_model_provider.errors import ConfigurationError

_MAX_DEPTH: Final = 16
_EXCERPT_CHARS: Final = 80
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,39})(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?(?![0-9.A-Za-z_])")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_STRINGS: Final = json.JSONDecoder()
_LITERALS: Final = {"true": True, "false": False, "null": None}
_WORD: Final = re.compile(r"[A-Za-z]+")
#: Space and marks that an editor shows as a blank or not at all; JSON knows none of them.
UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]")


@dataclass(frozen=True, slots=True)
class Array:
    """A JSON array."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """One ``"key": value`` of an object; ``at`` is the offset of the key."""

    key: str
    at: int
    node: Node


@dataclass(frozen=True, slots=True)
class Object:
    """A JSON object; the keys are distinct."""

    members: tuple[Member, ...]


JsonValue = str | int | float | bool | Array | Object | None


@dataclass(frozen=True, slots=True)
class Node:
    """One value and the offsets where it begins and ends in its document."""

    value: JsonValue
    at: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """JSON text and where a person finds it.

    ``source`` is the text the person sees (a whole file or the variable's value), ``offsets[i]`` the place in it of
    ``text[i]``, with one more for the end. They differ where a quoted value held backslashes.
    """

    text: str
    source: str
    offsets: Sequence[int]
    label: str
    is_file: bool

    def where(self, at: int) -> str:
        """Return ``.env:12:5``, or line and column within the value of a variable."""
        line, column = line_and_column(self.source, self.offsets[at])
        if self.is_file:
            return f"{self.label}:{line}:{column}"
        return f"{self.label}, line {line}, column {column} of the value"

    def excerpt(self, at: int) -> str:
        """Return the line that holds ``at``, cut to a readable width around it."""
        place = self.offsets[at]
        first = self.source.rfind("\n", 0, place) + 1
        last = self.source.find("\n", place)
        last = len(self.source) if last < 0 else last
        first = max(first, place - _EXCERPT_CHARS // 2)
        return self.source[first : min(last, first + _EXCERPT_CHARS)].strip()


class JsonMistakeError(ConfigurationError):
    """The text is not JSON that can be used; ``at`` is the offset in the text where that shows."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.message = message
        self.at = at


def line_and_column(text: str, at: int) -> tuple[int, int]:
    """Return the line and column of offset ``at``, both counted from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def document_of_variable(text: str, label: str) -> Document:
    """Return the document for a value that has no file."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Document(text, text, range(len(text) + 1), label, is_file=False)


def parse_json(text: str) -> Node:
    """Return the one value that ``text`` holds; raise ``JsonMistakeError``."""
    node = scan_json(text, _skip_space(text, 0))
    rest = _skip_space(text, node.end)
    if rest < len(text):
        raise JsonMistakeError(_unseen(text[rest]) or "text follows after the closing bracket", rest)
    return node


def scan_json(text: str, at: int, depth: int = 0) -> Node:
    """Return the value that begins at ``at``; what follows it is not looked at. Raise ``JsonMistakeError``."""
    first = text[at : at + 1]
    if depth > _MAX_DEPTH:
        raise JsonMistakeError(f"values are nested more than {_MAX_DEPTH} deep", at)
    if first == "{":
        return _scan_object(text, at, depth)
    if first == "[":
        return _scan_array(text, at, depth)
    if first == '"':
        value, end = _scan_string(text, at)
        return Node(value, at, end)
    number = _NUMBER.match(text, at)
    if number:
        whole = number[1] is None and number[2] is None
        return Node(int(number[0]) if whole else float(number[0]), at, number.end())
    word = _WORD.match(text, at)
    if word and word[0] in _LITERALS:
        return Node(_LITERALS[word[0]], at, word.end())
    raise JsonMistakeError(_hint(text, at, "a value is missing or not written as JSON"), at)


def _scan_object(text: str, at: int, depth: int) -> Node:
    members: list[Member] = []
    seen: set[str] = set()
    cursor = _skip_space(text, at + 1)
    if text[cursor : cursor + 1] == "}":
        return Node(Object(()), at, cursor + 1)
    while True:
        if text[cursor : cursor + 1] != '"':
            raise JsonMistakeError(_hint(text, cursor, "a key in double quotes is missing"), cursor)
        key, end = _scan_string(text, cursor)
        if key in seen:
            raise JsonMistakeError(f"the key {json.dumps(key, ensure_ascii=False)} stands here a second time", cursor)
        seen.add(key)
        colon = _skip_space(text, end)
        if text[colon : colon + 1] != ":":
            raise JsonMistakeError(_hint(text, colon, "a colon is missing after the key"), colon)
        node = scan_json(text, _skip_space(text, colon + 1), depth + 1)
        members.append(Member(key, cursor, node))
        cursor = _skip_space(text, node.end)
        if text[cursor : cursor + 1] == "}":
            return Node(Object(tuple(members)), at, cursor + 1)
        cursor = _after_comma(text, cursor, "}")


def _scan_array(text: str, at: int, depth: int) -> Node:
    items: list[Node] = []
    cursor = _skip_space(text, at + 1)
    if text[cursor : cursor + 1] == "]":
        return Node(Array(()), at, cursor + 1)
    while True:
        node = scan_json(text, cursor, depth + 1)
        items.append(node)
        cursor = _skip_space(text, node.end)
        if text[cursor : cursor + 1] == "]":
            return Node(Array(tuple(items)), at, cursor + 1)
        cursor = _after_comma(text, cursor, "]")


def _after_comma(text: str, at: int, closing: str) -> int:
    if text[at : at + 1] != ",":
        raise JsonMistakeError(_hint(text, at, f"a comma or the closing {closing} is missing"), at)
    following = _skip_space(text, at + 1)
    if text[following : following + 1] == closing:
        raise JsonMistakeError(f"the comma before the closing {closing} is one too many", at)
    return following


def _scan_string(text: str, at: int) -> tuple[str, int]:
    value: str
    try:
        value, end = _STRINGS.raw_decode(text, at)
    except json.JSONDecodeError as error:
        place = min(error.pos, len(text))
        raise JsonMistakeError(_hint_in_string(text, place, error.msg), place) from None
    if _SURROGATE.search(text[at:end]):
        raise JsonMistakeError(f"the string holds {lost_bytes()}", at)
    if _SURROGATE.search(value):
        raise JsonMistakeError("the string holds half of a surrogate pair, which is no character", at)
    return value, end


def lost_bytes() -> str:
    """Return what stands as lone surrogates in a variable that Python could not read (PEP 383), in words."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return "bytes that are not UTF-8"
    return f"bytes that are not {encoding}, in which Python reads the environment here: set PYTHONUTF8=1"


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _hint_in_string(text: str, at: int, otherwise: str) -> str:
    if text[at : at + 1] == "\\" or text[at - 1 : at + 1] == "\\u":
        return "a backslash within a string is written twice: \\\\"
    return f"the string is not valid JSON ({otherwise})"


def _hint(text: str, at: int, otherwise: str) -> str:
    """Name the few mistakes that people really make in hand-written JSON."""
    found = text[at : at + 1]
    if found == "":
        return "the JSON ends too early: a closing bracket is missing"
    if found in {"#", "/"}:
        return "JSON has no comments: move it outside of the braces"
    if found in {"'", "“", "”", "‘", "’"}:
        return f"JSON strings stand in plain double quotes, not in {found}"
    if found in {"，", "：", "｛", "｝", "［", "］", "＂", "、"}:
        return f"{found} is a full-width character: JSON needs the ASCII one"
    return _unseen(found) or otherwise


def _unseen(found: str) -> str:
    if not UNSEEN.match(found):
        return ""
    return f"the character U+{ord(found):04X} stands here, which cannot be seen and is no blank of JSON: delete it"
