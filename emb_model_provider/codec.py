"""Structs to msgpack and back, validated on arrival against their own annotations.

A ``Wire`` travels as an array of its fields in order, a dataclass within one as a map, a tuple as an array, everything
else as msgpack has it. Extension types are refused. All of it is one call into C, because after a forward pass the
caches are full of weights, and every line of Python has to come from memory. Used by ``messages``.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Final, TypeVar

import msgspec

from emb_model_provider.errors import ProtocolError
from emb_model_provider.value import Value

_MAX_ITEMS: Final = 1_000_000
_ENCODER: Final = msgspec.msgpack.Encoder()

Item = TypeVar("Item")
#: A tuple of any length that a message may have.
Many = Annotated[tuple[Item, ...], msgspec.Meta(max_length=_MAX_ITEMS)]


class Wire(Value, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of what crosses a socket."""


Message = TypeVar("Message", bound=Wire)


def encode(message: Wire) -> bytes:
    """Return the msgpack form of ``message``."""
    return _ENCODER.encode(message)


def check_counts(message: Wire, payload: bytes) -> None:
    """Raise ``ProtocolError`` where ``decode`` would refuse what ``encode`` has made, for a list has too many items.

    Each takes a byte at least, so that few payloads are long enough for it.
    """
    if len(payload) > _MAX_ITEMS and _holds_too_many(message):
        raise ProtocolError(f"{type(message).__name__}: expected lists of length <= {_MAX_ITEMS}")


def _holds_too_many(value: object) -> bool:
    if isinstance(value, Wire):
        return any(_holds_too_many(getattr(value, name)) for name in value.__struct_fields__)
    if not isinstance(value, tuple) or not value:
        return False
    # What a list holds is of one kind: where one item has no lists, the others need not be looked at.
    return len(value) > _MAX_ITEMS or (_has_lists(value[0]) and any(map(_holds_too_many, value)))


def _has_lists(item: object) -> bool:
    if isinstance(item, Wire):
        return any(isinstance(getattr(item, name), (Wire, tuple)) for name in item.__struct_fields__)
    return isinstance(item, tuple)


def decode(kind: type[Message], payload: bytes) -> Message:
    """Return the instance of ``kind`` that ``payload`` holds; raise ``ProtocolError`` where it holds none."""
    decoder: msgspec.msgpack.Decoder[Message] = _decoder(kind)
    # msgspec takes a shorter array as well, and the defaults for the rest.
    if not payload.startswith(_array_header(kind)):
        raise ProtocolError(f"{kind.__name__}: expected an array of {len(kind.__struct_fields__)} fields")
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from error


@cache
def _array_header(kind: type[Wire]) -> bytes:
    count = len(kind.__struct_fields__)
    return _ENCODER.encode([None] * count)[:-count]


@cache
def _decoder(kind: type[Message]) -> msgspec.msgpack.Decoder[Message]:
    return msgspec.msgpack.Decoder(kind)
