import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.renewals import Lifespan, RecycleLimits, Renewals
from tests.support.statuses import make_info

MIB = 1024 * 1024


def lifespan(ready_mib: int = 100, jitter: float = 0.0) -> Lifespan:
    return Lifespan(1, ready_mib * MIB, lambda: jitter)


def test_a_life_is_that_of_one_generation():
    assert Lifespan(7, 0, lambda: 0.0).generation == 7


def test_without_limits_a_process_serves_for_ever():
    assert lifespan().due(RecycleLimits(), 1 << 50, 1e9) == ""
    assert lifespan(0).due(RecycleLimits(), 1 << 50, 1e9) == ""


def test_a_process_that_is_too_old_or_too_large_is_due_and_the_reason_is_said():
    limits = RecycleLimits(rss_bytes=200 * MIB, age_s=3600)
    assert lifespan().due(limits, 150 * MIB, 60) == ""
    assert lifespan().due(limits, 150 * MIB, 3700) == "it has run for 3700 s"
    assert lifespan().due(limits, 250 * MIB, 60) == "it holds 250 MiB"


def test_a_process_that_is_too_large_from_the_start_is_not_replaced_for_that():
    limits = RecycleLimits(rss_bytes=50 * MIB)
    assert lifespan(100).is_too_large_from_the_start(limits)
    assert lifespan(100).due(limits, 500 * MIB, 60) == ""
    assert lifespan(50).is_too_large_from_the_start(limits)
    assert not lifespan(40).is_too_large_from_the_start(limits)
    assert not lifespan(100).is_too_large_from_the_start(RecycleLimits()), "there is no limit"


@given(st.floats(0, 1, exclude_max=True), st.floats(1, 1e6))
def test_jitter_stretches_a_life_by_at_most_a_tenth(jitter, age_s):
    limits = RecycleLimits(age_s=age_s)
    assert not lifespan(jitter=jitter).due(limits, 0, age_s * 0.999)
    assert lifespan(jitter=jitter).due(limits, 0, age_s * 1.1001)


def test_processes_that_began_together_do_not_end_together():
    limits = RecycleLimits(age_s=1000)
    assert lifespan(jitter=0.1).due(limits, 0, 1050)
    assert not lifespan(jitter=0.9).due(limits, 0, 1050)
    limits = RecycleLimits(rss_bytes=200 * MIB)
    assert lifespan(jitter=0.1).due(limits, 210 * MIB, 0)
    assert not lifespan(jitter=0.9).due(limits, 210 * MIB, 0)


class NoPost:
    """Stands where a post stands; a renewal of it ends when ``end`` is called."""

    def __init__(self, model_id: str, diary: list[str]) -> None:
        self.model_id = model_id
        self.is_ready = True
        self.lacked_memory = False
        self.holder = SimpleNamespace(
            status=SimpleNamespace(info=make_info(private_bytes=1)),
            setting=SimpleNamespace(placement=SimpleNamespace(visible_gpus="")),
        )
        self._diary = diary
        self._outcome: asyncio.Future[bool] | None = None

    async def renew(self, *, overlap: bool) -> bool:
        self._diary.append(f"{self.model_id} {'overlaps' if overlap else 'stops first'}")
        self._outcome = asyncio.get_running_loop().create_future()
        served = await self._outcome
        self._diary.append(f"{self.model_id} {'done' if served else 'failed'}")
        return served

    def give_up_renewal(self) -> None:
        self.end(served=False)

    def end(self, *, served: bool) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(served)


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@pytest.fixture
async def renewals(monkeypatch):
    monkeypatch.setattr("supervisor.renewals.has_room", lambda _encoder, _gpus, _env: True)
    it = Renewals()
    it.start()
    yield it
    await it.close()


async def test_posts_are_renewed_one_after_another_in_the_order_asked(renewals):
    diary: list[str] = []
    en, zh = NoPost("en", diary), NoPost("zh", diary)
    for post in (en, zh, en):
        renewals.ask(post, "why not")
    await settle()
    assert diary == ["en overlaps"]
    assert renewals.is_asked(zh)
    en.end(served=True)
    await settle()
    assert not renewals.is_asked(en)
    assert renewals.is_asked(zh), "its turn has come"
    assert not renewals.is_idle
    zh.end(served=True)
    await settle()
    assert diary == ["en overlaps", "en done", "zh overlaps", "zh done"]
    assert renewals.is_idle


async def test_who_is_asked_for_again_meanwhile_begins_again_and_who_was_removed_does_not_begin(renewals):
    diary: list[str] = []
    en, zh = NoPost("en", diary), NoPost("zh", diary)
    renewals.ask(en, "first")
    renewals.ask(zh, "removed before its turn")
    await settle()
    renewals.drop(zh)
    assert not renewals.is_asked(zh)
    renewals.ask(en, "newer settings")
    assert not renewals.is_idle
    await settle()
    en.end(served=True)
    await settle()
    assert diary == ["en overlaps", "en failed", "en overlaps", "en done"]
    assert renewals.is_idle


async def test_where_two_processes_do_not_fit_the_old_one_is_stopped_first(renewals, monkeypatch):
    diary: list[str] = []
    en = NoPost("en", diary)
    renewals.ask(en, "found out by trying")
    await settle()
    en.lacked_memory = True
    en.end(served=False)
    await settle()
    en.end(served=True)
    await settle()
    monkeypatch.setattr("supervisor.renewals.has_room", lambda _encoder, _gpus, _env: False)
    renewals.ask(en, "known before")
    await settle()
    assert diary == ["en overlaps", "en failed", "en stops first", "en done", "en stops first"]


async def test_one_that_serves_nobody_is_stopped_first_and_stopped_once_whatever_its_successor_lacks(renewals):
    diary: list[str] = []
    en = NoPost("en", diary)
    en.is_ready, en.lacked_memory = False, True
    renewals.ask(en, "why not")
    await settle()
    en.end(served=False)
    await settle()
    assert diary == ["en stops first", "en failed"]
    assert renewals.is_idle


def test_nobody_is_idle_who_was_asked_and_has_not_begun():
    renewals = Renewals()
    assert renewals.is_idle
    renewals.ask(NoPost("en", []), "why not")
    assert not renewals.is_idle


async def test_a_mistake_in_one_renewal_does_not_hold_up_the_next(renewals):
    diary: list[str] = []
    broken, zh = NoPost("en", diary), NoPost("zh", diary)
    broken.holder = None
    renewals.ask(broken, "why not")
    renewals.ask(zh, "why not")
    await settle()
    assert diary == ["zh overlaps"]


async def test_once_it_is_closed_the_renewal_under_way_is_over_and_nobody_is_asked_any_more(renewals):
    diary: list[str] = []
    en, zh = NoPost("en", diary), NoPost("zh", diary)
    renewals.ask(en, "why not")
    renewals.ask(zh, "why not")
    await settle()
    await renewals.close()
    assert renewals._task.done()
    assert not renewals.is_asked(en)
    assert not renewals.is_asked(zh)
    assert renewals.is_idle
    en.end(served=True)
    await settle()
    assert diary == ["en overlaps"]


async def test_what_never_began_can_be_closed():
    await Renewals().close()
