"""``python -m benchmarks``: measure, print a table, write a file. Exit code 1 when a figure could not be measured.

It measures on the CPU, or with ``--device cuda:0`` on a card, where some rows say nothing and are left out.

A missed target is shown as missed and changes no exit code: it is a finding, and on another machine another one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bare_engine import PRECISIONS
from benchmarks.disturbance import others_share, usage
from benchmarks.figure import Figure
from benchmarks.figures import ALL, ON_CARD
from benchmarks.processes import end_what_was_started
from benchmarks.report import Row, document, lines, machine
from benchmarks.setting import Setting, find_model, take_cpus
from benchmarks.worker import WorkerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the figures that are asked for; return the exit code."""
    options = _options(arguments)
    if options.list:
        for name in _rows(options.device):
            print(f"{name:<24}{(ALL[name].__doc__ or '').splitlines()[0]}")
        return 0
    end_what_was_started()
    try:
        model = find_model() if options.model is None else options.model.resolve(strict=True)
        cpus = take_cpus(options.cores)
        setting = Setting(model, cpus, options.quick, options.device, options.precision)
        facts = machine(setting.device)
    except (OSError, ValueError, WorkerError) as error:
        print(error, file=sys.stderr)
        return 2
    print(_title(setting, facts), flush=True)
    rows = []
    for name in options.only or _rows(options.device):
        row = _measure(name, setting)
        rows.append(row)
        print("\n".join([*lines(row), ""]), flush=True)
    print(_verdict(rows))
    if options.out is not None:
        options.out.write_text(document(rows, setting, facts), encoding="utf-8")
    return 1 if any(row.error for row in rows) else 0


def _rows(device: str) -> Sequence[str]:
    return tuple(ALL) if device == "cpu" else ON_CARD


def _title(setting: Setting, facts: Mapping[str, object]) -> str:
    lines = [f"{facts['processor']}, {setting.threads} of {facts['cores']} cores, {facts['instructions']}"]
    card = facts.get("card")
    if isinstance(card, Mapping):
        lines.append(f"{card['name']} in {setting.precision}, CUDA {card['cuda']}, driver {card['driver']}")
    return "\n".join([*lines, ""])


def _measure(name: str, setting: Setting) -> Row:
    before = usage(setting.cpus)
    figures: Sequence[Figure] = ()
    reason = ""
    try:
        figures = ALL[name](setting)
    except Exception as error:  # noqa: BLE001 - one figure that fails must not hide the others
        reason = f"{type(error).__name__}: {error}"
    after = usage(setting.cpus)
    return Row(name, after.clock_s - before.clock_s, figures, reason, others_share(before, after, setting.threads))


def _verdict(rows: Sequence[Row]) -> str:
    figures = [figure for row in rows for figure in row.figures if figure.target is not None]
    failed = [row.name for row in rows if row.error]
    missed = [figure.name for figure in figures if not figure.met]
    sentence = f"{len(figures) - len(missed)} of {len(figures)} targets met"
    if missed:
        sentence += "; missed: " + "; ".join(missed)
    if failed:
        sentence += "; failed to run: " + ", ".join(failed)
    return f"{sentence}. {sum(row.seconds for row in rows):.0f} s in all."


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; one that cannot be carried out ends the program."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.precision = options.precision or ("fp32" if options.device == "cpu" else "fp16")
    known = _rows(options.device)
    if wrong := [name for name in options.only or () if name not in known]:
        parser.error(f"argument --only: not measured on a CUDA device: {', '.join(wrong)} (only {', '.join(known)})")
    return options


def _device(text: str) -> str:
    """Return ``cpu`` or ``cuda:N``."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"it must be cpu, cuda or cuda:N, such as cuda:0, and not {text!r}")
    return "cuda:0" if text == "cuda" else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this server beside its limits.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ALL, help="only these rows (see --list)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for a first look")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="CPU cores to use (default 2)")
    parser.add_argument("--device", type=_device, default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp32 on the CPU, fp16 on a CUDA device")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a BERT-like model (default all-MiniLM-L6-v2)")
    parser.add_argument("--list", action="store_true", help="list the rows and measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
