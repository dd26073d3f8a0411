"""Several things at once: short queries under bulk, and two models side by side."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchmarks import load, texts
from benchmarks.bare_engine import BATCH_TOKENS, BATCH_TOKENS_ON_CARD
from benchmarks.ceiling import ceiling
from benchmarks.figure import Figure, Part, interleaved, median_ratio, rounded
from benchmarks.load import Load, LoadRun
from benchmarks.serving import Server, serving
from benchmarks.setting import Setting
from benchmarks.worker import Worker

_PER_REQUEST = 64
_SETTLE_S = 0.5
_BULK_CONNECTIONS = 4
#: On a card, four requests together do not fill one batch.
_BULK_CONNECTIONS_ON_CARD = 16


def short_under_bulk(setting: Setting) -> list[Figure]:
    """Short single queries, one after another, while 4 connections (on a card 16) push bulk without end."""
    seconds = setting.seconds(9.0)
    connections = _BULK_CONNECTIONS_ON_CARD if setting.on_card else _BULK_CONNECTIONS
    with serving(setting) as server:
        slice_ms, how = _slice_ms(server, setting)
        with load.generator() as pusher, load.generator() as asker:
            requests = texts.balanced(setting.enough(texts.mixed()), _PER_REQUEST)
            bulk = Load(server.port, requests, connections, seconds)
            singles = Load(server.port, [[text] for text in texts.short()], connections=1, seconds=seconds)
            load.run(pusher, Load(server.port, requests, connections, count=connections))
            alone, both = interleaved(
                setting.rounds(3), lambda: load.run(pusher, bulk), lambda: both_at_once(pusher, asker, bulk, singles)
            )
            reached = ceiling(asker, singles, both[0][1].answer_bytes)
    alone_rates = [_steady_rate(run) for run in alone]
    kept_rates = [_steady_rate(run) for run, _ in both]
    p50, p99 = ([latency_under(run, short, percent) for run, short in both] for percent in (50.0, 99.0))
    parts: dict[str, Part] = {
        "short_p50_ms": rounded(p50, 1),
        "short_p99_ms": rounded(p99, 1),
        "short_queries": [len(short.done_s) for _, short in both],
        "slice_ms": round(slice_ms, 1),
        "slice_known_from": how,
        "bulk_alone_texts_per_s": rounded(alone_rates, 1),
        "bulk_beside_short_texts_per_s": rounded(kept_rates, 1),
        "generator_ceiling_requests_per_s": round(reached),
    }
    note = f"a slice is {slice_ms:.0f} ms ({how})"
    if setting.on_card:
        # What the server states is how long a slice may take; a card may be through with the largest batch sooner.
        batch_ms = _batch_ms(setting)
        in_batches = statistics.median(p99) / batch_ms
        parts |= {
            "bulk_connections": connections,
            "full_batch_ms": round(batch_ms, 2),
            "short_p99_in_full_batches": round(in_batches, 2),
        }
        note += f"; of {_batch(setting)} ({batch_ms:.1f} ms) p99 is {in_batches:.1f}"
    return [
        Figure(
            "short queries under bulk, p99: one bulk slice",
            statistics.median(p99) / slice_ms,
            2.0,
            "x",
            "at most",
            parts,
            note,
        ),
        Figure(
            "bulk beside short queries: bulk alone", median_ratio(kept_rates, alone_rates), 0.8, "x", "at least", {}
        ),
    ]


def _slice_ms(server: Server, setting: Setting) -> tuple[float, str]:
    """Return how long one slice of bulk takes: as the server says, else as the bare engine's batch does."""
    stated = _find(server.model(), "slice_ms")
    if stated is not None:
        return stated, "stated by the server"
    return _batch_ms(setting), _batch(setting)


def _batch_ms(setting: Setting) -> float:
    """Return how long a full batch takes the bare engine."""
    selection = setting.enough(texts.mixed())
    with setting.engine() as engine:
        engine.call("seconds", setting.warm_up(selection))
        times: list[float] = engine.call("slice_seconds", selection)
    return 1000 * statistics.median(times)


def _batch(setting: Setting) -> str:
    return f"a batch of {BATCH_TOKENS_ON_CARD if setting.on_card else BATCH_TOKENS:,} tokens of the bare engine"


def _find(described: dict[str, Any], name: str) -> float | None:
    for key, value in described.items():
        if key == name and isinstance(value, int | float) and value > 0:
            return float(value)
        if isinstance(value, dict) and (found := _find(value, name)) is not None:
            return found
    return None


def both_at_once(pusher: Worker, asker: Worker, bulk: Load, singles: Load) -> tuple[LoadRun, LoadRun]:
    """Run two loads, the second one a moment later."""
    pusher.begin("run", bulk)
    time.sleep(_SETTLE_S)
    asker.begin("run", singles)
    return load.finished(pusher), load.finished(asker)


def _steady_rate(run: LoadRun) -> float:
    """Return the texts per second while all connections were busy."""
    return run.texts_per_s_within(*_window(run))


def _window(*runs: LoadRun) -> tuple[float, float]:
    """Return from shortly after all began to when the first of them sent its last request."""
    return max(min(run.sent_s) for run in runs) + _SETTLE_S / 2, min(max(run.sent_s) for run in runs)


def latency_under(bulk: LoadRun, short: LoadRun, percent: float) -> float:
    """Return a percentile of the queries that were sent while all bulk connections were busy."""
    begin_s, end_s = _window(bulk)
    return short.latency_ms(percent, begin_s=begin_s, end_s=end_s)


def two_models(setting: Setting) -> list[Figure]:
    """Load a Chinese and an English model, one core each, at once and each alone."""
    if len(setting.cpus) < 2:
        raise RuntimeError("two models on a core each need two cores")
    mapping = {
        alias: {"precision": setting.precision, "cpus": str(cpu), "threads": 1}
        for alias, cpu in zip(("zh", "en"), setting.cpus, strict=False)
    }
    seconds = setting.seconds(5.0)
    with (
        serving(setting, mapping=mapping) as server,
        load.generator() as first,
        load.generator() as second,
    ):
        zh, en = (
            Load(server.port, texts.balanced(selection, 16), 4, seconds, model=alias)
            for alias, selection in (("zh", texts.zh()), ("en", texts.en()))
        )
        load.run(first, Load(server.port, zh.requests, 4, count=4, model="zh"))
        load.run(second, Load(server.port, en.requests, 4, count=4, model="en"))
        alone, at_once = interleaved(
            setting.rounds(3),
            lambda: (load.run(first, zh), load.run(second, en)),
            lambda: both_at_once(first, second, zh, en),
        )
        reached = ceiling(first, zh, at_once[0][0].answer_bytes)
    figures = []
    for index, alias in enumerate(("zh", "en")):
        lone = [_steady_rate(runs[index]) for runs in alone]
        shared = [runs[index].texts_per_s_within(*_window(*runs)) for runs in at_once]
        figures.append(
            Figure(
                f"two models at once on a core each, {alias}: alone",
                median_ratio(shared, lone),
                0.90,
                "x",
                "at least",
                {
                    f"{alias}_alone_texts_per_s": rounded(lone, 1),
                    f"{alias}_at_once_texts_per_s": rounded(shared, 1),
                    "generator_ceiling_requests_per_s": round(reached),
                },
                "alone, router and load generator have the other core to themselves",
            )
        )
    return figures
