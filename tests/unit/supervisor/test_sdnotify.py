import os
import socket

import pytest

from supervisor.sdnotify import Notifier, forget, passed_listeners


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The socket on which systemd listens."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as it:
        it.bind("notify")
        it.settimeout(2)
        yield it


def heard(manager):
    return manager.recv(4096).decode()


def test_each_state_is_one_datagram(manager):
    notifier = Notifier({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())})
    notifier.ready()
    assert heard(manager) == "READY=1"
    notifier.status("1 of 2 models ready")
    assert heard(manager) == "STATUS=1 of 2 models ready"
    notifier.status("1 of 2 models ready")  # nothing new: nothing sent
    notifier.reloading()
    reloading, clock = heard(manager).split("\n")
    assert reloading == "RELOADING=1"
    assert int(clock.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.alive()
    assert heard(manager) == "WATCHDOG=1"
    notifier.stopping()
    assert heard(manager) == "STOPPING=1"


def test_an_abstract_address_is_understood():
    name = f"emb-provider-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(2)
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert heard(manager) == "READY=1"


def test_without_systemd_or_with_one_that_is_gone_nothing_happens(tmp_path):
    for notifier in (Notifier({}), Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})):
        notifier.ready()
        notifier.alive()


def test_a_watchdog_that_is_for_another_process_is_not_answered(manager):
    Notifier({"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).alive()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_no_child_hears_of_systemd():
    env = {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "LISTEN_PID": "1", "PATH": "/bin"}
    forget(env)
    assert env == {"PATH": "/bin"}


def test_a_listener_is_taken_only_when_it_is_for_this_process():
    assert passed_listeners({}) == ()
    assert passed_listeners({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == ()
    assert passed_listeners({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}) == ()
