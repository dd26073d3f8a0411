"""Cases 11 to 16 of the list of faults: a model cannot be started, or not yet."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from emb_model_provider.errors import EXIT_BROKEN
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.leaks import zombies_under
from tests.support.processes import alive, cpu_s, wait_until

#: Times of the supervisor, scaled so that a test takes seconds.
QUICK = {
    "EMB_PROVIDER_RESTART_DELAY_S": "0.05",
    "EMB_PROVIDER_RESTART_MAX_DELAY_S": "0.4",
    "EMB_PROVIDER_RESTART_PROBE_S": "60",
    "EMB_PROVIDER_READY_WAIT_S": "0.2",
}


def server_with(tmp_path, env=None, **models: FaultyModel) -> FaultyServer:
    return FaultyServer(tmp_path / "server", models, env=QUICK | (env or {}))


def listed(server, model_id):
    """The model as ``/v1/models`` shows it."""
    (row,) = [model for model in server.get("/v1/models").json["data"] if model["id"] == model_id]
    return row


def test_case_11_a_path_that_is_missing_is_said_so_once_and_stops_nobody_else(tmp_path):
    """Exit 78, the reason in the status, all others ready, ``/v1/models`` marks it, started exactly once."""
    gone = FaultyModel(tmp_path / "gone")
    (tmp_path / "gone" / "faulty.json").unlink()
    (tmp_path / "gone").rmdir()
    with server_with(tmp_path, good=FaultyModel(tmp_path / "good"), gone=gone) as server:
        server.wait_for_states(good="ready", gone="failed")
        row = server.get("/ready").json["models"]["gone"]
        assert (row["reason"], row["ready"], row["pid"]) == ("no_such_model", False, None)
        assert str(tmp_path / "gone") in row["detail"]
        assert listed(server, "gone")["state"] == "failed"
        answer = server.post("/v1/embeddings", {"model": "gone", "input": "hi"})
        assert (answer.status, answer.json["error"]["code"]) == (503, "model_failed")
        time.sleep(1.0)  # many times the restart delay
        server.check("good", ["still here"])
        assert server.stdout.count("gone  starting") == 1
        assert "exited with code 78" in server.stderr


def test_case_11_a_configuration_error_from_the_loader_is_not_tried_again(tmp_path):
    bad = FaultyModel(tmp_path / "bad", load_error="unsupported_model")
    with server_with(tmp_path, bad=bad, good=FaultyModel(tmp_path / "good")) as server:
        server.wait_for_states(good="ready", bad="failed")
        time.sleep(1.0)
        assert len(bad.start_pids()) == 1
        assert server.get("/ready").json["models"]["bad"]["reason"] == "unsupported_model"


def test_case_12_a_load_that_hangs_is_ended_at_the_start_up_limit_and_counted(tmp_path):
    """Killed at the limit and not before, with its stacks in the log; others unaffected; fixed, it comes up."""
    stuck = FaultyModel(tmp_path / "stuck", load_hang=True)
    with server_with(
        tmp_path,
        {"EMB_PROVIDER_STARTUP_TIMEOUT_S": "2"},
        stuck=stuck,
        good=FaultyModel(tmp_path / "good"),
    ) as server:
        wait_until(lambda: stuck.start_pids() != [], 20, "it begins to load")
        began_s = time.monotonic()
        pid = stuck.start_pids()[0]
        wait_until(lambda: not alive(pid), 20, "it is ended")
        assert time.monotonic() - began_s > 1.5
        server.wait_for_states(good="ready")
        server.check("good", ["meanwhile"])
        stuck.behave(load_hang=False)
        server.wait_for_states(stuck="ready")
        assert "made no progress for" in server.stderr
        assert "in load" in server.stderr, "the log shows where it hung"
        assert not zombies_under(server.process.pid)
        assert len(server.models["good"].start_pids()) == 1


def test_case_12_a_load_that_a_signal_stops_is_ended_by_the_limit_on_silence_long_before_that_on_the_start(tmp_path):
    slow = FaultyModel(tmp_path / "slow", load_hang=True)
    with server_with(tmp_path, {"EMB_PROVIDER_SILENCE_TIMEOUT_S": "1"}, slow=slow) as server:
        wait_until(lambda: slow.start_pids() != [], 20, "it begins to load")
        pid = slow.start_pids()[0]
        time.sleep(2.5)
        assert alive(pid), "a load that says nothing is no silence"
        slow.behave(load_hang=False)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not alive(pid), 10, "it is ended")
        server.wait_for_states(slow="ready")
        server.check("slow", ["after it"])
        assert "was stopped by a signal for" in server.stderr
        assert not zombies_under(server.process.pid)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_case_12_a_load_that_stands_still_is_ended_long_before_the_limit_on_the_start(tmp_path):
    held = FaultyModel(tmp_path / "held", load_hang=True)
    with server_with(tmp_path, {"EMB_PROVIDER_SILENCE_TIMEOUT_S": "1"}, held=held) as server:
        wait_until(lambda: held.start_pids() != [], 20, "it begins to load")
        began_s = time.monotonic()
        pid = held.start_pids()[0]
        held.behave(load_hang=False)
        wait_until(lambda: not alive(pid), 200, "it is ended")
        assert time.monotonic() - began_s > 100
        server.wait_for_states(held="ready")
        assert "stood still for" in server.stderr
        assert "in load" in server.stderr, "the log shows where it hung"


def test_case_13_a_load_that_holds_the_gil_is_left_alone(tmp_path):
    """No verdict of liveness before READY: three times the silence limit in one C call, and one start all the same."""
    slow = FaultyModel(tmp_path / "slow", load_spin_s=3.0)
    with server_with(tmp_path, {"EMB_PROVIDER_SILENCE_TIMEOUT_S": "1"}, slow=slow) as server:
        server.wait_ready()
        assert len(slow.start_pids()) == 1
        server.check("slow", ["here at last"])
        assert "hung" not in server.stderr


def test_case_14_a_crash_loop_slows_down_and_stops_and_a_mended_model_is_found_by_a_probe(tmp_path):
    """Intervals stay below doubling bounds, the breaker opens at the 6th death, the supervisor idles, a probe heals."""
    broken = FaultyModel(tmp_path / "broken", crashes=-1)
    env = {"EMB_PROVIDER_RESTART_DELAY_S": "0.1", "EMB_PROVIDER_RESTART_PROBE_S": "8"}
    with server_with(tmp_path, env, broken=broken, good=FaultyModel(tmp_path / "good")) as server:
        server.wait_for_states(good="ready", broken="failed")
        starts = broken.start_pids()
        assert len(starts) == 6
        row = server.get("/ready").json["models"]["broken"]
        assert row["reason"] == "start_failed"
        assert "exited with code 1; it keeps failing" in row["detail"]
        # Left alone: nothing is started and the supervisor has nothing to do.
        before_s, began_s = cpu_s(server.process.pid), time.monotonic()
        time.sleep(3.0)
        busy = (cpu_s(server.process.pid) - before_s) / (time.monotonic() - began_s)
        assert busy < 0.01, f"{busy:.2%} of a core"
        assert broken.start_pids() == starts
        answer = server.post("/v1/embeddings", {"model": "broken", "input": "hi"})
        assert (answer.status, answer.json["error"]["code"]) == (503, "model_failed")
        assert int(answer.headers["Retry-After"]) >= 1
        server.check("good", ["unharmed"])
        broken.behave(crashes=0)
        server.wait_for_states(broken="ready", timeout_s=30)
        assert len(broken.start_pids()) == 7
        server.check("broken", ["mended"])


def test_case_14_a_reload_brings_back_what_has_been_mended_at_once(tmp_path):
    """Neither the breaker nor the verdict "a restart cannot help" outlasts a SIGHUP; who serves is left alone."""
    broken = FaultyModel(tmp_path / "broken", crashes=-1)
    wrong = FaultyModel(tmp_path / "wrong", load_error="wrong_weights")
    good = FaultyModel(tmp_path / "good")
    env = {"EMB_PROVIDER_RESTART_LIMIT": "2", "EMB_PROVIDER_RESTART_PROBE_S": "3600"}
    with server_with(tmp_path, env, broken=broken, wrong=wrong, good=good) as server:
        server.wait_for_states(good="ready", broken="failed", wrong="failed")
        pid = server.shard_pid("good")
        broken.behave(crashes=0)
        wrong.behave(load_error="")
        server.process.send_signal(signal.SIGHUP)
        server.wait_ready(30)
        server.check("broken", ["mended"])
        server.check("wrong", ["mended"])
        assert (len(broken.start_pids()), len(wrong.start_pids())) == (4, 2)
        assert server.shard_pid("good") == pid


def test_case_14_the_delays_between_tries_grow(tmp_path):
    broken = FaultyModel(tmp_path / "broken", crashes=-1)
    env = {"EMB_PROVIDER_RESTART_DELAY_S": "0.1", "EMB_PROVIDER_RESTART_MAX_DELAY_S": "30"}
    with server_with(tmp_path, env, broken=broken) as server:
        server.wait_for_states(broken="failed")
        delays_s = [float(word.partition("=")[2]) for word in server.stderr.split() if word.startswith("restart_in_s=")]
    assert len(delays_s) == 6
    for number, delay_s in enumerate(delays_s[:5]):
        assert 0.02 <= delay_s <= 0.1 * 2**number + 1e-6
    assert 30 <= delays_s[5] <= 60


def test_a_load_that_fails_unexpectedly_is_tried_again_and_says_why(tmp_path):
    model = FaultyModel(tmp_path / "m", load_raises="the moon is in the wrong place")
    with server_with(tmp_path, m=model) as server:
        wait_until(lambda: len(model.start_pids()) >= 2, 30, "it is tried again")
        model.behave(load_raises="")
        server.wait_ready()
        assert "the moon is in the wrong place" in server.stderr
        assert f"exited with code {EXIT_BROKEN}" in server.stderr


def test_case_9_a_model_that_exits_with_code_nought_has_failed_like_any_other(tmp_path):
    """``sys.exit(0)`` while it loads, and while it serves, is unexpected, counted, and followed by a restart."""
    model = FaultyModel(tmp_path / "m", crashes=1, crash_code=0)
    with server_with(tmp_path, m=model) as server:
        server.wait_ready()
        assert "exited with code 0, although nobody had asked it to" in server.stderr
        assert server.get("/ready").json["models"]["m"]["restarts"] == 1


@pytest.mark.parametrize("fault", ["nan", "wrong_dimension"])
def test_case_15_a_model_whose_first_vectors_are_wrong_never_becomes_ready(tmp_path, fault):
    bad = FaultyModel(tmp_path / "bad", **{fault: True})
    with server_with(tmp_path, bad=bad, good=FaultyModel(tmp_path / "good")) as server:
        server.wait_for_states(20, good="ready", bad="failed")
        row = server.get("/ready").json["models"]["bad"]
        assert row["reason"] == "bad_vectors"
        time.sleep(0.5)
        assert len(bad.start_pids()) == 1
        assert "bad  ready" not in server.stdout


def test_case_16_a_second_model_that_does_not_fit_is_named_and_the_first_serves_on(tmp_path):
    """Too little memory may pass: it is tried again, but slowly, and comes up once there is room."""
    second = FaultyModel(tmp_path / "second", load_memory_error=True)
    first = FaultyModel(tmp_path / "first")
    with server_with(tmp_path, first=first, second=second) as server:
        server.wait_for_states(first="ready", second="failed")
        row = server.get("/ready").json["models"]["second"]
        assert row["reason"] == "out_of_memory"
        assert "does not fit into memory" in row["detail"]
        server.check("first", ["serves on"])
        second.behave(load_memory_error=False)
        server.wait_ready()
        assert len(first.start_pids()) == 1


def test_case_47_no_start_that_fails_leaves_a_zombie(tmp_path):
    model = FaultyModel(tmp_path / "m", crashes=4)
    with server_with(tmp_path, m=model) as server:
        seen = itertools.count()
        wait_until(lambda: next(seen) >= 0 and server.get("/ready").status == 200, 30, "it is up at last")
        assert len(model.start_pids()) == 5
        assert not zombies_under(server.process.pid)
        assert not [pid for pid in model.start_pids()[:-1] if Path(f"/proc/{pid}").exists()]
