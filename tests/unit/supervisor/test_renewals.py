from hypothesis import given
from hypothesis import strategies as st

from supervisor.renewals import Lifespan, RecycleLimits

MIB = 1024 * 1024


def lifespan(ready_mib: int = 100, jitter: float = 0.0) -> Lifespan:
    return Lifespan(1, ready_mib * MIB, lambda: jitter)


def test_without_limits_a_process_serves_for_ever():
    assert lifespan().due(RecycleLimits(), 1 << 50, 1e9) == ""


def test_a_process_that_is_too_old_or_too_large_is_due_and_the_reason_is_said():
    limits = RecycleLimits(rss_bytes=200 * MIB, age_s=3600)
    assert lifespan().due(limits, 150 * MIB, 60) == ""
    assert lifespan().due(limits, 150 * MIB, 3700) == "it has run for 3700 s"
    assert lifespan().due(limits, 250 * MIB, 60) == "it holds 250 MiB"


def test_a_process_that_is_too_large_from_the_start_is_not_replaced_for_that():
    limits = RecycleLimits(rss_bytes=50 * MIB)
    assert lifespan(100).is_too_large_from_the_start(limits)
    assert lifespan(100).due(limits, 500 * MIB, 60) == ""
    assert not lifespan(40).is_too_large_from_the_start(limits)


@given(st.floats(0, 1, exclude_max=True), st.floats(1, 1e6))
def test_jitter_stretches_a_life_by_at_most_a_tenth(jitter, age_s):
    limits = RecycleLimits(age_s=age_s)
    assert not lifespan(jitter=jitter).due(limits, 0, age_s * 0.999)
    assert lifespan(jitter=jitter).due(limits, 0, age_s * 1.1001)


def test_processes_that_began_together_do_not_end_together():
    limits = RecycleLimits(age_s=1000)
    assert lifespan(jitter=0.1).due(limits, 0, 1050)
    assert not lifespan(jitter=0.9).due(limits, 0, 1050)
