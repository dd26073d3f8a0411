"""From the command to the open port and to the first vector."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.baselines import FIRST_EMBEDDING
from benchmarks.figure import Figure, interleaved, median_ratio, rounded
from benchmarks.serving import MODEL, serving
from benchmarks.setting import Setting

_TIMEOUT_S = 120.0


def start(setting: Setting) -> list[Figure]:
    """Seconds until the port is open, and until the first vector, against a bare sentence-transformers process.

    The first round of each is not counted: it fills the page cache.
    """
    rounds = 1 if setting.quick else 4
    ours, theirs = interleaved(rounds + 1, lambda: _server(setting), lambda: _sentence_transformers(setting))
    ports = [port for port, _ in ours[1:]]
    firsts = [first for _, first in ours[1:]]
    return [
        Figure(
            "port open after the command",
            statistics.median(ports),
            1.0,
            "s",
            "at most",
            {"port_open_s": rounded(ports), "port_open_first_s": round(ours[0][0], 3)},
        ),
        Figure(
            "first vector after the command: sentence-transformers",
            median_ratio(firsts, theirs[1:]),
            1.15,
            "x",
            "at most",
            {
                "first_vector_s": rounded(firsts),
                "sentence_transformers_s": rounded(theirs[1:]),
                "first_round_s": rounded([ours[0][1], theirs[0]]),
            },
            "import, load and encode of one text in a new interpreter",
        ),
    ]


def _server(setting: Setting) -> tuple[float, float]:
    with serving(setting, wait=False) as server:
        port_s = server.wait_for_port()
        # The request waits at the router for its model, as a client's would.
        server.embed(MODEL, ["hello"])
        return port_s, time.monotonic() - server.began_s


def _sentence_transformers(setting: Setting) -> float:
    began_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", FIRST_EMBEDDING, str(setting.model_directory)],
        check=True,
        capture_output=True,
        timeout=_TIMEOUT_S,
    )
    return time.monotonic() - began_s
