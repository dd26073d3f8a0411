"""The bookkeeping between requests and the texts that they share, without an engine."""

import time

import numpy as np
import pytest

from emb_model_provider.messages.link import Encode, InputError
from emb_model_provider.modelmap import BatchLimits
from shard.batching.jobs import Job, Jobs, Times
from shard.encoder import Result, Tokenized
from tests.support.plans import make_plan

ROW = Result(np.ones(2, "<f4"))


def text(*ids: int) -> Tokenized:
    return Tokenized(ids, len(ids))


def jobs(**limits) -> Jobs:
    return Jobs(BatchLimits(**limits), make_plan(), 1, 2)


def add(into: Jobs, key: int, texts, *, at_s: float = 0.0, **fields) -> Job:
    request = Encode(tuple("x" for _ in texts), **fields)
    return into.add(key, request, texts, Times(at_s, at_s))


def run(on: Jobs, now_s: float = 0.0) -> list[Job]:
    """Run the next batch and return the jobs that it completes."""
    batch, _ = on.take(now_s)
    on.scheduler.finished(batch)
    return on.settle(batch, [ROW] * len(batch.items))[0]


def test_only_the_first_slice_of_a_request_waits_for_company():
    all_jobs = jobs(min_batch_size=9, max_wait_time_ms=50)
    first = add(all_jobs, 1, [text(1)])
    assert all_jobs.scheduler.due_in_s(0.0) == pytest.approx(0.050)
    assert run(all_jobs) == [first]
    second = add(all_jobs, 2, [text(2)], first_index=1)
    assert all_jobs.scheduler.due_in_s(0.0) == 0.0
    assert run(all_jobs) == [second]
    add(all_jobs, 3, [text(3)])
    assert all_jobs.scheduler.due_in_s(0.0) == pytest.approx(0.050)


def test_an_answer_says_how_long_it_was_read_waited_and_encoded():
    all_jobs = jobs(max_batch_size=1)
    request = Encode(("a", "b"))
    job = all_jobs.add(1, request, [text(1), text(2)], Times(1.0, 1.5))
    for now_s, took_ms in ((2.25, 30.0), (9.0, 12.0)):
        batch, _ = all_jobs.take(now_s)
        all_jobs.scheduler.finished(batch)
        all_jobs.charge(batch, took_ms)
        complete, _ = all_jobs.settle(batch, [ROW])
    assert complete == [job]
    timing = job.encoded().timing
    assert (timing.tokenize_ms, timing.queue_ms, timing.encode_ms) == (500.0, 750.0, 42.0)


def test_a_request_for_a_text_that_the_device_is_at_has_waited_for_nothing_and_is_answered_with_it():
    all_jobs = jobs()
    first = add(all_jobs, 1, [text(1)])
    batch, _ = all_jobs.take(3.0)
    second = add(all_jobs, 2, [text(1)], at_s=5.0)
    third = add(all_jobs, 3, [text(1), text(2)], at_s=5.0)
    assert all_jobs.scheduler.waiting_texts == 1
    all_jobs.scheduler.finished(batch)
    assert all_jobs.settle(batch, [ROW])[0] == [first, second]
    assert run(all_jobs, 9.0) == [third]
    assert second.encoded().timing.queue_ms == third.encoded().timing.queue_ms == 0.0


def test_a_request_that_names_a_text_twice_waits_for_its_turn_all_the_same():
    all_jobs = jobs()
    job = add(all_jobs, 1, [text(1), text(1)])
    assert job.started_s is None
    assert run(all_jobs, 2.0) == [job]
    assert job.encoded().timing.queue_ms == 2000.0


def test_a_small_request_for_a_text_of_a_big_one_does_not_wait_for_the_big_one():
    all_jobs = jobs(max_batch_size=1)
    add(all_jobs, 1, [text(number) for number in range(9)], priority="bulk")
    small = add(all_jobs, 2, [text(8)], priority="interactive")
    assert run(all_jobs) == [small]
    assert all_jobs.scheduler.waiting_texts == 8


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_whose_last_inputs_are_refused_is_complete_with_the_last_of_them(count):
    job = add(jobs(), 1, [text(number) for number in range(count)], partial=True)
    error = InputError(0, 422, "invalid_request_error", None, "no")
    assert [job.refuse(error) for _ in range(count)] == [False] * (count - 1) + [True]
    assert job.encoded().errors == (error,) * count


def test_a_dropped_request_takes_only_the_texts_with_it_that_nobody_else_waits_for():
    all_jobs = jobs()
    add(all_jobs, 1, [text(1), text(2), text(1)])
    other = add(all_jobs, 2, [text(2)])
    all_jobs.drop(1)
    all_jobs.drop(1)
    assert all_jobs.scheduler.waiting_texts == 1
    assert run(all_jobs) == [other]
    again = add(all_jobs, 3, [text(1)])
    assert run(all_jobs) == [again]


def test_what_nobody_waits_for_any_more_keeps_no_tokens_behind_what_still_waits():
    all_jobs = jobs()
    first = add(all_jobs, 1, [text(1)])
    left = add(all_jobs, 2, [text(1), text(2)])
    all_jobs.drop(2)
    assert [one.tokenized for one in left.inputs] == [text(1), text()]
    assert run(all_jobs) == [first]
    again = add(all_jobs, 3, [text(2), text()])
    assert run(all_jobs) == [again]


def test_a_text_that_came_too_late_is_encoded_for_the_next_who_asks_for_it():
    all_jobs = jobs()
    late = all_jobs.add(1, Encode(("x", "x")), [text(1), text(2)], Times(0.0, 0.0, deadline_s=5.0))
    other = add(all_jobs, 2, [text(2)])
    batch, expired = all_jobs.take(6.0)
    assert expired == [late]
    assert [one.tokenized for one in batch.items] == [text(2)]
    all_jobs.scheduler.finished(batch)
    assert all_jobs.settle(batch, [ROW])[0] == [other]
    again = add(all_jobs, 3, [text(1)])
    assert run(all_jobs, 7.0) == [again]


def test_what_runs_alone_is_shared_with_nobody_and_counted_once_it_is_read():
    all_jobs = jobs()
    all_jobs.add_unread(1, Encode(("x",), alone=True), Times(0.0, 0.0))
    other = add(all_jobs, 2, [text(1, 2)])
    batch, _ = all_jobs.take(0.0)
    (alone,) = batch.items[0].waiters
    assert all_jobs.read(alone, [text(1, 2)])
    all_jobs.scheduler.finished(batch)
    assert all_jobs.settle(batch, [ROW])[0] == [alone]
    assert list(alone.encoded().tokens) == [2]
    third = add(all_jobs, 3, [text(1, 2)])
    assert all_jobs.scheduler.waiting_texts == 1
    assert run(all_jobs) == [other, third], "the equal text that waited is still one"


def test_what_runs_alone_and_cannot_be_read_is_complete_and_not_encoded():
    all_jobs = jobs()
    all_jobs.add_unread(1, Encode(("x",), alone=True, partial=True), Times(0.0, 0.0))
    batch, _ = all_jobs.take(0.0)
    (alone,) = batch.items[0].waiters
    error = InputError(0, 422, "invalid_request_error", None, "no")
    assert not all_jobs.read(alone, [error])
    assert not batch.items[0].waiters
    assert alone.encoded().errors == (error,)


def test_thousands_who_ask_for_one_text_leave_in_time_that_grows_with_their_number_alone():
    all_jobs, count = jobs(), 3000
    for key in range(count + 1):
        add(all_jobs, key, [text(1)])
    began_s = time.thread_time()
    for key in range(count):
        all_jobs.drop(key)
    assert time.thread_time() - began_s < 0.3  # not if each looks through all that are left
    assert [job.key for job in run(all_jobs)] == [count]
