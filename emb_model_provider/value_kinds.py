"""The kinds of value a setting or a mapping entry can have: how each is read, checked and described.

``parse`` takes the text of a variable, ``check`` a JSON value, which is never converted: ``true`` is no number and
``"8"`` is none either. Both raise ``WrongValueError`` with a phrase such as "it must be …". The tables in
``setting_table`` and ``entry_table`` are written in these kinds; ``reference`` prints what they allow.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from emb_model_provider.positioned_json import JsonValue, lost_bytes

T_co = TypeVar("T_co", covariant=True)
C = TypeVar("C", bound=str)
Language = Literal["en", "zh"]

#: What no line of text may hold: controls, line separators, and bytes that were not UTF-8.
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


class WrongValueError(ValueError):
    """A value that cannot be used; the message says what it must be."""


@dataclass(frozen=True, slots=True)
class Bilingual:
    """One text in English and in Chinese."""

    en: str
    zh: str

    def say(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


class Kind(ABC, Generic[T_co]):
    """How one kind of value is read and described."""

    __slots__ = ()

    @property
    @abstractmethod
    def type_name(self) -> Bilingual: ...

    @property
    @abstractmethod
    def allowed(self) -> Bilingual: ...

    @property
    def allowed_in_json(self) -> Bilingual:
        return self.allowed

    @abstractmethod
    def parse(self, text: str) -> T_co:
        """Read the stripped, non-empty text of a variable."""

    def check(self, value: JsonValue) -> T_co:
        """Read a JSON value; the default is for kinds that JSON writes as a string."""
        return self.parse(_text_of(value, self.allowed.en))


def _text_of(value: JsonValue, allowed: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise WrongValueError(f"it must be a string that is not empty: {allowed}")
    return value.strip()


@dataclass(frozen=True, slots=True)
class Choice(Kind[C]):
    """One of a few words, in any case; ``advice`` ends what is said of any other."""

    values: tuple[C, ...]
    advice: str = ""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("choice", "枚举")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual(", ".join(self.values), "、".join(self.values))

    def parse(self, text: str) -> C:
        for value in self.values:
            if value.casefold() == text.casefold():
                return value
        raise WrongValueError(f"it must be one of {self.allowed.en}{self.advice}")


@dataclass(frozen=True, slots=True)
class Boolean(Kind[bool]):
    """Yes or no; in JSON only ``true`` and ``false``."""

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("boolean", "布尔")

    @property
    def allowed(self) -> Bilingual:
        words = ("true", "false", "1", "0", "yes", "no", "on", "off")
        return Bilingual(", ".join(words), "、".join(words))

    @property
    def allowed_in_json(self) -> Bilingual:
        return Bilingual("true, false", "true、false")

    def parse(self, text: str) -> bool:
        if text.casefold() in _TRUE:
            return True
        if text.casefold() in _FALSE:
            return False
        raise WrongValueError(f"it must be one of {self.allowed.en}")

    def check(self, value: JsonValue) -> bool:
        if isinstance(value, bool):
            return value
        raise WrongValueError("it must be true or false, without quotes")


@dataclass(frozen=True, slots=True)
class Integer(Kind[int]):
    """A whole number within bounds, both included."""

    low: int
    high: int

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("integer", "整数")

    @property
    def allowed(self) -> Bilingual:
        return Bilingual(f"{self.low} to {self.high}", f"{self.low} 至 {self.high}")

    def parse(self, text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise WrongValueError(f"it must be a whole number from {self.allowed.en}")
        return self._bounded(int(text))

    def check(self, value: JsonValue) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrongValueError(f"it must be a whole number from {self.allowed.en}, without quotes")
        return self._bounded(value)

    def _bounded(self, value: int) -> int:
        if not self.low <= value <= self.high:
            raise WrongValueError(f"it must be a whole number from {self.allowed.en}")
        return value


def read_number(text: str) -> float | None:
    """Return the number that is written in decimal digits of ASCII; ``None`` for all else that ``float`` would take."""
    return float(text) if _NUMBER.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class Number(Kind[float]):
    """A number within bounds, both included."""

    low: float
    high: float

    @property
    def type_name(self) -> Bilingual:
        return Bilingual("number", "数值")

    @property
    def allowed(self) -> Bilingual:
        # Never with an exponent, which ``parse`` would not take.
        low, high = f"{self.low:.15g}", f"{self.high:.15g}"
        return Bilingual(f"{low} to {high}", f"{low} 至 {high}")

    def parse(self, text: str) -> float:
        if (value := read_number(text)) is None:
            raise WrongValueError(f"it must be a number from {self.allowed.en}")
        return self._bounded(value)

    def check(self, value: JsonValue) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise WrongValueError(f"it must be a number from {self.allowed.en}, without quotes")
        return self._bounded(float(value))

    def _bounded(self, value: float) -> float:
        if not math.isfinite(value) or not self.low <= value <= self.high:
            raise WrongValueError(f"it must be a number from {self.allowed.en}")
        return value


@dataclass(frozen=True, slots=True)
class Text(Kind[str]):
    """One line of text; ``shape`` says what it names."""

    shape: Bilingual
    label: Bilingual = Bilingual("text", "文本")

    @property
    def type_name(self) -> Bilingual:
        return self.label

    @property
    def allowed(self) -> Bilingual:
        return self.shape

    def parse(self, text: str) -> str:
        if CONTROL.search(text):
            raise WrongValueError(f"it holds a control character, a line break or {lost_bytes()}")
        return text
