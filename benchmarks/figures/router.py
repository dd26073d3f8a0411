"""The server itself, around a model that does nothing, beside the libraries that it is made of."""

from __future__ import annotations

import statistics

from benchmarks import load, texts
from benchmarks.bare_stack import bare_stack
from benchmarks.ceiling import ceiling
from benchmarks.empty_model import router_around_nothing
from benchmarks.figure import Figure, interleaved, median_ratio, rounded
from benchmarks.load import Load
from benchmarks.setting import Setting


def router_and_channel(setting: Setting) -> list[Figure]:
    """Count requests per second through one router and one channel: 32 connections, a short text each."""
    seconds = setting.seconds(4.0)
    selection = texts.short()
    with router_around_nothing() as port, bare_stack() as bare_port, load.generator() as worker:
        singles = Load(port, [[text] for text in selection], connections=32, seconds=seconds)
        bare_singles = Load(bare_port, singles.requests, 32, seconds)
        for each in (port, bare_port):
            load.run(worker, Load(each, singles.requests, 32, seconds=0.5))
        runs, bare_runs = interleaved(
            setting.rounds(3), lambda: load.run(worker, singles), lambda: load.run(worker, bare_singles)
        )
        one = load.run(worker, Load(port, singles.requests, 1, seconds=1.0))
        bulk = load.run(worker, Load(port, texts.requests(texts.mixed(), 64), 4, seconds=1.0))
        reached = ceiling(worker, singles, runs[0].answer_bytes)
    rates, bare_rates = ([run.requests_per_s for run in each] for each in (runs, bare_runs))
    rate = statistics.median(rates)
    return [
        Figure(
            "router + channel, empty encoder, 32 connections",
            rate,
            6000,
            "requests/s",
            "at least",
            {
                "requests_per_s": rounded(rates, 0),
                "p50_ms": rounded([run.latency_ms(50) for run in runs], 2),
                "p99_ms": rounded([run.latency_ms(99) for run in runs], 2),
                "one_connection_p50_ms": round(one.latency_ms(50), 3),
                "bulk_64_texts_4_connections_texts_per_s": round(bulk.texts_per_s),
                "generator_ceiling_requests_per_s": round(reached),
                "share_of_generator_ceiling": round(rate / reached, 3),
            },
            "router, shard and load generator share the cores",
        ),
        Figure(
            "the same against aiohttp, msgpack and a socket alone",
            median_ratio(rates, bare_rates),
            None,
            "x",
            "at least",
            {
                "requests_per_s": rounded(rates, 0),
                "bare_requests_per_s": rounded(bare_rates, 0),
                "bare_p50_ms": rounded([run.latency_ms(50) for run in bare_runs], 2),
            },
            "which check, count, bound and restart nothing",
        ),
    ]
