import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.modelmap import BatchLimits
from shard.scheduler import Scheduler, Slot


def drain(scheduler: Scheduler) -> list[list[Slot]]:
    batches = []
    while batch := scheduler.take():
        batches.append(batch)
    return batches


jobs = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), min_size=1, max_size=10)


@given(jobs, st.integers(1, 16), st.integers(1, 200), st.booleans())
def test_every_input_is_handed_out_once_in_order_and_within_the_limits(lengths, max_size, max_tokens, dynamic):
    scheduler = Scheduler(BatchLimits(max_batch_size=max_size, dynamic=dynamic), max_tokens)
    for key, one in enumerate(lengths):
        scheduler.add(key, one, now_s=0.0)
    batches = drain(scheduler)
    assert [slot for batch in batches for slot in batch] == [
        Slot(key, index) for key, one in enumerate(lengths) for index in range(len(one))
    ]
    for batch in batches:
        assert len(batch) <= max_size
        assert len(batch) == 1 or sum(lengths[slot.key][slot.index] for slot in batch) <= max_tokens
        assert dynamic or len({slot.key for slot in batch}) == 1
    assert scheduler.waiting_texts == 0


@given(jobs, st.data())
def test_a_cancelled_job_is_never_handed_out_again_and_the_count_stays_true(lengths, data):
    scheduler = Scheduler(BatchLimits(max_batch_size=4), 1000)
    for key, one in enumerate(lengths):
        scheduler.add(key, one, now_s=0.0)
    taken = scheduler.take()
    victim = data.draw(st.integers(0, len(lengths) - 1))
    scheduler.cancel(victim)
    rest = [slot for batch in drain(scheduler) for slot in batch]
    assert all(slot.key != victim for slot in rest)
    expected = sum(len(one) for key, one in enumerate(lengths) if key != victim)
    assert len(rest) == expected - sum(slot.key != victim for slot in taken)
    assert scheduler.waiting_texts == 0


def test_by_default_an_idle_device_never_waits_for_company():
    scheduler = Scheduler(BatchLimits(), 1000)
    assert scheduler.due_in_s(0.0) is None
    scheduler.add(1, [5], now_s=0.0)
    assert scheduler.due_in_s(0.0) == 0.0


def test_a_minimum_is_waited_for_but_never_longer_than_asked():
    scheduler = Scheduler(BatchLimits(min_batch_size=4, max_wait_time_ms=50), 1000)
    scheduler.add(1, [5], now_s=10.0)
    assert scheduler.due_in_s(10.0) == pytest.approx(0.050)
    assert scheduler.due_in_s(10.02) == pytest.approx(0.030)
    assert scheduler.due_in_s(10.06) == 0.0
    scheduler.add(2, [5, 5, 5], now_s=10.01)
    assert scheduler.due_in_s(10.02) == 0.0


def test_without_dynamic_batching_requests_neither_share_a_batch_nor_wait_for_each_other():
    scheduler = Scheduler(BatchLimits(min_batch_size=4, dynamic=False), 1000)
    scheduler.add(1, [5], now_s=0.0)
    scheduler.add(2, [5, 5], now_s=0.0)
    assert scheduler.due_in_s(0.0) == 0.0
    assert drain(scheduler) == [[Slot(1, 0)], [Slot(2, 0), Slot(2, 1)]]


def test_a_text_longer_than_the_whole_budget_gets_a_batch_of_its_own():
    scheduler = Scheduler(BatchLimits(), 100)
    scheduler.add(1, [10, 500, 10], now_s=0.0)
    assert drain(scheduler) == [[Slot(1, 0)], [Slot(1, 1)], [Slot(1, 2)]]
