"""Dataclasses to msgpack and back, validated on arrival against their own annotations.

A dataclass travels as an array of its fields in order, a tuple as an array, everything else as msgpack has it.
Extension types are refused. The readers are built once per class, so that a message costs a few function calls.
Used by ``messages`` alone.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgpack

from emb_model_provider.errors import ProtocolError

Message = TypeVar("Message")
Reader = Callable[[object], object]

_MAX_ITEMS = 1_000_000


def encode(message: object) -> bytes:
    """Return the msgpack form of a dataclass instance."""
    return cast("bytes", msgpack.packb(message, default=_fields, use_bin_type=True))


def decode(kind: type[Message], payload: bytes) -> Message:
    """Return the instance of ``kind`` that ``payload`` holds; raise ``ProtocolError`` where it holds none."""
    try:
        plain = msgpack.unpackb(
            payload,
            raw=False,
            use_list=True,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{kind.__name__}: not msgpack: {error}") from error
    return cast("Message", _reader(cast("Any", kind))(plain))


def _refuse_extension(code: int, _data: bytes) -> object:
    raise ValueError(f"extension type {code} is not part of the protocol")


def _fields(value: object) -> tuple[object, ...]:
    """Return a dataclass's values in order: what msgpack calls for everything that it does not know itself."""
    return _getter(cast("Any", type(value)))(value)


@cache
def _getter(kind: type[Any]) -> Callable[[object], tuple[object, ...]]:
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind.__name__} cannot cross a socket")
    names = [field.name for field in dataclasses.fields(kind)]
    if len(names) == 1:
        only = attrgetter(names[0])
        return lambda value: (only(value),)
    return attrgetter(*names)


@cache
def _reader(hint: Any) -> Reader:  # noqa: ANN401 - an annotation may be any object
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(cast("type[Any]", hint))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _literal_reader(arguments)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    if hint in (str, bytes, bool, int, float, types.NoneType):
        return _scalar_reader(hint)
    raise TypeError(f"{hint!r} cannot cross a socket")


def _dataclass_reader(kind: type[Any]) -> Reader:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    readers = [_reader(hints[name]) for name in names]
    is_plain = [_is_plain(hints[name]) for name in names]
    #: Types of the fields as they were right before → the fields whose types do not say all.
    known: dict[tuple[type, ...], list[tuple[int, Reader]]] = {}

    def read(value: object) -> object:
        if not isinstance(value, list) or len(value) != len(readers):
            raise ProtocolError(f"{kind.__name__}: expected an array of {len(readers)} fields")
        kinds = tuple(map(type, value))
        rest = known.get(kinds)
        index = 0
        try:
            for index, reader in enumerate(readers) if rest is None else rest:
                value[index] = reader(value[index])
        except ProtocolError as error:
            raise ProtocolError(f"{kind.__name__}.{names[index]}: {error}") from None
        if rest is None:
            # Only what was right is kept, so there are few. An int where a float is due stays with its reader.
            changed = [not is_plain[number] or type(one) is not kinds[number] for number, one in enumerate(value)]
            known[kinds] = [(number, readers[number]) for number in range(len(readers)) if changed[number]]
        return kind(*value)

    return read


def _is_plain(hint: Any) -> bool:  # noqa: ANN401
    """Tell whether a value of one of the right types is right."""
    if get_origin(hint) in (Union, types.UnionType):
        return all(map(_is_plain, get_args(hint)))
    return hint in (str, bytes, bool, int, float, types.NoneType)


def _literal_reader(allowed: tuple[object, ...]) -> Reader:
    def read(value: object) -> object:
        if not isinstance(value, (str, int)) or value not in allowed:
            raise ProtocolError(f"expected one of {allowed}")
        return value

    return read


def _union_reader(choices: tuple[Any, ...]) -> Reader:
    readers = [_reader(choice) for choice in choices]

    def read(value: object) -> object:
        for reader in readers:
            try:
                return reader(value)
            except ProtocolError:
                continue
        raise ProtocolError(f"expected one of {[getattr(choice, '__name__', choice) for choice in choices]}")

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> Reader:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence_reader(arguments[0])
    readers = [_reader(argument) for argument in arguments]

    def read(value: object) -> object:
        if not isinstance(value, list) or len(value) != len(readers):
            raise ProtocolError(f"expected an array of {len(readers)}")
        return tuple(reader(item) for reader, item in zip(readers, value, strict=True))

    return read


def _sequence_reader(item_hint: Any) -> Reader:  # noqa: ANN401
    item_reader = _reader(item_hint)
    exact = item_hint if item_hint in (str, int, bytes) else None

    def read(value: object) -> object:
        if not isinstance(value, list):
            raise ProtocolError("expected an array")
        if not value:
            return ()
        # Token ids come by the ten thousand: one pass in C instead of a call for each.
        if exact is not None and set(map(type, value)) <= {exact}:
            return tuple(value)
        return tuple(item_reader(item) for item in value)

    return read


def _scalar_reader(kind: type[object]) -> Reader:
    def read(value: object) -> object:
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        raise ProtocolError(f"expected {kind.__name__}, got {type(value).__name__}")

    return read
