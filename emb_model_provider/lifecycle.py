"""What a child process does once ``parent`` has tied its life: take its place on the machine, open its channel.

Used by ``router`` and ``shard``; Linux only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from emb_model_provider.errors import EXIT_NO_THREAD, ProtocolError
from emb_model_provider.frames import Frame, FrameDecoder
from emb_model_provider.messages.framing import Message, pack, unpack
from emb_model_provider.process_limits import NO_THREAD

First = TypeVar("First", bound=Message)

_READ_BYTES: Final = 256 * 1024
#: Where OpenMP reads on which CPUs its threads shall run. It does so when it is loaded, each copy of it for itself.
THREAD_PLACING: Final = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def forbid_core_dumps() -> None:
    """Write no core file: it would hold texts, tokens and API keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def pin_to_cpus(cpus: tuple[int, ...]) -> None:
    """Restrict this thread, and every thread it starts later, to the given kernel CPUs; none given: no change."""
    if cpus:
        os.sched_setaffinity(0, cpus)


class ControlChannel:
    """The blocking end of the socket pair to the supervisor; sending is safe from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(None)
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []
        self._lock = threading.Lock()
        self._posting = ThreadPoolExecutor(1, "control-out")

    def send(self, message: Message) -> None:
        """Send one message. A supervisor that is gone is not an error: the watcher ends this process."""
        with self._lock:
            try:
                self._socket.sendall(pack(message))
            except (BrokenPipeError, ConnectionResetError):
                return

    def post(self, message: Message) -> None:
        """Send one message, in order, without waiting for a supervisor that does not read: for an event loop."""
        self.begin_sending(message)

    def begin_sending(self, message: Message) -> Future[None]:
        """Do as ``post`` does, for who wants to know when it has been sent."""
        return self._posting.submit(self.send, message)

    def receive(self) -> Message | None:
        """Wait for the next message; ``None`` when the supervisor is gone."""
        while not self._frames:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                return None
            self._frames.extend(self._decoder.feed(data))
        return unpack(self._frames.pop(0))

    def receive_first(self, kind: type[First]) -> First:
        """Return what the supervisor tells first, a message of this kind; raise ``ProtocolError``."""
        try:
            message = self.receive()
        except ProtocolError as error:
            raise ProtocolError(
                f"{error}. The running server is of another version than the files it starts processes from; were they"
                " upgraded? Restart the server."
            ) from None
        if not isinstance(message, kind):
            raise ProtocolError(f"the first control message must be a {kind.__name__}")
        return message

    def watch(self, on_message: Callable[[Message], None]) -> None:
        """Read in a thread of its own from now on, and end the process when the supervisor is gone."""
        threading.Thread(target=self._watch, args=(on_message,), name="control", daemon=True).start()

    def _watch(self, on_message: Callable[[Message], None]) -> None:
        try:
            while (message := self.receive()) is not None:
                on_message(message)
        except (OSError, ProtocolError):
            pass
        os._exit(1)


@contextlib.contextmanager
def needing_threads() -> Iterator[None]:
    """End this process with ``EXIT_NO_THREAD`` where no thread can be started; the supervisor says what to do."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        raise SystemExit(EXIT_NO_THREAD) from error


def start_child(arguments: list[str]) -> ControlChannel:
    """Do what every child does with its command line ``[parent pid, control descriptor, …]``."""
    forbid_core_dumps()
    return ControlChannel(int(arguments[1]))
