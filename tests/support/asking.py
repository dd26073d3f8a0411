"""Many requests at once, from threads; each answer with the texts it is for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.faulty_server import FaultyServer
from tests.support.server import Answer


@dataclass
class Asked:
    """One request. ``answer`` is ``None`` until it is answered; ``took_s`` is how long that took."""

    model_id: str
    texts: list[str]
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer | None = None
    failure: Exception | None = None
    took_s: float = 0.0

    @property
    def status(self) -> int:
        assert self.failure is None, self.failure
        assert self.answer is not None, "not answered"
        return self.answer.status

    @property
    def error(self) -> dict[str, object]:
        assert self.answer is not None
        return self.answer.json["error"]


class Asking:
    """Requests under way; ``finish`` waits for all of them, so that none can hang unnoticed."""

    def __init__(self, server: FaultyServer, requests: list[Asked], timeout_s: float = 60.0) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self.requests = requests
        self._threads = [threading.Thread(target=self._ask, args=(one,), daemon=True) for one in requests]
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[Asked]:
        deadline_s = time.monotonic() + self._timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self._threads)
        assert not hanging, f"{hanging} of {len(self._threads)} requests hang\n{self._server.story()}"
        for one in self.requests:
            self.check(one)
        return self.requests

    def answered(self) -> int:
        return sum(one.answer is not None for one in self.requests)

    def check(self, one: Asked) -> None:
        """Assert that an answer's vectors, where it has any, are those of its texts in their order."""
        if one.answer is None or one.answer.status != 200:
            return
        model = self._server.models[one.model_id]
        rows = one.answer.json["data"]
        assert [row["index"] for row in rows] == list(range(len(one.texts)))
        for text, row in zip(one.texts, rows, strict=True):
            assert model.is_right(text, row["embedding"]), f"a wrong vector for {text!r}"

    def _ask(self, one: Asked) -> None:
        began_s = time.monotonic()
        try:
            body = {"model": one.model_id, "input": one.texts}
            one.answer = self._server.post("/v1/embeddings", body, one.headers, self._timeout_s)
        except Exception as error:  # noqa: BLE001 - told to whoever looks at the status
            one.failure = error
        one.took_s = time.monotonic() - began_s


class SteadyLoad:
    """One client that asks a model again and again, one request after the other, with texts of its own each time."""

    def __init__(self, server: FaultyServer, model_id: str, name: str, texts: int = 2) -> None:
        self.done: list[Asked] = []
        self._server, self._model_id, self._name, self._texts = server, model_id, name, texts
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> SteadyLoad:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), f"a request hangs\n{self._server.story()}"

    def statuses(self) -> set[int]:
        return {one.status for one in self.done}

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}\n{self._server.story()}"
            time.sleep(0.02)

    def _run(self) -> None:
        while not self._stopping.is_set():
            number = len(self.done)
            texts = [f"{self._name} {number} {index} 你好" for index in range(self._texts)]
            self.done += Asking(self._server, [Asked(self._model_id, texts)]).finish()
