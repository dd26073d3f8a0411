"""One event per line, plain or JSON; the same format in every process.

Children write to stderr, each line marked with a record separator so that the supervisor can tell our lines
from what a library or the C runtime prints there; the supervisor owns the terminal and the rotated file.
Whatever comes from outside (model names, error texts) is escaped here, in one place, against forged lines.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from typing import Final, Literal

from emb_model_provider.log_pipe import open_log_pipe

#: First character of every line a child writes through this module.
MARK: Final = "\x1e"
_MAX_VALUE_CHARS: Final = 2000
_MAX_TRACE_CHARS: Final = 8000
#: C0 and C1 controls, line and paragraph separators, and the bidirectional controls that reorder a terminal line.
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NEEDS_QUOTES: Final = re.compile(r'[\s"=\\]')


def escape(text: str) -> str:
    """Return ``text`` on one line, unsafe characters as unicode escapes, bounded in length."""
    if len(text) > _MAX_VALUE_CHARS:
        text = text[:_MAX_VALUE_CHARS] + "…"
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


class EventLog:
    """Writes events with named values: ``log.info("model_ready", model="bge", load_s=3.2)``."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def shows_debug(self) -> bool:
        """Tell whether ``debug`` writes anything: what happens for each request spares itself the values."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **values: object) -> None:
        self._write(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        self._write(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        self._write(logging.WARNING, event, values)

    def error(self, event: str, **values: object) -> None:
        self._write(logging.ERROR, event, values)

    def said(self, event: str, *, is_error: bool = False, **values: object) -> None:
        """Write an event that the terminal shows in other words already: only the log file needs it."""
        self._write(logging.ERROR if is_error else logging.INFO, event, values, said=True)

    def exception(self, event: str, **values: object) -> None:
        """Write an error with the traceback of the exception being handled."""
        self._write(logging.ERROR, event, values, trace=True)

    def _write(
        self, level: int, event: str, values: Mapping[str, object], *, trace: bool = False, said: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"values": values, "said": said}, exc_info=trace)


class EventFormatter(logging.Formatter):
    """Formats one record as one event; a traceback (or ``trace``) becomes escaped lines of its own in plain format."""

    def __init__(self, process: str, style: Literal["plain", "json"], mark: str = "") -> None:
        super().__init__()
        self._process = process
        self._json = style == "json"
        self._mark = mark

    def format(self, record: logging.LogRecord) -> str:
        values: Mapping[str, object] = getattr(record, "values", {})
        trace = self.formatException(record.exc_info) if record.exc_info else getattr(record, "trace", "")
        line = self._as_json(record, values, trace) if self._json else self._as_plain(record, values)
        lines = [line] if self._json else [line, *("    | " + escape(part) for part in trace.splitlines())]
        return "\n".join(self._mark + one for one in lines)

    def _as_plain(self, record: logging.LogRecord, values: Mapping[str, object]) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        pairs = "".join(f" {key}={logfmt_value(value)}" for key, value in values.items() if value is not None)
        head = f"{stamp}.{int(record.msecs):03d} {record.levelname:<7} {self._process}"
        return f"{head} {escape(record.getMessage())}{pairs}"

    def _as_json(self, record: logging.LogRecord, values: Mapping[str, object], trace: str) -> str:
        body: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "event": escape(record.getMessage()),
        }
        body.update({key: _jsonable(value) for key, value in values.items()})
        if trace:
            # Escaped six bytes a character, it has to fit into a line that the supervisor does not cut.
            body["trace"] = trace if len(trace) <= _MAX_TRACE_CHARS else "…" + trace[-_MAX_TRACE_CHARS:]
        return json.dumps(body, ensure_ascii=True)


def logfmt_value(value: object) -> str:
    """Return a value as it stands after ``key=``: on one line, in quotes where a reader could take it for more."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = escape(str(value))
    if text == "" or _NEEDS_QUOTES.search(text):
        return json.dumps(text, ensure_ascii=False)
    return text


def _jsonable(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON knows neither
    return value if isinstance(value, (int, float, bool, type(None))) else escape(str(value))


def configure_child_logs(process: str, level: str, style: Literal["plain", "json"]) -> None:
    """Send every log record of this process to stderr, marked for the supervisor that reads it."""
    formatter = EventFormatter(process, style, MARK)
    _prepare_stderr(formatter)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    # A library's own chatter is worth a line only when something is wrong.
    for name in ("asyncio", "urllib3", "httpx", "httpx2", "filelock", "huggingface_hub", "modelscope_hub"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def _prepare_stderr(formatter: EventFormatter) -> None:
    """Have stderr speak UTF-8, whatever the terminal does: it is the supervisor that reads; and wait for nobody."""
    if not isinstance(sys.stderr, io.TextIOWrapper):
        return

    def tell_of_dropped(lines: int) -> str:
        values = {"lines": lines, "why": "the supervisor did not read them"}
        record = logging.makeLogRecord({"msg": "lines_dropped", "levelname": "WARNING", "values": values})
        return formatter.format(record) + "\n"

    pipe = None
    with contextlib.suppress(OSError):  # no descriptor, or a closed one
        pipe = open_log_pipe(sys.stderr.fileno(), tell_of_dropped)
    if pipe is None:
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")
    else:
        sys.stderr = io.TextIOWrapper(pipe, encoding="utf-8", errors="backslashreplace", write_through=True)
