"""Reads a large request body piece by piece, so that other requests are served in between. Pure; used by ``dialects``.

orjson reads a body in one go and holds the interpreter's lock meanwhile: during 12 MB, some 25 ms, nobody else is
answered, from whatever thread it is called. Here the items of ``"input"`` (or of another list that holds a request's
texts) are told apart by their quotes or brackets and read run by run. A run that orjson takes for whole values ended
where values end, so a wrong guess can only show as an error; then, as for every body of another shape, all is read in
one go: the outcome, value or error, is always orjson's own.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Generator
from typing import Final

import orjson

#: Shorter bodies are read in less than about half a millisecond.
LARGE_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 64 * 1024
_PIECE_ITEMS: Final = 1024

_NO_ESCAPES = rb'"[^"\\]*+"'
_SCALAR = _NO_ESCAPES + rb"|-?[0-9][0-9.eE+-]*+|true|false|null"
_SHORT_LIST = rb"\[\s*+(?:(?:" + _SCALAR + rb")\s*+,?\s*+){0,32}+\]"
_MEMBER = rb"\s*+" + _NO_ESCAPES + rb"\s*+:\s*+(?:" + _SCALAR + rb"|" + _SHORT_LIST + rb")\s*+,"
#: What the dialects call a list of texts.
_LISTS = rb'"(inputs?|documents|texts|text_2|instances)"'
#: From the body's start to the first item of the list, past a few members that hold no long one.
_HEAD: Final = re.compile(rb"\s*+\{(?:" + _MEMBER + rb"){0,32}?\s*+" + _LISTS + rb"\s*+:\s*+(\[)\s*+")
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SEPARATOR: Final = re.compile(rb"\s*+([,\]])\s*+")
_QUOTE, _BACKSLASH, _BRACKET = b'"\\['


def read(body: bytes) -> Generator[None, None, object]:
    """Return what ``orjson.loads`` returns and raise what it raises, with a pause after each piece."""
    head = _HEAD.match(body) if len(body) >= LARGE_BYTES else None
    if head is None:
        return orjson.loads(body)
    try:
        fields = yield from _read_apart(body, head[1].decode(), head.end(2), head.end())
    except orjson.JSONDecodeError:  # the whole body's error names the right place
        fields = None
    return fields if fields is not None else orjson.loads(body)


def _read_apart(body: bytes, name: str, head_end: int, begin: int) -> Generator[None, None, dict[str, object] | None]:
    """Read the items from ``begin`` and what is around them; ``None`` where the body has another shape."""
    items: list[object] = []
    is_last = False
    while not is_last:
        end, separator = _end_of_run(body, begin)
        if separator is None:
            return None
        items += orjson.loads(b"[%b]" % body[begin:end])
        begin = separator.end()
        is_last = separator[1] == b"]"
        yield
    # Only if the mark is found where the items belong were they the value of that name, and the last one of it.
    mark = secrets.token_hex(16)
    fields = orjson.loads(b'%b"%b"]%b' % (body[:head_end], mark.encode(), body[begin:]))
    if not isinstance(fields, dict) or fields.get(name) != [mark]:
        return None
    fields[name] = items
    return fields


def _end_of_run(body: bytes, begin: int) -> tuple[int, re.Match[bytes] | None]:
    """Return where a run of items ends and the separator after it; ``None`` where no separator is found."""
    position = begin
    for count in itertools.count(1):
        end = _end_of_item(body, position)
        separator = _SEPARATOR.match(body, end) if end else None
        is_enough = end - begin >= _PIECE_BYTES or count == _PIECE_ITEMS
        if separator is None or separator[1] == b"]" or is_enough:
            break
        position = separator.end()
    return end, separator


def _end_of_item(body: bytes, begin: int) -> int:
    """Return where a string or a list that holds no other ends; 0 for anything else."""
    first = body[begin] if begin < len(body) else 0
    if first == _BRACKET:
        return body.find(b"]", begin) + 1
    if first != _QUOTE:
        return 0
    end = body.find(b'"', begin + 1)
    if end > 0 and body[end - 1] == _BACKSLASH:  # perhaps an escaped quote
        string = _STRING.match(body, begin)
        return string.end() if string else 0
    return end + 1
