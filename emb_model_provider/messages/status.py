"""What children report to the supervisor, and what it tells the routers of them: states, loads, loaded models."""

from __future__ import annotations

from typing import Literal

from emb_model_provider.codec import Many, Wire
from emb_model_provider.messages.link import Output
from emb_model_provider.modelmap import Overlong, Task

State = Literal[
    "starting",
    "downloading",
    "loading",
    "warming",
    "ready",
    "restarting",
    "failed",
    "stopping",
]
#: How texts share a forward pass: end to end, filled up to one length, not at all.
Batching = Literal["packed", "padded", "alone"]


class LoadProgress(Wire, frozen=True):
    """Shard to supervisor: how far the start has come. Bytes are zero outside ``downloading``."""

    state: Literal["downloading", "loading", "warming"]
    done_bytes: int = 0
    total_bytes: int = 0


class EncoderInfo(Wire, frozen=True):
    """A loaded model as it is in use, not as it was asked for.

    ``max_tokens`` counts special tokens and prompt. ``precision`` is one of ``fp32 fp16 bf16 int8 int4``;
    ``storage_dtype`` and ``compute_dtype`` say how the large weights lie in memory and what they are computed
    in. ``prompts`` are the names that ``resolve_prompt`` knows. ``batching`` says whether texts share a forward pass
    end to end or padded to one length, or have one each; ``kernel`` what multiplies the matrices. ``cosine`` is the
    smallest one of the start-up probes to the plain fp32 path with each text alone, ``None`` where that was too large
    to run. ``lanes`` is how many batches run side by side, ``slice_ms`` how long one of them should take at most,
    as measured at the start, and ``slice_tokens`` what it then holds. ``private_bytes`` is the memory of the
    process that is its own once it is ready. ``fingerprint`` changes with whatever changes vectors: revision,
    weights, pooling, prompts, precision, length. ``labels`` name the scores of a classification head and
    ``activation`` is what the model's own library applies to them. ``token_dimension`` is that of multi-vector
    outputs. ``matryoshka`` lists the dimensions that the model is known to be trained for, where it says so.
    ``tokens_per_s`` was measured at the start. ``takes_instruction``: a reranker whose prompts say what makes a
    document relevant. ``routes`` are the prompts by whose names texts take different ways, where there are several.
    """

    dimension: int
    max_tokens: int
    pooling: str
    normalized: bool
    device: str
    precision: str
    storage_dtype: str
    compute_dtype: str
    layout: str
    weights_bytes: int
    vocabulary_size: int
    prompts: Many[str]
    batching: Batching = "padded"
    kernel: str = "stock"
    cosine: float | None = None
    lanes: int = 1
    slice_ms: float = 0.0
    slice_tokens: int = 0
    private_bytes: int = 0
    fingerprint: str = ""
    task: Task = "embed"
    outputs: Many[Output] = ("dense",)
    labels: Many[str] = ()
    activation: Literal["identity", "sigmoid", "softmax"] = "identity"
    token_dimension: int = 0
    matryoshka: Many[int] = ()
    tokens_per_s: float = 0.0
    takes_instruction: bool = False
    routes: Many[str] = ()


class ModelInfo(Wire, frozen=True):
    """A loaded model and where it came from, shown in ``/v1/models``."""

    encoder: EncoderInfo
    source: str
    revision: str | None


class Ready(Wire, frozen=True):
    """Shard to supervisor: the socket is bound, requests are welcome."""

    info: ModelInfo


class LoadFailed(Wire, frozen=True):
    """Shard to supervisor, last: this model cannot be served; ``reason`` is a ``LoadReason`` value."""

    reason: str
    message: str


class BatchTotals(Wire, frozen=True):
    """What all batches of a shard's process add up to.

    ``computed_tokens`` counts padding too. ``predicted_ms`` and ``took_ms`` are of the same batches: those that ran as
    the cost model assumes. ``fill`` and ``time_ratio`` are rows of histograms whose bounds ``router.metrics.catalogue``
    has: a count for each bound, one beyond them, and the sum.
    """

    texts: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    predicted_ms: float = 0.0
    took_ms: float = 0.0
    fill: Many[float] = ()
    time_ratio: Many[float] = ()


class Progress(Wire, frozen=True):
    """Shard to supervisor, every second from a thread of its own: what it is at.

    ``running_s`` is the age of the oldest batch on the device, or of whatever else a thread has begun and not ended
    (0: nothing); ``last_success`` is Unix time (0: never yet).
    """

    batches_done: int
    running_s: float
    waiting_texts: int
    waiting_tokens: int
    rss_bytes: int
    last_success: float = 0.0
    batches: BatchTotals = BatchTotals()


class Heartbeat(Wire, frozen=True):
    """Router to supervisor, every second from its event loop: it still turns. ``lag_s`` is how late this one was.

    ``quarantined`` is how many inputs are refused for what they have done.
    """

    lag_s: float
    requests_in_flight: int
    quarantined: int = 0


class ShardHealth(Wire, frozen=True):
    """What an operator asks of a running shard beside its state; zeros before its first ``Progress``.

    ``breaker`` is ``open`` while a model that keeps dying is left alone for a time. ``succeeded_before`` is when the
    processes before this one last made a result (Unix time; 0: never yet).
    """

    progress: Progress | None = None
    boot_failures: int = 0
    crashes: int = 0
    breaker: Literal["closed", "open", "half-open"] = "closed"
    succeeded_before: float = 0.0

    @property
    def last_success(self) -> float:
        """When the model last made a result, whichever process of it (Unix time; 0: never yet)."""
        return max(self.succeeded_before, self.progress.last_success if self.progress is not None else 0.0)


class ShardStatus(Wire, frozen=True):
    """One row of the shard table as the supervisor sees it.

    ``reason`` and ``detail`` say what the process before failed of, until one is ready. ``expected_ready_s`` is the
    measured or guessed time until ready (0 when ready); ``created`` is Unix time; ``load_s`` is what the last load
    took (0: none yet).
    """

    model_id: str
    name: str
    source: str
    precision: str
    overlong: Overlong
    state: State
    reason: str
    detail: str
    done_bytes: int
    total_bytes: int
    generation: int
    restarts: int
    pid: int
    socket_path: str
    expected_ready_s: float
    created: int
    info: ModelInfo | None
    health: ShardHealth = ShardHealth()
    load_s: float = 0.0


class ShardTable(Wire, frozen=True):
    """Supervisor to router, at every change: all models."""

    shards: Many[ShardStatus]


class RouterReady(Wire, frozen=True):
    """Router to supervisor: it accepts connections."""

    pid: int


class Quarantined(Wire, frozen=True):
    """Router to supervisor, and from there to every other router: these inputs have killed their model's process."""

    fingerprints: Many[bytes]


class Acquitted(Wire, frozen=True):
    """Router to supervisor: this model died of inputs that are refused from now on, and has answered others lately."""

    model_id: str


class RestartShard(Wire, frozen=True):
    """Router to supervisor: this generation answers wrongly or not at all; give me another."""

    model_id: str
    generation: int
    why: str
