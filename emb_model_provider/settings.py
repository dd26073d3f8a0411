"""Turns the environment and a ``.env`` file into one checked value, ``Settings``.

The supervisor calls ``load_settings`` once and hands the parts down; nothing else reads a setting. What exists
stands in ``setting_table``, what a mapping entry may say in ``mapping``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from emb_model_provider import setting_table as table
from emb_model_provider.dotenv_file import PREFIX, DotenvFile
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.key_file import KeyFile, read_key_file
from emb_model_provider.mapping import parse_mapping
from emb_model_provider.messages import Intake, Surroundings
from emb_model_provider.modelmap import (
    EMBEDDED_MODEL_ID,
    EMBEDDED_MODEL_NAME,
    BatchLimits,
    HubAccess,
    Hubs,
    ModelSpec,
    Precision,
    is_model_id,
)
from emb_model_provider.positioned_json import Document, document_of_variable
from emb_model_provider.setting_table import LogFormat, LogLevel, Setting, SocketMode
from emb_model_provider.value_kinds import WrongValueError

T = TypeVar("T")

ENVIRONMENT: Final = "the environment"
_BYTES_PER_MIB: Final = 1024 * 1024
_MAX_ID_CHARS: Final = 128
_UNSAFE_IN_ID: Final = re.compile(r"[^A-Za-z0-9._-]+")
_URL_PASSWORD: Final = re.compile(r"//[^/\s]*@")
_KNOWN_NAMES: Final = frozenset(row.name for row in table.SETTINGS)
#: Compared without what all names share, which would make every name look near.
_KNOWN_SUFFIXES: Final = tuple(row.name.removeprefix(PREFIX) for row in table.SETTINGS)
_QUANTIZED: Final = frozenset({"int8", "int4"})
#: A setting of one model means nothing where a mapping describes each of several.
_SINGLE_MODEL_ONLY: Final = (table.MODEL_NAME, table.POOLING, table.NORMALIZE, table.MAX_LENGTH, table.TASK)
_NEEDS_A_NAME: Final = (
    table.MODEL_SOURCE,
    table.MODEL_REVISION,
    table.POOLING,
    table.NORMALIZE,
    table.MAX_LENGTH,
    table.TASK,
)


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


def _unchecked(_certificate: str, _key: str) -> str:
    return ""


def load_settings(
    env: Mapping[str, str],
    dotenv: DotenvFile | None,
    read_keys: Callable[[Path], KeyFile] = read_key_file,
    check_tls: Callable[[str, str], str] = _unchecked,
) -> Settings:
    """Return the settings; ``env`` wins over ``dotenv``. Raise one ``ConfigurationError`` with every mistake.

    ``check_tls`` returns a digest of certificate and key, or raises as this does.
    """
    values = _Values(env, dotenv)
    server = _server(values, read_keys, check_tls)
    hubs = _hubs(values)
    logs = LogSettings(
        values.get(table.LOG_LEVEL), values.path(values.get(table.LOG_FILE)), values.get(table.LOG_FORMAT)
    )
    models = _models(values)
    supervision = _supervision(values)
    processes = _processes(values)
    # Only now has every value been looked at.
    if values.problems:
        raise ConfigurationError(*values.problems)
    return Settings(server, hubs, logs, models, supervision, processes, tuple(values.warnings))


@dataclass(frozen=True, slots=True)
class _Found:
    """The text of one value and the words that say where it stands."""

    text: str
    where: str
    document: Document | None = None


class _Values:
    """Looks values up by row and collects what is wrong with them."""

    def __init__(self, env: Mapping[str, str], dotenv: DotenvFile | None) -> None:
        self._env = env
        self._dotenv = dotenv
        self.problems: list[str] = []
        self.warnings: list[str] = list(dotenv.warnings) if dotenv else []
        self._warn_of_unknown_names()

    def find(self, row: Setting[object]) -> _Found | None:
        """Return the value that counts; ``None`` where it is missing or empty and so means the default."""
        found = self._look_up(row.name)
        return found if found and (found.text or row.takes_empty) else None

    def get(self, row: Setting[T]) -> T:
        """Return the checked value; a wrong one becomes a problem and the default stands in for it."""
        found = self.find(row)
        if found is None:
            return row.default
        try:
            return row.kind.parse(found.text)
        except WrongValueError as error:
            # A password in a URL is a secret in the wrong place, and still one.
            shown = "***" if row.secret else _URL_PASSWORD.sub("//***@", found.text)
            self.problems.append(f"{row.name}={shown!r} ({found.where}) cannot be used: {error}.")
            return row.default

    def where(self, row: Setting[object]) -> str:
        """Return ``.env:12`` or the environment, for the message about a value that is set."""
        found = self.find(row)
        return found.where if found else "the default"

    def blame(self, rows: Iterable[Setting[object]], error: ConfigurationError) -> None:
        """Note what is wrong with the files that ``rows`` name."""
        place = " and ".join(f"{row.name} ({self.where(row)})" for row in rows)
        self.problems.extend(f"{place}: {problem}" for problem in error.problems)

    def path(self, text: str) -> str:
        """Replace a leading ``~`` by the home directory, as a shell would."""
        home = self._env.get("HOME", "")
        return home.rstrip("/") + text[1:] if home and (text == "~" or text.startswith("~/")) else text

    def warn_ignored(self, rows: Iterable[Setting[object]], reason: str) -> None:
        """Warn of each of ``rows`` that is set although it means nothing here."""
        for row in rows:
            if self.find(row):
                self.warnings.append(f"{row.name} ({self.where(row)}) is ignored, because {reason}.")

    def _look_up(self, name: str) -> _Found | None:
        if name in self._env:
            text = self._env[name]
            return _Found(text.strip(), ENVIRONMENT, document_of_variable(text, ENVIRONMENT))
        assignment = self._dotenv.assignments.get(name) if self._dotenv else None
        if self._dotenv is None or assignment is None:
            return None
        return _Found(assignment.value.strip(), f"{self._dotenv.label}:{assignment.line}", assignment.document)

    def _warn_of_unknown_names(self) -> None:
        in_file = self._dotenv.assignments if self._dotenv else {}
        for name in sorted({*self._env, *in_file}):
            if not name.upper().startswith(PREFIX) or name in _KNOWN_NAMES:
                continue
            found = self._look_up(name)
            near = difflib.get_close_matches(name[len(PREFIX) :].upper(), _KNOWN_SUFFIXES, n=1)
            advice = f" Did you mean {PREFIX}{near[0]}?" if near else ""
            where = found.where if found else ENVIRONMENT
            self.warnings.append(f"{name} ({where}) is no setting of this program and is ignored.{advice}")


def _server(
    values: _Values, read_keys: Callable[[Path], KeyFile], check_tls: Callable[[str, str], str]
) -> ServerSettings:
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
        around=_around(values, check_tls),
        unix_socket=values.path(values.get(table.UNIX_SOCKET)),
        unix_socket_mode=values.get(table.UNIX_SOCKET_MODE),
    )


def _api_keys(values: _Values, read_keys: Callable[[Path], KeyFile]) -> tuple[str, ...]:
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


def _around(values: _Values, check_tls: Callable[[str, str], str]) -> Surroundings:
    certificate = values.path(values.get(table.TLS_CERT_FILE))
    key = values.path(values.get(table.TLS_KEY_FILE)) if certificate else ""
    digest = ""
    if certificate:
        try:
            digest = check_tls(certificate, key or certificate)
        except ConfigurationError as error:
            values.blame([table.TLS_CERT_FILE, table.TLS_KEY_FILE] if key else [table.TLS_CERT_FILE], error)
    else:
        values.warn_ignored([table.TLS_KEY_FILE], f"{table.TLS_CERT_FILE.name} is not set, so TLS is off")
    return Surroundings(
        metrics_need_key=values.get(table.METRICS_NEED_KEY),
        access_log=values.get(table.ACCESS_LOG),
        cors_origins=values.get(table.CORS_ORIGINS),
        url_prefix=values.get(table.URL_PREFIX),
        tls_certificate=certificate,
        tls_key=key,
        tls_digest=digest,
        routers=values.get(table.ROUTERS),
    )


def _supervision(values: _Values) -> SupervisionSettings:
    return SupervisionSettings(
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


def _processes(values: _Values) -> ProcessSettings:
    return ProcessSettings(
        run_dir=values.path(values.get(table.RUN_DIR)),
        recycle_rss_bytes=values.get(table.RECYCLE_RSS_MB) * _BYTES_PER_MIB,
        recycle_age_s=values.get(table.RECYCLE_AGE_S),
    )


def _hubs(values: _Values) -> Hubs:
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


def _models(values: _Values) -> tuple[ModelSpec, ...]:
    """Return the mapping's models, else the one that is named, else the embedded one."""
    quantize = values.get(table.ENABLE_QUANTIZATION)
    shared = ModelSpec(
        id="",
        name="",
        source=values.get(table.MODEL_SOURCE),
        precision=_precision(values, quantize=quantize),
        int8_method=values.get(table.INT8_METHOD),
        prepack_weights=values.get(table.PREPACK_WEIGHTS),
        device=values.get(table.DEVICE),
        revision=values.get(table.MODEL_REVISION) or None,
        overlong=values.get(table.OVERLONG),
        token_ids=values.get(table.TOKEN_ID_POLICY),
        batch=_batch(values),
    )
    mapping = values.find(table.MODEL_MAPPING)
    if mapping is None:
        return (_single_model(values, shared),)
    values.warn_ignored(
        _SINGLE_MODEL_ONLY, f"{table.MODEL_MAPPING.name} ({mapping.where}) is set; its entries say this for each model"
    )
    if mapping.document is None:
        values.problems.append(
            f"{table.MODEL_MAPPING.name} ({mapping.where}) must be a JSON object: {{ comes after the equals sign."
        )
        return ()
    try:
        return parse_mapping(mapping.document, shared, quantize=quantize is True, place=values.path)
    except ConfigurationError as error:
        values.problems.extend(error.problems)
        return ()


def _single_model(values: _Values, shared: ModelSpec) -> ModelSpec:
    name = values.path(values.get(table.MODEL_NAME))
    if not name:
        values.warn_ignored(_NEEDS_A_NAME, f"no model is named and the embedded {EMBEDDED_MODEL_ID} is served")
        return replace(
            shared, id=EMBEDDED_MODEL_ID, name=EMBEDDED_MODEL_NAME, source="auto", revision=None, embedded=True
        )
    return replace(
        shared,
        id=id_of(name),
        name=name,
        pooling=values.get(table.POOLING),
        normalize=values.get(table.NORMALIZE),
        max_length=values.get(table.MAX_LENGTH),
        task=values.get(table.TASK),
    )


def id_of(name: str) -> str:
    """Return what clients call the model ``name``: a hub name as it stands, a directory's last part made safe."""
    if is_model_id(name) and name.count("/") <= 1:
        return name
    last = _UNSAFE_IN_ID.sub("-", name.rstrip("/").rpartition("/")[2])
    safe = re.sub(r"\.{2,}", ".", last).lstrip("._-")[:_MAX_ID_CHARS].rstrip("-")
    return safe if is_model_id(safe) else "model"


def _precision(values: _Values, *, quantize: bool | None) -> Precision:
    """Return the precision of models that do not say their own."""
    asked = values.get(table.MODEL_PRECISION)
    switch, precision = table.ENABLE_QUANTIZATION.name, table.MODEL_PRECISION.name
    switch_at, precision_at = values.where(table.ENABLE_QUANTIZATION), values.where(table.MODEL_PRECISION)
    if quantize is False and asked in _QUANTIZED:
        values.problems.append(
            f"{switch}=false ({switch_at}) contradicts {precision}={asked} ({precision_at})."
            f" Change {switch_at} to {switch}=true, or {precision_at} to {precision}=auto."
        )
    if quantize and asked == "auto":
        return "int8"
    if quantize and asked not in _QUANTIZED:
        values.warnings.append(
            f"{switch}=true ({switch_at}) changes nothing for models of precision {asked}, which {precision}"
            f" ({precision_at}) asks for; {precision}=auto would make them int8."
        )
    return asked


def _batch(values: _Values) -> BatchLimits:
    limits = BatchLimits(
        max_batch_size=values.get(table.MAX_BATCH_SIZE),
        min_batch_size=values.get(table.MIN_BATCH_SIZE),
        max_wait_time_ms=values.get(table.MAX_WAIT_TIME_MS),
        dynamic=values.get(table.ENABLE_DYNAMIC_BATCHING),
    )
    if limits.min_batch_size > limits.max_batch_size:
        values.problems.append(
            f"{table.MIN_BATCH_SIZE.name}={limits.min_batch_size} ({values.where(table.MIN_BATCH_SIZE)}) must not"
            f" exceed {table.MAX_BATCH_SIZE.name}={limits.max_batch_size} ({values.where(table.MAX_BATCH_SIZE)})."
        )
    return limits
