"""Cases 23, 24, 25 and 43 of the list of faults: the router dies, clients leave, room runs out."""

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.figure import percentile
from tests.support.asking import Asked, Asking
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import wait_until


@pytest.fixture
def make_server(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(name="server", **env):
            model = FaultyModel(tmp_path / f"{name}-en")
            server = stack.enter_context(FaultyServer(tmp_path / name, {"en": model}, env=env))
            server.wait_ready()
            return server

        yield make


def connect(server):
    return socket.create_connection((urlsplit(server.url).hostname, urlsplit(server.url).port), timeout=20)


def wire(text, keep="keep-alive"):
    body = json.dumps({"model": "en", "input": text}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: {keep}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_answer(connection):
    """Return status and body of one answer; an empty status when the connection was closed without any."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := connection.recv(65536)):
            return "", data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE).group(1))
    while len(body) < length:
        body += connection.recv(65536)
    return head.split()[1].decode(), body


class Load:
    """Clients that ask again and again, each request on a connection of its own, and try none a second time.

    ``statuses`` is what became of each text, "" where the connection was cut before an answer.
    """

    def __init__(self, server, clients):
        self.statuses = {}
        self._server = server
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def answered(self):
        return list(self.statuses.values()).count("200")

    def finish(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads), self._server.story()

    def _run(self, client):
        for number in itertools.count():
            if self._stopping.is_set():
                return
            text = f"!sleep=0.02 client {client} asks {number}"
            try:
                with connect(self._server) as connection:
                    self.statuses[text] = self._ask(connection, text)
            except ConnectionRefusedError:
                self.statuses[text] = "refused"

    def _ask(self, connection, text):
        try:
            connection.sendall(wire(text, "close"))
            status, body = read_answer(connection)
        except (ConnectionResetError, BrokenPipeError):
            return ""
        if status == "200":
            assert self._server.models["en"].is_right(text, json.loads(body)["data"][0]["embedding"])
        return status


@pytest.mark.alone
def test_case_23_a_router_killed_under_load_is_back_on_the_same_port_in_two_seconds_and_nobody_is_refused(make_server):
    server = make_server()
    model, shard, router = server.models["en"], server.shard_pid("en"), server.router_pid()
    load = Load(server, 8)
    wait_until(lambda: load.answered() > 50, 20, "the load is steady")
    os.kill(router, signal.SIGKILL)
    began_s = time.monotonic()
    waiting = []
    for number in range(20):  # none of these may be refused
        connection = connect(server)
        connection.sendall(wire(f"in the gap {number}", "close"))
        waiting.append(connection)
    answers = [read_answer(connection) for connection in waiting]
    took_s = time.monotonic() - began_s
    for connection in waiting:
        connection.close()
    before = load.answered()
    wait_until(lambda: load.answered() > before + 50, 20, "the load goes on")
    load.finish()
    assert [status for status, _ in answers] == ["200"] * 20
    for number, (_, body) in enumerate(answers):
        assert model.is_right(f"in the gap {number}", json.loads(body)["data"][0]["embedding"])
    assert took_s < 2
    assert server.router_pid() != router
    assert server.shard_pid("en") == shard
    assert set(load.statuses.values()) == {"200", ""}, "refused, or not under load"
    assert list(load.statuses.values()).count("") <= 8, "only what the router had in hand is cut"
    times = Counter(model.encoded())
    assert all(times[f"in the gap {number}"] == 1 for number in range(20))
    assert all(times[text] == 1 if status else times[text] <= 1 for text, status in load.statuses.items())


def test_case_24_what_a_client_that_leaves_had_queued_is_never_encoded(make_server):
    server = make_server()
    model = server.models["en"]
    block = Asking(server, [Asked("en", ["!sleep=1 block"])])
    wait_until(lambda: "!sleep=1 block" in model.encoded(), 20, "the device is busy")
    connection = connect(server)
    connection.sendall(wire([f"abandoned {number}" for number in range(100)]))
    time.sleep(0.3)
    connection.close()
    block.finish()
    server.check("en", ["after it"])
    assert not [text for text in model.encoded() if "abandoned" in text]
    status = server.get("/ready").json["models"]["en"]
    assert status.get("requests_in_flight", 0) == 0


def open_connections(server):
    text = server.get("/metrics").body.decode()
    return float(re.search(r"^emb_connections (\S+)$", text, re.MULTILINE).group(1))


def wait_for_connections(server, count):
    wait_until(lambda: open_connections(server) >= count, 20, "they are taken from the kernel's queue")


def connect_many(server, connections, count):
    while len(connections) < count:  # by no more at once than the kernel's queue holds
        connections += [connect(server) for _ in range(min(1000, count - len(connections)))]
        wait_for_connections(server, len(connections))


def is_welcome(server):
    with contextlib.suppress(OSError):
        return server.get("/health").status == 200
    return False


def ask_in_turns(servers, count, at_a_time):
    """Return, for each of ``servers``, how long ``count`` requests of one client took that asks them in turns."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for server in servers]
        found = [[] for _ in servers]
        for first in range(0, count, at_a_time):
            for connection, took_s in zip(connections, found, strict=True):
                for number in range(first, first + at_a_time):
                    began_s = time.monotonic()
                    connection.sendall(wire(f"real client {number}"))
                    assert read_answer(connection)[0] == "200"
                    took_s.append(time.monotonic() - began_s)
    return found


@pytest.mark.alone
def test_case_25_ten_thousand_idle_connections_slow_nobody_and_those_over_the_limit_hear_503(make_server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Client and router are two processes, each with a limit of its own.
    wanted = min(10_000, hard - 500 if hard != resource.RLIM_INFINITY else 10_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + 500, hard))
    idle = []
    try:
        # Two servers, asked in turns: what neighbours on this machine take, they take from both.
        limit = str(wanted + 20)
        quiet, crowded = (make_server(name, EMB_PROVIDER_MAX_CONNECTIONS=limit) for name in ("quiet", "crowded"))
        connect_many(crowded, idle, wanted)
        ask_in_turns([quiet, crowded], 200, 20)
        alone, among = (percentile(took_s, 99) for took_s in ask_in_turns([quiet, crowded], 3000, 20))
        assert among < 2 * alone, (wanted, alone, among)
        assert open_connections(crowded) >= wanted, "they were there all the time"
        idle += [connect(crowded) for _ in range(30)]
        over = idle[-1]
        over.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        status, body = read_answer(over)
        assert status == "503"
        assert json.loads(body)["error"]["code"] == "too_many_connections"
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: is_welcome(crowded), 20, "there is room again")


def test_case_43_without_descriptors_nobody_is_accepted_for_a_while_and_nobody_is_turned_away(make_server):
    server = make_server()
    router = server.router_pid()
    kept = connect(server)
    kept.sendall(wire("before"))
    assert read_answer(kept)[0] == "200"
    limits = resource.prlimit(router, resource.RLIMIT_NOFILE)
    in_use = len(list(Path(f"/proc/{router}/fd").iterdir()))
    resource.prlimit(router, resource.RLIMIT_NOFILE, (in_use + 3, limits[1]))
    crowd = [connect(server) for _ in range(20)]
    for number, connection in enumerate(crowd):
        connection.sendall(wire(f"crowd {number}"))
    time.sleep(0.5)
    kept.sendall(wire("meanwhile"))
    assert read_answer(kept)[0] == "200"
    ticks = cpu_ticks(router)
    time.sleep(1)
    assert cpu_ticks(router) - ticks < 50, "it spins"
    resource.prlimit(router, resource.RLIMIT_NOFILE, limits)
    assert {read_answer(connection)[0] for connection in crowd} == {"200"}
    for connection in [kept, *crowd]:
        connection.close()
    assert server.router_pid() == router


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
