"""Reads a large request body piece by piece, so that other requests are served in between. Pure; used by ``openai``.

orjson reads a body in one go and holds the interpreter's lock meanwhile: during 12 MB, some 25 ms, nobody else is
answered, from whatever thread it is called. Here a regular expression finds where the items of ``"input"`` end, and
orjson reads them run by run. A body that is not plainly of that shape is read in one go after all, so that the
outcome, value or error, is always orjson's own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator
from typing import Final

import orjson

#: Shorter bodies are read in less than about half a millisecond.
LARGE_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 64 * 1024

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_PLAIN_STRING = rb'"[^"\\]*+"'
_NUMBER = rb"-?[0-9][0-9.eE+-]*+"
_MEMBER = rb"\s*+" + _PLAIN_STRING + rb"\s*+:\s*+(?:" + _PLAIN_STRING + rb"|" + _NUMBER + rb"|true|false|null)\s*+,"
_ITEM = rb"\s*+(?:" + _STRING + rb"|" + _NUMBER + rb"|\[[0-9\s,]*+\])\s*+"
#: From the body's start to the bracket of ``"input"``, past a few members that hold no other.
_HEAD: Final = re.compile(rb"\s*+\{(?:" + _MEMBER + rb'){0,32}?\s*+"input"\s*+:\s*+\[')
_RUN: Final = re.compile(rb"(?:" + _ITEM + rb",){1,16}+", re.DOTALL)
_LAST: Final = re.compile(_ITEM + rb"\]", re.DOTALL)


def read(body: bytes) -> Generator[None, None, object]:
    """Return what ``orjson.loads`` returns and raise what it raises, with a pause after each piece."""
    head = _HEAD.match(body) if len(body) >= LARGE_BYTES else None
    if head is None:
        return orjson.loads(body)
    try:
        fields = yield from _read_apart(body, head.end())
    except orjson.JSONDecodeError:  # the whole body's error names the right place
        fields = None
    return fields if fields is not None else orjson.loads(body)


def _read_apart(body: bytes, begin: int) -> Generator[None, None, dict[str, object] | None]:
    """Read the items that begin there and what is around them; ``None`` where the body has another shape."""
    items: list[object] = []
    position, is_last = begin, False
    while not is_last:
        end, is_last = _end_of_piece(body, position)
        if end == position:
            return None
        items += orjson.loads(b"[%b]" % body[position : end - 1])
        position = end
        yield
    # Only if the mark is found where the items belong were they the value of "input", and the last one of that name.
    mark = secrets.token_hex(16)
    fields = orjson.loads(b'%b"%b"%b' % (body[: begin - 1], mark.encode(), body[position:]))
    if not isinstance(fields, dict) or fields.get("input") != mark:
        return None
    fields["input"] = items
    return fields


def _end_of_piece(body: bytes, begin: int) -> tuple[int, bool]:
    """Return where a run of whole items ends, past the comma or bracket, and whether it was the bracket."""
    end = begin
    while end - begin < _PIECE_BYTES:
        run = _RUN.match(body, end)
        if run is None:
            last = _LAST.match(body, end)
            return (last.end(), True) if last else (begin, False)
        end = run.end()
    return end, False
