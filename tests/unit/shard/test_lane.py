import os
import sys
import threading
import time

import pytest

from shard.batching.lane import Lane, count_lanes, count_tokenizers, threads_of_lane
from tests.support.statuses import make_info

NO_SUCH_CPU = 4000


def test_a_lane_stays_on_the_cpu_it_was_given_and_its_maker_does_not():
    before = os.sched_getaffinity(0)
    cpu = min(before)
    lane = Lane((cpu,))
    assert lane.call(lambda: os.sched_getaffinity(0)) == {cpu}
    assert os.sched_getaffinity(0) == before
    lane.join()


def test_a_lane_whose_cpu_is_gone_works_where_the_kernel_puts_it():
    lane = Lane((NO_SUCH_CPU,))
    assert lane.call(lambda: os.sched_getaffinity(0)) == os.sched_getaffinity(0)
    lane.join()


def test_what_a_lane_is_called_for_raises_at_the_caller_and_the_lane_goes_on():
    lane = Lane()
    with pytest.raises(SystemExit, match="3"):
        lane.call(lambda: sys.exit(3))
    assert lane.call(lambda: "still here") == "still here"
    lane.join()


def test_what_a_lane_begins_is_not_waited_for_until_it_is_joined():
    lane, go_on, done = Lane(), threading.Event(), []
    lane.begin(lambda: (go_on.wait(5), time.sleep(0.02), done.append("first")))
    lane.begin(lambda: done.append("second"))
    assert done == []
    go_on.set()
    lane.join()
    assert done == ["first", "second"]


def test_a_models_code_that_calls_exit_is_a_failure_of_the_thread_and_not_its_silent_end(monkeypatch):
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    lane = Lane()
    lane.begin(lambda: sys.exit(3))
    lane.join()
    (failure,) = failures
    assert (failure.exc_type, str(failure.exc_value)) == (RuntimeError, "the model's code called sys.exit(3)")


@pytest.mark.parametrize("threads", range(1, 65))
def test_lanes_leave_hardly_a_core_without_work_and_are_four_where_that_does(threads):
    lanes = count_lanes(make_info(device="cpu", batching="packed").encoder, threads)
    assert lanes == min(threads, 4) or (4 < lanes <= 7 and threads % 4)
    at_work = lanes * threads_of_lane(threads, lanes)
    assert at_work <= threads
    assert at_work >= 0.9 * threads or threads - at_work <= 1


@pytest.mark.parametrize("batching", ["padded", "alone"])
def test_only_texts_that_are_packed_on_a_cpu_have_lanes_by_cores(batching):
    assert count_lanes(make_info(device="cpu", batching=batching).encoder, 8) == 1
    assert count_lanes(make_info(device="cuda:0", batching="packed").encoder, 8) == 2


def test_a_lane_computes_also_where_there_are_more_lanes_than_cores():
    assert threads_of_lane(1, 2) == 1


def test_a_lane_at_work_does_not_keep_its_process_from_ending():
    lane = Lane()
    is_left_behind = lane.call(lambda: threading.current_thread().daemon)
    lane.join()
    assert is_left_behind


@pytest.mark.parametrize(
    ("device", "threads", "tokenizers"),
    [("cpu", 16, 1), ("cuda:0", 1, 1), ("cuda:0", 7, 1), ("cuda:0", 8, 2), ("cuda:0", 16, 4), ("cuda:0", 64, 4)],
)
def test_beside_a_card_one_request_is_tokenised_for_every_four_cores_up_to_four_and_on_a_cpu_one(
    device, threads, tokenizers
):
    assert count_tokenizers(make_info(device=device).encoder, threads) == tokenizers
