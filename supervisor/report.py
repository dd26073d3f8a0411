"""What an operator is told of a running server: the rows of ``emb-provider status``, as values, JSON and a table.

The server fills it from memory (``desk``), ``commands`` prints it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, TypeVar

from emb_model_provider.logs import escape
from emb_model_provider.messages.status import ShardStatus

Record = TypeVar("Record")

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model. Times are Unix time or seconds; ``last_success`` 0 is never yet.

    ``successor`` is the state of a process that is about to take over, ``leaving`` the number of those that finish,
    ``renewing`` whether the process is being replaced or is to be. Bytes are those of a download; ``total_bytes`` is 0
    until it is known.
    """

    model: str
    state: str
    pid: int = 0
    generation: int = 0
    age_s: float = 0.0
    restarts: int = 0
    crashes: int = 0
    boot_failures: int = 0
    breaker: str = "closed"
    waiting_texts: int = 0
    waiting_tokens: int = 0
    running_s: float = 0.0
    last_success: float = 0.0
    rss_bytes: int = 0
    expected_ready_s: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    successor: str = ""
    leaving: int = 0
    renewing: bool = False
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RouterReport:
    """The front door: the first router's pid, and what all ``processes`` of them add up to.

    ``renewing``: one is being replaced by a router with the newest settings. ``quarantined``: how many inputs are
    refused because they have killed a model's process.
    """

    pid: int = 0
    restarts: int = 0
    rss_bytes: int = 0
    processes: int = 1
    renewing: bool = False
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class ServerReport:
    """The whole server. ``problems`` says why the newest settings are not in use; empty where they are."""

    version: str
    pid: int
    address: str
    run_dir: str
    state: str
    uptime_s: float
    settings_read: float
    problems: tuple[str, ...] = ()
    pending_restart: tuple[str, ...] = ()
    router: RouterReport = RouterReport()
    models: tuple[ModelReport, ...] = ()


def model_report(status: ShardStatus, *, age_s: float, rss_bytes: int) -> ModelReport:
    """Return the report of one row of the shard table."""
    health, progress = status.health, status.health.progress
    return ModelReport(
        model=status.model_id,
        state=status.state,
        pid=status.pid,
        generation=status.generation,
        age_s=round(age_s, 1) if status.pid else 0.0,
        restarts=status.restarts,
        crashes=health.crashes,
        boot_failures=health.boot_failures,
        breaker=health.breaker,
        waiting_texts=progress.waiting_texts if progress else 0,
        waiting_tokens=progress.waiting_tokens if progress else 0,
        running_s=round(progress.running_s, 3) if progress else 0.0,
        last_success=health.last_success,
        rss_bytes=rss_bytes,
        expected_ready_s=round(status.expected_ready_s, 1),
        done_bytes=status.done_bytes,
        total_bytes=status.total_bytes,
        reason=status.reason,
        detail=status.detail,
    )


def to_json(report: ServerReport) -> dict[str, object]:
    """Return the report as JSON has it."""
    return asdict(report)


def from_json(value: Mapping[str, Any]) -> ServerReport:
    """Return the report a server sent; what a newer one adds is left out, what an older one lacks is the default."""
    return replace(
        _read(ServerReport, value),
        problems=tuple(value.get("problems", ())),
        pending_restart=tuple(value.get("pending_restart", ())),
        router=_read(RouterReport, value.get("router", {})),
        models=tuple(_read(ModelReport, model) for model in value.get("models", ())),
    )


def render(report: ServerReport, now: float | None = None, columns: int = 0) -> str:
    """Return the report as a table, for a terminal of so many columns; 0 is any number."""
    now = time.time() if now is None else now
    up, router = span(report.uptime_s), report.router
    lines = [
        f"emb-provider {report.version}: {report.state} on {report.address}, process {report.pid}, up {up}",
        f"run directory {report.run_dir}; settings read {span(now - report.settings_read)} ago",
        f"router: process {router.pid or '-'}"
        + (f" and {router.processes - 1} more" if router.processes > 1 else "")
        + f", restarted {router.restarts} times, {_mib(router.rss_bytes)}"
        + (", to be replaced" if router.renewing else "")
        + (f", inputs in quarantine: {router.quarantined}" if router.quarantined else ""),
    ]
    lines += [f"SETTINGS NOT IN USE: {escape(problem)}" for problem in report.problems]
    if report.pending_restart:
        lines.append(f"counts only after a restart of the server: {', '.join(report.pending_restart)}")
    lines += ["", *table(_HEADS, [_cells(model, now) for model in report.models], columns)]
    for model in report.models:
        if model.detail or model.reason:
            lines.append(f"  {model.model}: {model.reason}: {escape(model.detail)}".replace(": :", ":"))
    return "\n".join(lines)


_HEADS: Final = (
    "MODEL", "STATE", "PID", "GEN", "AGE", "RESTARTS", "CRASHES", "BOOT FAILS", "BREAKER",
    "QUEUE", "OLDEST BATCH", "LAST SUCCESS", "RSS",
)  # fmt: skip

#: What cells hold that tell nothing.
_NOTHING: Final = frozenset({"0", "-", "closed"})
#: The blanks between two columns.
_GAP: Final = 2


def _cells(model: ModelReport, now: float) -> tuple[str, ...]:
    state = model.state
    if model.state == "downloading" and model.total_bytes:
        state += f" {100 * model.done_bytes // model.total_bytes} % of {_mib(model.total_bytes)}"
    if model.state not in ("ready", "stopping") and model.expected_ready_s:
        state += f" (~{span(model.expected_ready_s)})"
    if model.successor:
        state += f", successor {model.successor}"
    elif model.renewing:
        state += ", to be replaced"
    if model.leaving:
        state += f", {model.leaving} leaving"
    return (
        model.model,
        state,
        str(model.pid or "-"),
        str(model.generation),
        span(model.age_s) if model.pid else "-",
        str(model.restarts),
        str(model.crashes),
        str(model.boot_failures),
        model.breaker,
        f"{model.waiting_texts} texts" if model.waiting_texts else "-",
        f"{model.running_s:.1f} s" if model.running_s else "-",
        f"{span(now - model.last_success)} ago" if model.last_success else "-",
        _mib(model.rss_bytes),
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: int = 0) -> list[str]:
    """Return lines with columns as wide as their longest cell.

    Those in which no row has anything to tell are left out where a terminal of ``columns`` is too narrow for all.
    """
    shown = list(zip(heads, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in shown]
    if columns and sum(widths) + _GAP * (len(widths) - 1) > columns:
        shown = [*shown[:1], *(column for column in shown[1:] if not _NOTHING.issuperset(column[1:]))]
        widths = [max(len(cell) for cell in column) for column in shown]
    padded = [
        [cell + " " * (width - len(cell)) for cell in column] for column, width in zip(shown, widths, strict=True)
    ]
    return [(" " * _GAP).join(row).rstrip() for row in zip(*padded, strict=True)]


def span(seconds: float) -> str:
    """Return a duration in its two largest units: 93784 is "1d 2h"."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def _mib(count: int) -> str:
    return f"{count / _MIB:.0f} MiB" if count else "-"


def _read(kind: type[Record], value: Mapping[str, Any]) -> Record:
    names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: item for name, item in value.items() if name in names})
