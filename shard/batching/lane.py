"""A thread that computes. Made by ``main``, run by ``engine``.

The first lane loads the model, measures it, and then encodes like the others. GNU OpenMP, which torch is built with,
keeps a pool of workers for every thread that computes on several cores; as soon as the pools together have more threads
than the machine has cores, workers no longer spin between two steps but sleep, and one short text takes 5 ms in place
of 2. So it matters that one thread does all that, and that the other lanes have a core each.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from emb_model_provider.lifecycle import pin_to_cpus
from emb_model_provider.messages.status import EncoderInfo

Result = TypeVar("Result")

#: So many lanes, or a few more where these would leave cores without work.
_USUAL_LANES: Final = 4
_MOST_LANES: Final = 7
_CUDA_LANES: Final = 2
MOST_TOKENIZERS: Final = 4


def count_lanes(info: EncoderInfo, threads: int) -> int:
    """Return how many batches of bulk are to run side by side.

    Two on a core each are as fast as one after the other on two, but a core that somebody else needs for a moment
    delays one of them and not both: with a tenth of the machine busy elsewhere, two lanes lose a tenth, one loses a
    third. On a CUDA device one lane forms its batch while the device is at that of the other. Only the packed path is
    known to change nothing while it runs.
    """
    if info.batching != "packed":
        return 1
    if info.device != "cpu":
        return _CUDA_LANES
    choices = range(min(threads, _USUAL_LANES), min(threads, _MOST_LANES) + 1)
    return max(choices, key=lambda lanes: lanes * threads_of_lane(threads, lanes))


def threads_of_lane(threads: int, lanes: int) -> int:
    """Return on how many of the ``threads`` one lane computes while the others do, too."""
    return max(1, threads // lanes)


def count_tokenizers(info: EncoderInfo, threads: int) -> int:
    """Return how many requests are to be tokenised at once, each in parts on several of the ``threads``.

    The others do in Python what one alone would let the cores wait for. On the CPU these are the lanes' cores.
    """
    return 1 if info.device == "cpu" else max(1, min(MOST_TOKENIZERS, threads // 4))


class Lane:
    """Runs one piece of work after the other, until ``join``; on these CPUs, where they are given and still there."""

    def __init__(self, cpus: tuple[int, ...] = ()) -> None:
        self._cpus = cpus
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` there; return its result or raise its exception."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)

        self._work.put(run)
        result: Result = future.result()
        return result

    def begin(self, work: Callable[[], None]) -> None:
        """Run ``work`` there and return at once; what it raises ends the thread, by way of ``threading.excepthook``."""
        self._work.put(work)

    def join(self) -> None:
        """End the thread after all its work."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # a container's CPUs may have changed since the supervisor looked
            pin_to_cpus(self._cpus)
        while (work := self._work.get()) is not None:
            try:
                work()
            except SystemExit as error:
                # By itself it would end this thread without a word, and the process would live on and answer nothing.
                raise RuntimeError(f"the model's code called sys.exit({error.code})") from error
