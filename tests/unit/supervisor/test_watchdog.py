import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.messages.status import Heartbeat, LoadProgress, Progress, Ready, RouterReady
from supervisor.watchdog import Watchdog, WatchLimits
from tests.support.statuses import make_info

LIMITS = WatchLimits(startup_s=900, batch_s=120, silence_s=30)
READY = Ready(make_info())


def report(running_s=0.0, waiting_texts=0, batches_done=0) -> Progress:
    return Progress(batches_done, running_s, waiting_texts, 10 * waiting_texts, 1000)


class Life:
    """A child and the supervisor's clock: a check each second, as the keeper makes them."""

    def __init__(self, limits: WatchLimits = LIMITS) -> None:
        self.now_s = 1000.0
        self.dog = Watchdog(limits)
        self.dog.begin(self.now_s)
        self.hang = None

    def hear(self, message) -> None:
        self.dog.hear(self.now_s, message)

    def passes(
        self,
        seconds: int,
        every_second=lambda second: None,
        is_stopped=lambda second: False,
        is_still=lambda second: False,
    ):
        """Let time pass; return the second of the verdict, or ``None``."""
        for second in range(1, seconds + 1):
            self.now_s += 1
            if (message := every_second(second)) is not None:
                self.hear(message)
            self.hang = self.dog.check(self.now_s, is_stopped=is_stopped(second), is_still=is_still(second))
            if self.hang is not None:
                return second
        return None


def ready(limits: WatchLimits = LIMITS) -> Life:
    life = Life(limits)
    life.hear(READY)
    return life


def test_before_ready_silence_is_no_verdict_only_the_limit_on_the_start_is():
    life = Life()
    assert life.passes(2000) == 901
    assert life.hang.kind == "startup"
    assert "made no progress for 901 s" in life.hang.sentence


def test_a_start_that_a_signal_has_stopped_is_ended_at_the_limit_of_silence():
    life = Life()
    assert life.passes(2000, is_stopped=lambda second: second > 100) == 131
    assert (life.hang.kind, "was stopped by a signal for 31 s" in life.hang.sentence) == ("silent", True)


def test_a_start_that_goes_on_after_a_stop_is_left_alone():
    life = Life()
    assert life.passes(800, is_stopped=lambda second: second % 30 != 0) is None


def test_a_stopped_start_waits_for_ever_where_silence_has_no_limit():
    assert Life(WatchLimits(silence_s=0)).passes(5000, is_stopped=lambda _second: True) is None


def test_a_start_of_which_no_thread_runs_is_ended_long_before_the_limit_on_the_start():
    life = Life()
    assert life.passes(2000, is_still=lambda second: second > 100) == 401
    assert (life.hang.kind, "stood still for 301 s while it started" in life.hang.sentence) == ("standstill", True)


def test_a_start_that_does_the_least_thing_now_and_then_is_left_to_the_limit_on_the_start():
    life = Life()
    assert life.passes(2000, is_still=lambda second: second % 300 != 0) == 901
    assert life.hang.kind == "startup"


def test_a_start_may_stand_still_for_longer_than_any_answer_takes_however_short_the_limit_on_silence():
    assert Life(WatchLimits(silence_s=5)).passes(2000, is_still=lambda _second: True) == 151


def test_a_start_may_stand_still_for_ever_where_silence_has_no_limit():
    assert Life(WatchLimits(silence_s=0)).passes(5000, is_still=lambda _second: True) is None


def test_who_serves_and_reports_may_stand_still_between_its_reports():
    assert ready().passes(2000, lambda second: report(), is_still=lambda _second: True) is None


def test_a_download_that_moves_is_alive_however_long_it_takes():
    life = Life()
    assert life.passes(5000, lambda second: LoadProgress("downloading", second, 10_000)) is None


def test_a_download_that_reports_the_same_bytes_again_and_again_has_stopped():
    life = Life()
    assert life.passes(2000, lambda second: LoadProgress("downloading", min(second, 50), 10_000)) == 951


def test_each_step_of_a_start_has_the_whole_limit():
    life = Life()
    steps = {800: LoadProgress("loading"), 1600: LoadProgress("warming"), 2400: READY}
    assert life.passes(2400, steps.get) is None


def test_a_child_that_says_nothing_is_hung():
    life = ready()
    assert life.passes(100) == 31
    assert life.hang.kind == "silent"


def test_reports_keep_a_child_alive():
    assert ready().passes(500, lambda second: report()) is None


def test_one_batch_beyond_the_limit_is_a_hang_though_reports_come():
    life = ready()
    assert life.passes(500, lambda second: report(running_s=float(second))) == 121
    assert life.hang.kind == "stuck"
    assert "at one batch for 121 s" in life.hang.sentence


def test_a_legitimate_batch_below_the_limit_is_not():
    assert ready().passes(119, lambda second: report(running_s=float(second))) is None


def test_a_model_so_slow_that_its_longest_text_takes_longer_has_that_time():
    slow = Ready(make_info(max_tokens=8192, tokens_per_s=80.0, lanes=2))
    life = ready()
    life.hear(slow)
    longest_s = 2 * 8192 / 80
    assert life.passes(2000, lambda second: report(running_s=float(second))) > 3 * longest_s
    assert life.hang.kind == "stuck"


def test_a_batch_without_a_limit_gets_none_from_what_was_measured_at_the_start():
    life = Life(WatchLimits(batch_s=0, silence_s=30))
    life.hear(Ready(make_info(max_tokens=512, tokens_per_s=1000.0)))
    assert life.passes(5000, lambda second: report(running_s=float(second))) is None


def test_many_batches_that_are_each_short_are_no_hang():
    assert ready().passes(1000, lambda second: report(running_s=second % 100, batches_done=second // 100)) is None


def test_a_batch_that_silences_its_process_is_counted_on():
    life = ready(WatchLimits(batch_s=60, silence_s=300))
    life.hear(report(running_s=10.0))
    assert life.passes(200) == 51
    assert life.hang.kind == "stuck"


def test_texts_that_wait_while_no_batch_begins_are_a_hang():
    life = ready()
    assert life.passes(500, lambda second: report(waiting_texts=3, batches_done=7)) == 122
    assert "3 texts wait" in life.hang.sentence


def test_texts_may_wait_for_ever_where_a_batch_has_no_limit():
    assert ready(WatchLimits(silence_s=30)).passes(5000, lambda second: report(waiting_texts=3)) is None


def test_texts_that_wait_for_company_as_long_as_they_may_are_none():
    life = ready(WatchLimits(batch_s=5, company_s=10))
    assert life.passes(12, lambda second: report(waiting_texts=1, batches_done=7)) is None
    assert life.passes(500, lambda second: report(waiting_texts=1, batches_done=7)) == 5
    assert life.hang.kind == "stuck"


def test_a_batch_has_no_more_time_because_texts_may_wait_before_it():
    life = ready(WatchLimits(batch_s=5, company_s=10))
    assert life.passes(500, lambda second: report(running_s=second, waiting_texts=1)) == 6


def test_a_child_that_has_nothing_to_do_is_not_at_fault_below_the_limit_of_silence():
    life = ready(WatchLimits(batch_s=60, silence_s=300))
    life.hear(report())
    assert life.passes(300) is None


def test_a_queue_that_moves_is_none():
    assert ready().passes(500, lambda second: report(waiting_texts=3, batches_done=second // 50)) is None


def test_a_router_that_is_late_is_busy_and_not_ended_below_the_limit():
    life = Life()
    life.hear(RouterReady(1))
    assert life.passes(5, lambda second: Heartbeat(0.0, 0)) is None
    assert not life.dog.is_busy(life.now_s)
    assert life.passes(3) is None
    assert not life.dog.is_busy(life.now_s)
    assert life.passes(1) is None
    assert life.dog.is_busy(life.now_s)
    life.hear(Heartbeat(5.0, 0))
    assert not life.dog.is_busy(life.now_s)


def test_who_reports_more_often_is_busy_sooner():
    life = ready(WatchLimits(silence_s=2))
    assert life.dog.report_every_s == 0.5
    assert not life.dog.is_busy(life.now_s + 1.5)
    assert life.dog.is_busy(life.now_s + 1.6)


def test_a_child_that_still_starts_is_not_called_busy():
    life = Life()
    assert life.passes(500) is None
    assert not life.dog.is_busy(life.now_s)


def test_a_supervisor_that_was_stopped_itself_finds_nobody_silent():
    life = ready()
    life.now_s += 3600
    assert life.dog.check(life.now_s, is_stopped=False) is None
    assert life.passes(20) is None
    assert life.passes(20) is not None


def test_nor_does_it_find_a_stopped_start_or_a_waiting_text_too_old():
    starting = Life()
    assert starting.passes(20, is_stopped=lambda _second: True) is None
    starting.now_s += 3600
    assert starting.passes(8, is_stopped=lambda _second: True) is None
    assert starting.passes(8, is_stopped=lambda _second: True) is not None
    still = Life()
    assert still.passes(200, is_still=lambda _second: True) is None
    still.now_s += 3600
    assert still.passes(98, is_still=lambda _second: True) is None
    assert still.passes(8, is_still=lambda _second: True) is not None
    assert still.hang.kind == "standstill"
    serving = ready()
    assert serving.passes(100, lambda second: report(waiting_texts=3)) is None
    serving.now_s += 3600
    assert serving.passes(18, lambda second: report(waiting_texts=3)) is None
    assert serving.passes(8, lambda second: report(waiting_texts=3)) is not None
    assert serving.hang.kind == "stuck"


def test_limits_of_nought_are_none():
    life = ready(WatchLimits())
    assert life.passes(100_000) is None
    assert Life(WatchLimits()).passes(100_000) is None


def test_nothing_of_an_earlier_child_counts_against_the_next():
    life = ready()
    assert life.passes(500, lambda second: report(running_s=float(second))) is not None
    life.dog.begin(life.now_s)
    assert life.passes(500) is None


@given(st.lists(st.tuples(st.integers(1, 29), st.floats(0, 90)), max_size=30))
def test_whoever_reports_in_time_and_works_in_time_is_never_ended(reports):
    life = ready()
    for pause_s, running_s in reports:
        assert life.passes(pause_s) is None
        life.hear(report(running_s=running_s))


@given(st.floats(0.1, 100), st.floats(0.1, 100))
def test_reports_come_several_times_within_each_limit(batch_s, silence_s):
    limits = WatchLimits(batch_s=batch_s, silence_s=silence_s)
    assert limits.report_every_s <= min(1.0, batch_s / 4, silence_s / 4)
    assert Watchdog(limits).check_every_s <= min(1.0, batch_s / 4, silence_s / 4)


def test_without_limits_a_child_reports_once_a_second():
    assert WatchLimits().report_every_s == Watchdog(WatchLimits()).check_every_s == 1.0


@pytest.mark.parametrize("hears_first", [True, False])
def test_a_batch_that_stood_still_with_the_whole_machine_is_no_stuck_one_but_the_next_that_hangs_is(hears_first):
    """As in a container that is paused: the child's clock has gone on, and its report is there when we look again."""
    life = ready()
    assert life.passes(50, lambda second: report()) is None
    life.hear(report(running_s=10.0))
    life.now_s += 300
    again = report(running_s=310.0)
    if hears_first:
        life.hear(again)
    assert life.dog.check(life.now_s, is_stopped=False) is None
    life.hear(again)
    assert 100 <= life.passes(200, lambda second: report(running_s=310.0 + second)) <= 115
    assert life.hang.kind == "stuck"
    life.hear(report(batches_done=1))
    assert life.passes(200, lambda second: report(running_s=float(second), batches_done=1)) == 121


def test_who_is_heard_right_after_an_absence_has_no_longer_to_be_silent_than_others():
    life = ready()
    life.now_s += 300
    life.hear(report())
    assert life.passes(100) == 32
