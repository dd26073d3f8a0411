"""The one table of metrics: each name, its kind, labels and meaning. Pure; written out by ``exposition``.

``docs/operations.md`` has every name of it, which a test holds together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``bounds`` are the upper ends of a histogram's buckets, without the infinite one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COUNTS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
_TOKENS: Final = (8.0, 32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0, 131072.0, 524288.0)

# ------------------------------------------------------------- counted by every router, summed over all of them
REQUESTS: Final = Metric("emb_requests_total", "counter", "Requests answered.", ("route", "dialect", "model", "status"))
ERRORS: Final = Metric("emb_errors_total", "counter", "Errors answered, by code.", ("kind", "dialect", "model"))
REFUSED: Final = Metric(
    "emb_refused_total", "counter", "Requests and connections refused before any work was done.", ("reason",)
)
DURATION: Final = Metric(
    "emb_request_seconds",
    "histogram",
    "From a request's headers to its answer.",
    ("route", "dialect", "model"),
    _SECONDS,
)
STAGE: Final = Metric(
    "emb_stage_seconds",
    "histogram",
    "Where a request's time went: tokenize, queue and encode in the model's process, router is all the rest.",
    ("model", "stage"),
    _SECONDS,
)
INPUTS: Final = Metric("emb_inputs_total", "counter", "Inputs answered.", ("model",))
INPUTS_PER_REQUEST: Final = Metric("emb_request_inputs", "histogram", "Inputs of one request.", ("model",), _COUNTS)
TOKENS: Final = Metric("emb_tokens_total", "counter", "Tokens that models read.", ("model",))
TOKENS_PER_REQUEST: Final = Metric("emb_request_tokens", "histogram", "Tokens of one request.", ("model",), _TOKENS)
SCRIPT_TOKENS: Final = Metric(
    "emb_script_tokens_total",
    "counter",
    "Those tokens by script, estimated from a sample of characters: cjk, latin, other, or ids for token ids.",
    ("model", "script"),
)
TRUNCATED: Final = Metric("emb_truncated_inputs_total", "counter", "Inputs that were cut.", ("model",))
FAILED_INPUTS: Final = Metric(
    "emb_failed_inputs_total",
    "counter",
    "Inputs of answered requests that have an error in place of a result.",
    ("model",),
)
RESENDS: Final = Metric(
    "emb_resends_total", "counter", "Slices of requests that were sent again because a process died.", ("model",)
)
ROUTER_STARTS: Final = Metric("emb_router_starts_total", "counter", "Starts of router processes.")

# ------------------------------------------------------------------- the state of the routers that live
IN_FLIGHT: Final = Metric("emb_requests_in_flight", "gauge", "Requests that are not answered yet.")
CONNECTIONS: Final = Metric("emb_connections", "gauge", "Open client connections.")
ADMITTED: Final = Metric(
    "emb_admitted_tokens", "gauge", "Estimated tokens of requests let in and not answered.", ("model",)
)
WAITING: Final = Metric(
    "emb_waiting_slices", "gauge", "Slices of requests that wait in the router for a turn.", ("model",)
)
QUARANTINED: Final = Metric("emb_quarantined_inputs", "gauge", "Inputs in quarantine.")
LOOP_LAG: Final = Metric(
    "emb_router_loop_lag_seconds", "gauge", "How late the router's event loop was, at worst in the last seconds."
)
ROUTERS: Final = Metric("emb_routers", "gauge", "Router processes that have reported lately.")

# ------------------------------------------------------------------------ what the supervisor knows of each model
MODEL_INFO: Final = Metric(
    "emb_model_info",
    "gauge",
    "1, with what is served.",
    ("model", "name", "device", "precision", "batching", "fingerprint"),
)
MODEL_STATE: Final = Metric("emb_model_state", "gauge", "1 for the state that a model is in.", ("model", "state"))
MODEL_READY: Final = Metric("emb_model_ready", "gauge", "Whether requests are sent to a model.", ("model",))
RESTARTS: Final = Metric("emb_model_restarts_total", "counter", "Restarts of a model's process.", ("model",))
CRASHES: Final = Metric("emb_model_crashes_total", "counter", "Deaths of a process that had been ready.", ("model",))
BOOT_FAILURES: Final = Metric(
    "emb_model_boot_failures_total", "counter", "Deaths of a process that was not ready yet.", ("model",)
)
BREAKER: Final = Metric("emb_model_breaker", "gauge", "1 for the state of a model's breaker.", ("model", "state"))
LOAD: Final = Metric(
    "emb_model_load_seconds", "gauge", "How long the last load took, start of the process included.", ("model",)
)
MEMORY: Final = Metric("emb_process_memory_bytes", "gauge", "Resident memory of each process.", ("process",))
QUEUE_TEXTS: Final = Metric("emb_queue_texts", "gauge", "Texts that wait in a model's process for a batch.", ("model",))
QUEUE_TOKENS: Final = Metric("emb_queue_tokens", "gauge", "Tokens of those texts.", ("model",))
RUNNING: Final = Metric("emb_running_batch_seconds", "gauge", "Age of the oldest batch on the device.", ("model",))
LAST_SUCCESS: Final = Metric(
    "emb_last_success_timestamp_seconds", "gauge", "When a model last made a result.", ("model",)
)
BATCHES: Final = Metric("emb_batches_total", "counter", "Batches that were run.", ("model",))
BATCH_TEXTS: Final = Metric("emb_batch_texts_total", "counter", "Texts in those batches.", ("model",))
BATCH_TOKENS: Final = Metric("emb_batch_tokens_total", "counter", "Tokens in those batches.", ("model",))
COMPUTED_TOKENS: Final = Metric(
    "emb_batch_computed_tokens_total", "counter", "Tokens in those batches with their padding.", ("model",)
)
PREDICTED: Final = Metric(
    "emb_batch_predicted_seconds_total", "counter", "Time that batches should have taken by the cost model.", ("model",)
)
TAKEN: Final = Metric("emb_batch_seconds_total", "counter", "Time that the same batches took.", ("model",))
#: How full a batch was: of texts, tokens or time, whichever limit was nearest.
BATCH_FILL: Final = Metric(
    "emb_batch_fill_ratio",
    "histogram",
    "How near a batch came to its nearest limit: of texts, tokens or time.",
    ("model",),
    (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
)
TIME_RATIO: Final = Metric(
    "emb_batch_time_ratio",
    "histogram",
    "Real over predicted time of a batch.",
    ("model",),
    (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0),
)

METRICS: Final[tuple[Metric, ...]] = tuple(one for one in list(globals().values()) if isinstance(one, Metric))
BY_NAME: Final = {metric.name: metric for metric in METRICS}
