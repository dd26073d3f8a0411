import asyncio
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import DeadlineError
from router import time_limit
from router.time_limit import TimeLimits

MOST_KEPT = time_limit._MOST_KEPT


@pytest.fixture
def limits():
    return TimeLimits()


@pytest.mark.parametrize("limits_s", [(), (None, 0), (60.0,)])
async def test_a_timeout_that_is_not_of_this_limit_stays_what_it_is(limits, limits_s):
    with pytest.raises(TimeoutError, match="of something else"):
        async with limits.limit(1, *limits_s):
            raise TimeoutError("of something else")


@pytest.mark.parametrize(("inputs", "advice"), [(1, "Ask again"), (2, "Send fewer inputs at once, or ask again")])
async def test_the_shortest_limit_ends_what_runs_and_fewer_inputs_are_advised_where_there_are_several(
    limits, inputs, advice
):
    async def run() -> None:
        async with limits.limit(inputs, 60, None, 0, 0.001) as deadline_s:
            assert deadline_s is not None
            assert deadline_s <= asyncio.get_running_loop().time() + 0.001
            await asyncio.sleep(5)

    said = rf"within 0\.001 s, so this request was taken back\. {advice} .*; the limit is .* the field timeout_ms\.$"
    with pytest.raises(DeadlineError, match=said):
        await run()
    assert not asyncio.current_task().cancelling(), "the task goes on as if nothing had been"


async def test_without_a_limit_there_is_no_deadline(limits):
    async with limits.limit(1, None, 0) as deadline_s:
        assert deadline_s is None


async def test_time_counts_from_when_it_is_said_to(limits):
    now_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineError):
        async with limits.limit(1, 60.0, since_s=now_s - 60):
            raise AssertionError("its time is over before it begins")
    async with limits.limit(1, 60.0, since_s=now_s - 1) as deadline_s:
        assert deadline_s == now_s + 59


async def test_a_cancellation_is_no_expiry_and_an_expiry_does_not_hide_one(limits):
    async def ask(limit_s: float) -> None:
        async with limits.limit(1, limit_s):
            await asyncio.sleep(5)

    left = asyncio.create_task(ask(60.0))
    await asyncio.sleep(0)
    left.cancel()
    both = asyncio.create_task(ask(0.005))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.005, both.cancel)  # in the same turn of the loop, or nearly
    await asyncio.wait([left, both])
    assert left.cancelled()
    assert both.cancelled() or isinstance(both.exception(), DeadlineError)

    async def expires_while_it_is_cancelled() -> None:
        async with limits.limit(1, 0.001):
            try:
                await asyncio.sleep(5)
            finally:
                asyncio.current_task().cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(expires_while_it_is_cancelled())


async def test_what_is_done_in_time_never_hears_of_its_limit(limits):
    async with limits.limit(1, 0.01):
        pass
    await asyncio.sleep(0.03)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=120))
def test_each_of_many_limits_expires_at_its_own_time_or_not_at_all(times):
    """``times`` are when a request's limit is and when it is done, in steps of a virtual clock."""

    class Clock(asyncio.SelectorEventLoop):
        now_s = 0.0

        def time(self) -> float:
            return self.now_s

        def call_at(self, when, callback, *arguments, context=None):
            return super().call_at(max(when, self.now_s), callback, *arguments, context=context)

    async def ask(limits: TimeLimits, limit_s: float, done: asyncio.Event) -> float | None:
        try:
            async with limits.limit(1, limit_s):
                await done.wait()
        except DeadlineError:
            return loop.now_s
        return None

    async def run() -> list[float | None]:
        limits = TimeLimits()
        done = [asyncio.Event() for _ in range(14)]
        tasks = [asyncio.create_task(ask(limits, limit + 0.5, done[end])) for limit, end in times]
        for step in range(14):
            await settle()
            done[step].set()
            await settle()
            loop.now_s = step + 0.5
        await settle()
        return await asyncio.gather(*tasks)

    async def settle() -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    loop = Clock()
    try:
        with mock.patch.object(time_limit, "_MOST_KEPT", 2):
            found = loop.run_until_complete(run())
    finally:
        loop.close()
    assert found == [limit + 0.5 if end > limit else None for limit, end in times]


async def test_limits_that_are_over_are_not_kept_and_not_looked_for_each_time(limits):
    rebuilt = 0
    for _ in range(10 * MOST_KEPT):
        before = limits._set
        async with limits.limit(1, 600.0):
            pass
        rebuilt += limits._set is not before
    assert len(limits._set) <= MOST_KEPT + 1
    assert rebuilt == 9


async def test_there_is_one_timer_for_the_earliest_limit(limits):
    async with limits.limit(1, 60.0):
        late = limits._timer
        async with limits.limit(1, 30.0) as earliest_s, limits.limit(1, 90.0):
            assert late.cancelled()
            assert limits._timer.when() == pytest.approx(earliest_s)


async def test_an_error_stays_what_it_is_though_time_is_over(limits):
    async def fails_while_it_ends() -> None:
        async with limits.limit(1, 0.001):
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                raise ValueError("of something else") from None

    with pytest.raises(ValueError, match="of something else"):
        await fails_while_it_ends()


async def test_a_task_that_has_been_cancelled_before_and_goes_on_has_its_limits_too(limits):
    asyncio.current_task().cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(0)
    with pytest.raises(DeadlineError):
        async with limits.limit(1, 0.001):
            await asyncio.sleep(5)
    asyncio.current_task().uncancel()
