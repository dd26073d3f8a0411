"""Over HTTP on an otherwise idle server: in bulk, in short singles, and one at a time."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import load, texts
from benchmarks.bare_engine import worker_environment
from benchmarks.ceiling import ceiling
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
_EACH_BY_ITSELF = {text.split(maxsplit=1)[0].lower(): (text,) for text in _ONE_SHORT_TEXT}


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
    calls = _Calls(60, 3) if setting.quick else _Calls(200, 7)
    return _one_short_text(setting, "one short text, idle", _EACH_BY_ITSELF, calls)


def one_short_text_after_a_pause(setting: Setting) -> list[Figure]:
    """Measure the same when nothing has happened for 100 ms: processors and threads sleep, and have to be woken."""
    calls = _Calls(12, 3, _PAUSE_S) if setting.quick else _Calls(30, 5, _PAUSE_S)
    return _one_short_text(setting, "one short text, after a pause", _EACH_BY_ITSELF, calls)


def one_short_text_after_another(setting: Setting) -> list[Figure]:
    """Measure the same with all short texts in turn: as with what people ask, lengths change from one to the next."""
    asked = {"each": tuple(texts.short())}
    return _one_short_text(setting, "one short text after another", asked, _Calls(266, 3 if setting.quick else 7))


@dataclass(frozen=True, slots=True)
class _Calls:
    """How often each side gets the text, in how many rounds, and what passes before each call."""

    count: int
    rounds: int
    pause_s: float = 0.0


def _one_short_text(setting: Setting, what: str, asked: Mapping[str, Sequence[str]], calls: _Calls) -> list[Figure]:
    """Return the figure of the worst of ``asked``: texts that are sent in turn, by their name among the parts."""
    return _one_on_card(setting, what, asked, calls) if setting.on_card else _one_on_cpu(setting, what, asked, calls)


def _one_on_card(setting: Setting, what: str, asked: Mapping[str, Sequence[str]], calls: _Calls) -> list[Figure]:
    with serving(setting) as server, setting.sentence_transformers() as peer, load.generator() as worker:
        _check_same_vector(server, peer, "sentence-transformers", 0.999)
        sides = _Sides(server, peer, "sentence_transformers", worker)
        found = {name: _beside(name, selection, sides, calls) for name, selection in asked.items()}
    ratios = {name: median_ratio(ours, theirs) for name, (ours, theirs, _) in found.items()}
    worst = max(ratios, key=ratios.__getitem__)
    parts: dict[str, Part] = {}
    for name, (_, _, measured) in found.items():
        parts |= {**measured, f"{name}_ratio": round(ratios[name], 3)}
    return [
        Figure(
            f"HTTP, {what}, p50: sentence-transformers' own",
            ratios[worst],
            1.0,
            "x",
            "at most",
            parts,
            _which(asked[worst]),
        )
    ]


def _one_on_cpu(setting: Setting, what: str, asked: Mapping[str, Sequence[str]], calls: _Calls) -> list[Figure]:
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
            sides = _Sides(server, onnx, "onnxruntime", worker)
            found = {name: _beside(name, selection, sides, calls) for name, selection in asked.items()}
    p50_ms = {name: statistics.median(ours) for name, (ours, _, _) in found.items()}
    limits_ms = {name: 1.3 * statistics.median(theirs) + 1.0 for name, (_, theirs, _) in found.items()}
    worst = max(found, key=lambda name: p50_ms[name] / limits_ms[name])
    parts: dict[str, Part] = {}
    for _, _, measured in found.values():
        parts |= measured
    return [
        Figure(
            f"HTTP, {what}, p50: 1.3 x ONNX Runtime + 1 ms",
            p50_ms[worst],
            limits_ms[worst],
            "ms",
            "at most",
            parts,
            _which(asked[worst]),
        )
    ]


@dataclass(frozen=True, slots=True)
class _Sides:
    """What is compared: our server, asked by ``generator``, and a peer in a process of its own."""

    server: Server
    peer: Worker
    peer_name: str
    generator: Worker


def _beside(
    name: str, selection: Sequence[str], sides: _Sides, calls: _Calls
) -> tuple[list[float], list[float], dict[str, Part]]:
    """Return the p50 in ms of each round over HTTP, those of the peer, and the parts."""
    requests = [[text] for text in selection]
    single = Load(sides.server.port, requests, connections=1, count=calls.count, pause_s=calls.pause_s)
    load.run(sides.generator, single)
    sides.peer.call("latencies_s", selection, max(20, len(selection)))
    runs, theirs = interleaved(
        calls.rounds,
        lambda: load.run(sides.generator, single),
        lambda: [1000 * one for one in sides.peer.call("latencies_s", selection, calls.count, calls.pause_s)],
    )
    ours = [run.latency_ms(50) for run in runs]
    others = [percentile(times, 50) for times in theirs]
    idle = ceiling(sides.generator, single, runs[0].answer_bytes)
    parts: dict[str, Part] = {
        f"{name}_http_p50_ms": rounded(ours),
        f"{name}_http_p99_ms": rounded([run.latency_ms(99) for run in runs]),
        f"{name}_{sides.peer_name}_p50_ms": rounded(others),
        f"{name}_{sides.peer_name}_p99_ms": rounded([percentile(times, 99) for times in theirs]),
        f"{name}_generator_alone_ms": round(1000 / idle, 3),
    }
    return ours, others, parts


def _which(selection: Sequence[str]) -> str:
    return f"for {selection[0]!r}" if len(selection) == 1 else f"for {len(selection)} texts"


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
    reached = ceiling(worker, what, runs[0].answer_bytes)
    rate = statistics.median(run.requests_per_s for run in runs)
    return {
        "p50_ms": rounded([run.latency_ms(50) for run in runs], 1),
        "p99_ms": rounded([run.latency_ms(99) for run in runs], 1),
        "generator_ceiling_requests_per_s": round(reached),
        "share_of_generator_ceiling": round(rate / reached, 4),
    }
