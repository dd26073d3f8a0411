"""A listener of an engine that remembers what it heard, and the vectors in it."""

from __future__ import annotations

import threading
import time

import numpy as np

from emb_model_provider.messages.link import Encoded, Failed
from shard.engine import Engine
from shard.listener import FIRST_LANE


class Recorder:
    """``at`` is what each thread is at; ``wait_for`` returns outcomes once they are there."""

    def __init__(self) -> None:
        self.encoded_keys: list[int] = []
        self.at: dict[int, list[int]] = {}
        self.outcomes: dict[int, Encoded | Failed] = {}
        self._changed = threading.Condition()

    def begins(self, where, keys):
        self.at[where] = list(keys)
        if where >= FIRST_LANE:
            self.encoded_keys += keys

    def ends(self, where):
        del self.at[where]

    def finished(self, key, outcome):
        with self._changed:
            assert key not in self.outcomes, "answered twice"
            self.outcomes[key] = outcome
            self._changed.notify_all()

    def wait_for(self, *keys: int) -> list[Encoded | Failed]:
        with self._changed:
            assert self._changed.wait_for(lambda: all(key in self.outcomes for key in keys), timeout=10)
        return [self.outcomes[key] for key in keys]


def vectors(outcome: Encoded | Failed) -> np.ndarray:
    """Return the vectors of an answer, one row for each input."""
    assert isinstance(outcome, Encoded), outcome
    return np.frombuffer(outcome.vectors, "<f4").reshape(-1, outcome.dimension)


def is_soon_idle(engine: Engine, within_s: float) -> bool:
    """Tell whether an engine has answered everything before so many seconds are over."""
    until_s = time.monotonic() + within_s
    while not engine.is_idle():
        if time.monotonic() >= until_s:
            return False
        time.sleep(0.001)
    return True
