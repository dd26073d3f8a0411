"""Prometheus' text, from counts and the table of models. Used by ``meter``; the format is prometheus-client's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import exposition as plain
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from emb_model_provider.messages.status import BatchTotals, ShardStatus
from router.metrics import catalogue as c
from router.metrics.store import RouterCounts
from router.metrics.tallies import Tallies

Samples = dict[c.Metric, list[tuple[Sequence[str], float]]]

_STATES: Final = ("starting", "downloading", "loading", "warming", "ready", "restarting", "failed", "stopping")
_BREAKERS: Final = ("closed", "open", "half-open")


def render(tallies: Tallies, routers: Sequence[RouterCounts], models: Sequence[ShardStatus], accept: str,
           supervisor_bytes: int = 0) -> tuple[bytes, str]:  # fmt: skip
    """Return the text and its content type: OpenMetrics for whoever accepts it."""
    families = _Families(list(_families(tallies, routers, models, supervisor_bytes)))
    if "application/openmetrics-text" in accept:
        text: bytes = openmetrics.generate_latest(families)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return plain.generate_latest(families), plain.CONTENT_TYPE_LATEST


class _Families(Collector):
    """What ``generate_latest`` wants of a registry."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def _families(
    tallies: Tallies, routers: Sequence[RouterCounts], models: Sequence[ShardStatus], supervisor_bytes: int
) -> Iterator[Family]:
    samples = _router_gauges(routers)
    for metric, rows in _model_samples(models).items():
        samples.setdefault(metric, []).extend(rows)
    memory = samples.setdefault(c.MEMORY, [])
    memory += [
        ((f"router-{router.index}",), float(router.gauges.memory_bytes)) for router in routers if router.is_alive
    ]
    if supervisor_bytes:
        memory.append((("supervisor",), float(supervisor_bytes)))
    rows_of: dict[str, list[tuple[tuple[str, ...], list[float]]]] = {}
    for (name, *labels), row in itertools.chain(tallies.histograms.items(), _model_histograms(models)):
        rows_of.setdefault(name, []).append((tuple(labels), row))
    for (name, *values), number in tallies.counters.items():
        samples.setdefault(c.BY_NAME[name], []).append((values, number))
    for metric in c.METRICS:
        if metric.kind == "histogram":
            yield _histogram(metric, rows_of.get(metric.name, []))
        else:
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for label_values, number in samples.get(metric, []):
                family.add_metric(label_values, number)
            yield family


def _histogram(metric: c.Metric, rows: list[tuple[tuple[str, ...], list[float]]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, row in rows:
        counts = itertools.accumulate(row[:-1])
        ends = [*(str(bound) for bound in metric.bounds), "+Inf"]
        family.add_metric(labels, list(zip(ends, counts, strict=True)), sum_value=row[-1])
    return family


def _router_gauges(routers: Sequence[RouterCounts]) -> Samples:
    living = [router.gauges for router in routers if router.is_alive]
    by_model: dict[str, list[int]] = {}
    for gauges in living:
        for model, numbers in gauges.by_model.items():
            row = by_model.setdefault(model, [0, 0])
            row[0] += numbers[0]
            row[1] += numbers[1]
    return {
        c.ROUTERS: [((), float(len(living)))],
        c.IN_FLIGHT: [((), float(sum(one.in_flight for one in living)))],
        c.CONNECTIONS: [((), float(sum(one.connections for one in living)))],
        # Each router tells the others of what it finds, so all hold the same inputs.
        c.QUARANTINED: [((), float(max((one.quarantined for one in living), default=0)))],
        c.LOOP_LAG: [((), max((one.loop_lag_s for one in living), default=0.0))],
        c.ADMITTED: [((model,), float(row[0])) for model, row in by_model.items()],
        c.WAITING: [((model,), float(row[1])) for model, row in by_model.items()],
    }


def _model_samples(models: Sequence[ShardStatus]) -> Samples:
    samples: Samples = {}

    def tell(metric: c.Metric, number: float, *labels: str) -> None:
        samples.setdefault(metric, []).append((labels, float(number)))

    for one in models:
        model, health = one.model_id, one.health
        for state in _STATES:
            tell(c.MODEL_STATE, one.state == state, model, state)
        for breaker in _BREAKERS:
            tell(c.BREAKER, health.breaker == breaker, model, breaker)
        tell(c.MODEL_READY, one.state == "ready", model)
        tell(c.RESTARTS, one.restarts, model)
        tell(c.CRASHES, health.crashes, model)
        tell(c.BOOT_FAILURES, health.boot_failures, model)
        if one.load_s:
            tell(c.LOAD, one.load_s, model)
        if one.info is not None:
            facts = one.info.encoder
            tell(c.MODEL_INFO, 1, model, one.name, facts.device, facts.precision, facts.batching, facts.fingerprint)
        if health.last_success:
            tell(c.LAST_SUCCESS, health.last_success, model)
        if (progress := health.progress) is not None:
            tell(c.MEMORY, progress.rss_bytes, f"model-{model}")
            tell(c.QUEUE_TEXTS, progress.waiting_texts, model)
            tell(c.QUEUE_TOKENS, progress.waiting_tokens, model)
            tell(c.RUNNING, progress.running_s, model)
            tell(c.BATCHES, progress.batches_done, model)
            for metric, number in _totals(progress.batches):
                tell(metric, number, model)
    return samples


def _totals(batches: BatchTotals) -> Iterator[tuple[c.Metric, float]]:
    yield c.BATCH_TEXTS, batches.texts
    yield c.BATCH_TOKENS, batches.tokens
    yield c.COMPUTED_TOKENS, batches.computed_tokens
    yield c.PREDICTED, batches.predicted_ms / 1000
    yield c.TAKEN, batches.took_ms / 1000


def _model_histograms(models: Sequence[ShardStatus]) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    for one in models:
        if (progress := one.health.progress) is not None:
            for metric, row in ((c.BATCH_FILL, progress.batches.fill), (c.TIME_RATIO, progress.batches.time_ratio)):
                if len(row) == len(metric.bounds) + 2:
                    yield (metric.name, one.model_id), list(row)
