import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from emb_model_provider.errors import EXIT_BROKEN, EXIT_CONFIGURATION, EXIT_TEMPORARY, LoadReason
from supervisor.restarts import RestartLimits, RestartPolicy

LIMITS = RestartLimits(first_delay_s=0.5, max_delay_s=30, stable_s=60, intensity=5, period_s=120, probe_s=60)


def policy(jitter: float = 1.0, limits: RestartLimits = LIMITS) -> RestartPolicy:
    return RestartPolicy(limits, lambda: jitter)


def opened() -> RestartPolicy:
    one = policy()
    for second in range(6):
        one.died(float(second), 1)
    assert one.breaker(6.0) == "open"
    return one


def test_delays_double_until_the_breaker_opens_at_the_sixth_death():
    one = policy()
    delays, states = [], []
    for second in range(8):
        one.started()
        delays.append(one.died(float(second), 1))
        states.append(one.breaker(float(second)))
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 60.0, 120.0, 240.0]
    assert states == ["closed"] * 5 + ["open"] * 3


def test_delays_stop_doubling_at_the_cap_where_deaths_are_too_rare_to_open_the_breaker():
    one = policy()
    delays = []
    for number in range(10):
        one.became_ready(100.0 * number)
        delays.append(one.died(100.0 * number + 1, -9))
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_jitter_spreads_a_delay_over_all_that_is_below_its_bound_but_never_to_nothing():
    assert policy(jitter=0.0).died(0.0, 1) == pytest.approx(0.1)
    assert policy(jitter=0.5).died(0.0, 1) == pytest.approx(0.25)


def test_a_wrong_configuration_is_never_tried_again_until_a_person_asks():
    one = policy()
    assert one.died(0.0, EXIT_CONFIGURATION) is None
    one.reset()
    assert one.died(1.0, 1) == 0.5


def test_what_is_lacking_for_a_while_is_tried_again_slowly_from_the_first():
    assert policy().died(0.0, EXIT_TEMPORARY) == 30.0


def test_only_what_a_restart_cannot_help_exits_as_a_configuration_error():
    assert LoadReason.OUT_OF_MEMORY.exit_code == LoadReason.NO_NETWORK.exit_code == EXIT_TEMPORARY
    assert LoadReason.NO_SUCH_MODEL.exit_code == LoadReason.BAD_VECTORS.exit_code == EXIT_CONFIGURATION
    assert LoadReason.INTERNAL.exit_code == EXIT_BROKEN


def test_a_child_that_served_for_a_stable_time_starts_again_from_the_first_delay():
    one = policy()
    assert [one.died(0.0, 1), one.died(1.0, 1)] == [0.5, 1.0]
    one.became_ready(10.0)
    assert one.died(10.0 + LIMITS.stable_s, -9) == 0.5


def test_a_child_that_dies_soon_after_it_was_ready_keeps_backing_off():
    one = policy()
    one.died(0.0, 1)
    one.became_ready(10.0)
    assert one.died(11.0, -9) == 1.0


def test_starts_that_fail_slowly_open_the_breaker_too():
    one = policy()
    delays = [one.died(1000.0 * number, EXIT_TEMPORARY) for number in range(6)]
    assert delays == [30.0] * 5 + [60.0]
    assert one.breaker(6000.0) == "open"


@pytest.mark.parametrize(("apart_s", "breaker"), [(24.0, "open"), (24.5, "closed")])
def test_a_child_that_comes_up_and_dies_too_often_within_the_period_opens_the_breaker(apart_s, breaker):
    one = policy()
    for died_s in (0.0, *(1000.0 + apart_s * number for number in range(6))):
        one.became_ready(died_s - 1)
        one.died(died_s, -9)
    assert one.breaker(1000.0 + apart_s * 5) == breaker


def test_a_child_that_was_ready_once_may_fail_to_start_as_often_as_before():
    one = policy()
    for number in range(5):
        one.died(1000.0 * number, 1)
    one.became_ready(5000.0)
    one.died(5001.0, -9)
    states = []
    for number in range(6, 12):
        one.died(1000.0 * number, 1)
        states.append(one.breaker(1000.0 * number))
    assert states == ["closed"] * 5 + ["open"]


def test_boot_failures_and_crashes_are_counted_apart():
    one = policy()
    one.died(0.0, 1)
    one.died(1.0, EXIT_CONFIGURATION)
    one.became_ready(2.0)
    one.died(3.0, -9)
    one.reset()
    assert (one.boot_failures, one.crashes) == (2, 1)


def test_a_probe_half_opens_the_breaker_and_a_stable_success_closes_it():
    one = opened()
    one.started()
    assert one.breaker(66.0) == "half-open"
    one.became_ready(70.0)
    assert one.breaker(70.0 + LIMITS.stable_s - 1) == "half-open"
    assert one.breaker(70.0 + LIMITS.stable_s) == "closed"
    assert one.died(200.0, -9) == 0.5


def test_a_probe_that_dies_before_it_is_stable_opens_the_breaker_again_for_longer():
    one = opened()
    one.started()
    one.became_ready(70.0)
    assert one.died(75.0, -9) == 120.0
    assert one.breaker(75.0) == "open"


def test_a_reset_closes_the_breaker():
    one = opened()
    one.reset()
    one.started()
    assert one.breaker(7.0) == "closed"
    assert one.died(8.0, 1) == 0.5


def test_a_reset_forgets_every_failure_and_every_probe():
    one = opened()
    assert [one.died(100.0 * number, 1) for number in (1, 2)] == [120.0, 240.0]
    one.reset()
    assert [one.died(1000.0 * number, 1) for number in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 60.0]


@pytest.mark.parametrize("intensity", [2, 8])
def test_after_a_change_of_the_intensity_so_many_crashes_and_one_more_open_the_breaker(intensity):
    one = policy()
    one.retune(RestartLimits(intensity=intensity))
    states = []
    long_ago = -1000
    for second in (long_ago, *range(0, 2 * intensity + 2, 2)):
        one.became_ready(float(second))
        one.died(float(second + 1), -9)
        states.append(one.breaker(float(second + 1)))
    assert states == ["closed"] * (1 + intensity) + ["open"]


def test_other_limits_count_from_now_on_and_what_has_happened_counts_on():
    one = policy()
    assert [one.died(float(second), 1) for second in range(3)] == [0.5, 1.0, 2.0]
    one.retune(RestartLimits(first_delay_s=1.0, intensity=3))
    assert one.died(3.0, 1) == 60.0
    assert one.breaker(3.0) == "open"


def test_crashes_before_a_change_of_the_limits_count_with_those_after_it():
    one = policy()
    states = []
    for second in range(4):
        if second == 2:
            one.retune(RestartLimits(intensity=3))
        one.became_ready(float(second))
        one.died(float(second), -9)
        states.append(one.breaker(float(second)))
    assert states == ["closed"] * 3 + ["open"]


def test_an_intensity_of_nought_never_opens_the_breaker():
    one = policy(limits=RestartLimits(intensity=0))
    assert [one.died(0.0, 1) for _ in range(2000)][-1] == 30.0
    assert one.breaker(0.0) == "closed"


@given(st.floats(1e6, 1e9), st.integers(1, 12))
def test_only_differences_of_the_clock_count(origin_s, deaths):
    near, far = policy(), policy()
    assert [near.died(float(number), 1) for number in range(deaths)] == [
        far.died(origin_s + number, 1) for number in range(deaths)
    ]


class AnyLife(RuleBasedStateMachine):
    """Whatever happens to a child, in whatever order: delays stay in their bounds and the breaker in its states."""

    def __init__(self) -> None:
        super().__init__()
        self.jitter = 0.0
        self.policy = RestartPolicy(LIMITS, lambda: self.jitter)
        self.now_s = 0.0
        self.runs = False
        self.is_ready = False
        self.deaths = 0

    @rule(seconds=st.floats(0, 1e5))
    def time_passes(self, seconds):
        self.now_s += seconds

    @precondition(lambda self: not self.runs)
    @rule()
    def starts(self):
        self.policy.started()
        self.runs, self.is_ready = True, False
        assert self.policy.breaker(self.now_s) != "open"

    @precondition(lambda self: self.runs and not self.is_ready)
    @rule()
    def becomes_ready(self):
        self.policy.became_ready(self.now_s)
        self.is_ready = True

    @precondition(lambda self: self.runs)
    @rule(exit_code=st.integers(-15, 100), jitter=st.floats(0, 1, exclude_max=True))
    def dies(self, exit_code, jitter):
        self.jitter = jitter
        before = self.policy.boot_failures, self.policy.crashes
        delay_s = self.policy.died(self.now_s, exit_code)
        grown = self.policy.boot_failures - before[0], self.policy.crashes - before[1]
        assert grown == ((0, 1) if self.is_ready else (1, 0))
        self.runs = False
        self.deaths += 1
        if exit_code == EXIT_CONFIGURATION:
            assert delay_s is None
            return
        assert delay_s is not None
        if self.policy.breaker(self.now_s) == "open":
            assert LIMITS.probe_s / 2 <= delay_s <= 10 * LIMITS.probe_s
        else:
            assert 0.1 <= delay_s <= LIMITS.max_delay_s

    @rule()
    def a_person_resets(self):
        self.policy.reset()
        assert self.policy.breaker(self.now_s) == "closed"

    @invariant()
    def every_death_is_counted_once(self):
        assert self.policy.boot_failures + self.policy.crashes == self.deaths

    @invariant()
    def a_child_that_is_stable_has_a_closed_breaker(self):
        if self.runs and self.is_ready:
            assert self.policy.breaker(self.now_s + LIMITS.stable_s) == "closed"


TestAnyLife = AnyLife.TestCase
