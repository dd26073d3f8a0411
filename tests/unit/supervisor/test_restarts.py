from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import EXIT_CONFIGURATION
from supervisor.restarts import RestartLimits, RestartPolicy

LIMITS = RestartLimits(first_delay_s=0.5, max_delay_s=30, stable_s=60, intensity=5, period_s=120)


def policy(jitter: float = 0.999999) -> RestartPolicy:
    return RestartPolicy(LIMITS, lambda: jitter)


def test_delays_double_until_the_breaker_holds_them_at_the_cap():
    one = policy(jitter=1.0)
    delays = [one.died(float(second), 1) for second in range(8)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 30.0, 30.0, 30.0]


def test_a_wrong_configuration_is_never_tried_again():
    assert policy().died(0.0, EXIT_CONFIGURATION) is None


def test_a_child_that_served_for_a_stable_time_starts_again_from_the_first_delay():
    one = policy(jitter=1.0)
    assert [one.died(0.0, 1), one.died(1.0, 1)] == [0.5, 1.0]
    one.became_ready(10.0)
    assert one.died(10.0 + LIMITS.stable_s, -9) == 0.5


def test_a_child_that_dies_soon_after_it_was_ready_keeps_backing_off():
    one = policy(jitter=1.0)
    one.died(0.0, 1)
    one.became_ready(10.0)
    assert one.died(11.0, -9) == 1.0


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.booleans(), st.integers(-15, 77)), max_size=60),
    st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_always_positive_and_never_over_the_cap(events, jitter):
    one = RestartPolicy(LIMITS, lambda: jitter)
    now_s = 0.0
    for pause_s, was_ready, exit_code in events:
        if was_ready:
            one.became_ready(now_s)
        now_s += pause_s
        delay_s = one.died(now_s, exit_code)
        assert delay_s is not None
        assert 0 < delay_s <= LIMITS.max_delay_s
