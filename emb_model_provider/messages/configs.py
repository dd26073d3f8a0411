"""What the supervisor tells a child first: everything it needs to know."""

from __future__ import annotations

from typing import Literal

from emb_model_provider.certificate import Certificate
from emb_model_provider.codec import Many, Wire
from emb_model_provider.modelmap import Hubs, ModelSpec

LogFormat = Literal["plain", "json"]
AccessLog = Literal["off", "combined", "json", "logfmt"]


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
    at its end. With a ``certificate`` the ports speak TLS. ``run_directory`` is where routers keep what they count,
    ``index`` this one's place among ``routers``.
    """

    metrics_need_key: bool = True
    access_log: AccessLog = "off"
    cors_origins: Many[str] = ()
    url_prefix: str = ""
    certificate: Certificate | None = None
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
