"""Counts, as cheap as a dictionary: what one router has counted, or several together. Pure; no framework.

A series is known by its metric's name and the values of its labels. A histogram's row holds one count for each of its
bounds, one for what lies beyond, and the sum of all values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from router.metrics.catalogue import BY_NAME, Metric

Series = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """One series of a histogram."""

    bounds: tuple[float, ...]
    row: list[float]

    def observe(self, value: float) -> None:
        row = self.row
        row[bisect_left(self.bounds, value)] += 1.0
        row[-1] += value


@dataclass(slots=True)
class Tallies:
    """Grows for as long as the server lives; labels are few and bounded."""

    counters: dict[Series, float] = field(default_factory=dict)
    histograms: dict[Series, list[float]] = field(default_factory=dict)

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        key = (metric.name, *labels)
        self.counters[key] = self.counters.get(key, 0.0) + by

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """Return what takes values for one series: to be kept by whoever has many."""
        row = self.histograms.setdefault((metric.name, *labels), [0.0] * (len(metric.bounds) + 2))
        return Histogram(metric.bounds, row)

    def add(self, other: Tallies) -> None:
        """Add what somebody else has counted."""
        for key, number in other.counters.items():
            self.counters[key] = self.counters.get(key, 0.0) + number
        for key, theirs in other.histograms.items():
            ours = self.histograms.get(key)
            self.histograms[key] = [a + b for a, b in zip(ours, theirs, strict=True)] if ours else list(theirs)

    def packed(self) -> dict[str, object]:
        """Return plain lists, for ``unpack``."""
        return {"c": [[*key, number] for key, number in self.counters.items()],
                "h": [[list(key), row] for key, row in self.histograms.items()]}  # fmt: skip


def unpack(stored: Mapping[str, object]) -> Tallies:
    """Return what ``Tallies.packed`` has made, without series that are no more."""
    tallies = Tallies()
    counters, histograms = stored.get("c"), stored.get("h")
    if not isinstance(counters, list) or not isinstance(histograms, list):
        return tallies
    for *key, number in counters:
        if key and key[0] in BY_NAME:
            tallies.counters[tuple(map(str, key))] = float(number)
    for key, row in histograms:
        metric = BY_NAME.get(key[0])
        if metric is not None and len(row) == len(metric.bounds) + 2:
            tallies.histograms[tuple(map(str, key))] = [float(one) for one in row]
    return tallies
