"""Memory: at rest after work, and at its peak during the largest request."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import IO, Final

from benchmarks import load, processes, texts
from benchmarks.baselines import MEMORY
from benchmarks.figure import Figure, Part
from benchmarks.load import Load
from benchmarks.processes import Private, peak_resident_bytes, reset_peak, resident_bytes
from benchmarks.serving import MODEL, Server, serving
from benchmarks.setting import Setting

_MB: Final = 1e6
_SETTLE_S: Final = 1.0
_LARGEST_REQUEST: Final = 2048


def peak_memory(setting: Setting) -> list[Figure]:
    """2,048 texts of 10 to 2,000 characters in one request: how far router and shard together rise above idle.

    The kernel keeps the peak of each process, so no moment is missed; their sum is taken even where they do not peak
    together.
    """
    count = 256 if setting.quick else _LARGEST_REQUEST
    with serving(setting) as server, load.generator() as worker:
        server.embed(MODEL, ["hello"])
        time.sleep(_SETTLE_S)
        pids = {name: pid for name, pid in server.pids().items() if name != "supervisor"}
        idle = {name: resident_bytes(pid) for name, pid in pids.items()}
        for pid in pids.values():
            reset_peak(pid)
        selection = texts.sized(count, 10, 2000)
        run = load.run(worker, Load(server.port, [selection], connections=1, count=1, encoding_format="float"))
        above = {name: peak_resident_bytes(pid) - idle[name] for name, pid in pids.items()}
    parts = {f"{name}_peak_above_idle_mb": round(value / _MB, 1) for name, value in above.items()}
    parts |= {f"{name}_idle_resident_mb": round(value / _MB, 1) for name, value in idle.items()}
    return [
        Figure(
            "2,048 texts in one request: peak memory of router + shard above idle",
            sum(above.values()) / _MB,
            300,
            "MB",
            "at most",
            parts | {"texts": count, "seconds": round(run.elapsed_s, 1), "answer_mb": round(run.answer_bytes / _MB, 1)},
            "answered as JSON numbers, the larger form"
            + (f"; only {count} texts in a quick run" if setting.quick else ""),
        )
    ]


def private_memory(setting: Setting) -> list[Figure]:
    """Private memory (clean and dirty) of each process, after one text and after all texts."""
    selection = texts.mixed(200 if setting.quick else None)
    # One after the other: while both had the weights mapped, the kernel would count them as shared in both.
    peer = _sentence_transformers(setting, selection)
    with serving(setting) as server:
        server.embed(MODEL, ["hello"])
        first = _private(server)
        for request in texts.requests(selection, 64):
            server.embed(MODEL, request)
        last = _private(server)
    figures = []
    for name, limit in {"supervisor": 25.0, "router": 70.0}.items():
        steps = (first[name], last[name])
        largest_mb = max(step.whole for step in steps) / _MB
        figures.append(Figure(f"private memory: {name}", largest_mb, limit, "MB", "at most", _split(steps)))
    for when, ours, theirs in (("one text", first["shard"], peer[0]), ("all texts", last["shard"], peer[1])):
        figures.append(
            Figure(
                f"private memory after {when}, shard: sentence-transformers",
                ours.whole / theirs.whole,
                1.1,
                "x",
                "at most",
                _split((first["shard"], last["shard"])) | _split(peer, "sentence_transformers_"),
            )
        )
    return figures


def _split(steps: tuple[Private, Private], prefix: str = "") -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for when, step in zip(("after_one_text", "after_all_texts"), steps, strict=True):
        parts[f"{prefix}{when}_mb"] = round(step.whole / _MB, 1)
        parts[f"{prefix}{when}_dirty_mb"] = round(step.dirty / _MB, 1)
    return parts


def _private(server: Server) -> dict[str, Private]:
    time.sleep(_SETTLE_S)
    return {name: processes.private_memory(pid) for name, pid in server.pids().items()}


def _sentence_transformers(setting: Setting, selection: list[str]) -> tuple[Private, Private]:
    """Return the private memory of a bare process after one text and after all."""
    with subprocess.Popen(
        [sys.executable, "-c", MEMORY, str(setting.model_directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            found = []
            for line in (json.dumps(selection), ""):
                found.append(_private_when_ready(process.stdout, process.pid))
                process.stdin.write(line + "\n")
                process.stdin.flush()
        except BaseException:  # also Ctrl-C: the process would wait for its next line for ever
            process.kill()
            raise
    return found[0], found[1]


def _private_when_ready(output: IO[str], pid: int) -> Private:
    if output.readline().strip() != "ready":
        raise RuntimeError("the bare sentence-transformers process failed")
    return processes.private_memory(pid)
