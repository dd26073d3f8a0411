"""Where a router's counts outlive it and meet those of the others: one small file each in the run directory.

Every router writes its own file every few seconds and before ``/metrics`` is answered, under another name and then
renamed, so that nobody reads half of it. A router that starts takes over what dead routers have left, so that counters
never fall and files never pile up. Without a directory everything stays in this process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import msgpack

from router.metrics.tallies import Tallies, unpack

_PREFIX: Final = "metrics-"
_SUFFIX: Final = ".mp"


@dataclass(frozen=True, slots=True)
class Gauges:
    """One router's state. ``by_model`` holds (admitted tokens, waiting slices)."""

    in_flight: int = 0
    connections: int = 0
    quarantined: int = 0
    loop_lag_s: float = 0.0
    memory_bytes: int = 0
    by_model: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouterCounts:
    """What one router says of itself."""

    index: int
    pid: int
    is_alive: bool
    tallies: Tallies
    gauges: Gauges


class Store:
    """One router's file, and a look at those of the others."""

    def __init__(self, directory: str, index: int) -> None:
        self._directory = Path(directory) if directory else None
        self.index = index
        self._pid = os.getpid()
        self._born = _birth(self._pid)

    def take_over(self) -> Tallies:
        """Return what dead routers of this place have counted; their files become this router's own.

        Renamed and not removed, so that the others go on counting it until this router first writes.
        """
        taken = Tallies()
        for path in self._files(f"{_PREFIX}{self.index}-*{_SUFFIX}"):
            found = _read(path)
            if found is not None and not found.is_alive:
                taken.add(found.tallies)
                with contextlib.suppress(OSError):
                    path.rename(self._own_file(path.parent))
                self.write(taken, Gauges())
        return taken

    def write(self, tallies: Tallies, gauges: Gauges) -> None:
        """Write this router's own file; a directory that is gone or full is no reason to stop serving."""
        if self._directory is None:
            return
        path = self._own_file(self._directory)
        body = msgpack.packb(
            {"i": self.index, "pid": self._pid, "born": self._born, "t": tallies.packed(), "g": _packed(gauges)}
        )
        unfinished = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            unfinished.write_bytes(body)
            unfinished.rename(path)

    def others(self) -> list[RouterCounts]:
        """Return what all others say, dead ones too that nobody has taken over yet."""
        found = (_read(path) for path in self._files(f"{_PREFIX}*{_SUFFIX}"))
        return [one for one in found if one is not None and one.pid != self._pid]

    def _own_file(self, directory: Path) -> Path:
        return directory / f"{_PREFIX}{self.index}-{self._pid}{_SUFFIX}"

    def _files(self, pattern: str) -> Iterator[Path]:
        if self._directory is not None:
            yield from sorted(self._directory.glob(pattern))


def _packed(gauges: Gauges) -> list[object]:
    by_model = [[name, *numbers] for name, numbers in gauges.by_model.items()]
    return [
        gauges.in_flight,
        gauges.connections,
        gauges.quarantined,
        gauges.loop_lag_s,
        gauges.memory_bytes,
        by_model,
    ]


def _read(path: Path) -> RouterCounts | None:
    """Return what a file says; ``None`` for one that has just been removed, or is none of ours."""
    try:
        stored = cast("dict[str, object]", msgpack.unpackb(path.read_bytes()))
        pid, born, index = cast("tuple[int, int, int]", (stored["pid"], stored["born"], stored["i"]))
        in_flight, connections, quarantined, lag_s, memory, by_model = cast(
            "tuple[int, int, int, float, int, list[tuple[str, int, int]]]", stored["g"]
        )
        gauges = Gauges(in_flight, connections, quarantined, lag_s, memory, {name: (a, b) for name, a, b in by_model})
        tallies = unpack(cast("dict[str, object]", stored["t"]))
    except (OSError, ValueError, KeyError, TypeError, msgpack.UnpackException):
        return None
    return RouterCounts(index, pid, 0 != born == _birth(pid), tallies, gauges)


def _birth(pid: int) -> int:
    """Return when a process was started, in ticks since the machine was (proc(5)); 0 when there is none such.

    Tells a process from a later one that has been given the same number.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
