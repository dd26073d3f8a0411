"""``python -m tests.chaos.soak``: a restart a minute under steady load; every process has to stay as small as it was.

Once a minute a shard is killed, in turn, and the router every fourth time. Memory, descriptors and threads of the
supervisor, and of the router and each shard while they live, are sampled once a second; the slope of each is printed
and judged, for what lived long enough to have one.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.clients import Client, Load
from tests.chaos.ledger import Ledger
from tests.chaos.watch import Sample, Watch, growth, slope_per_hour
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import children_of, command_line

#: What a value may grow from the second fifth of a process's life to the last: noise, and caches that fill.
_LIMITS = {"resident_mb": 16.0, "files": 8.0, "threads": 2.0}
_SHORTEST_LIFE_S = 30.0


def soak(minutes: float, every_s: float, directory: Path) -> tuple[Ledger, Watch, int]:
    """Run it; return what became of the requests, the samples and the exit code."""
    models = {name: FaultyModel(directory / name, ms_per_batch=2.0, records=False) for name in ("en", "zh")}
    # A model that is killed every two minutes is well by the time it dies again.
    with FaultyServer(directory / "server", models, env={"EMB_PROVIDER_RESTART_STABLE_S": "20"}) as server:
        server.wait_ready()
        assert server.process is not None
        watch = Watch(server.process.pid)
        ledger = asyncio.run(_load(server, watch, minutes, every_s))
        return ledger, watch, server.stop(40)


async def _load(server: FaultyServer, watch: Watch, minutes: float, every_s: float) -> Ledger:
    load = Load(server.url, server.models, Ledger(), asyncio.Event(), itertools.count(1), think_s=0.01)
    clients = [Client(load, seed) for seed in range(6)]
    tasks = [asyncio.create_task(client.small()) for client in clients[:4]]
    tasks += [asyncio.create_task(clients[4].bulk()), asyncio.create_task(clients[5].leaving())]
    end_s = time.monotonic() + 60 * minutes
    next_s = time.monotonic() + every_s
    turns = itertools.cycle(("en", "zh", "en", "router"))
    while time.monotonic() < end_s:
        await asyncio.to_thread(watch.look)
        await asyncio.sleep(1.0)
        if time.monotonic() > next_s:
            next_s += every_s
            _kill(server, next(turns))
    load.stopping.set()
    await asyncio.gather(*tasks)
    for client in clients:
        await client.close()
    return load.ledger


def _kill(server: FaultyServer, victim: str) -> None:
    assert server.process is not None
    living = children_of(server.process.pid)
    if victim == "router":
        pids = [pid for pid in living if "router" in command_line(pid)]
    else:
        pids = [pid for pid in server.models[victim].start_pids() if pid in living]
    for pid in pids[-1:]:
        os.kill(pid, signal.SIGKILL)


def judge(watch: Watch) -> tuple[list[str], list[str]]:
    """Return a Markdown table's rows, one for each process that lived long enough, and what is wrong."""
    rows, problems = [], []
    for (role, pid), samples in sorted(watch.samples.items()):
        life_s = samples[-1].at_s - samples[0].at_s
        if life_s < _SHORTEST_LIFE_S:
            continue
        cells = [_cell(samples, what) for what in _LIMITS]
        rows.append(f"| {role} {pid} | {life_s:.0f} s | {' | '.join(cells)} |")
        problems += [
            f"{role} {pid}: {what} grew by {growth(samples, what):.1f} in {life_s:.0f} s"
            for what, limit in _LIMITS.items()
            if growth(samples, what) > limit
        ]
    if watch.lasting_zombies():
        problems.append(f"{watch.lasting_zombies()} zombies stayed")
    return rows, problems


def _cell(samples: list[Sample], what: str) -> str:
    return f"{getattr(samples[-1], what):.0f} ({growth(samples, what):+.1f}; {slope_per_hour(samples, what):+.1f}/h)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "60")))
    parser.add_argument("--every-s", type=float, default=60.0, help="seconds between restarts (default %(default)g)")
    parser.add_argument("--out", type=Path, help="write the results as JSON too")
    arguments = parser.parse_args()
    random.seed(1)
    with tempfile.TemporaryDirectory(prefix="emb-soak-", ignore_cleanup_errors=True) as directory:
        ledger, watch, exit_code = soak(arguments.minutes, arguments.every_s, Path(os.path.realpath(directory)))
    rows, problems = judge(watch)
    if not ledger.is_clean() or ledger.blamed:
        problems.append(
            f"{ledger.lost} lost, {ledger.wrong} wrong, {ledger.duplicate} duplicate, {ledger.blamed} blamed"
        )
    if exit_code:
        problems.append(f"exit code {exit_code}")
    print("| process | watched | MB (growth; slope) | descriptors | threads |\n|---|---:|---:|---:|---:|")
    print("\n".join(rows))
    print(
        f"{ledger.answered} requests answered, {ledger.vectors_checked} vectors right, {ledger.cut} cut and asked again"
    )
    if arguments.out is not None:
        result = {"rows": rows, "problems": problems, "answered": ledger.answered, "lost": ledger.lost}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    for problem in [*problems, *ledger.notes]:
        print("FAILED:", problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
