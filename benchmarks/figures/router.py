"""The server itself, around a model that does nothing."""

from __future__ import annotations

import statistics

from benchmarks import load, texts
from benchmarks.ceiling import ceiling
from benchmarks.empty_model import router_around_nothing
from benchmarks.figure import Figure, rounded
from benchmarks.load import Load
from benchmarks.setting import Setting


def router_and_channel(setting: Setting) -> list[Figure]:
    """Count requests per second through one router and one channel: 32 connections, a short text each."""
    seconds = setting.seconds(4.0)
    selection = texts.short()
    with router_around_nothing() as port, load.generator() as worker:
        singles = Load(port, [[text] for text in selection], connections=32, seconds=seconds)
        load.run(worker, Load(port, singles.requests, 32, seconds=0.5))
        runs = [load.run(worker, singles) for _ in range(setting.rounds(3))]
        one = load.run(worker, Load(port, singles.requests, 1, seconds=1.0))
        bulk = load.run(worker, Load(port, texts.requests(texts.mixed(), 64), 4, seconds=1.0))
        reached = ceiling(worker, singles, runs[0].answer_bytes)
    rate = statistics.median(run.requests_per_s for run in runs)
    return [
        Figure(
            "router + channel, empty encoder, 32 connections",
            rate,
            6000,
            "requests/s",
            "at least",
            {
                "requests_per_s": rounded([run.requests_per_s for run in runs], 0),
                "p50_ms": rounded([run.latency_ms(50) for run in runs], 2),
                "p99_ms": rounded([run.latency_ms(99) for run in runs], 2),
                "one_connection_p50_ms": round(one.latency_ms(50), 3),
                "bulk_64_texts_4_connections_texts_per_s": round(bulk.texts_per_s),
                "generator_ceiling_requests_per_s": round(reached),
                "share_of_generator_ceiling": round(rate / reached, 3),
            },
            "router, shard and load generator share the cores",
        )
    ]
