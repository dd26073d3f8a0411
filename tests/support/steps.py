"""Runs what is done in steps, as a handler does, without anything in between."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def finish(steps: Generator[object, None, T]) -> T:
    """Return what the steps come to."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value
