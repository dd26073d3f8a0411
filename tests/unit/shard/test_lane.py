import os

import pytest

from shard.lane import Lane, count_lanes, threads_of_lane
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


@pytest.mark.parametrize("threads", range(1, 65))
def test_lanes_leave_hardly_a_core_without_work_and_are_four_where_that_does(threads):
    lanes = count_lanes(make_info(device="cpu", batching="packed").encoder, threads)
    assert lanes == min(threads, 4) or (4 < lanes <= 7 and threads % 4)
    at_work = lanes * threads_of_lane(threads, lanes)
    assert at_work <= threads
    assert at_work >= 0.9 * threads or threads - at_work <= 1


def test_only_texts_that_are_packed_on_a_cpu_have_lanes_by_cores():
    assert count_lanes(make_info(device="cpu", batching="padded").encoder, 8) == 1
    assert count_lanes(make_info(device="cuda:0", batching="packed").encoder, 8) == 2
