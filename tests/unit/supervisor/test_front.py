"""The routers' seats, with routers that are no processes: their keepers note what they are told."""

import asyncio

import pytest

from emb_model_provider.messages.configs import LogConfig, RouterConfig, Surroundings
from emb_model_provider.messages.status import (
    Acquitted,
    Heartbeat,
    Progress,
    Quarantined,
    RestartShard,
    RouterReady,
    ShardTable,
)
from supervisor.front import Front
from supervisor.keeper import Death
from supervisor.posts import KILL_MARGIN_S
from tests.support.no_keeper import NoKeeper
from tests.support.statuses import make_status

CONFIG = RouterConfig(LogConfig("INFO", "plain"), (b"a",), 30.0, 1024, 7.0, 600.0)
LIVE = CONFIG.replace(ready_wait_s=1.0)
OTHER = CONFIG.replace(max_request_bytes=99)


class RouterKeeper(NoKeeper):
    def __init__(self, router) -> None:
        super().__init__()
        self.router = router
        self.goes_by_itself = True

    def send(self, message) -> None:
        self.told.append(message)

    async def stop(self, grace_s: float) -> bool:
        self.told.append(f"stop within {grace_s}")
        await self.gone.wait()
        return self.goes_by_itself

    def kill(self) -> None:
        self.told.append("kill")


class Timer:
    def __init__(self, when_s: float, call) -> None:
        self.when_s = when_s
        self.call = call
        self.is_cancelled = False

    def when(self) -> float:
        return self.when_s

    def cancel(self) -> None:
        self.is_cancelled = True


class House:
    """Everything around a front, and the front. Implements ``FrontOwner``."""

    def __init__(self, monkeypatch, routers: int) -> None:
        self.keepers: list[RouterKeeper] = []
        self.heard: list[object] = []
        self.failures: list[tuple[str, str]] = []
        self.timers: list[Timer] = []
        self.rows = ("first",)
        self.config = CONFIG.replace(around=Surroundings(routers=routers))
        self.now_s = 100.0
        self.front = Front(self.config, self, self._keep, self._table, self)
        monkeypatch.setattr("supervisor.front.asyncio", _Asyncio(self))

    def _keep(self, router) -> RouterKeeper:
        self.keepers.append(RouterKeeper(router))
        return self.keepers[-1]

    def _table(self) -> ShardTable:
        return ShardTable(tuple(make_status(name) for name in self.rows))

    def told(self, number: int) -> list[object]:
        return self.keepers[number].told

    def tables(self, number: int) -> list[list[str]]:
        return [[row.model_id for row in one.shards] for one in self.told(number) if isinstance(one, ShardTable)]

    def configs(self, number: int) -> list[RouterConfig]:
        return [one for one in self.told(number) if isinstance(one, RouterConfig)]

    def words(self, number: int) -> list[str]:
        return [one for one in self.told(number) if isinstance(one, str)]

    def pending(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.is_cancelled]

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for timer in self.pending():
            if timer.when_s <= self.now_s:
                self.timers.remove(timer)
                timer.call()

    def hear(self, number: int, message) -> None:
        self.keepers[number].router.on_message(message)

    # ``Listening``

    def descriptors(self, index: int) -> tuple[int, ...]:
        return (50 + index,)

    def close(self) -> None:
        self.heard.append(("closed", [len(keeper.told) for keeper in self.keepers]))

    # ``FrontOwner``

    def front_opened(self, pid: int) -> None:
        self.heard.append(pid)

    def front_failed(self, name: str, how: str) -> None:
        self.failures.append((name, how))

    def shard_demanded(self, request: RestartShard) -> None:
        self.heard.append(request)

    def shard_acquitted(self, model_id: str) -> None:
        self.heard.append(f"acquitted {model_id}")

    def front_lost(self) -> None:
        self.heard.append("lost")


class _Asyncio:
    """``asyncio`` with a loop of ``House``'s clock."""

    def __init__(self, house: House) -> None:
        self._house = house

    def __getattr__(self, name: str):
        return getattr(asyncio, name)

    def get_running_loop(self):
        return self

    def time(self) -> float:
        return self._house.now_s

    def call_later(self, delay_s: float, call) -> Timer:
        self._house.timers.append(Timer(self._house.now_s + delay_s, call))
        return self._house.timers[-1]


@pytest.fixture
async def make_house(monkeypatch):
    houses = []

    def make(routers: int = 1) -> House:
        house = House(monkeypatch, routers)
        houses.append(house)
        house.front.start()
        return house

    yield make
    for keeper in (keeper for house in houses for keeper in house.keepers):
        keeper.gone.set()
    await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------------- pushing


async def test_a_burst_of_changes_is_one_push_of_the_newest_table(make_house):
    house = make_house()
    house.front.push()
    house.pass_time(0.019)
    house.rows = ("second",)
    house.front.push()
    assert house.tables(0) == []
    house.pass_time(0.002)
    assert house.tables(0) == [["second"]]
    house.pass_time(10)
    assert house.tables(0) == [["second"]]


async def test_the_next_change_is_pushed_again(make_house):
    house = make_house()
    for expected in (1, 2):
        house.front.push()
        house.pass_time(0.021)
        assert len(house.tables(0)) == expected


async def test_what_only_moves_a_number_waits_for_a_second(make_house):
    house = make_house()
    house.front.push_progress()
    house.pass_time(0.9)
    assert house.tables(0) == []
    house.pass_time(0.11)
    assert len(house.tables(0)) == 1


async def test_a_change_does_not_wait_for_a_number_nor_a_number_for_another_push(make_house):
    house = make_house()
    house.front.push_progress()
    house.front.push()
    house.front.push_progress()
    assert len(house.pending()) == 1
    house.pass_time(0.021)
    assert len(house.tables(0)) == 1


async def test_a_number_that_falls_due_before_a_change_would_carries_it(make_house):
    house = make_house()
    house.front.push_progress()
    house.pass_time(0.99)
    house.front.push()
    assert len(house.timers) == 1
    house.pass_time(0.011)
    assert len(house.tables(0)) == 1


async def test_every_router_is_told_and_its_successor_too(make_house):
    house = make_house(2)
    house.front.configure(OTHER.replace(around=house.config.around))
    house.front.push()
    house.pass_time(0.021)
    assert [len(house.tables(number)) for number in range(4)] == [1, 1, 1, 1]


# ------------------------------------------------------------------------------------------------------------ starting


async def test_a_router_is_started_with_its_seats_config_the_table_and_its_sockets(make_house):
    house = make_house(2)
    router = house.front.routers[1]
    launch = router.launch(3)
    assert launch.package == "router"
    assert launch.first_messages == (house.config.replace(around=house.config.around.replace(index=1)), house._table())
    assert launch.descriptors == (51,)
    assert (router.restarts, router.name) == (2, "router[1]")
    assert [house.words(number) for number in range(2)] == [["start"], ["start"]]


async def test_the_only_router_has_no_number(make_house):
    house = make_house()
    assert (house.front.routers[0].name, house.front.routers[0].restarts) == ("router", 0)
    assert house.front.routers[0].launch(1)
    assert house.front.routers[0].restarts == 0


async def test_the_restarts_of_a_router_that_is_replaced_are_not_forgotten(make_house):
    house = make_house(2)
    house.front.routers[0].launch(4)
    house.front.configure(OTHER.replace(around=house.config.around))
    successor = house.keepers[2].router
    successor.launch(2)  # it died once before it took over
    house.hear(2, RouterReady(78))
    assert [router.restarts for router in house.front.routers] == [4, 0]
    successor.launch(3)
    assert successor.restarts == 5
    house.hear(2, RouterReady(79))
    assert successor.restarts == 5


async def test_a_router_that_accepts_is_told_what_has_changed_meanwhile(make_house):
    house = make_house()
    house.rows = ("meanwhile",)
    house.hear(0, RouterReady(77))
    assert house.heard == [77]
    house.pass_time(0.021)
    assert house.tables(0) == [["meanwhile"]]
    assert house.words(0) == ["start"]


# --------------------------------------------------------------------------------------------------------- configuring


async def test_settings_that_a_router_can_take_are_sent_to_it_with_its_own_number(make_house):
    house = make_house(2)
    house.front.configure(LIVE.replace(around=house.config.around))
    assert [[config.around.index for config in house.configs(number)] for number in range(2)] == [[0], [1]]
    assert house.configs(0)[0].ready_wait_s == 1.0
    assert len(house.keepers) == 2
    house.front.configure(house.config)
    assert [config.ready_wait_s for config in house.configs(0)] == [1.0, 30.0], "compared with those that count now"


async def test_settings_that_are_the_same_are_sent_to_nobody(make_house):
    house = make_house()
    house.front.configure(house.config)
    assert house.told(0) == ["start"]
    assert len(house.keepers) == 1


async def test_a_router_that_is_to_be_watched_otherwise_is_replaced_though_its_own_settings_are_the_same(make_house):
    house = make_house(2)
    house.front.configure(house.config, anew=True)
    assert [house.words(number) for number in range(4)] == [["start"]] * 4
    house.hear(2, RouterReady(78))
    assert house.front.routers == [house.keepers[2].router, house.keepers[1].router]


async def test_a_router_that_dies_comes_back_with_the_newest_settings(make_house):
    house = make_house()
    house.front.configure(LIVE.replace(around=house.config.around))
    assert house.front.routers[0].launch(2).first_messages[0].ready_wait_s == 1.0


async def test_other_settings_take_a_successor_which_takes_over_once_it_accepts(make_house):
    house = make_house()
    before = house.front.routers[0]
    house.front.configure(OTHER.replace(around=house.config.around))
    await settle()
    assert (house.words(0), house.words(1)) == (["start"], ["start"])
    assert house.front.routers == [before]
    assert house.keepers[1].router.launch(1).first_messages[0].max_request_bytes == 99
    house.hear(1, RouterReady(78))
    assert house.front.routers == [house.keepers[1].router]
    await settle()
    assert house.words(0) == ["start", f"stop within {7.0 + KILL_MARGIN_S}"]
    house.front.push()
    house.pass_time(0.021)
    assert (len(house.tables(0)), len(house.tables(1))) == (0, 1)


async def test_a_router_that_is_to_be_replaced_takes_new_keys_at_once(make_house):
    house = make_house()
    assert not house.front.is_renewing
    house.front.configure(OTHER.replace(api_key_digests=(b"new",), around=house.config.around))
    assert [config.api_key_digests for config in house.configs(0)] == [(b"new",)]
    assert house.front.is_renewing
    house.hear(1, RouterReady(78))
    assert not house.front.is_renewing


async def test_a_router_hears_of_settings_that_changed_before_it_listened(make_house):
    """Between the moment its first message is made and that at which its process is there, nothing reaches it."""
    house = make_house()
    house.front.routers[0].launch(1)
    house.front.configure(LIVE.replace(around=house.config.around))
    house.told(0).clear()
    house.hear(0, RouterReady(77))
    assert [config.ready_wait_s for config in house.configs(0)] == [1.0]
    house.front.routers[0].launch(2)
    house.told(0).clear()
    house.hear(0, RouterReady(78))
    assert house.configs(0) == [], "it was started with them"


async def test_a_successor_on_its_way_gives_place_to_a_newer_one(make_house):
    house = make_house()
    house.front.configure(OTHER.replace(around=house.config.around))
    house.front.configure(OTHER.replace(max_request_bytes=100, around=house.config.around))
    await settle()
    assert house.words(1) == ["start", f"stop within {7.0 + KILL_MARGIN_S}"]
    assert house.words(2) == ["start"]
    house.hear(2, RouterReady(79))
    assert house.front.routers == [house.keepers[2].router]


# ------------------------------------------------------------------------------------------------------------- closing


async def test_the_sockets_are_closed_before_any_router_is_told_to_finish(make_house):
    house = make_house(2)
    closing = asyncio.create_task(house.front.close(3.0))
    await settle()
    assert house.heard == [("closed", [1, 1])]
    assert [house.words(number)[-1] for number in range(2)] == [f"stop within {3.0 + KILL_MARGIN_S}"] * 2
    assert not closing.done()
    house.keepers[0].gone.set()
    await settle()
    assert not closing.done()
    house.keepers[1].gone.set()
    assert await closing


@pytest.mark.parametrize("who", [0, 1, 2])
async def test_a_router_that_has_to_be_killed_makes_the_end_disorderly(make_house, who):
    """The one that takes connections, one that finishes, and a successor that is on its way."""
    house = make_house()
    house.front.configure(OTHER.replace(around=house.config.around))
    house.hear(1, RouterReady(78))
    house.front.configure(house.config)
    house.keepers[who].goes_by_itself = False
    closing = asyncio.create_task(house.front.close(3.0))
    await settle()
    assert all("stop" in house.words(number)[-1] for number in range(3))
    for keeper in house.keepers[:2]:
        keeper.gone.set()
    await settle()
    assert not closing.done()
    house.keepers[2].gone.set()
    assert not await closing


async def test_killing_ends_those_that_finish_and_those_on_their_way_too(make_house):
    house = make_house()
    house.front.configure(OTHER.replace(around=house.config.around))
    house.hear(1, RouterReady(78))
    house.front.configure(house.config)
    house.front.kill()
    assert [house.words(number)[-1] for number in range(3)] == ["kill"] * 3


async def test_who_has_finished_is_forgotten(make_house):
    house = make_house()
    house.front.configure(OTHER.replace(around=house.config.around))
    house.hear(1, RouterReady(78))
    house.keepers[0].gone.set()
    await settle()
    house.front.kill()
    assert (house.words(0)[-1], house.words(1)[-1]) == (f"stop within {7.0 + KILL_MARGIN_S}", "kill")


# ------------------------------------------------------------------------------------------------- what a router says


async def test_what_one_router_finds_all_others_hear(make_house):
    house = make_house(3)
    found = Quarantined((b"x",))
    house.hear(1, found)
    assert [found in house.told(number) for number in range(3)] == [True, False, True]


async def test_a_demand_for_another_process_reaches_the_owner(make_house):
    house = make_house()
    demand = RestartShard("en", 1, "it lies")
    house.hear(0, demand)
    assert house.heard == [demand]


async def test_that_a_model_is_well_reaches_the_owner(make_house):
    house = make_house()
    house.hear(0, Acquitted("en"))
    assert house.heard == ["acquitted en"]


@pytest.mark.parametrize(("lag_s", "lines"), [(1.0, []), (1.01, ["router_busy"])])
async def test_a_loop_that_was_held_up_is_worth_a_line(make_house, caplog, lag_s, lines):
    make_house().hear(0, Heartbeat(lag_s, 3))
    assert [record.message for record in caplog.records] == lines


async def test_the_most_that_a_router_has_in_quarantine_is_told_until_that_router_is_gone(make_house):
    house = make_house(2)
    assert house.front.quarantined == 0
    house.hear(0, Heartbeat(0.0, 0, quarantined=1))
    house.hear(1, Heartbeat(0.0, 0, quarantined=2))
    assert house.front.quarantined == 2
    house.front.routers[1].launch(2)
    assert house.front.quarantined == 1


async def test_what_a_router_may_not_say_is_logged_and_harms_nobody(make_house, caplog):
    house = make_house()
    house.hear(0, Progress(0, 0.0, 0, 0, 0))
    assert [record.message for record in caplog.records] == ["unexpected_message"]
    assert house.heard == []


@pytest.mark.parametrize(("restart_in_s", "heard"), [(0.0, []), (1.0, []), (None, ["lost"])])
async def test_a_router_that_never_comes_back_is_the_end(make_house, restart_in_s, heard):
    house = make_house()
    house.keepers[0].router.on_died(Death(1, False, "", restart_in_s, "closed"))
    assert house.heard == heard


async def test_why_no_router_can_be_had_is_told_once_for_each_reason(make_house):
    house = make_house()
    router = house.keepers[0].router
    files, memory = "could not be made: [Errno 24] Too many open files (see ulimit -n)", "exited with code 1"
    for how in (files, files, memory, memory):
        router.on_died(Death(126, False, "", 1.0, "closed", how.removeprefix("could not be made: ")))
    assert [name for name, _ in house.failures] == ["router", "router"]
    house.hear(0, RouterReady(7))
    router.on_died(Death(-9, True, "", 1.0, "closed"))
    assert len(house.failures) == 2, "one that took connections is back in a moment"
    router.on_died(Death(1, False, "", 1.0, "closed"))
    assert house.failures[-1] == ("router", "exited with code 1")
