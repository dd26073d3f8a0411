"""Cases 17 to 19, 21 and 22 of the list of faults: a process lives and gets nothing done, or only seems so."""

import os
import re
import signal
import threading
import time

import pytest

from tests.support.asking import Asked, Asking
from tests.support.faulty_server import FAULTY, PYTHON_PATH, FaultyModel, FaultyServer
from tests.support.leaks import zombies_under
from tests.support.processes import alive, wait_until

#: Times of the supervisor, scaled so that a test takes seconds.
QUICK = {
    "EMB_PROVIDER_RESTART_DELAY_S": "0.05",
    "EMB_PROVIDER_SILENCE_TIMEOUT_S": "2",
    "EMB_PROVIDER_BATCH_TIMEOUT_S": "3",
}


@pytest.fixture
def make_server(tmp_path):
    servers = []

    def make(**env) -> FaultyServer:
        models = {name: FaultyModel(tmp_path / name) for name in ("en", "zh")}
        names = {f"EMB_PROVIDER_{name.upper()}": str(value) for name, value in env.items()}
        server = FaultyServer(tmp_path / "server", models, env=QUICK | names)
        servers.append(server)
        server.__enter__()
        server.wait_ready()
        return server

    yield make
    for server in servers:
        server.__exit__()


def row(server, model_id):
    return server.get("/ready").json["models"][model_id]


def wait_for_successor(server, model_id, pid):
    wait_until(lambda: row(server, model_id)["pid"] not in (None, pid), 20, "a successor is started")
    server.wait_for_states(**{model_id: "ready"})


def stacks_in(server) -> list[str]:
    """The block in the log file that a crashing process has written, without its indentation."""
    lines = (server.directory / "logs" / "emb_model_provider.log").read_text("utf-8").splitlines()
    heads = [number for number, line in enumerate(lines) if " stacks of=" in line]
    assert heads, "no stacks in the log"
    block = []
    for line in lines[heads[0] + 1 :]:
        if not line.startswith("    | "):
            break
        block.append(line.removeprefix("    | "))
    return block


def test_case_18_a_text_that_waits_for_company_by_the_settings_is_no_hang(make_server):
    server = make_server(batch_timeout_s=1, max_wait_time_ms=3000, min_batch_size=4)
    pid = server.shard_pid("en")
    server.check("en", ["alone"])
    assert server.shard_pid("en") == pid
    assert " hung " not in server.story()


def test_case_17_a_stopped_shard_is_found_silent_ended_and_replaced(make_server):
    """SIGSTOP: the verdict is silence, the process goes although it is stopped, clients are answered by their time."""
    server = make_server()
    pid, other = server.shard_pid("en"), server.shard_pid("zh")
    os.kill(pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    asking = Asking(server, [Asked("en", [f"waits {number}"]) for number in range(8)])
    wait_until(lambda: not alive(pid), 15, "it is ended")
    assert time.monotonic() - stopped_s > 1.0
    wait_for_successor(server, "en", pid)
    assert {one.status for one in asking.finish()} == {200}
    assert server.shard_pid("zh") == other
    assert "gave no sign of life" in server.stderr
    assert not zombies_under(server.process.pid)


def test_case_17_clients_that_will_not_wait_so_long_hear_so_by_their_deadline(make_server):
    server = make_server(silence_timeout_s=4, request_timeout_s=1)
    pid = server.shard_pid("en")
    os.kill(pid, signal.SIGSTOP)
    for one in Asking(server, [Asked("en", ["in vain"])]).finish():
        assert one.status in (503, 504)
        assert one.took_s < 3
    wait_for_successor(server, "en", pid)
    server.check("en", ["again"])


def test_case_18_a_call_that_keeps_the_gil_is_ended_and_the_log_shows_every_thread(make_server):
    """No Python thread of the shard can run; the supervisor ends it, and the stacks stand in the log as one block."""
    server = make_server()
    pid = server.shard_pid("en")
    (poison,) = Asking(server, [Asked("en", ["!spin=600 once"])]).requests
    wait_until(lambda: not alive(pid), 15, "it is ended")
    server.check("zh", ["meanwhile"])
    wait_until(lambda: poison.answer is not None, 40, "its client is told")
    assert (poison.status, poison.error["code"]) == (500, "request_crashed_model")
    server.wait_for_states(en="ready")
    server.check("en", ["after it"])
    block = stacks_in(server)
    threads = [line for line in block if re.match(r"(Current thread|Thread) 0x", line)]
    assert len(threads) >= 4, block
    assert any("_hold_gil" in line for line in block)
    assert any("progress.py" in line for line in block), "the threads that could not run are shown too"


def test_a_batch_that_never_ends_is_ended_though_its_process_reports_on(make_server):
    """The GIL is free and reports come: the age of the batch is what tells."""
    server = make_server()
    pid = server.shard_pid("en")
    asking = Asking(server, [Asked("en", ["!hang-times=1 at first"]), Asked("zh", ["another"])])
    wait_until(lambda: not alive(pid), 15, "it is ended")
    assert {one.status for one in asking.finish()} == {200}
    assert "was at one batch for" in server.stderr
    assert any("_hang" in line for line in stacks_in(server))
    assert row(server, "en")["restarts"] == 1


@pytest.mark.chaos
def test_a_tokenizer_that_never_ends_counts_as_stuck_too(make_server):
    server = make_server()
    pid = server.shard_pid("en")
    asking = Asking(server, [Asked("en", ["!slow-token=600 " + "x" * 400])])
    wait_until(lambda: not alive(pid), 15, "it is ended")
    assert "was at one batch for" in server.stderr or "gave no sign of life" in server.stderr
    wait_for_successor(server, "en", pid)
    server.check("zh", ["meanwhile"])
    asking.finish()


def test_case_19_a_long_batch_below_the_limit_is_left_alone(make_server):
    """Twice the limit on silence, below that on a batch: reports go on beside the batch."""
    server = make_server(silence_timeout_s=1.5, batch_timeout_s=20)
    pid = server.shard_pid("en")
    (one,) = Asking(server, [Asked("en", ["!sleep=4 a long one"])]).finish()
    assert one.status == 200
    assert one.took_s >= 4
    assert server.shard_pid("en") == pid
    assert "hung" not in server.stderr


def test_case_21_a_router_whose_loop_is_held_up_for_a_moment_is_busy_and_lives(make_server):
    """Late below the limit: a line in the log, no kill; whoever asked meanwhile waited, and is answered."""
    server = make_server(silence_timeout_s=8)
    router = server.router_pid()
    os.kill(router, signal.SIGSTOP)
    took_s = []

    def ask_health():
        began_s = time.monotonic()
        assert server.get("/health").status == 200
        took_s.append(time.monotonic() - began_s)

    asking = threading.Thread(target=ask_health)
    try:
        asking.start()
        wait_until(lambda: re.search(r"late_reports child=router", server.stderr), 7, "it is called busy")
    finally:
        os.kill(router, signal.SIGCONT)
    asking.join(10)
    assert took_s
    assert took_s[0] > 1
    wait_until(lambda: "reports_again child=router" in server.stderr, 10, "it is called well again")
    assert server.router_pid() == router
    assert "router_busy lag_s=" in server.stderr
    assert server.get("/health").json["loop_lag_s"] > 1
    (lag_s,) = re.findall(r"^emb_router_loop_lag_seconds (\S+)$", server.get("/metrics").body.decode(), re.MULTILINE)
    assert float(lag_s) > 1


def test_case_21_a_router_that_is_silent_beyond_the_limit_is_replaced_and_its_port_serves_on(make_server):
    server = make_server()
    router, shards = server.router_pid(), [server.shard_pid("en"), server.shard_pid("zh")]
    os.kill(router, signal.SIGSTOP)
    wait_until(lambda: not alive(router), 15, "it is ended")
    server.check("en", ["through the next one"])
    assert server.router_pid() != router
    assert [server.shard_pid("en"), server.shard_pid("zh")] == shards


_JUMPING_CLOCK = """
import runpy
import time

_true = time.time
time.time = lambda: _true() + (3600 if int(time.monotonic()) % 2 else -3600)
runpy.run_path({faulty!r}, run_name="sitecustomize")
"""


def test_case_22_a_clock_that_jumps_by_hours_changes_nothing(tmp_path):
    """An hour back and forth every second, in every process, while a model is in back-off and others serve."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_JUMPING_CLOCK.format(faulty=str(FAULTY / "sitecustomize.py")))
    models = {"en": FaultyModel(tmp_path / "en", crashes=3), "zh": FaultyModel(tmp_path / "zh")}
    env = QUICK | {"PYTHONPATH": f"{site}{os.pathsep}{PYTHON_PATH}", "EMB_PROVIDER_RESTART_DELAY_S": "0.5"}
    with FaultyServer(tmp_path / "server", models, env=env) as server:
        began_s = time.monotonic()
        server.wait_ready(30)
        assert time.monotonic() - began_s < 25
        hours = set()
        for _ in range(35):  # longer than the limits on silence and on a batch
            hours.add(server.get("/health").headers["Date"].split()[4][:2])
            time.sleep(0.1)
        server.check("zh", ["on time"])
        server.check("en", ["on time"])
        assert len(models["en"].start_pids()) == 4
        assert len(models["zh"].start_pids()) == 1
        assert "hung" not in server.stderr
        assert len(hours) > 1, "the clock did not jump: this test shows nothing"
