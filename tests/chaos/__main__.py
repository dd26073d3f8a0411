"""``python -m tests.chaos``: everything that can go wrong, at random, under load; exit code 1 if anything was wrong.

It prints one table. Lost, wrong and duplicate answers, leftovers and faults without recovery must all be 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long faults go on (default %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed brings the same faults in the same order")
    parser.add_argument("--out", type=Path, help="write the results as JSON too")
    parser.add_argument("--keep", type=Path, help="keep the server's logs and models in this directory")
    parser.add_argument("--without", action="append", default=[], choices=sorted(FAULTS), help="a fault to leave out")
    parser.add_argument("--only", action="append", default=[], choices=sorted(FAULTS), help="the faults to choose from")
    arguments = parser.parse_args()
    kinds = tuple(name for name in arguments.only or FAULTS if name not in arguments.without)
    report = run(arguments.seconds, arguments.seed, kinds, arguments.keep)
    print(report.render())
    for note in report.ledger.notes:
        print("note:", note)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
    for problem in report.problems():
        print("FAILED:", problem, file=sys.stderr)
    return 1 if report.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
