"""``input`` in its four shapes: a text, texts, token ids, lists of token ids. Pure; used where ids are taken."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Final

from emb_model_provider.errors import InvalidRequestError, RequestError
from router.dialects.fields import Fields, as_whole, check_count, empty_text, kind_of
from router.dialects.options import MAX_INPUTS, without_holes

_MAX_TOKEN_ID: Final = 2**31
_IDS_A_STEP: Final = 16 * 1024

_Inputs = tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]


def read_partial_input(
    fields: Fields,
) -> Generator[None, None, tuple[tuple[str, ...], tuple[tuple[int, ...], ...], Mapping[int, RequestError]]]:
    """Return the good texts and, by index, what is wrong with the others; token ids are right or wrong together."""
    value = fields.values["input"]
    assert isinstance(value, list)
    check_count("input", value, MAX_INPUTS)
    if any(isinstance(one, str | dict) for one in value):
        texts, holes = without_holes([text_in(one) for one in value], "input")
        return texts, (), holes
    texts, token_ids = yield from read_input(fields)
    return texts, token_ids, {}


def read_input(fields: Fields) -> Generator[None, None, _Inputs]:
    """Return texts or lists of token ids, with a pause after each millisecond or so."""
    value = fields.values.get("input")
    if value is None:
        raise _bad_input("'input' is required: a string, a list of strings, or token ids.")
    if isinstance(value, str):
        return (_checked_text(value, ""),), ()
    if not isinstance(value, list):
        raise _bad_input("'input' must be a string, a list of strings, a list of token ids or a list of those lists.")
    if not value:
        raise _bad_input("'input' is empty: give at least one string or token id.")
    first = value[0]
    if type(as_whole(first)) is int:
        return (), (checked_ids("input", value, "input"),)
    check_count("input", value, MAX_INPUTS)
    if isinstance(first, str):
        return tuple(_checked_text(one, f"[{index}]") for index, one in enumerate(value)), ()
    if isinstance(first, list):
        return (), (yield from checked_id_lists("input", value))
    if isinstance(first, dict):  # Jina's clients wrap each text
        return tuple(_checked_text(text_in(one), f"[{index}]") for index, one in enumerate(value)), ()
    raise _bad_input(f"'input[0]' must be a string, a token id or a list of token ids, not {kind_of(first)}.")


def text_in(one: object) -> object:
    """Return the text that Jina's clients wrap into an object; anything else as it is, to be refused as what it is."""
    return one.get("text", one) if isinstance(one, dict) else one


def _checked_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _bad_input(f"'input{where}' must be a string, not {kind_of(value)}.")
    if not value:
        raise empty_text("input", where)
    return value


def checked_id_lists(name: str, value: list[object]) -> Generator[None, None, tuple[tuple[int, ...], ...]]:
    """Return lists of token ids, with a pause after each millisecond or so."""
    checked: list[tuple[int, ...]] = []
    unpaused = 0
    for index, one in enumerate(value):
        checked.append(checked_ids(f"{name}[{index}]", one, name))
        unpaused += len(checked[-1])
        if unpaused >= _IDS_A_STEP:
            unpaused = 0
            yield
    return tuple(checked)


def checked_ids(where: str, value: object, param: str) -> tuple[int, ...]:
    """Return one list of token ids."""
    if not isinstance(value, list):
        raise InvalidRequestError(f"'{where}' must be a list of token ids, not {kind_of(value)}.", param=param)
    if not value:
        raise InvalidRequestError(f"'{where}' is an empty list of token ids.", param=param)
    check_count(where, value, MAX_INPUTS, param)
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) < _MAX_TOKEN_ID:
        return tuple(value)
    ids = [as_whole(one) for one in value]
    for index, one in enumerate(ids):
        if type(one) is not int or not 0 <= one < _MAX_TOKEN_ID:
            raise InvalidRequestError(
                f"'{where}[{index}]' must be a token id, a whole number from 0, not {kind_of(one)}.", param=param
            )
    return tuple(ids)  # type: ignore[arg-type]  # each was looked at


def _bad_input(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="input")
