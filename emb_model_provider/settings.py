"""Turns the environment and a ``.env`` file into one checked value, ``Settings``.

The supervisor calls ``load_settings`` at a start and a reload and hands the parts down; nothing else reads a setting.
What exists stands in ``setting_table``, how it is looked up in ``setting_values``, what becomes of models in
``model_settings``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from emb_model_provider import setting_table as table
from emb_model_provider.certificate import Certificate
from emb_model_provider.dotenv_file import DotenvFile
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.key_file import KeyFile, read_key_file
from emb_model_provider.messages.configs import Intake, LogFormat, Surroundings
from emb_model_provider.model_settings import read_models
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from emb_model_provider.setting_table import LogLevel, SocketMode
from emb_model_provider.setting_values import Values

_BYTES_PER_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The front door.

    ``ready_wait_s`` is how long a request waits for a model that is still loading, ``request_timeout_s`` for its
    answer altogether; 0 is for ever.
    """

    host: str
    port: int
    api_keys: tuple[str, ...] = field(repr=False)
    ready_wait_s: float
    request_timeout_s: float
    max_request_bytes: int
    shutdown_grace_s: float
    intake: Intake = field(default_factory=Intake)
    around: Surroundings = field(default_factory=Surroundings)
    unix_socket: str = ""
    unix_socket_mode: SocketMode = "0600"


@dataclass(frozen=True, slots=True)
class SupervisionSettings:
    """When a process counts as hung, and when one that died is started again; seconds, 0 is no limit."""

    startup_timeout_s: float = table.STARTUP_TIMEOUT_S.default
    batch_timeout_s: float = table.BATCH_TIMEOUT_S.default
    silence_timeout_s: float = table.SILENCE_TIMEOUT_S.default
    restart_delay_s: float = table.RESTART_DELAY_S.default
    restart_max_delay_s: float = table.RESTART_MAX_DELAY_S.default
    restart_stable_s: float = table.RESTART_STABLE_S.default
    restart_limit: int = table.RESTART_LIMIT.default
    restart_period_s: float = table.RESTART_PERIOD_S.default
    restart_probe_s: float = table.RESTART_PROBE_S.default


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """The processes themselves. An empty ``run_dir`` is a fresh directory per start; limits of 0 are none."""

    run_dir: str = ""
    recycle_rss_bytes: int = 0
    recycle_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged and where; an empty ``file`` means the terminal alone."""

    level: LogLevel
    file: str
    format: LogFormat


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator can set. ``warnings`` are sentences to log once logging works."""

    server: ServerSettings
    hubs: Hubs
    logs: LogSettings
    models: tuple[ModelSpec, ...]
    supervision: SupervisionSettings = SupervisionSettings()
    processes: ProcessSettings = ProcessSettings()
    warnings: tuple[str, ...] = ()


def _unread(_certificate: str, _key: str) -> Certificate:
    return Certificate(b"", b"")


def load_settings(
    env: Mapping[str, str],
    dotenv: DotenvFile | None,
    read_keys: Callable[[Path], KeyFile] = read_key_file,
    read_tls: Callable[[str, str], Certificate] = _unread,
) -> Settings:
    """Return the settings; ``env`` wins over ``dotenv``. Raise one ``ConfigurationError`` with every mistake.

    ``read_tls`` returns what is in the files of certificate and key, or raises as this does.
    """
    values = Values(env, dotenv)
    server = _server(values, read_keys, read_tls)
    hubs = _hubs(values)
    logs = LogSettings(
        values.get(table.LOG_LEVEL), values.path(values.get(table.LOG_FILE)), values.get(table.LOG_FORMAT)
    )
    models = read_models(values)
    supervision = _supervision(values)
    processes = _processes(values)
    # Only now has every value been looked at.
    if values.problems:
        raise ConfigurationError(*values.problems)
    return Settings(server, hubs, logs, models, supervision, processes, tuple(values.warnings))


def _server(
    values: Values, read_keys: Callable[[Path], KeyFile], read_tls: Callable[[str, str], Certificate]
) -> ServerSettings:
    unix_socket = values.path(values.get(table.UNIX_SOCKET))
    if not unix_socket:
        values.warn_ignored([table.UNIX_SOCKET_MODE], f"{table.UNIX_SOCKET.name} is not set")
    return ServerSettings(
        host=values.get(table.HOST),
        port=values.get(table.PORT),
        api_keys=_api_keys(values, read_keys),
        ready_wait_s=values.get(table.READY_WAIT_S),
        request_timeout_s=values.get(table.REQUEST_TIMEOUT_S),
        max_request_bytes=values.get(table.MAX_REQUEST_MB) * _BYTES_PER_MIB,
        shutdown_grace_s=values.get(table.SHUTDOWN_GRACE_S),
        intake=Intake(
            max_queue_s=values.get(table.MAX_QUEUE_S),
            max_queue_bytes=values.get(table.MAX_QUEUE_MB) * _BYTES_PER_MIB,
            max_inputs=values.get(table.MAX_INPUTS),
            max_input_chars=values.get(table.MAX_INPUT_CHARS),
            max_request_tokens=values.get(table.MAX_REQUEST_TOKENS),
            max_connections=values.get(table.MAX_CONNECTIONS),
            quarantine_s=values.get(table.QUARANTINE_S),
        ),
        around=_around(values, read_tls),
        unix_socket=unix_socket,
        unix_socket_mode=values.get(table.UNIX_SOCKET_MODE),
    )


def _api_keys(values: Values, read_keys: Callable[[Path], KeyFile]) -> tuple[str, ...]:
    """Return the keys of the variable and those of the file, each once."""
    keys = values.get(table.API_KEYS)
    path = values.path(values.get(table.API_KEYS_FILE))
    if not path:
        return keys
    try:
        found = read_keys(Path(path))
    except ConfigurationError as error:
        values.blame([table.API_KEYS_FILE], error)
        return keys
    values.warnings.extend(found.warnings)
    return tuple(dict.fromkeys((*keys, *found.keys)))


def _around(values: Values, read_tls: Callable[[str, str], Certificate]) -> Surroundings:
    path = values.path(values.get(table.TLS_CERT_FILE))
    key = values.path(values.get(table.TLS_KEY_FILE)) if path else ""
    certificate = None
    if path:
        try:
            certificate = read_tls(path, key or path)
        except ConfigurationError as error:
            values.blame([table.TLS_CERT_FILE, table.TLS_KEY_FILE] if key else [table.TLS_CERT_FILE], error)
    else:
        values.warn_ignored([table.TLS_KEY_FILE], f"{table.TLS_CERT_FILE.name} is not set, so TLS is off")
    return Surroundings(
        metrics_need_key=values.get(table.METRICS_NEED_KEY),
        access_log=values.get(table.ACCESS_LOG),
        cors_origins=values.get(table.CORS_ORIGINS),
        url_prefix=values.get(table.URL_PREFIX),
        certificate=certificate,
        routers=values.get(table.ROUTERS),
    )


def _supervision(values: Values) -> SupervisionSettings:
    limits = SupervisionSettings(
        startup_timeout_s=values.get(table.STARTUP_TIMEOUT_S),
        batch_timeout_s=values.get(table.BATCH_TIMEOUT_S),
        silence_timeout_s=values.get(table.SILENCE_TIMEOUT_S),
        restart_delay_s=values.get(table.RESTART_DELAY_S),
        restart_max_delay_s=values.get(table.RESTART_MAX_DELAY_S),
        restart_stable_s=values.get(table.RESTART_STABLE_S),
        restart_limit=values.get(table.RESTART_LIMIT),
        restart_period_s=values.get(table.RESTART_PERIOD_S),
        restart_probe_s=values.get(table.RESTART_PROBE_S),
    )
    values.refuse_above(
        table.RESTART_DELAY_S, limits.restart_delay_s, table.RESTART_MAX_DELAY_S, limits.restart_max_delay_s
    )
    return limits


def _processes(values: Values) -> ProcessSettings:
    return ProcessSettings(
        run_dir=values.path(values.get(table.RUN_DIR)),
        recycle_rss_bytes=values.get(table.RECYCLE_RSS_MB) * _BYTES_PER_MIB,
        recycle_age_s=values.get(table.RECYCLE_AGE_S),
    )


def _hubs(values: Values) -> Hubs:
    return Hubs(
        huggingface=HubAccess(
            cache_dir=values.path(values.get(table.HUGGINGFACE_CACHE_DIR)),
            endpoint=values.get(table.HUGGINGFACE_ENDPOINT),
            token=values.get(table.HUGGINGFACE_TOKEN),
            trust_remote_code=values.get(table.HUGGINGFACE_TRUST_REMOTE_CODE),
        ),
        modelscope=HubAccess(
            cache_dir=values.path(values.get(table.MODELSCOPE_CACHE_DIR)),
            endpoint=values.get(table.MODELSCOPE_ENDPOINT),
            token=values.get(table.MODELSCOPE_TOKEN),
            trust_remote_code=values.get(table.MODELSCOPE_TRUST_REMOTE_CODE),
        ),
        offline=values.get(table.OFFLINE),
    )
