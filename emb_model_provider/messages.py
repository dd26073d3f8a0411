"""What crosses the sockets between our processes: frozen structs and the frame kind of each.

Two channels use them. The *link* joins the router to one shard (many requests at once, matched by the frame's
request id). The *control* channel joins the supervisor to each child over an inherited socket pair; its first
message is the child's whole configuration, so that nothing secret ever stands in a command line.
"""

from __future__ import annotations

from typing import Final, Literal

from emb_model_provider.codec import Many, Wire, decode, encode
from emb_model_provider.errors import ProtocolError
from emb_model_provider.frames import Frame, pack_frame
from emb_model_provider.modelmap import Hubs, ModelSpec, Overlong
from emb_model_provider.modelmap import Task as Task  # noqa: PLC0414 - dialects and planning take it from here

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
LogFormat = Literal["plain", "json"]
AccessLog = Literal["off", "combined", "json", "logfmt"]
#: How texts share a forward pass: end to end, filled up to one length, not at all.
Batching = Literal["packed", "padded", "alone"]
#: What a model can make of an input. ``scores`` are a classification head's raw logits, one number per label.
Output = Literal["dense", "sparse", "multi_vector", "scores"]
#: Which queue a request joins: by its size, or as the client says.
Priority = Literal["auto", "interactive", "bulk"]


# ---------------------------------------------------------------------------------------------- the link


class Hello(Wire, frozen=True):
    """Shard to router, first on every link: who is answering here."""

    model_id: str
    generation: int


class Encode(Wire, frozen=True):
    """Router to shard: run the model on these. Exactly one of ``texts`` and ``token_ids`` is not empty.

    ``seconds`` is empty, or holds the second text of each pair (a reranker's documents, ``texts`` being the query
    again and again; empty for a text that stands alone among pairs). ``outputs`` names what is wanted, from one pass.
    ``dimensions`` cuts dense vectors and normalises them again; ``normalize`` ``None`` is as the model does.
    ``prompt`` is a text put before each input and wins over ``prompt_name``; both ``None`` is the model's default.
    ``max_tokens`` cuts or refuses earlier than the model would.
    ``first_index`` is where this slice begins in the client's request, so that errors name the client's index;
    ``labels`` is what they call each input where that is not ``input 0`` and so on. ``request_id`` is for logs.
    ``timeout_ms`` is how long the client still waits, counted from arrival; 0 is for ever. ``partial`` answers good
    inputs and names the bad ones instead of failing all. ``alone``: this one input may kill the process, so it works
    at nothing else meanwhile. ``traceparent`` is W3C Trace Context, or empty.
    """

    texts: Many[str]
    token_ids: Many[Many[int]] = ()
    dimensions: int | None = None
    prompt_name: str | None = None
    overlong: Overlong = "truncate"
    first_index: int = 0
    timeout_ms: int = 0
    seconds: Many[str] = ()
    outputs: Many[Output] = ("dense",)
    prompt: str | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    priority: Priority = "auto"
    partial: bool = False
    alone: bool = False
    traceparent: str = ""
    labels: Many[str] = ()
    request_id: str = ""

    @property
    def count(self) -> int:
        return len(self.texts) or len(self.token_ids)

    def label(self, index: int) -> str:
        """Return what errors call the input at ``index`` of this message."""
        return self.labels[index] if self.labels else f"input {self.first_index + index}"


class InputError(Wire, frozen=True):
    """Why one input of a ``partial`` request has no result; ``index`` counts within the message."""

    index: int
    status: int
    kind: str
    code: str | None
    message: str


class SparseRows(Wire, frozen=True):
    """Sparse vectors: row ``i`` is ``indices`` and ``values`` from ``offsets[i]`` up to ``offsets[i + 1]``.

    Little-endian: ``offsets`` (rows + 1) and ``indices`` uint32, ``values`` float32. Indices are ids of the vocabulary,
    ascending in each row.
    """

    offsets: bytes
    indices: bytes
    values: bytes


class TokenVectors(Wire, frozen=True):
    """One vector per token: little-endian float32, ``counts[i]`` rows of ``dimension`` numbers for input ``i``."""

    vectors: bytes
    dimension: int
    counts: Many[int]


class Timing(Wire, frozen=True):
    """Where a request's time in the shard went, in milliseconds; ``encode_ms`` is that of the batches it was in."""

    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    encode_ms: float = 0.0


class Encoded(Wire, frozen=True):
    """Shard to router: the results of one request.

    ``vectors`` holds ``len(tokens) x dimension`` little-endian float32 numbers, row by row in the order asked: dense
    vectors, or the raw logits of each label where ``scores`` were asked for; empty with ``dimension`` 0 where neither
    was. ``tokens`` are the tokens the model read of each input, ``original_tokens`` those before the cut (empty: the
    same), ``truncated`` the indexes of inputs that were cut. Rows of inputs in ``errors`` are zeros.
    """

    vectors: bytes
    dimension: int
    tokens: Many[int]
    truncated: Many[int] = ()
    original_tokens: Many[int] = ()
    sparse: SparseRows | None = None
    token_vectors: TokenVectors | None = None
    errors: Many[InputError] = ()
    timing: Timing = Timing()


class Failed(Wire, frozen=True):
    """Shard to router: one request has no vectors. ``index`` is the guilty input where one is known."""

    status: int
    kind: str
    code: str | None
    message: str
    param: str | None = None
    index: int | None = None


class Cancel(Wire, frozen=True):
    """Router to shard: nobody waits for these any more; what has not started is never encoded."""

    request_ids: Many[int]


class Tokenize(Wire, frozen=True):
    """Router to shard: which tokens are these texts? Answered with ``Tokens`` or ``Failed``.

    ``alone`` is as that of ``Encode``.
    """

    texts: Many[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None
    prompt: str | None = None
    request_id: str = ""
    alone: bool = False

    @property
    def count(self) -> int:
        return len(self.texts)


class Token(Wire, frozen=True):
    """One token; ``start`` and ``stop`` are character offsets in the text, ``None`` for what is not from it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokens(Wire, frozen=True):
    """Shard to router: the tokens of each text, before any cut."""

    rows: Many[Many[Token]]


class Detokenize(Wire, frozen=True):
    """Router to shard: which texts are these token ids? Answered with ``Texts`` or ``Failed``.

    ``alone`` is as that of ``Encode``.
    """

    token_ids: Many[Many[int]]
    skip_special_tokens: bool = True
    request_id: str = ""
    alone: bool = False

    @property
    def count(self) -> int:
        return len(self.token_ids)


class Texts(Wire, frozen=True):
    """Shard to router: one text per list of ids."""

    texts: Many[str]


# ------------------------------------------------------------------------------------------- the control channel


class LogConfig(Wire, frozen=True):
    """How a child writes its log lines (to stderr; the supervisor owns terminal and file)."""

    level: str
    format: LogFormat


class ShardConfig(Wire, frozen=True):
    """Supervisor to shard, first: everything it needs to know.

    ``thread_cpus`` has the CPU of each compute thread, if they are placed. ``report_every_s`` is how often it sends
    ``Progress``.
    """

    spec: ModelSpec
    hubs: Hubs
    log: LogConfig
    generation: int
    device: str
    threads: int
    cpus: Many[int]
    thread_cpus: Many[int]
    socket_path: str
    cache_dir: str
    drain_s: float
    report_every_s: float = 1.0


class Intake(Wire, frozen=True):
    """How much the router takes in, of one request and altogether; 0 is no limit.

    ``max_queue_s`` is how long accepted work of one model may take to be done, ``max_queue_bytes`` the memory of all
    requests that are not answered, ``quarantine_s`` how long an input is refused that has killed its model's process.
    """

    max_queue_s: float = 30.0
    max_queue_bytes: int = 512 * 1024 * 1024
    max_inputs: int = 2048
    max_input_chars: int = 1_000_000
    max_request_tokens: int = 2_000_000
    max_connections: int = 16_384
    quarantine_s: float = 600.0


class Surroundings(Wire, frozen=True):
    """How the router meets the world around the API.

    ``cors_origins`` holds origins or ``*``; none is no CORS. ``url_prefix`` stands before every path, without a slash
    at its end. ``tls_digest`` changes with what is in the two files. ``run_directory`` is where routers keep what they
    count, ``index`` this one's place among ``routers``.
    """

    metrics_need_key: bool = True
    access_log: AccessLog = "off"
    cors_origins: Many[str] = ()
    url_prefix: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_digest: str = ""
    run_directory: str = ""
    index: int = 0
    routers: int = 1


class RouterConfig(Wire, frozen=True):
    """Supervisor to router, first. ``api_key_digests`` are SHA-256 digests; empty means no key is asked for.

    ``request_timeout_s`` 0 is none. ``report_every_s`` is how often it sends ``Heartbeat``.
    """

    log: LogConfig
    api_key_digests: Many[bytes]
    ready_wait_s: float
    max_request_bytes: int
    drain_s: float
    request_timeout_s: float = 0.0
    intake: Intake = Intake()
    report_every_s: float = 1.0
    around: Surroundings = Surroundings()


class LoadProgress(Wire, frozen=True):
    """Shard to supervisor: how far the start has come. Bytes are zero outside ``downloading``."""

    state: Literal["downloading", "loading", "warming"]
    done_bytes: int = 0
    total_bytes: int = 0
    source: str = ""


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
    document relevant.
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
    """Router to supervisor, every second from its event loop: it still turns. ``lag_s`` is how late this one was."""

    lag_s: float
    requests_in_flight: int
    rss_bytes: int


class ShardHealth(Wire, frozen=True):
    """What an operator asks of a running shard beside its state; zeros before its first ``Progress``.

    ``breaker`` is ``open`` while a model that keeps dying is left alone for a time.
    """

    progress: Progress | None = None
    boot_failures: int = 0
    crashes: int = 0
    breaker: Literal["closed", "open", "half-open"] = "closed"


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


class RestartShard(Wire, frozen=True):
    """Router to supervisor: this generation answers wrongly or not at all; give me another."""

    model_id: str
    generation: int
    why: str


Message = (
    Hello
    | Encode
    | Encoded
    | Failed
    | Cancel
    | Tokenize
    | Tokens
    | Detokenize
    | Texts
    | ShardConfig
    | RouterConfig
    | LoadProgress
    | Ready
    | LoadFailed
    | ShardTable
    | RouterReady
    | RestartShard
    | Progress
    | Heartbeat
    | Quarantined
)

_CLASSES: Final[dict[int, type[Message]]] = {
    1: Hello, 2: Encode, 4: Encoded, 5: Failed, 6: Cancel,
    7: Tokenize, 8: Tokens, 9: Detokenize, 10: Texts,
    32: ShardConfig, 33: RouterConfig, 34: LoadProgress, 35: Ready, 36: LoadFailed,
    37: ShardTable, 38: RouterReady, 39: RestartShard,
    40: Progress, 41: Heartbeat, 42: Quarantined,
}  # fmt: skip
_KINDS: Final[dict[type[Message], int]] = {cls: kind for kind, cls in _CLASSES.items()}


def pack(message: Message, request_id: int = 0) -> bytes:
    """Return ``message`` as one frame."""
    return pack_frame(_KINDS[type(message)], request_id, encode(message))


def unpack(frame: Frame) -> Message:
    """Return the message in ``frame``; raise ``ProtocolError`` for an unknown kind or a wrong payload."""
    cls = _CLASSES.get(frame.kind)
    if cls is None:
        raise ProtocolError(f"unknown frame kind {frame.kind}")
    return decode(cls, frame.payload)
