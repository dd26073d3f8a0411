"""``python -m benchmarks.peers``: measure the other servers beside ours, print a table, write a file.

Ours runs beside each of them and is measured again with each, in turns; whichever is not asked is idle.
A peer that cannot be installed or started is shown with the reason; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers.peers import PEERS, running
from benchmarks.peers.workload import Result, Vectors, measure_in_turns, vectors
from benchmarks.processes import end_what_was_started
from benchmarks.report import machine
from benchmarks.serving import serving
from benchmarks.setting import Setting, find_model, take_cpus

_Pair = tuple[Result, Result]

_SAME = 0.999
_COLUMNS = {
    "bulk_texts_per_s": "bulk, texts/s",
    "singles_per_s": "short singles, 1/s",
    "one_p50_ms": "one text, p50 ms",
    "one_p99_ms": "p99 ms",
    "rare_p50_ms": "after a pause, p50 ms",
    "under_bulk_p50_ms": "short under bulk, p50 ms",
    "under_bulk_p99_ms": "p99 ms ",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each peer and ours in turns; return the exit code."""
    options = _parser().parse_args(arguments)
    end_what_was_started()
    setting = Setting(find_model(), take_cpus(options.cores))
    print(_head(), flush=True)
    pairs: dict[str, _Pair] = {}
    failures: dict[str, str] = {}
    with serving(setting) as server, tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        expected = vectors(server.port)
        for name in options.only or PEERS:
            try:
                environments = options.environments or Path(temporary)
                with running(PEERS[name], environments, setting.model_directory, setting.threads) as port:
                    _compare(vectors(port), expected)
                    pairs[name] = ours, theirs = measure_in_turns((server.port, port), quick=options.quick)
            except Exception as error:  # noqa: BLE001 - one peer that fails must not hide the others
                failures[name] = f"{type(error).__name__}: {error}"
                print(f"{name:<12} not measured: {failures[name]}", flush=True)
            else:
                print(_line("ours", ours), _line(name, theirs), _ratios(ours, theirs), sep="\n", flush=True)
    if options.out is not None:
        options.out.write_text(_document(pairs, failures, quick=options.quick), encoding="utf-8")
    return 1 if failures else 0


def _compare(found: Vectors, expected: Vectors) -> None:
    cosine = float((found * expected).sum(axis=1).min())
    if cosine < _SAME:
        raise RuntimeError(f"its vectors are others than ours: cosine {cosine:.4f}")


def _head() -> str:
    return " ".join([f"{'':<12}", *(f"{title:>{_width(title)}}" for title in _COLUMNS.values())])


def _line(name: str, result: Result) -> str:
    values = asdict(result)
    cells = [f"{values[column]:>{_width(title)},.1f}" for column, title in _COLUMNS.items()]
    return " ".join([f"{name:<12}", *cells])


def _ratios(ours: Result, theirs: Result) -> str:
    """Return how many times better ours is: more per second, or a shorter wait."""
    mine, other = asdict(ours), asdict(theirs)
    cells = []
    for column, title in _COLUMNS.items():
        better = other[column] / mine[column] if column.endswith("_ms") else mine[column] / other[column]
        cells.append(f"{better:>{_width(title) - 1}.1f}x")
    return " ".join([f"{'  ours, by':<12}", *cells])


def _width(title: str) -> int:
    return max(len(title), 9)


def _document(pairs: dict[str, _Pair], failures: dict[str, str], *, quick: bool) -> str:
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "quick": quick,
        "peers": {name: {"ours": asdict(ours), "theirs": asdict(theirs)} for name, (ours, theirs) in pairs.items()},
        "failures": failures,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Measure other servers beside this one: same model, texts, load."
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=PEERS, help=f"only these of {', '.join(PEERS)}")
    parser.add_argument("--quick", action="store_true", help="shorter loads, for a first look")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="CPU cores to use (default 2)")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", help="where to keep the peers' environments (default: nowhere)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
