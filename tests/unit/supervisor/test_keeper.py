"""One keeper with children that are no processes."""

import asyncio
import re
import resource

import pytest

from emb_model_provider.errors import EXIT_CONFIGURATION, EXIT_NO_THREAD
from emb_model_provider.messages.status import LoadProgress, Progress, Ready
from supervisor import keeper as keeper_module
from supervisor import watchdog as watchdog_module
from supervisor.child import Launch
from supervisor.keeper import Death, Keeper, describe_exit
from supervisor.restarts import RestartLimits, RestartPolicy
from supervisor.watchdog import Watchdog, WatchLimits
from tests.support.statuses import make_info

QUICK = RestartLimits(first_delay_s=0.01, max_delay_s=0.02, intensity=5, probe_s=3600)


class FakeChild:
    def __init__(self, pid: int, on_message, *, is_still: bool = True) -> None:
        self.pid = pid
        self.is_still = is_still
        self.is_stopped = False
        self.looks = 0
        self.on_message = on_message
        self.code = asyncio.get_running_loop().create_future()
        self.signals: list[str] = []
        self.heeds = True

    def stands_still(self) -> bool:
        self.looks += 1
        return self.is_still

    def end(self, code: int) -> None:
        if not self.code.done():
            self.code.set_result(code)

    def send(self, message) -> None:
        self.signals.append(str(message))

    def request_end(self) -> None:
        self.signals.append("SIGTERM")
        if self.heeds:
            self.end(0)

    def kill(self) -> None:
        self.signals.append("KILL")
        if self.heeds:
            self.end(-9)

    async def abort(self) -> None:
        self.signals.append("ABORT")
        self.end(-6)

    async def wait(self) -> int:
        return await self.code


class Owner:
    """Implements ``Kept`` and ``Lines``."""

    name = "child"

    def __init__(self) -> None:
        self.deaths: asyncio.Queue[Death] = asyncio.Queue()
        self.hangs: list[str] = []
        self.messages: list[object] = []
        self.breaks = False
        self.ended = 0

    def launch(self, generation):
        return Launch("package", {}, ())

    def on_message(self, message):
        self.messages.append(message)

    def on_hung(self, why):
        self.hangs.append(why)
        if self.breaks:
            raise ZeroDivisionError

    def on_died(self, death):
        self.deaths.put_nowait(death)
        if self.breaks:
            raise ZeroDivisionError

    def take(self, line):
        """Nobody writes."""

    def end(self):
        self.ended += 1


class World:
    """What ``spawn`` makes here, and the keeper under test."""

    def __init__(self, monkeypatch, restarts=QUICK, watch=WatchLimits()) -> None:  # noqa: B008
        self.owner = Owner()
        self.children: asyncio.Queue[FakeChild] = asyncio.Queue()
        self.failures: list[Exception] = []
        self.spawned = 0
        self.are_still = True
        monkeypatch.setattr(keeper_module, "spawn", self._spawn)
        self.keeper = Keeper(self.owner, RestartPolicy(restarts, lambda: 1.0), Watchdog(watch), self.owner)

    async def _spawn(self, launch, on_message, on_line):
        self.spawned += 1
        if self.failures:
            raise self.failures.pop(0)
        child = FakeChild(self.spawned, on_message, is_still=self.are_still)
        self.children.put_nowait(child)
        return child

    async def child(self) -> FakeChild:
        return await asyncio.wait_for(self.children.get(), 5)

    async def death(self) -> Death:
        return await asyncio.wait_for(self.owner.deaths.get(), 5)


@pytest.fixture
async def make_world(monkeypatch):
    worlds = []

    def make(**limits) -> World:
        world = World(monkeypatch, **limits)
        worlds.append(world)
        world.keeper.start()
        return world

    yield make
    for world in worlds:
        await world.keeper.stop(5)


async def test_a_child_that_dies_is_followed_by_another(make_world):
    world = make_world()
    (await world.child()).end(-9)
    death = await world.death()
    assert (death.exit_code, death.was_ready, death.breaker) == (-9, False, "closed")
    second = await world.child()
    second.on_message(Ready(make_info()))
    second.end(-11)
    assert (await world.death()).was_ready
    assert (world.keeper.boot_failures, world.keeper.crashes) == (1, 1)


@pytest.mark.parametrize("failure", [OSError("no memory"), RuntimeError("a mistake of ours")])
async def test_a_child_that_cannot_even_be_spawned_is_one_more_death(make_world, failure):
    world = make_world()
    world.failures.append(failure)
    assert (await world.death()).exit_code == 126
    assert (await world.child()).pid == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(11, "Resource temporarily unavailable"), r"Resource temporarily unavailable \(see ulimit -a .*\)$"),
        (OSError(24, "Too many open files"), r"Too many open files \(see ulimit -n\)$"),
        (OSError(12, "Cannot allocate memory"), r"Cannot allocate memory \(see ulimit -v and the free memory\)$"),
        (OSError(2, "No such file or directory", "/venv/bin/python"), "directory: '/venv/bin/python'$"),
    ],
)
async def test_why_no_process_could_be_made_is_told(make_world, error, told):
    world = make_world()
    world.failures.append(error)
    assert re.search("^could not be made: .*" + told, (await world.death()).how)
    (await world.child()).end(1)
    assert (await world.death()).how == "exited with code 1"


async def test_an_owner_that_breaks_does_not_leave_the_child_dead_or_hanging(make_world):
    world = make_world(watch=WatchLimits(startup_s=0.1))
    world.owner.breaks = True
    first = await world.child()
    await world.death()
    assert first.signals == ["ABORT"]
    assert (await world.child()).pid == 2


async def test_a_child_that_hangs_is_aborted_and_its_owner_told_before_it_is_gone(make_world):
    world = make_world(watch=WatchLimits(silence_s=0.2))
    child = await world.child()
    child.on_message(Ready(make_info()))
    death = await world.death()
    assert child.signals == ["ABORT"]
    assert len(world.owner.hangs) == 1
    assert "no sign of life" in death.how
    assert death.how.endswith("and was ended")


async def test_a_child_that_hangs_writes_its_stacks_also_where_its_owner_wants_it_no_more(make_world):
    world = make_world(watch=WatchLimits(startup_s=0.1))
    child = await world.child()
    world.owner.on_hung = lambda _why: world.keeper.kill()
    await asyncio.wait_for(child.wait(), 5)
    assert child.signals == ["ABORT"]


async def test_what_a_person_must_change_waits_for_a_person(make_world):
    world = make_world()
    (await world.child()).end(EXIT_CONFIGURATION)
    assert (await world.death()).restart_in_s is None
    await asyncio.sleep(0.1)
    assert world.spawned == 1
    world.keeper.revive()
    assert (await world.child()).pid == 2


async def test_a_breaker_that_is_open_is_reported_and_ended_by_a_person(make_world):
    world = make_world()
    for _ in range(6):
        (await world.child()).end(1)
        death = await world.death()
    assert death.breaker == world.keeper.breaker == "open"
    assert death.restart_in_s == 3600
    world.keeper.revive()
    await world.child()
    assert world.keeper.breaker == "closed"


async def test_a_start_that_stands_still_is_ended_with_its_stacks_and_who_serves_is_not_looked_at(
    make_world, monkeypatch
):
    monkeypatch.setattr(watchdog_module, "_LEAST_STANDSTILL_S", 0.05)
    world = make_world(watch=WatchLimits(silence_s=0.02))
    blocked = await world.child()
    assert "stood still" in (await world.death()).ended_because
    assert blocked.signals == ["ABORT"]
    served = await world.child()
    served.on_message(Ready(make_info()))
    looks = served.looks
    await world.death()
    assert served.looks == looks


async def test_a_start_that_runs_is_not_ended_however_long_it_says_nothing(make_world, monkeypatch):
    monkeypatch.setattr(watchdog_module, "_LEAST_STANDSTILL_S", 0.02)
    world = make_world(watch=WatchLimits(silence_s=0.01))
    world.are_still = False
    child = await world.child()
    await asyncio.sleep(0.2)
    assert child.looks
    assert child.signals == []


async def test_a_child_is_ready_once_however_often_it_reports(make_world, monkeypatch):
    world, ready = make_world(), []
    monkeypatch.setattr(world.keeper._policy, "became_ready", ready.append)
    child = await world.child()
    for message in (LoadProgress("loading"), Ready(make_info()), Progress(0, 0.0, 0, 0, 0)):
        child.on_message(message)
        assert len(ready) == (not isinstance(message, LoadProgress))


async def test_what_a_process_wrote_last_is_written_at_each_ones_end(make_world):
    world = make_world()
    for ended in (0, 1):
        child = await world.child()
        assert world.owner.ended == ended
        child.end(1)
        await world.death()
    await world.child()
    assert await world.keeper.stop(5)
    assert world.owner.ended == 3


async def test_who_was_never_started_is_stopped_at_once(monkeypatch):
    world = World(monkeypatch)
    assert await world.keeper.stop(5)
    assert world.spawned == 0


async def test_a_child_that_is_stopped_has_no_successor_and_is_no_death(make_world):
    world = make_world()
    child = await world.child()
    assert await world.keeper.stop(5)
    assert child.signals == ["SIGTERM"]
    assert world.owner.deaths.empty()
    assert world.spawned == 1


async def test_a_stop_in_the_pause_before_a_restart_ends_the_pause(make_world):
    world = make_world(restarts=RestartLimits(first_delay_s=3600, max_delay_s=3600))
    (await world.child()).end(1)
    await world.death()
    assert await asyncio.wait_for(world.keeper.stop(5), 1)
    assert world.spawned == 1


async def test_a_process_that_even_sigkill_does_not_end_cannot_hold_up_the_stop(make_world, monkeypatch):
    monkeypatch.setattr(keeper_module, "_REAP_S", 0.1)
    world = make_world()
    child = await world.child()
    child.heeds = False
    assert not await asyncio.wait_for(world.keeper.stop(0.1), 2)
    assert child.signals == ["SIGTERM", "KILL"]


async def test_why_one_process_was_ended_is_not_said_of_the_next(make_world):
    world = make_world()
    first = await world.child()
    assert (world.keeper.generation, world.keeper.pid) == (1, first.pid)
    world.keeper.replace("answered nonsense")
    assert first.signals == ["KILL"]
    assert (await world.death()).how == "answered nonsense and was ended"
    second = await world.child()
    second.end(-11)
    assert (await world.death()).how == "was killed by SIGSEGV"
    await world.child()
    assert world.keeper.generation == 3


async def test_in_the_pause_before_a_restart_nobody_is_there_to_be_told_watched_or_killed(make_world):
    world = make_world(restarts=RestartLimits(first_delay_s=3600, max_delay_s=3600))
    child = await world.child()
    world.keeper.send(Ready(make_info()))
    assert child.signals == [str(Ready(make_info()))]
    child.end(1)
    await world.death()
    world.keeper.send(Ready(make_info()))
    world.keeper.replace("answered nonsense")
    assert len(child.signals) == 1
    assert world.keeper.pid == 0
    await asyncio.sleep(0)
    assert "watch child" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_person_who_asks_while_a_child_lives_does_not_shorten_the_pause_after_its_death(make_world):
    world = make_world(restarts=RestartLimits(first_delay_s=3600, max_delay_s=3600))
    child = await world.child()
    world.keeper.revive()
    child.end(1)
    await world.death()
    await asyncio.sleep(0.05)
    assert world.spawned == 1


async def test_other_limits_on_hangs_hold_from_the_next_child_on(make_world):
    world = make_world()
    first = await world.child()
    limits = WatchLimits(startup_s=0.1, silence_s=0.4)
    world.keeper.retune(QUICK, limits)
    assert world.keeper.report_every_s == limits.report_every_s == 0.1
    await asyncio.sleep(0.3)
    assert first.signals == []
    first.end(1)
    await world.death()
    second = await world.child()
    assert "made no progress" in (await world.death()).how
    assert second.signals == ["ABORT"]


async def test_a_stop_while_the_process_is_being_made_reaches_it(make_world, monkeypatch):
    made = asyncio.Event()
    world = make_world()

    async def spawn_slowly(*arguments):
        await made.wait()
        return await world._spawn(*arguments)

    monkeypatch.setattr(keeper_module, "spawn", spawn_slowly)
    stopping = asyncio.create_task(world.keeper.stop(5))
    await asyncio.sleep(0.01)
    made.set()
    assert await asyncio.wait_for(stopping, 1)
    assert (await world.child()).signals == ["SIGTERM"]


def test_ends_are_told_in_words():
    assert describe_exit(-9) == "was killed by SIGKILL, perhaps out of memory"
    assert describe_exit(-11) == "was killed by SIGSEGV"
    assert describe_exit(-40) == "was killed by signal 40"
    assert describe_exit(-99) == "was killed by signal 99"
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(0) == "exited with code 0, although nobody had asked it to"


def test_a_limit_on_memory_is_named_wherever_a_process_ends_by_itself(monkeypatch):
    limits = {resource.RLIMIT_AS: 300_000 * 1024, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
    assert describe_exit(1) == "exited with code 1, perhaps for want of memory under ulimit -v 300000"
    assert describe_exit(-6) == "was killed by SIGABRT, perhaps for want of memory under ulimit -v 300000"
    assert "ulimit" not in describe_exit(0)
    limits[resource.RLIMIT_DATA] = 1024
    assert describe_exit(1).endswith("under ulimit -v 300000, ulimit -d 1")


def test_a_library_that_finds_no_thread_ends_its_process_in_its_own_way():
    assert describe_exit(-2).startswith("was killed by SIGINT, perhaps as no thread could be started (see ulimit -u")


def test_a_process_without_a_thread_is_told_of_with_the_limits_to_raise(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, -1))
    said = describe_exit(EXIT_NO_THREAD)
    assert said.startswith("could start no thread: raise the limit of processes (ulimit -u, ")
    assert "code" not in said
