"""One figure: what was measured, what it is held against, and how repeated measurements become one number. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Bound = Literal["at least", "at most"]
Part = float | int | str | list[float] | list[int]

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Figure:
    """``value`` in ``unit`` against ``target``; ``parts`` are the raw measurements, units in their names.

    Without a target, a figure is only shown.
    """

    name: str
    value: float
    target: float | None
    unit: str
    bound: Bound
    parts: Mapping[str, Part] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the value keeps to its bound, if it has one."""
        if self.target is None:
            return True
        return self.value >= self.target if self.bound == "at least" else self.value <= self.target


def interleaved(rounds: int, first: Callable[[], A], second: Callable[[], B]) -> tuple[list[A], list[B]]:
    """Measure A B A B …: whatever slows the machine down for a while slows both."""
    pairs = [(first(), second()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of each round; one disturbed round changes nothing."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that ``percent`` of all are at or below (nearest rank); raise ``ValueError`` for none."""
    if not values:
        raise ValueError("no values were measured")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    """Return the values as they are shown."""
    return [round(value, digits) for value in values]
