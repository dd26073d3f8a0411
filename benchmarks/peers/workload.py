"""What every server is asked, ours like the others; JSON numbers, which all of them speak."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks import load, texts
from benchmarks.figures.together import both_at_once, latency_under
from benchmarks.load import Load
from benchmarks.serving import HOST, MODEL

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


def measure(port: int, *, quick: bool) -> Result:
    """Run the five loads on a server."""
    bulk_requests = texts.requests(texts.mixed(256 if quick else 576), 64)
    singles = [[text] for text in texts.short()]
    seconds = 6.0 if quick else 12.0
    # Some need six seconds for a request of bulk.
    bulk_seconds = 15.0 if quick else 30.0
    with load.generator() as worker, load.generator() as other:
        load.run(worker, Load(port, bulk_requests, 4, count=2, encoding_format=_FORMAT))
        bulk = load.run(worker, Load(port, bulk_requests, 4, count=len(bulk_requests), encoding_format=_FORMAT))
        many = load.run(worker, Load(port, singles, 32, seconds=seconds, encoding_format=_FORMAT))
        one = load.run(worker, Load(port, [["hello"]], 1, seconds=60, count=100, encoding_format=_FORMAT))
        rare = load.run(
            worker, Load(port, [["hello"]], 1, count=20 if quick else 50, encoding_format=_FORMAT, pause_s=_PAUSE_S)
        )
        pushed, short = both_at_once(
            worker,
            other,
            Load(port, bulk_requests, 4, seconds=bulk_seconds, encoding_format=_FORMAT),
            Load(port, singles, 1, seconds=bulk_seconds, encoding_format=_FORMAT),
        )
    return Result(
        bulk.texts_per_s,
        many.requests_per_s,
        one.latency_ms(50),
        one.latency_ms(99),
        rare.latency_ms(50),
        latency_under(pushed, short, 50),
        latency_under(pushed, short, 99),
    )
