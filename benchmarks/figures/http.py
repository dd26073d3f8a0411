"""Over HTTP on an otherwise idle server: in bulk, in short singles, and one at a time."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import load, texts
from benchmarks.bare_engine import worker_environment
from benchmarks.figure import Figure, Part, interleaved, median_ratio, percentile, rounded
from benchmarks.load import Load, LoadRun
from benchmarks.serving import Server, serving
from benchmarks.setting import Setting
from benchmarks.worker import Worker

_PER_REQUEST = 64
#: Three and about fifteen tokens.
_ONE_SHORT_TEXT = ("hello", "How long do soaked chickpeas need to cook?")


def bulk_against_engine(setting: Setting) -> list[Figure]:
    """64 mixed texts a request over 4 connections, against the bare engine on the same texts all at once."""
    selection = texts.mixed(_PER_REQUEST * (4 if setting.quick else 9))
    with serving(setting.model_directory) as server, setting.engine() as engine, load.generator() as worker:
        requests = texts.requests(selection, _PER_REQUEST)
        bulk = Load(server.port, requests, connections=4, count=len(requests))
        engine.call("seconds", selection[:100])
        load.run(worker, bulk)
        runs, bare = interleaved(
            setting.rounds(5),
            lambda: load.run(worker, bulk),
            lambda: len(selection) / engine.call("seconds", selection),
        )
        parts = _http_parts(worker, bulk, runs)
    rates = [run.texts_per_s for run in runs]
    return [
        Figure(
            "HTTP, 64 mixed texts x 4 connections: bare engine",
            median_ratio(rates, bare),
            0.93,
            "x",
            "at least",
            {
                "http_texts_per_s": rounded(rates, 1),
                "engine_texts_per_s": rounded(bare, 1),
                **parts,
            },
        )
    ]


def singles_against_engine(setting: Setting) -> list[Figure]:
    """Short single texts over 32 connections, against the bare engine on the same texts all at once."""
    selection = texts.short()
    with serving(setting.model_directory) as server, setting.engine() as engine, load.generator() as worker:
        singles = Load(
            server.port,
            [[text] for text in selection],
            connections=32,
            count=len(selection) * (3 if setting.quick else 8),
        )
        engine.call("seconds", selection)
        load.run(worker, singles)
        runs, bare = interleaved(
            setting.rounds(5),
            lambda: load.run(worker, singles),
            lambda: (_rate(engine, selection, 1_000_000), _rate(engine, selection, 32)),
        )
        parts = _http_parts(worker, singles, runs)
    rates = [run.requests_per_s for run in runs]
    free = [rate for rate, _ in bare]
    limited = [rate for _, rate in bare]
    of_limited = median_ratio(rates, limited)
    return [
        Figure(
            "HTTP, short singles x 32 connections: bare engine",
            median_ratio(rates, free),
            0.90,
            "x",
            "at least",
            {
                "http_requests_per_s": rounded(rates, 1),
                "engine_texts_per_s": rounded(free, 1),
                "engine_texts_per_s_in_batches_of_32": rounded(limited, 1),
                "ratio_to_batches_of_32": round(of_limited, 3),
                "distinct_texts": len(selection),
                **parts,
            },
            f"32 connections never offer more than 32 texts; of the engine in batches of 32 it is {of_limited:.2f}",
        )
    ]


def _rate(engine: Worker, selection: Sequence[str], max_texts: int) -> float:
    repeated = 3
    seconds: float = sum(engine.call("seconds", selection, max_texts) for _ in range(repeated))
    return repeated * len(selection) / seconds


def one_short_text(setting: Setting) -> list[Figure]:
    """One short text on an idle server over one connection: p50 against a bare ONNX Runtime on the same text.

    Of two texts the one that is farther above its limit is the figure.
    """
    calls, rounds = (60, 3) if setting.quick else (200, 7)
    with tempfile.TemporaryDirectory(prefix="embbench-") as name:
        graph = str(Path(name) / "model.onnx")
        with Worker("benchmarks.baselines:OnnxExport", environment=worker_environment(setting.threads)) as exporter:
            exporter.call("export", str(setting.model_directory), graph)
        with (
            serving(setting.model_directory) as server,
            Worker(
                "benchmarks.baselines:OnnxPipeline",
                graph,
                str(setting.model_directory),
                setting.threads,
                environment=worker_environment(setting.threads),
            ) as onnx,
            load.generator() as worker,
        ):
            _check_same_vector(server, onnx)
            found = [_one_text(text, server, onnx, worker, (calls, rounds)) for text in _ONE_SHORT_TEXT]
    value, limit, text = max(
        ((one[0], one[1], text) for one, text in zip(found, _ONE_SHORT_TEXT, strict=True)),
        key=lambda one: one[0] / one[1],
    )
    parts: dict[str, Part] = {}
    for one in found:
        parts |= one[2]
    return [
        Figure(
            "HTTP, one short text, idle, p50: 1.3 x ONNX Runtime + 1 ms",
            value,
            limit,
            "ms",
            "at most",
            parts,
            f"for {text!r}",
        )
    ]


def _one_text(
    text: str, server: Server, onnx: Worker, worker: Worker, amounts: tuple[int, int]
) -> tuple[float, float, dict[str, Part]]:
    """Return our p50 in ms, its limit, and the parts."""
    calls, rounds = amounts
    single = Load(server.port, [[text]], connections=1, count=calls)
    load.run(worker, single)
    onnx.call("latencies_s", text, 20)
    runs, theirs = interleaved(
        rounds,
        lambda: load.run(worker, single),
        lambda: 1000 * percentile(onnx.call("latencies_s", text, calls), 50),
    )
    ours = [run.latency_ms(50) for run in runs]
    p50, baseline = statistics.median(ours), statistics.median(theirs)
    idle = load.ceiling(worker, single, runs[0].answer_bytes)
    name = text.split(maxsplit=1)[0].lower()
    parts: dict[str, Part] = {
        f"{name}_http_p50_ms": rounded(ours),
        f"{name}_http_p99_ms": rounded([run.latency_ms(99) for run in runs]),
        f"{name}_onnxruntime_p50_ms": rounded(theirs),
        f"{name}_generator_alone_ms": round(1000 / idle, 3),
    }
    return p50, 1.3 * baseline + 1.0, parts


def _check_same_vector(server: Server, onnx: Worker) -> None:
    for text in _ONE_SHORT_TEXT:
        ours = server.embed("minilm", [text])[0]
        theirs = onnx.call("vector", text)
        product = sum(a * b for a, b in zip(ours, theirs, strict=True))
        if product < 0.9999:
            raise RuntimeError(f"ONNX Runtime does not compute the same: cosine {product:.6f} for {text!r}")


def _http_parts(worker: Worker, what: Load, runs: Sequence[LoadRun]) -> dict[str, Part]:
    """Return the latencies of a load, and the generator's ceiling on it."""
    reached = load.ceiling(worker, what, runs[0].answer_bytes)
    rate = statistics.median(run.requests_per_s for run in runs)
    return {
        "p50_ms": rounded([run.latency_ms(50) for run in runs], 1),
        "p99_ms": rounded([run.latency_ms(99) for run in runs], 1),
        "generator_ceiling_requests_per_s": round(reached),
        "share_of_generator_ceiling": round(rate / reached, 4),
    }
