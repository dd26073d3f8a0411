"""A JSON body's fields, read one by one with a clear error for a wrong type. Pure; used by every dialect."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Final, TypeVar

import orjson

from emb_model_provider.errors import InvalidRequestError
from router import large_json

T = TypeVar("T")

_LONGEST_SHOWN: Final = 64
#: Of whole numbers from here on orjson reads about what was sent.
_MORE_THAN_64_BITS: Final = 2.0**64
#: Notepad and PowerShell write it; RFC 8259 leaves it to a reader to pass over it.
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
#: orjson's words for bytes that are in another encoding. It calls them surrogates, and names no place but the first.
_NOT_UTF8: Final = "str is not valid UTF-8"
_FOREIGN: Final = "it is not in UTF-8 (a Chinese Windows console sends GBK: send a file that is saved as UTF-8)"
#: What it says of an escaped half of a pair, each of three ways.
_HALVED: Final = "surrogate in string"
_CUT_EMOJI: Final = "half of a character is no text; an emoji was cut in two, as JavaScript's slice does it"


def read_object(body: bytes) -> Generator[None, None, Fields]:
    """Return the fields of a JSON object, with a pause after each millisecond or so of a large one."""
    try:
        # orjson refuses NaN, lone surrogates, invalid UTF-8 and deep nesting, all as JSONDecodeError.
        value = yield from large_json.read(body.removeprefix(_BYTE_ORDER_MARK))
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {_in_plain_words(error)}.") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"The body must be a JSON object, not {kind_of(value)}.")
    return Fields(value)


def _in_plain_words(error: orjson.JSONDecodeError) -> str:
    if error.msg.startswith(_NOT_UTF8):
        return _FOREIGN
    return f"{error} ({_CUT_EMOJI})" if _HALVED in error.msg else str(error)


class Fields:
    """Fields by name. ``null`` is the same as absent; those that nobody asks for are ignored."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, object]) -> None:
        self.values = values

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def first_of(self, *names: str) -> str:
        """Return the first of these names that is given, else the first of all."""
        return next((name for name in names if self.has(name)), names[0])

    def string(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise wrong(name, "a string", value)
        return value

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return value

    def whole(self, name: str, least: int, most: int | None = None) -> int | None:
        value = as_whole(self.values.get(name))
        if value is None:
            return None
        if type(value) is not int or value < least or (most is not None and value > most):
            span = f"from {least}" if most is None else f"from {least} to {most}"
            if most is None and isinstance(value, float) and value >= _MORE_THAN_64_BITS:
                span += " of 64 bits at most"
            raise wrong(name, f"a whole number {span}", value)
        return value

    def choice(self, name: str, meanings: Mapping[str, T]) -> T | None:
        """Return what the given word means; upper and lower case are the same."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in meanings:
            return meanings[value.lower()]
        raise unsupported(name, value, meanings)

    def text(self, name: str) -> str:
        """Return a string that must be there and not empty."""
        value = self.string(name)
        if not value:
            raise _missing_or_empty(name, value, "a string")
        return value

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Return one string or a list of them, none empty."""
        value = self.values.get(name)
        if isinstance(value, str):
            return (self.text(name),)
        if not isinstance(value, list):
            if value is None:
                raise _missing_or_empty(name, value, "a string or a list of strings")
            raise wrong(name, "a string or a list of strings", value)
        return checked_texts(name, value, most)

    def object(self, name: str) -> Fields:
        """Return the fields of an object within this one; an absent one has none."""
        value = self.values.get(name)
        if value is None:
            return Fields({})
        if not isinstance(value, dict):
            raise wrong(name, "an object", value)
        return Fields(value)


def checked_texts(name: str, value: list[object], most: int) -> tuple[str, ...]:
    """Return a list's strings; raise unless there are 1 to ``most`` and none is empty."""
    if not value:
        raise no_texts(name)
    check_count(name, value, most)
    for index, one in enumerate(value):
        if not isinstance(one, str):
            raise wrong(f"{name}[{index}]", "a string", one, param=name)
        if not one:
            raise empty_text(name, f"[{index}]")
    return tuple(value)  # type: ignore[arg-type]  # each was looked at


def check_count(name: str, value: list[object], most: int, param: str | None = None) -> None:
    """Raise where a list holds more than one request may."""
    if len(value) > most:
        raise InvalidRequestError(
            f"'{name}' holds {len(value)} items; at most {most} are taken in one request.", param=param or name
        )


def no_texts(name: str) -> InvalidRequestError:
    """Return the error of a list without anything in it."""
    return InvalidRequestError(f"'{name}' is empty: give at least one string.", param=name)


def no_words(name: str, supported: Mapping[str, object]) -> InvalidRequestError:
    """Return the error of a list that should name one of these words at least."""
    return InvalidRequestError(f"'{name}' is empty: name at least one of {list(supported)}.", param=name)


def empty_text(name: str, where: str) -> InvalidRequestError:
    """Return the error of a text without text."""
    return InvalidRequestError(f"'{name}{where}' is an empty string: leave it out or give it some text.", param=name)


def wrong(name: str, expected: str, value: object, param: str | None = None) -> InvalidRequestError:
    """Return the error of a field that has a wrong type."""
    return InvalidRequestError(f"'{name}' must be {expected}, not {kind_of(value)}.", param=param or name)


def unsupported(name: str, value: object, supported: Mapping[str, object]) -> InvalidRequestError:
    """Return the error of a word that means nothing here, in OpenAI's words."""
    # orjson reads what is nested deeper than what it writes.
    shown = kind_of(value) if isinstance(value, list | dict) else orjson.dumps(value).decode()[:_LONGEST_SHOWN]
    return InvalidRequestError(
        f"Invalid value for '{name}' = {shown}. Supported values: {list(supported)}.", param=name
    )


def as_whole(value: object) -> object:
    """Return 5 for 5.0, which are one number to JSON, and anything else as it is."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _MORE_THAN_64_BITS:
        return int(value)
    return value


def kind_of(value: object) -> str:
    """Say what a JSON value is, without repeating a client's text."""
    if value is None or isinstance(value, bool):
        return orjson.dumps(value).decode()
    value = as_whole(value)
    if isinstance(value, float) and value.is_integer():
        return f"the number {value:g}"
    return {
        str: "a string",
        int: "the number " + str(value)[:20],
        float: "a fraction",
        list: "a list",
        dict: "an object",
    }[type(value)]


def _missing_or_empty(name: str, value: object, expected: str) -> InvalidRequestError:
    if value is None:
        return InvalidRequestError(f"'{name}' is required: {expected}.", param=name)
    return empty_text(name, "")
