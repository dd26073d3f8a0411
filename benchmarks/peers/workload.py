"""What every server is asked, ours like the others; JSON numbers, which all of them speak."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks import load, texts
from benchmarks.figures.together import both_at_once, latency_under
from benchmarks.load import Load, LoadRun
from benchmarks.serving import HOST, MODEL
from benchmarks.worker import Worker

Vectors = npt.NDArray[np.float64]

_FORMAT: Final = "float"
_PAUSE_S: Final = 0.1
_PROBES: Final = ("hello", "如何在家做红烧肉？", "A GPU 显存不足 error while indexing 10,000 documents.")


@dataclass(frozen=True, slots=True)
class Result:
    """Of one server: texts/s in bulk, requests/s of short singles, latencies in milliseconds.

    *Rare* is a text that comes when nothing has happened for a while.
    """

    bulk_texts_per_s: float
    singles_per_s: float
    one_p50_ms: float
    one_p99_ms: float
    rare_p50_ms: float
    under_bulk_p50_ms: float
    under_bulk_p99_ms: float


def vectors(port: int) -> Vectors:
    """Return the vectors of a few texts, each of length 1, to see that all servers do the same work."""
    body = json.dumps({"model": MODEL, "input": _PROBES, "encoding_format": _FORMAT}).encode()
    request = urllib.request.Request(f"http://{HOST}:{port}/v1/embeddings", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        rows = np.array([row["embedding"] for row in json.load(response)["data"]])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float64)


def measure_in_turns(ports: tuple[int, int], *, quick: bool) -> tuple[Result, Result]:
    """Run the five loads on two servers, each load on one and then on the other: a noisy machine is so to both."""
    with load.generator() as worker, load.generator() as other:
        loads = _Loads(worker, other, quick=quick)
        steps = (loads.bulk, loads.singles, loads.one, loads.rare, loads.under_bulk)
        by_step = [[step(port) for port in ports] for step in steps]
    first, second = (Result(*chain.from_iterable(of_one)) for of_one in zip(*by_step, strict=True))
    return first, second


class _Loads:
    """The five loads; each returns the fields of ``Result`` that it measures, in their order."""

    def __init__(self, worker: Worker, other: Worker, *, quick: bool) -> None:
        self._worker = worker
        self._other = other
        self._bulk = texts.requests(texts.mixed(256 if quick else 576), 64)
        self._singles = [[text] for text in texts.short()]
        self._rare = 20 if quick else 50
        self._seconds = 6.0 if quick else 12.0
        # Some need six seconds for a request of bulk.
        self._bulk_seconds = 15.0 if quick else 30.0

    def bulk(self, port: int) -> tuple[float]:
        self._run(Load(port, self._bulk, 4, count=2, encoding_format=_FORMAT))
        return (self._run(Load(port, self._bulk, 4, count=len(self._bulk), encoding_format=_FORMAT)).texts_per_s,)

    def singles(self, port: int) -> tuple[float]:
        many = self._run(Load(port, self._singles, 32, seconds=self._seconds, encoding_format=_FORMAT))
        return (many.requests_per_s,)

    def one(self, port: int) -> tuple[float, float]:
        one = self._run(Load(port, [["hello"]], 1, seconds=60, count=100, encoding_format=_FORMAT))
        return one.latency_ms(50), one.latency_ms(99)

    def rare(self, port: int) -> tuple[float]:
        rare = self._run(Load(port, [["hello"]], 1, count=self._rare, encoding_format=_FORMAT, pause_s=_PAUSE_S))
        return (rare.latency_ms(50),)

    def under_bulk(self, port: int) -> tuple[float, float]:
        pushed, short = both_at_once(
            self._worker,
            self._other,
            Load(port, self._bulk, 4, seconds=self._bulk_seconds, encoding_format=_FORMAT),
            Load(port, self._singles, 1, seconds=self._bulk_seconds, encoding_format=_FORMAT),
        )
        return latency_under(pushed, short, 50), latency_under(pushed, short, 99)

    def _run(self, asked: Load) -> LoadRun:
        return load.run(self._worker, asked)
