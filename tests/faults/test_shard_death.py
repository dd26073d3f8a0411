"""Cases 1 and 6 to 10 of the list of faults: a shard dies, or its device does.

Every answer's vectors are compared with their true values by ``Asking`` itself.
"""

import os
import re
import signal
import time

import pytest

from tests.support.asking import Asked, Asking, SteadyLoad
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import alive, is_zombie, wait_until


@pytest.fixture
def server(tmp_path):
    models = {
        "en": FaultyModel(tmp_path / "en"),
        "zh": FaultyModel(tmp_path / "zh"),
        # One slice of its vectors is 1 MB, more than a socket holds.
        "large": FaultyModel(tmp_path / "large", dimension=4096),
    }
    with FaultyServer(tmp_path / "server", models) as it:
        it.wait_ready()
        yield it


def row(server, model_id):
    return server.get("/ready").json["models"][model_id]


def wait_for_successor(server, model_id, pid):
    wait_until(lambda: row(server, model_id)["pid"] not in (0, pid), 20, "a successor is started")
    server.wait_for_states(**{model_id: "ready"})


def test_case_1_an_idle_shard_killed_comes_back_and_only_it(server):
    pid, other = server.shard_pid("en"), server.shard_pid("zh")
    os.kill(pid, signal.SIGKILL)
    wait_for_successor(server, "en", pid)
    server.check("en", ["after it"])
    assert row(server, "en")["restarts"] == 1
    assert (server.shard_pid("zh"), row(server, "zh")["restarts"]) == (other, 0)
    assert not alive(pid)
    assert not is_zombie(pid)


def test_case_1_who_asks_in_the_gap_waits_instead_of_hearing_an_error(server):
    with SteadyLoad(server, "en", "a") as same, SteadyLoad(server, "zh", "b") as other:
        pid = server.shard_pid("en")
        os.kill(pid, signal.SIGKILL)
        wait_for_successor(server, "en", pid)
        answered = len(same.done)
        same.wait_for(lambda: len(same.done) > answered + 3, 20, "it serves again")
    assert same.statuses() == {200}
    assert other.statuses() == {200}
    assert len(server.models["en"].start_pids()) == 2


def test_case_6_a_broken_device_ends_the_process_at_once_and_nothing_is_answered_from_it(server):
    pid = server.shard_pid("en")
    began_s = time.monotonic()
    asking = Asking(server, [Asked("en", ["!fatal"]), *(Asked("en", [f"innocent {n}"]) for n in range(10))])
    wait_until(lambda: not alive(pid), 5, "it ends by itself")
    ended_after_s = time.monotonic() - began_s
    guilty, *innocents = asking.finish()
    assert ended_after_s < 3
    assert guilty.status in (500, 422)
    assert guilty.error["code"] == "request_crashed_model"
    assert {one.status for one in innocents} == {200}
    for broken in {pid for pid, batch in server.models["en"].batches() if "!fatal" in batch}:
        batches = [batch for pid, batch in server.models["en"].batches() if pid == broken]
        assert "!fatal" in batches[-1], "it went on computing on a broken device"
    assert "device-side assert" in server.stderr + server.stdout
    wait_for_successor(server, "en", pid)
    server.check("en", ["after it"])


def test_case_7_a_batch_too_large_for_memory_is_encoded_in_halves(server):
    pid = server.shard_pid("en")
    texts = [f"!oom=4 number {n}" for n in range(32)]
    server.check("en", texts)
    assert server.shard_pid("en") == pid
    sizes = [len(batch) for _, batch in server.models["en"].batches() if "!oom" in batch[0]]
    assert max(sizes) > 4
    assert sum(size for size in sizes if size <= 4) == 32


@pytest.mark.parametrize("order", ["!oom", "!memory"])
def test_case_7_a_text_too_large_for_memory_fails_alone(server, order):
    pid = server.shard_pid("en")
    requests = [Asked("en", [f"neighbour {n}"]) for n in range(16)]
    guilty, *neighbours = Asking(server, [Asked("en", [order]), *requests]).finish()
    assert guilty.status == 413
    assert guilty.error["code"] == "input_too_large"
    assert {one.status for one in neighbours} == {200}
    assert server.shard_pid("en") == pid


def test_case_8_killed_by_the_kernel_for_its_memory_the_innocent_are_answered_and_the_log_says_it(server):
    pid = server.shard_pid("en")
    requests = [Asked("en", ["!eat=60 !kill-times=1"]), *(Asked("en", [f"innocent {n}"]) for n in range(40))]
    asked = Asking(server, requests).finish()
    assert {one.status for one in asked} == {200}
    assert not alive(pid)
    assert row(server, "en")["restarts"] == 1
    line = next(line for line in server.stderr.splitlines() if "SIGKILL" in line)
    assert "perhaps out of memory" in line
    assert int(re.search(r"last_rss_mib=(\d+)", line).group(1)) > 20


def test_case_9_a_model_that_calls_sys_exit_is_started_again_and_counted(server):
    pid = server.shard_pid("en")
    guilty, *innocents = Asking(
        server, [Asked("en", ["!sys-exit"]), *(Asked("en", [f"innocent {n}"]) for n in range(10))]
    ).finish()
    assert guilty.error["code"] == "request_crashed_model"
    assert {one.status for one in innocents} == {200}
    wait_for_successor(server, "en", pid)
    assert row(server, "en")["restarts"] >= 1
    assert "sys.exit(0)" in server.stderr


def test_case_9_an_end_with_code_0_that_nobody_asked_for_counts_as_a_crash(server):
    pid = server.shard_pid("en")
    asked = Asking(server, [Asked("en", ["!exit=0"]), Asked("en", ["innocent"])]).finish()
    assert [one.status for one in asked][1:] == [200]
    assert asked[0].error["code"] == "request_crashed_model"
    wait_for_successor(server, "en", pid)
    assert row(server, "en")["restarts"] >= 1


def test_case_10_a_reply_that_is_half_written_is_thrown_away_and_asked_for_again(server):
    model, pid, router = server.models["large"], server.shard_pid("large"), server.router_pid()
    requests = [Asked("large", [f"!sleep=0.01 {n} {index}" for index in range(64)]) for n in range(4)]
    asking = Asking(server, requests)
    wait_until(model.encoded, 20, "work has begun")
    os.kill(router, signal.SIGSTOP)
    try:
        still_since_s, seen = time.monotonic(), -1
        while time.monotonic() - still_since_s < 0.5:  # until the shard has encoded all that it was sent
            if len(model.encoded()) != seen:
                still_since_s, seen = time.monotonic(), len(model.encoded())
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), 10, "it is dead")
    finally:
        os.kill(router, signal.SIGCONT)
    assert {one.status for one in asking.finish()} == {200}
    assert len(model.encoded()) > 4 * 64, "every reply had left before it died: this test shows nothing"
    assert row(server, "large")["restarts"] == 1
    assert row(server, "zh")["restarts"] == 0
