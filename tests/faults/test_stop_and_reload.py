"""Cases 28 to 33: stopping finishes what is in flight within its bounds, a reload disturbs only what it changes."""

import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse

import pytest

from supervisor.control import ControlError
from tests.support import operator
from tests.support.asking import Asked, Asking, SteadyLoad
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import alive, environment, wait_until


def make_server(tmp_path, *names, env=None, dotenv="", **manner) -> FaultyServer:
    models = {name: FaultyModel(tmp_path / name, **manner) for name in names}
    return FaultyServer(tmp_path / "server", models, env=env, dotenv=dotenv)


def in_flight(server, model_id):
    return server.get("/ready").json["models"][model_id].get("requests_in_flight", 0)


def assert_nothing_left(server, family):
    assert not [pid for pid in family if alive(pid)]
    assert list(server.run_directory.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- stopping


def test_case_28_sigterm_with_200_in_flight_answers_all_of_them_and_leaves_nothing(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        family = server.family()
        # All others wait behind the first one, so that all are in flight when the signal comes.
        first = Asking(server, [Asked("en", ["!sleep=6"])])
        wait_until(lambda: "!sleep=6" in server.models["en"].encoded(), 10, "the first is on the device")
        asking = Asking(server, [Asked("en", [f"in flight {number}"]) for number in range(200)])
        wait_until(lambda: in_flight(server, "en") == 201, 5, "all are accepted")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.stdout, 5, "it says so")
        time.sleep(0.3)
        where = urllib.parse.urlsplit(server.url)
        with pytest.raises(ConnectionRefusedError), socket.create_connection((where.hostname, where.port), 2):
            pass
        assert {one.status for one in [*first.finish(), *asking.finish()]} == {200}
        assert server.process.wait(15) == 0, server.story()
        assert_nothing_left(server, family)
        assert not re.search(" (WARNING|ERROR) ", server.stderr), server.stderr


def test_case_29_a_batch_that_hangs_ends_at_the_hard_limit_with_a_code_and_a_line_that_names_it(tmp_path):
    with make_server(tmp_path, "en", "zh", env={"EMB_PROVIDER_SHUTDOWN_GRACE_S": "1"}) as server:
        server.wait_ready()
        family, victim = server.family(), server.shard_pid("en")
        asking = Asking(server, [Asked("en", ["!hang"])], timeout_s=20)
        wait_until(lambda: "!hang" in server.models["en"].encoded(), 10, "it hangs")
        began_s = time.monotonic()
        assert server.stop() == 1
        # 1 s and 2 s for the router, the same for the shard, and some for the machine.
        assert time.monotonic() - began_s < 12
        assert re.search(rf"killed child=shard\[en\] pid={victim}", server.stderr)
        assert "child=shard[zh]" not in server.stderr
        (asked,) = asking.requests
        wait_until(lambda: asked.answer is not None or asked.failure is not None, 5, "its client hears")
        assert_nothing_left(server, family)


def test_case_30_a_second_signal_ends_everything_at_once(tmp_path):
    with make_server(tmp_path, "en", env={"EMB_PROVIDER_SHUTDOWN_GRACE_S": "60"}) as server:
        server.wait_ready()
        family = server.family()
        Asking(server, [Asked("en", ["!hang"])])
        wait_until(lambda: "!hang" in server.models["en"].encoded(), 10, "it hangs")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 1
        assert time.monotonic() - began_s < 2
        assert_nothing_left(server, family)


def test_a_second_signal_ends_a_router_that_still_finishes_what_it_had_before_a_reload(tmp_path):
    with make_server(tmp_path, "en", env={"EMB_PROVIDER_SHUTDOWN_GRACE_S": "60"}) as server:
        server.wait_ready()
        Asking(server, [Asked("en", ["!hang"])])
        wait_until(lambda: "!hang" in server.models["en"].encoded(), 10, "it hangs")
        before = server.router_pid()
        server._more_dotenv = "EMB_PROVIDER_MAX_REQUEST_MB=1\n"
        server.write_mapping()
        operator.reload(server)
        wait_until(lambda: operator.report(server).router.pid not in (0, before), 10, "its successor takes connections")
        family = server.family()
        assert before in family
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1
        assert time.monotonic() - began_s < 2
        assert_nothing_left(server, family)


@pytest.mark.parametrize("load", [{"load_s": 60}, {"load_spin_s": 60}, {"crashes": -1}], ids=str)
def test_case_31_sigterm_while_models_load_is_a_clean_stop(tmp_path, load):
    with make_server(tmp_path, "en", "zh", **load) as server:
        wait_until(lambda: server.models["en"].start_pids() and server.models["zh"].start_pids(), 15, "both load")
        family = server.family()
        began_s = time.monotonic()
        assert server.stop() == 0, server.story()
        assert time.monotonic() - began_s < 5
        assert_nothing_left(server, family)


def test_case_31_a_signal_in_the_very_first_moments_leaves_nothing_either(tmp_path):
    for number, delay_s in enumerate((0.1, 0.3, 0.5)):
        server = make_server(tmp_path / str(number), "en", load_s=60)
        with server.stdout_path.open("wb") as out:
            server.process = operator.start(server, out)
        time.sleep(delay_s)
        code = server.stop()
        assert code in (0, -signal.SIGTERM), server.stdout
        assert list(server.run_directory.iterdir()) == []


def test_stop_as_a_command_waits_until_the_server_is_gone(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        done = operator.command(server, "stop", "--wait", "20")
        assert (done.returncode, done.stderr) == (0, "")
        assert server.process.wait(5) == 0
        after = operator.command(server, "status")
        assert after.returncode == 3
        assert "No server of this user is running" in after.stderr


# --------------------------------------------------------------------------------------------------------- reloading


def test_case_32_one_added_one_removed_one_unchanged_under_load(tmp_path):
    with make_server(tmp_path, "kept", "gone", ms_per_batch=30) as server:
        server.wait_ready()
        kept, gone, router = server.shard_pid("kept"), server.shard_pid("gone"), server.router_pid()
        with SteadyLoad(server, "kept", "a") as first, SteadyLoad(server, "kept", "b") as second:
            # Many slices, most of them still to be sent when the model is removed.
            texts = [f"slice by slice {number}" for number in range(1500)]
            texts[1000] = "!sleep=4"
            long = Asking(server, [Asked("gone", texts)])
            wait_until(lambda: len(server.models["gone"].encoded()) > 64, 10, "it is under way")
            removed = server.models.pop("gone")
            server.models["added"] = FaultyModel(tmp_path / "added")
            server.write_mapping()
            os.kill(server.process.pid, signal.SIGHUP)
            wait_until(lambda: "gone" not in server.states(), 5, "it is served no more")
            answer = server.post("/v1/embeddings", {"model": "gone", "input": "too late"})
            assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
            assert long.answered() == 0, "the long request ended before the reload: make it longer"
            server.models["gone"] = removed
            assert {one.status for one in long.finish()} == {200}
            wait_until(lambda: not alive(gone), 10, "its process has left")
            server.wait_for_states(added="ready")
            server.check("added", ["newcomer"])
            seen = len(first.done)
            first.wait_for(lambda: len(first.done) > seen + 3, 10, "it goes on")
        assert first.statuses() | second.statuses() == {200}
        assert (server.shard_pid("kept"), server.router_pid()) == (kept, router)
        assert [one.model for one in operator.report(server).models] == ["kept", "added"]


def test_case_33_a_broken_configuration_is_refused_and_status_says_why(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        pid = server.shard_pid("en")
        (server.directory / ".env").write_text(
            "EMB_PROVIDER_MODEL_MAPPING={\n  'en': {}\n}\nEMB_PROVIDER_READY_WAIT_S=x\n"
        )
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: operator.report(server).problems, 5, "it is refused")
        problems = "\n".join(operator.report(server).problems)
        assert "EMB_PROVIDER_MODEL_MAPPING" in problems
        assert "EMB_PROVIDER_READY_WAIT_S='x'" in problems
        refused = operator.command(server, "reload")
        assert refused.returncode == 1
        assert "goes on as before" in refused.stderr
        assert "EMB_PROVIDER_READY_WAIT_S='x'" in operator.command(server, "status").stdout
        server.check("en", ["as before"])
        assert server.shard_pid("en") == pid
        server.write_mapping()
        assert "kept: en" in operator.reload(server)
        assert operator.report(server).problems == ()


def test_a_settings_file_that_can_be_read_no_more_is_refused_and_neither_waited_for_nor_taken_for_an_empty_one(
    tmp_path,
):
    with make_server(tmp_path, "en") as server:
        (server.directory / ".env").unlink()
        refused = operator.command(server, "reload")
        assert (refused.returncode, ".env cannot be read: No such file" in refused.stderr) == (1, True)
        os.mkfifo(server.directory / ".env")
        with pytest.raises(ControlError, match="it is a pipe"):
            operator.reload(server)
        (server.directory / ".env").unlink()
        server.write_mapping()
        assert "kept: en" in operator.reload(server)


def test_a_changed_model_is_followed_by_one_that_is_ready_first_and_no_client_notices(tmp_path):
    with make_server(tmp_path, "en", "zh", load_s=1.5) as server:
        server.wait_ready()
        before, other = server.shard_pid("en"), server.shard_pid("zh")
        with SteadyLoad(server, "en", "a") as first, SteadyLoad(server, "en", "b") as second:
            server.models["en"].entry["overlong"] = "error"
            server.write_mapping()
            assert "changed: en" in operator.reload(server)
            wait_until(lambda: len(server.models["en"].start_pids()) == 2, 10, "a successor is started")
            assert alive(before)
            assert operator.model(server, "en").pid == before
            seen = len(first.done)
            wait_until(lambda: operator.model(server, "en").pid not in (0, before), 20, "it takes over")
            wait_until(lambda: not alive(before), 10, "the old one leaves")
            assert len(first.done) > seen
        assert first.statuses() | second.statuses() == {200}
        assert server.shard_pid("zh") == other
        answer = server.post("/v1/embeddings", {"model": "en", "input": "x" * 2000})
        assert answer.status == 400, "the new settings count"


def test_a_request_during_a_change_gets_all_its_vectors_from_one_and_the_same_model(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        texts = [f"slice by slice {number}" for number in range(320)]
        texts[70] = "!sleep=6"  # in the second of five slices: the last ones are asked of the new process
        asking = Asking(server, [Asked("en", texts)])
        wait_until(lambda: "!sleep=6" in server.models["en"].encoded(), 10, "it is under way")
        server.models["en"].behave(seed="other vectors")
        server.models["en"].entry["overlong"] = "error"
        server.write_mapping()
        operator.reload(server)
        (asked,) = asking.finish()  # which compares every vector with the one that the new model makes
        assert asked.status == 200
        assert "asked_again" in server.stderr, "the request ended before the change: make it longer"


def test_a_changed_model_that_cannot_load_leaves_the_old_one_serving_until_it_is_mended(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        before = server.shard_pid("en")
        server.models["en"].behave(load_error="wrong_weights")
        server.models["en"].entry["overlong"] = "error"
        server.write_mapping()
        done = operator.command(server, "reload", "--wait", "20")
        assert done.returncode == 1
        assert "not_replaced" in done.stderr
        server.check("en", ["the old one"])
        row = operator.model(server, "en")
        assert (row.state, row.reason, row.pid) == ("ready", "not_replaced", before)
        server.models["en"].behave(load_error="")
        done = operator.command(server, "reload", "--wait", "20")
        assert done.returncode == 0, done.stderr
        row = operator.model(server, "en")
        assert (row.state, row.reason) == ("ready", "")
        assert row.pid != before


@pytest.mark.parametrize("fault", [{"load_error": "no_such_model"}, {"crashes": -1}], ids=str)
def test_a_model_that_failed_is_tried_again_at_a_reload_although_nothing_has_changed(tmp_path, fault):
    env = {"EMB_PROVIDER_RESTART_LIMIT": "1", "EMB_PROVIDER_RESTART_DELAY_S": "0.1"}
    server = make_server(tmp_path, "good", "bad", env=env)
    server.models["bad"].behave(**fault)
    with server:
        server.wait_for_states(good="ready", bad="failed")
        good = server.shard_pid("good")
        server.models["bad"].behave(load_error="", crashes=0)
        operator.reload(server)
        server.wait_for_states(good="ready", bad="ready", timeout_s=15)
        server.check("bad", ["mended"])
        assert server.shard_pid("good") == good


def test_api_keys_and_times_change_in_the_running_router(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        router = server.router_pid()
        server._more_dotenv = "EMB_PROVIDER_API_KEYS=new-key\n"
        server.write_mapping()
        operator.reload(server)
        wait_until(lambda: server.get("/v1/models").status == 401, 5, "a key is asked for")
        assert server.get("/v1/models", {"Authorization": "Bearer new-key"}).status == 200
        assert server.router_pid() == router
        assert "new-key" not in server.story()


def test_a_router_that_must_be_replaced_hands_the_port_over_without_an_error(tmp_path):
    with make_server(tmp_path, "en", ms_per_batch=20) as server:
        server.wait_ready()
        shard, router = server.shard_pid("en"), server.router_pid()
        with SteadyLoad(server, "en", "a") as first, SteadyLoad(server, "en", "b") as second:
            server._more_dotenv = "EMB_PROVIDER_MAX_REQUEST_MB=1\n"
            server.write_mapping()
            operator.reload(server)
            wait_until(lambda: not alive(router), 15, "the old router has left")
            seen = len(first.done)
            first.wait_for(lambda: len(first.done) > seen + 5, 10, "it goes on")
        assert first.statuses() | second.statuses() == {200}
        assert server.shard_pid("en") == shard
        assert server.post("/v1/embeddings", {"model": "en", "input": "x" * 1_100_000}).status == 413


def test_what_only_a_restart_can_change_is_named_and_everything_goes_on(tmp_path):
    with make_server(tmp_path, "en", dotenv="EMB_PROVIDER_HOST=127.0.0.1\n") as server:
        server.wait_ready()
        server._more_dotenv = "EMB_PROVIDER_HOST=0.0.0.0\nEMB_PROVIDER_LOG_LEVEL=DEBUG\n"
        server.write_mapping()
        summary = operator.reload(server)
        assert "counts only after a restart: EMB_PROVIDER_HOST, EMB_PROVIDER_LOG_LEVEL" in summary
        assert operator.report(server).pending_restart == ("EMB_PROVIDER_HOST", "EMB_PROVIDER_LOG_LEVEL")
        server.check("en", ["goes on"])


def test_restart_replaces_one_model_without_an_error_and_names_a_model_it_does_not_know(tmp_path):
    with make_server(tmp_path, "en", "zh") as server:
        server.wait_ready()
        before, other = server.shard_pid("en"), server.shard_pid("zh")
        with SteadyLoad(server, "en", "a") as load:
            done = operator.command(server, "restart", "en", "--wait", "20")
            assert done.returncode == 0, done.stderr
        assert load.statuses() == {200}
        assert server.shard_pid("en") != before
        assert server.shard_pid("zh") == other
        operator.wait_settled(server)
        with pytest.raises(ControlError, match=r"No model 'fr' is served here. There are: en, zh"):
            operator.restart(server, "fr")


def test_where_memory_does_not_suffice_for_two_the_old_process_leaves_first(tmp_path):
    with make_server(tmp_path, "en", env={"EMB_PROVIDER_RESTART_DELAY_S": "0.5"}) as server:
        server.wait_ready()
        before = server.shard_pid("en")
        server.models["en"].behave(load_memory_error=True)
        operator.restart(server, "en")
        wait_until(lambda: len(server.models["en"].start_pids()) >= 3, 20, "it is tried alone as well")
        assert not alive(before)
        assert 'why="no memory for two processes" first=stop' in server.stderr
        server.models["en"].behave(load_memory_error=False)
        operator.restart(server, "en")
        server.wait_ready(20)
        server.check("en", ["with memory"])


def test_a_model_that_was_removed_and_comes_back_at_once_loses_no_request(tmp_path):
    with make_server(tmp_path, "en", "zh", ms_per_batch=30) as server:
        server.wait_ready()
        long = Asking(server, [Asked("en", [f"slice by slice {number}" for number in range(1200)])])
        wait_until(lambda: len(server.models["en"].encoded()) > 64, 10, "it is under way")
        model = server.models.pop("en")
        server.write_mapping()
        assert "removed: en" in operator.reload(server)
        server.models["en"] = model
        server.write_mapping()
        assert "added: en" in operator.reload(server)
        assert {one.status for one in long.finish()} == {200}
        operator.wait_settled(server)
        server.check("en", ["once more"])
        assert len([pid for pid in model.start_pids() if alive(pid)]) == 1


def test_two_reloads_in_a_row_end_with_the_newest_settings(tmp_path):
    with make_server(tmp_path, "en", load_s=0.5) as server:
        server.wait_ready()
        for overlong in ("error", "end", "start"):
            server.models["en"].entry["overlong"] = overlong
            server.write_mapping()
            operator.reload(server)
            time.sleep(0.2)
        operator.wait_settled(server)
        assert server.get("/v1/models").json["data"][0]["state"] == "ready"
        server.check("en", ["still there"])
        living = [pid for pid in server.models["en"].start_pids() if alive(pid)]
        assert living == [operator.model(server, "en").pid]


def test_newer_settings_do_not_wait_for_a_model_that_never_loads_with_older_ones(tmp_path):
    with make_server(tmp_path, "en", "zh") as server:
        server.wait_ready()
        server.models["zh"].behave(load_hang=True)
        server.models["zh"].entry["overlong"] = "error"
        os.kill(server.shard_pid("zh"), signal.SIGKILL)
        # Its state is loading a moment before that: ended within it, it would have left no trace to count.
        wait_until(lambda: len(server.models["zh"].start_pids()) == 2, 30, "it hangs in its start")
        assert operator.model(server, "zh").state == "loading"
        server.write_mapping()
        operator.reload(server)
        wait_until(lambda: len(server.models["zh"].start_pids()) > 2, 30, "so does it with other settings")
        time.sleep(0.3)
        server.models["zh"].behave(load_hang=False)
        server.models["zh"].entry["overlong"] = "end"
        server.write_mapping()
        operator.reload(server)
        operator.restart(server, "en")
        operator.wait_settled(server)
        server.check("zh", ["with the newest settings"])


def test_status_answers_at_once_while_a_shard_is_stuck_in_a_call_that_holds_the_gil(tmp_path):
    with make_server(tmp_path, "en") as server:
        server.wait_ready()
        asking = Asking(server, [Asked("en", ["!spin=4"])])
        wait_until(lambda: "!spin=4" in server.models["en"].encoded(), 10, "it spins")
        began_s = time.monotonic()
        assert operator.model(server, "en").state == "ready"
        assert time.monotonic() - began_s < 1
        asking.finish()


def test_systemd_hands_the_port_over_and_hears_each_state(tmp_path):
    server = make_server(tmp_path, "en")
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        manager.bind(f"{directory}/notify")
        manager.settimeout(20)
        server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server._env |= {"NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "3000000", "LISTEN_FDS": "1"}
        # As systemd does it: the socket is descriptor 3, and LISTEN_PID is the process that is started.
        launcher = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.execv(sys.executable, [sys.executable, '-m', 'supervisor'])"
        )
        number = listener.fileno()
        with server.stdout_path.open("wb") as out:
            server.process = subprocess.Popen(
                [sys.executable, "-c", launcher, str(number)],
                cwd=server.directory, env=server._env, stdout=out, stderr=out, pass_fds=(number,),
            )  # fmt: skip

        states: list[str] = []

        def hear(wanted: str, after: int = 0) -> int:
            """Wait for a state; return how many had come with it."""
            deadline_s = time.monotonic() + 30
            while True:
                for number, state in enumerate(states[after:], after + 1):
                    if wanted in state:
                        return number
                assert time.monotonic() < deadline_s, (wanted, states, server.stdout)
                states.append(manager.recv(4096).decode())

        hear("READY=1")
        server.wait_ready()
        server.check("en", ["on a socket that systemd has bound"])
        hear("STATUS=1 of 1 models ready")
        hear("WATCHDOG=1")
        for pid in server.family()[1:]:
            assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"} & environment(pid).keys()
        os.kill(server.process.pid, signal.SIGHUP)
        reloading = hear("RELOADING=1")
        assert "MONOTONIC_USEC=" in states[reloading - 1]
        hear("READY=1", after=reloading)
        server.process.send_signal(signal.SIGTERM)
        hear("STOPPING=1")
        assert server.process.wait(15) == 0, server.stdout


def test_every_socket_that_systemd_has_bound_is_served_and_one_that_is_open_to_all_is_warned_of(tmp_path):
    server = make_server(tmp_path, "en", env={"LISTEN_FDS": "2"})
    launcher = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
        "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.executable, [sys.executable, '-m', 'supervisor'])"
    )
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("0.0.0.0", 0)) as second:
        passed = tuple(fcntl.fcntl(one, fcntl.F_DUPFD, 50) for one in (first, second))
        second_port = second.getsockname()[1]
        with server.stdout_path.open("wb") as out:
            server.process = subprocess.Popen(
                [sys.executable, "-c", launcher, *map(str, passed)],
                cwd=server.directory, env=server._env, stdout=out, stderr=out, pass_fds=passed,
            )  # fmt: skip
        for one in passed:
            os.close(one)
    try:
        server.url = server.wait_for_output(re.compile(r"on (http://\S+) \(accepting")).group(1)
        server.wait_ready()
        server.url = f"http://127.0.0.1:{second_port}"
        server.check("en", ["on the second one"])
        assert "open to the network: listening on 0.0.0.0" in server.stdout
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("under_nohup", [False, True])
def test_a_terminal_that_is_closed_is_a_stop_and_no_reload_but_for_who_was_to_outlive_it(tmp_path, under_nohup):
    server = make_server(tmp_path, "en")
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if under_nohup else signal.SIG_DFL)
        os.chdir(server.directory)
        os.execve(sys.executable, [sys.executable, "-m", "supervisor"], server._env)
    try:
        wait_until(lambda: list(server.run_directory.glob("*/control.sock")), 20, "it has started")
        wait_until(lambda: operator.report(server).router.pid, 10, "it serves")
        began = operator.report(server).settings_read
    finally:
        os.close(terminal)
    if under_nohup:
        wait_until(lambda: operator.report(server).settings_read > began, 10, "it has read its settings again")
        assert operator.report(server).state == "serving"
        os.kill(child, signal.SIGTERM)
    wait_until(lambda: os.waitpid(child, os.WNOHANG)[0] == child, 20, "it ends")
    assert list(server.run_directory.iterdir()) == []
