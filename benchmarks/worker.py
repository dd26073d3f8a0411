"""A process of its own around one object, whose methods are called from here.

Whatever is compared lives in its own process: neither sees the other's threads, caches or imports. Bounded: a call that
does not answer in time ends the process.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final

_CALL_TIMEOUT_S: Final = 150.0
_STOP_S: Final = 5.0


class WorkerError(RuntimeError):
    """The worker raised, died, or took too long; the message says which and carries its traceback."""


class Worker:
    """Makes ``factory(*arguments)`` in a new interpreter; ``factory`` is ``module:name``. A context manager.

    ``environment`` is set before it starts. Entering waits until the object is made: loading
    chooses by measuring, and two that load at once would mislead each other.
    """

    def __init__(self, factory: str, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        self._name = factory
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        with _environment(environment or {}):
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> Worker:
        try:
            self._receive(_CALL_TIMEOUT_S)
        except BaseException:  # also Ctrl-C: ``__exit__`` is not called for what was not entered
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def call(self, method: str, *arguments: object, timeout_s: float = _CALL_TIMEOUT_S) -> Any:  # noqa: ANN401
        """Call a method there and return what it returns; raise ``WorkerError``."""
        self.begin(method, *arguments)
        return self.result(timeout_s)

    def begin(self, method: str, *arguments: object) -> None:
        """Call a method there without waiting; ``result`` waits."""
        self._connection.send((method, arguments))

    def result(self, timeout_s: float = _CALL_TIMEOUT_S) -> Any:  # noqa: ANN401 - whatever crosses the pipe
        """Return what the method that was begun returns; raise ``WorkerError``."""
        return self._receive(timeout_s)

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self, timeout_s: float) -> object:
        try:
            if not self._connection.poll(timeout_s):
                self._process.kill()
                raise WorkerError(f"{self._name} did not answer within {timeout_s:g} s")
            went_well, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise WorkerError(f"{self._name} died") from None
        if not went_well:
            raise WorkerError(f"{self._name}: {value}")
        return value


@contextmanager
def _environment(added: Mapping[str, str]) -> Iterator[None]:
    """Have these in the environment that a new process gets: the C library reads some before Python begins."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, factory: str, arguments: tuple[object, ...]) -> None:
    module, _, name = factory.partition(":")
    try:
        target = getattr(importlib.import_module(module), name)(*arguments)
        connection.send((True, None))
        while True:
            method, values = connection.recv()
            connection.send((True, getattr(target, method)(*values)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception:  # noqa: BLE001 - whatever it is, the one who asked is told
        connection.send((False, traceback.format_exc()))
