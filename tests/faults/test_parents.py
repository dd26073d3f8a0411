"""Cases 34 and 47 of the list of faults: no child outlives its supervisor, and none is left unburied."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.asking import Asked, Asking
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.leaks import processes_in, thread_count, zombies_under
from tests.support.processes import alive, wait_until


@pytest.fixture
def server(tmp_path):
    models = {name: FaultyModel(tmp_path / name) for name in ("en", "zh")}
    # More deaths than the breaker lets pass.
    env = {
        "EMB_PROVIDER_RESTART_DELAY_S": "0.05",
        "EMB_PROVIDER_RESTART_MAX_DELAY_S": "0.1",
        "EMB_PROVIDER_RESTART_LIMIT": "0",
    }
    server = FaultyServer(tmp_path / "server", models, env=env).start()
    server.wait_ready()
    yield server
    server.kill()
    remove_sockets(tmp_path)


def remove_sockets(directory):
    """Do what the next supervisor would: this one cannot."""
    for path in directory.rglob("*.sock"):
        path.unlink()


def assert_all_gone(server, family):
    """Within two seconds, whoever their parent is now."""
    wait_until(lambda: not any(alive(pid) for pid in family), 2, "every child is gone")
    assert not processes_in(server.directory)


def test_case_34_nobody_outlives_a_supervisor_that_is_killed(server):
    family = server.family()
    assert len(family) == 4
    server.kill()
    assert_all_gone(server, family)


def test_case_34_nor_does_a_shard_that_never_gives_the_gil_back(server):
    """The life-pipe's thread cannot run in it; the kernel's own signal is what ends it."""
    family, busy = server.family(), server.shard_pid("en")
    Asking(server, [Asked("en", ["!spin=600"])])
    wait_until(lambda: "!spin=600" in server.models["en"].encoded(), 10, "it has begun")
    time.sleep(0.2)
    assert alive(busy)
    server.kill()
    assert_all_gone(server, family)


def test_case_34_nor_does_a_shard_that_is_stopped(server):
    family = server.family()
    os.kill(server.shard_pid("en"), signal.SIGSTOP)
    server.kill()
    assert_all_gone(server, family)


def test_case_34_nor_do_shards_that_still_load(tmp_path):
    models = {
        "sleeps": FaultyModel(tmp_path / "sleeps", load_hang=True),
        "spins": FaultyModel(tmp_path / "spins", load_spin_s=600),
    }
    server = FaultyServer(tmp_path / "server", models).start()
    wait_until(lambda: all(model.start_pids() for model in models.values()), 20, "both load")
    family = server.family()
    server.kill()
    assert_all_gone(server, family)
    remove_sockets(tmp_path)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15])
def test_case_34_nor_does_anybody_who_was_started_a_moment_ago(tmp_path, delay_s):
    """However early the supervisor goes: a child that has not asked the kernel yet finds another parent, and ends.

    It does that as the first thing after the interpreter's own start, which a busy machine may make slow.
    """
    server = FaultyServer(tmp_path / "server", {"en": FaultyModel(tmp_path / "en")}).start()
    time.sleep(delay_s)
    server.kill()
    wait_until(lambda: not processes_in(server.directory), 6, "nobody is left")
    remove_sockets(tmp_path)


def test_case_47_no_death_leaves_a_zombie_or_a_thread(server):
    """Each kind of death in turn, of shards and router; the supervisor buries all of them."""
    threads = thread_count(server.process.pid)
    for order in ("!exit-times=1", "!segfault", "!kill", "!sys-exit"):
        pid = server.shard_pid("en")
        asking = Asking(server, [Asked("en", [f"{order} {pid}"])])
        wait_until(lambda: not alive(pid), 10, f"it dies of {order}")  # noqa: B023
        wait_until(lambda: not zombies_under(server.process.pid), 2, f"who died of {order} is buried")
        asking.finish()
        server.wait_ready()
    os.kill(server.router_pid(), signal.SIGKILL)
    server.wait_ready()
    wait_until(lambda: not zombies_under(server.process.pid), 2, "the router is buried")
    wait_until(lambda: len(server.family()) == 4, 5, "all are back, once each")
    assert thread_count(server.process.pid) <= threads


def test_the_kernels_signal_comes_when_the_thread_that_started_the_child_ends(tmp_path):
    """Why children are started from the main thread only: prctl(2), PR_SET_PDEATHSIG."""
    code = """
        import os, signal, subprocess, sys, threading
        child = [sys.executable, "-c", "import os, sys, time; "
            "from emb_model_provider.parent import die_with_parent; "
            "die_with_parent(int(sys.argv[1])); print('set', flush=True); time.sleep(60)", str(os.getpid())]
        def start():
            global process
            process = subprocess.Popen(child, stdout=subprocess.PIPE)
            process.stdout.readline()
        if sys.argv[1] == "thread":
            thread = threading.Thread(target=start); thread.start(); thread.join()
        else:
            start()
        try:
            print(process.wait(1.5))
        except subprocess.TimeoutExpired:
            print("lives")
            process.kill()
            process.wait()
        process.stdout.close()
    """

    def fate(where: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), where]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    assert fate("thread") == "-9"
    assert fate("main") == "lives"


def test_the_supervisor_starts_every_child_from_its_main_thread(server):
    """The parent that the kernel watches is the thread that forked; it is the one that never ends."""
    for pid in server.family()[1:]:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        assert str(pid) in children.read_text().split()
