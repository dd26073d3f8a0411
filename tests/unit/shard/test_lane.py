import os

from shard.lane import Lane

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
