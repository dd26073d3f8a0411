"""Over HTTP on an otherwise idle server: in bulk, in short singles, and one at a time."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load, texts
from benchmarks.bare_engine import worker_environment
from benchmarks.figure import Figure, Part, interleaved, median_ratio, percentile, rounded
from benchmarks.load import Load, LoadRun
from benchmarks.serving import MODEL, Server, serving
from benchmarks.setting import Setting
from benchmarks.worker import Worker

_PER_REQUEST = 64
#: On a card, so that a run takes about a second.
_REQUESTS_ON_CARD = 200
#: After it, processors and threads sleep.
_PAUSE_S = 0.1
#: Three and about fifteen tokens.
_ONE_SHORT_TEXT = ("hello", "How long do soaked chickpeas need to cook?")


def bulk_against_engine(setting: Setting) -> list[Figure]:
    """64 mixed texts a request over 4 connections, against the bare engine on the same texts all at once.

    On a card also over 16: with 4, it is never offered as much as it takes at once.
    """
    selection = _bulk_texts(setting)
    with serving(setting) as server, setting.engine() as engine, load.generator() as worker:
        requests = texts.requests(selection, _PER_REQUEST)
        loads = [
            Load(server.port, requests, connections, count=len(requests))
            for connections in ((4, 16) if setting.on_card else (4,))
        ]
        engine.call("seconds", setting.warm_up(selection))
        load.run(worker, loads[0])
        runs, bare = interleaved(
            setting.rounds(5),
            lambda: [load.run(worker, bulk) for bulk in loads],
            lambda: len(selection) / engine.call("seconds", selection),
        )
        parts = [_http_parts(worker, bulk, [every[n] for every in runs]) for n, bulk in enumerate(loads)]
    figures = []
    for n, bulk in enumerate(loads):
        rates = [every[n].texts_per_s for every in runs]
        figures.append(
            Figure(
                f"HTTP, 64 mixed texts x {bulk.connections} connections: bare engine",
                median_ratio(rates, bare),
                0.93 if bulk.connections == 4 else None,
                "x",
                "at least",
                {
                    "http_texts_per_s": rounded(rates, 1),
                    "engine_texts_per_s": rounded(bare, 1),
                    **parts[n],
                },
            )
        )
    return figures


def _bulk_texts(setting: Setting) -> list[str]:
    if not setting.on_card:
        return texts.mixed(_PER_REQUEST * (4 if setting.quick else 9))
    count = _PER_REQUEST * _REQUESTS_ON_CARD
    return texts.repeated(texts.mixed(), -(-count // len(texts.mixed())))[:count]


def singles_against_engine(setting: Setting) -> list[Figure]:
    """Short single texts over 32 connections, against the bare engine on the same texts all at once.

    On a card also over 128.
    """
    selection = setting.enough(texts.short())
    figures = []
    with serving(setting) as server, setting.engine() as engine, load.generator() as worker:
        for connections in (32, 128) if setting.on_card else (32,):
            singles = Load(
                server.port,
                [[text] for text in selection],
                connections=connections,
                count=len(selection) * (3 if setting.quick else 8),
            )
            figures.append(_singles(setting, singles, engine, worker, selection))
    return figures


def _singles(setting: Setting, singles: Load, engine: Worker, worker: Worker, selection: Sequence[str]) -> Figure:
    count = singles.connections
    engine.call("seconds", selection)
    load.run(worker, singles)
    runs, bare = interleaved(
        setting.rounds(5),
        lambda: load.run(worker, singles),
        lambda: (_rate(engine, selection, 1_000_000), _rate(engine, selection, count)),
    )
    parts = _http_parts(worker, singles, runs)
    rates = [run.requests_per_s for run in runs]
    free = [rate for rate, _ in bare]
    limited = [rate for _, rate in bare]
    of_limited = median_ratio(rates, limited)
    return Figure(
        f"HTTP, short singles x {count} connections: bare engine",
        median_ratio(rates, free),
        0.90 if count == 32 else None,
        "x",
        "at least",
        {
            "http_requests_per_s": rounded(rates, 1),
            "engine_texts_per_s": rounded(free, 1),
            f"engine_texts_per_s_in_batches_of_{count}": rounded(limited, 1),
            f"ratio_to_batches_of_{count}": round(of_limited, 3),
            "distinct_texts": len(selection),
            **parts,
        },
        f"{count} connections never offer more than {count} texts; "
        f"of the engine in batches of {count} it is {of_limited:.2f}",
    )


def _rate(engine: Worker, selection: Sequence[str], max_texts: int) -> float:
    repeated = 3
    seconds: float = sum(engine.call("seconds", selection, max_texts) for _ in range(repeated))
    return repeated * len(selection) / seconds


def one_short_text(setting: Setting) -> list[Figure]:
    """One short text on an idle server over one connection: p50 against a bare ONNX Runtime on the same text.

    On a card against sentence-transformers on the same card. Of two texts the one that is farther above its limit is
    the figure.
    """
    return _one_short_text(setting, "idle", _Calls(60, 3) if setting.quick else _Calls(200, 7))


def one_short_text_after_a_pause(setting: Setting) -> list[Figure]:
    """Measure the same when nothing has happened for 100 ms: processors and threads sleep, and have to be woken."""
    calls = _Calls(12, 3, _PAUSE_S) if setting.quick else _Calls(30, 5, _PAUSE_S)
    return _one_short_text(setting, "after a pause", calls)


@dataclass(frozen=True, slots=True)
class _Calls:
    """How often each side gets the text, in how many rounds, and what passes before each call."""

    count: int
    rounds: int
    pause_s: float = 0.0


def _one_short_text(setting: Setting, when: str, calls: _Calls) -> list[Figure]:
    return _one_on_card(setting, when, calls) if setting.on_card else _one_on_cpu(setting, when, calls)


def _one_on_card(setting: Setting, when: str, calls: _Calls) -> list[Figure]:
    with serving(setting) as server, setting.sentence_transformers() as peer, load.generator() as worker:
        _check_same_vector(server, peer, "sentence-transformers", 0.999)
        found = [_beside(text, server, (peer, "sentence_transformers"), worker, calls) for text in _ONE_SHORT_TEXT]
    ratios = [median_ratio(ours, theirs) for ours, theirs, _ in found]
    value = max(ratios)
    parts: dict[str, Part] = {}
    for text, ratio, (_, _, measured) in zip(_ONE_SHORT_TEXT, ratios, found, strict=True):
        parts |= {**measured, f"{_first_word(text)}_ratio": round(ratio, 3)}
    return [
        Figure(
            f"HTTP, one short text, {when}, p50: sentence-transformers' own",
            value,
            1.0,
            "x",
            "at most",
            parts,
            f"for {_ONE_SHORT_TEXT[ratios.index(value)]!r}",
        )
    ]


def _one_on_cpu(setting: Setting, when: str, calls: _Calls) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="embbench-") as name:
        graph = str(Path(name) / "model.onnx")
        with Worker("benchmarks.baselines:OnnxExport", environment=worker_environment(setting.threads)) as exporter:
            exporter.call("export", str(setting.model_directory), graph)
        with (
            serving(setting) as server,
            Worker(
                "benchmarks.baselines:OnnxPipeline",
                graph,
                str(setting.model_directory),
                setting.threads,
                environment=worker_environment(setting.threads),
            ) as onnx,
            load.generator() as worker,
        ):
            _check_same_vector(server, onnx, "ONNX Runtime", 0.9999)
            found = [_one_text(text, server, onnx, worker, calls) for text in _ONE_SHORT_TEXT]
    value, limit, text = max(
        ((one[0], one[1], text) for one, text in zip(found, _ONE_SHORT_TEXT, strict=True)),
        key=lambda one: one[0] / one[1],
    )
    parts: dict[str, Part] = {}
    for one in found:
        parts |= one[2]
    return [
        Figure(
            f"HTTP, one short text, {when}, p50: 1.3 x ONNX Runtime + 1 ms",
            value,
            limit,
            "ms",
            "at most",
            parts,
            f"for {text!r}",
        )
    ]


def _one_text(
    text: str, server: Server, onnx: Worker, worker: Worker, calls: _Calls
) -> tuple[float, float, dict[str, Part]]:
    """Return our p50 in ms, its limit, and the parts."""
    ours, theirs, parts = _beside(text, server, (onnx, "onnxruntime"), worker, calls)
    return statistics.median(ours), 1.3 * statistics.median(theirs) + 1.0, parts


def _beside(
    text: str, server: Server, peer: tuple[Worker, str], worker: Worker, calls: _Calls
) -> tuple[list[float], list[float], dict[str, Part]]:
    """Return the p50 in ms of each round over HTTP, those of a peer that is given with its name, and the parts."""
    other, peer_name = peer
    single = Load(server.port, [[text]], connections=1, count=calls.count, pause_s=calls.pause_s)
    load.run(worker, single)
    other.call("latencies_s", text, 20)
    runs, theirs = interleaved(
        calls.rounds,
        lambda: load.run(worker, single),
        lambda: 1000 * percentile(other.call("latencies_s", text, calls.count, calls.pause_s), 50),
    )
    ours = [run.latency_ms(50) for run in runs]
    idle = load.ceiling(worker, single, runs[0].answer_bytes)
    name = _first_word(text)
    parts: dict[str, Part] = {
        f"{name}_http_p50_ms": rounded(ours),
        f"{name}_http_p99_ms": rounded([run.latency_ms(99) for run in runs]),
        f"{name}_{peer_name}_p50_ms": rounded(theirs),
        f"{name}_generator_alone_ms": round(1000 / idle, 3),
    }
    return ours, theirs, parts


def _first_word(text: str) -> str:
    return text.split(maxsplit=1)[0].lower()


def _check_same_vector(server: Server, peer: Worker, peer_name: str, least: float) -> None:
    """Raise ``RuntimeError`` when a peer's vectors have a smaller cosine to ours."""
    for text in _ONE_SHORT_TEXT:
        ours = server.embed(MODEL, [text])[0]
        theirs = peer.call("vector", text)
        product = sum(a * b for a, b in zip(ours, theirs, strict=True)) / (math.hypot(*ours) * math.hypot(*theirs))
        if product < least:
            raise RuntimeError(f"{peer_name} does not compute the same: cosine {product:.6f} for {text!r}")


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
