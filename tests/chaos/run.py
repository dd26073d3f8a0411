"""One chaos run: a server of three models, steady load, faults at random moments, and the count at the end."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from emb_model_provider import setting_table
from tests.chaos.clients import POISONS, Client, Load
from tests.chaos.faults import FAULTS, Target
from tests.chaos.ledger import Ledger
from tests.chaos.table import Ending, Report
from tests.chaos.watch import Watch
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.leaks import processes_in

#: Restarts come as fast as faults do, so that the run meets the next fault and not the breaker's long pause.
_ENV = {
    "EMB_PROVIDER_RESTART_DELAY_S": "0.2",
    "EMB_PROVIDER_RESTART_MAX_DELAY_S": "2",
    "EMB_PROVIDER_RESTART_LIMIT": "1000",
    "EMB_PROVIDER_SILENCE_TIMEOUT_S": "5",
    "EMB_PROVIDER_BATCH_TIMEOUT_S": "5",
    "EMB_PROVIDER_REQUEST_TIMEOUT_S": "60",
    "EMB_PROVIDER_READY_WAIT_S": "30",
    "EMB_PROVIDER_QUARANTINE_S": "20",
    "EMB_PROVIDER_LOG_FILE": "server.log",
    "EMB_PROVIDER_SHUTDOWN_GRACE_S": "20",
}
_MODELS = {
    "en": {"ms_per_batch": 2.0, "ms_per_token": 0.01},
    "zh": {"ms_per_batch": 4.0, "ms_per_token": 0.02},
    "slow": {"ms_per_batch": 10.0, "ms_per_token": 0.05, "load_s": 1.0},
}
_RECOVERY_LIMIT_S = 60.0
_REST_S = 3.0


@dataclass
class Chaos:
    """A run in progress."""

    seconds: float
    seed: int
    kinds: tuple[str, ...] = tuple(FAULTS)
    injected: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    unrecovered: int = 0

    def run(self, directory: Path) -> Report:
        """Run it; the server's directory is kept where ``directory`` says."""
        models = {name: FaultyModel(directory / name, **manner) for name, manner in _MODELS.items()}
        known = {setting.name for setting in vars(setting_table).values() if isinstance(setting, setting_table.Setting)}
        env = {name: value for name, value in _ENV.items() if name in known}
        server = FaultyServer(directory / "server", models, env=env).start()
        try:
            server.wait_ready()
            assert server.process is not None
            watch = Watch(server.process.pid)
            ledger = asyncio.run(self._go(server, watch))
            restarts = sum(max(0, len(model.start_pids()) - 1) for model in models.values())
            exit_code = server.stop(40)
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()
        time.sleep(0.5)
        ending = Ending(
            exit_code=exit_code,
            processes_left=len(processes_in(server.directory)),
            sockets_left=sum(path.is_socket() for path in server.run_directory.rglob("*")),
            zombies=watch.lasting_zombies(),
            unrecovered=self.unrecovered,
            encoded_again=sum(count - 1 for model in models.values() for count in Counter(model.encoded()).values()),
            restarts=restarts,
        )
        samples = {role: watch.longest(role) for role in ("supervisor", "router", "shard")}
        return Report(self.seconds, self.seed, self.injected, self.recovery_s, ledger, samples, ending)

    async def _go(self, server: FaultyServer, watch: Watch) -> Ledger:
        rng = random.Random(self.seed)
        load = Load(server.url, server.models, Ledger(), asyncio.Event(), itertools.count(1))
        clients = [Client(load, rng.randrange(2**32)) for _ in range(13)]
        work: list[Coroutine[object, object, None]] = [client.small() for client in clients[:6]]
        work += [client.bulk() for client in clients[6:8]]
        work += [clients[8].leaving(), clients[9].poison(POISONS, 1.0), clients[12].crowd()]
        target = Target(server, clients[10], rng)
        watching = asyncio.create_task(self._watch(watch))
        tasks = [asyncio.create_task(one) for one in work]
        recoveries = await self._break(target, clients[11])
        await asyncio.gather(*recoveries)
        load.stopping.set()
        await asyncio.gather(*tasks)
        await asyncio.sleep(_REST_S)
        watching.cancel()
        for client in clients:
            await client.close()
        return load.ledger

    async def _break(self, target: Target, prober: Client) -> list[asyncio.Task[None]]:
        """Do one fault after the other, every kind before any comes twice; return what is still recovering."""
        recoveries: list[asyncio.Task[None]] = []
        end_s = time.monotonic() + self.seconds
        bag: list[str] = []
        while time.monotonic() < end_s:
            await asyncio.sleep(target.rng.uniform(1.5, 5.0))
            if not bag:
                bag = sorted(self.kinds)
                target.rng.shuffle(bag)
            name = bag.pop()
            self.injected[name] += 1
            recoveries.append(asyncio.create_task(self._do(name, target, prober)))
        return recoveries

    async def _do(self, name: str, target: Target, prober: Client) -> None:
        began_s = time.monotonic()
        models = await FAULTS[name](target)
        for model_id in models:
            while await prober.probe(model_id) != 200:
                if time.monotonic() - began_s > _RECOVERY_LIMIT_S:
                    self.unrecovered += 1
                    break
                await asyncio.sleep(0.1)
        if models:
            self.recovery_s.setdefault(name, []).append(time.monotonic() - began_s)

    async def _watch(self, watch: Watch) -> None:
        while True:
            await asyncio.to_thread(watch.look)
            await asyncio.sleep(1.0)


def run(seconds: float, seed: int, kinds: tuple[str, ...], keep: Path | None = None) -> Report:
    """Run for so many seconds; ``keep`` is where logs and models stay to be looked at."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        return Chaos(seconds, seed, kinds).run(keep.resolve())
    with tempfile.TemporaryDirectory(prefix="emb-chaos-", ignore_cleanup_errors=True) as directory:
        return Chaos(seconds, seed, kinds).run(Path(os.path.realpath(directory)))
