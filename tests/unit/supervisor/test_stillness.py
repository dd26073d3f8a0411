"""Real processes that stand still, and that only seem to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from supervisor.stillness import Stillness


@pytest.fixture
def start():
    started = []

    def start(*command, **options) -> subprocess.Popen:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.stdin.close()
        process.wait()


def comes_to_rest(stillness: Stillness) -> None:
    deadline_s = time.monotonic() + 10
    while not stillness.look():
        assert time.monotonic() < deadline_s, "it never stood still"
        time.sleep(0.005)


def test_a_process_that_waits_to_read_stands_still_until_something_comes(start):
    process = start("cat")
    stillness = Stillness(process.pid)
    assert not stillness.look(), "nothing to compare with yet"
    comes_to_rest(stillness)
    assert stillness.look()
    process.stdin.write(b"x")
    process.stdin.flush()
    time.sleep(0.02)
    assert not stillness.look()
    comes_to_rest(stillness)


def test_a_process_that_leads_a_session_of_its_own_is_no_child_of_its_own(start):
    comes_to_rest(Stillness(start("cat", start_new_session=True).pid))


def test_a_process_that_a_signal_has_stopped_stands_still(start):
    process = start("sh", "-c", "while :; do :; done")
    os.kill(process.pid, signal.SIGSTOP)
    comes_to_rest(Stillness(process.pid))


def test_one_that_computes_or_could_compute_does_not(start):
    stillness = Stillness(start("sh", "-c", "while :; do :; done").pid)
    assert not any(stillness.look() for _ in range(20))


def test_one_that_waits_for_a_process_of_its_own_does_not(start):
    process = start("sh", "-c", "sleep 600; :", start_new_session=True)
    try:
        time.sleep(0.05)
        stillness = Stillness(process.pid)
        assert not any(stillness.look() for _ in range(5))
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_single_thread_that_wakes_now_and_then_is_enough_to_be_seen(start):
    threads = (
        "import threading, time; threading.Thread(target=threading.Event().wait).start()\nwhile 1: time.sleep(0.01)"
    )
    stillness = Stillness(start(sys.executable, "-S", "-c", threads).pid)
    time.sleep(0.2)
    for _ in range(5):
        time.sleep(0.03)
        assert not stillness.look()


def test_who_is_gone_does_not_stand_still():
    process = subprocess.Popen(["true"])
    process.wait()
    stillness = Stillness(process.pid)
    assert not stillness.look()
    assert not stillness.look()
