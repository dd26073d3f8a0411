"""One line for each answered request, in the format of the operator's choice; never a text, a key or a vector.

``combined`` is Apache's, with time, request id, model and tokens after it. Written to stderr like every log line; the
supervisor puts it where the others go.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO

from emb_model_provider.logs import MARK, escape, logfmt_value
from emb_model_provider.messages.configs import AccessLog

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MAX_AGENT_CHARS: Final = 200
_MAX_PATH_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Answered:
    """What a line tells. ``size_bytes`` is ``None`` where it is not known, ``tokens`` where no model was asked."""

    time_s: float
    client: str
    method: str
    path: str
    http_version: str
    status: int
    size_bytes: int | None
    took_ms: float
    request_id: str
    model: str
    tokens: int | None
    inputs: int | None
    user_agent: str
    error: str = ""


def writer(style: AccessLog, stream: TextIO | None = None) -> Callable[[Answered], None] | None:
    """Return what writes a line, or ``None`` for no access log."""
    if style == "off":
        return None
    render = {"combined": combined, "json": as_json, "logfmt": logfmt}[style]
    out = stream or sys.stderr

    def write(answered: Answered) -> None:
        out.write(f"{MARK}{render(answered)}\n")

    return write


def combined(one: Answered) -> str:
    """Return a line in Apache's combined format, and what is ours after it."""
    at = time.localtime(one.time_s)
    offset = time.strftime("%z", at)
    stamp = f"{at.tm_mday:02d}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{time.strftime('%H:%M:%S', at)} {offset}"
    request = _in_quotes(f"{one.method} {one.path[:_MAX_PATH_CHARS]} HTTP/{one.http_version}")
    size = "-" if one.size_bytes is None else one.size_bytes
    agent = _in_quotes(one.user_agent[:_MAX_AGENT_CHARS] or "-")
    tokens = "-" if one.tokens is None else one.tokens
    return (
        f'{one.client or "-"} - - [{stamp}] "{request}" {one.status} {size} "-" "{agent}" '
        f"{one.took_ms:.1f}ms {one.request_id} {one.model or '-'} {tokens}"
    )


def _fields(one: Answered) -> dict[str, object]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(one.time_s)) + f".{int(one.time_s % 1 * 1000):03d}Z",
        "event": "access",
        "request_id": one.request_id,
        "client": one.client or None,
        "method": one.method,
        "path": escape(one.path[:_MAX_PATH_CHARS]),
        "status": one.status,
        "took_ms": round(one.took_ms, 2),
        "bytes": one.size_bytes,
        "model": one.model or None,
        "inputs": one.inputs,
        "tokens": one.tokens,
        "error": one.error or None,
        "user_agent": escape(one.user_agent[:_MAX_AGENT_CHARS]) or None,
    }


def as_json(one: Answered) -> str:
    """Return a line of JSON."""
    return json.dumps({key: value for key, value in _fields(one).items() if value is not None}, ensure_ascii=True)


def logfmt(one: Answered) -> str:
    """Return ``key=value`` pairs."""
    return " ".join(f"{key}={logfmt_value(value)}" for key, value in _fields(one).items() if value is not None)


def _in_quotes(text: str) -> str:
    return escape(text).replace("\\", "\\\\").replace('"', '\\"')
