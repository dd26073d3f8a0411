"""``python -m benchmarks``: measure, print a table, write a file. Exit code 1 when a figure could not be measured.

A missed target is shown as missed and changes no exit code: it is a finding, and on another machine another one.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.disturbance import others_share, usage
from benchmarks.figure import Figure
from benchmarks.figures import ALL
from benchmarks.report import Row, document, lines, machine
from benchmarks.setting import Setting, find_model, take_cpus


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the figures that are asked for; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, function in ALL.items():
            print(f"{name:<24}{(function.__doc__ or '').splitlines()[0]}")
        return 0
    try:
        setting = Setting(find_model(), take_cpus(options.cores), quick=options.quick)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    # Whoever ends a run ends what it started, too: as an exception this passes through every ``with``.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    facts = machine()
    print(f"{facts['processor']}, {setting.threads} of {facts['cores']} cores, {facts['instructions']}\n", flush=True)
    rows = []
    for name in options.only or ALL:
        row = _measure(name, setting)
        rows.append(row)
        print("\n".join([*lines(row), ""]), flush=True)
    print(_verdict(rows))
    if options.out is not None:
        options.out.write_text(document(rows, cpus=setting.cpus, quick=setting.quick), encoding="utf-8")
    return 1 if any(row.error for row in rows) else 0


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
    figures = [figure for row in rows for figure in row.figures]
    failed = [row.name for row in rows if row.error]
    missed = [figure.name for figure in figures if not figure.met]
    sentence = f"{len(figures) - len(missed)} of {len(figures)} targets met"
    if missed:
        sentence += "; missed: " + "; ".join(missed)
    if failed:
        sentence += "; failed to run: " + ", ".join(failed)
    return f"{sentence}. {sum(row.seconds for row in rows):.0f} s in all."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure this server beside its limits.")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ALL, help="only these rows (see --list)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, for a first look")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="CPU cores to use (default 2)")
    parser.add_argument("--list", action="store_true", help="list the rows and measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
