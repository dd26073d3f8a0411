"""What a run found: a table for people and a file for machines."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.card import describe_card
from benchmarks.figure import Figure
from benchmarks.setting import Setting

_PACKAGES: Final = (
    "emb-model-provider",
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "onnxruntime",
    "aiohttp",
    "uvloop",
    "numpy",
)
#: The kernel's own threads and a quiet system take less.
_DISTURBED: Final = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One function's outcome: its figures, or why there are none.

    ``others_share`` is the part of the CPUs' time, 0 to 1, that went to processes that are not ours.
    """

    name: str
    seconds: float
    figures: Sequence[Figure] = ()
    error: str = ""
    others_share: float = 0.0


def lines(row: Row) -> Iterator[str]:
    """Return the table's lines for a row: each figure, and what it is made of below it."""
    if row.error:
        yield f"FAILED  {row.name}: {row.error}"
    for figure in row.figures:
        verdict, limit = "      ", ""
        if figure.target is not None:
            verdict = "met   " if figure.met else "MISSED"
            limit = f"{'≥' if figure.bound == 'at least' else '≤'} {_number(figure.target)} "
        yield f"{verdict}  {figure.name:<72} {_number(figure.value):>9} {limit}{figure.unit}"
        if figure.note:
            yield f"          {figure.note}"
        for name, value in figure.parts.items():
            yield f"          {name}: {value}"
    disturbed = row.others_share > _DISTURBED
    others = f", DISTURBED: others used {row.others_share:.0%} of the CPUs" if disturbed else ""
    yield f"          [{row.seconds:.0f} s{others}]"


def document(rows: Sequence[Row], setting: Setting, facts: Mapping[str, object]) -> str:
    """Return everything as JSON: machine, versions, date, each figure with its parts, each failure with its reason.

    ``facts`` are those of ``machine``.
    """
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "cpus": list(setting.cpus),
        "device": setting.device,
        "precision": setting.precision,
        "model": str(setting.model_directory),
        "load_average": list(os.getloadavg()),
        "quick": setting.quick,
        "versions": versions(),
        "rows": [
            {
                "name": row.name,
                "seconds": round(row.seconds, 1),
                "others_cpu_share": round(row.others_share, 3),
                "error": row.error,
                "figures": [{**asdict(figure), "met": figure.met} for figure in row.figures],
            }
            for row in rows
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def machine(device: str = "cpu") -> dict[str, object]:
    """Return the processor's name, the cores of the machine and the widest instructions that matter here.

    With a CUDA device, what ``card`` knows of it, too; raises ``WorkerError`` where there is none.
    """
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags.group(1).split()) if flags else set()
    facts: dict[str, object] = {
        "processor": name.group(1) if name else platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in known],
        "kernel": platform.release(),
    }
    return facts if device == "cpu" else facts | {"card": describe_card(device)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide; those that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
