"""Cases 20 and 40 to 42 of the list of faults: what must not be on a socket between our processes, or not so fast.

Garbage comes from a stranger on a shard's socket, and from a shard that answers its router with it.
"""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

from emb_model_provider.frames import HEADER, MAGIC, VERSION, FrameDecoder
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import Cancel, Encode, Encoded, Hello
from tests.support.asking import Asked, Asking
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.leaks import open_files, resident_bytes
from tests.support.processes import cpu_s, wait_until

_MB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("wire")
    # Each lie costs a restart: they are not to meet the breaker.
    env = {
        "EMB_PROVIDER_RESTART_DELAY_S": "0.1",
        "EMB_PROVIDER_RESTART_MAX_DELAY_S": "0.2",
        "EMB_PROVIDER_RESTART_LIMIT": "1000",
    }
    models = {
        "en": FaultyModel(root / "en"),
        "zh": FaultyModel(root / "zh"),
        "large": FaultyModel(root / "large", dimension=1024, records=False),
    }
    with FaultyServer(root / "server", models, env=env) as it:
        it.wait_ready()
        yield it


def shard_socket(server, model_id):
    """Return the path of the socket that this model's process listens on."""
    pid = server.shard_pid(model_id)
    for path in server.run_directory.rglob("*.sock"):
        with socket.socket(socket.AF_UNIX) as stranger:
            try:
                stranger.connect(str(path))
                stranger.settimeout(2)
                hello = unpack(FrameDecoder().feed(stranger.recv(4096))[0])
            except (OSError, IndexError):
                continue
            if isinstance(hello, Hello) and hello.model_id == model_id:
                return path
    raise AssertionError(f"no socket of {model_id}, process {pid}")


class Stranger:
    """A peer on a shard's socket that says what it likes."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(path))  # waits where too many others have come at once
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(10)
        self._decoder = FrameDecoder()
        self.messages = []

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.socket.close()

    def read(self) -> bool:
        """Take what is there; false once the shard has closed."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self.messages += [(frame.request_id, unpack(frame)) for frame in self._decoder.feed(data)]
        return bool(data)

    def answer_to(self, request_id):
        while True:
            for its_id, message in self.messages:
                if its_id == request_id and isinstance(message, Encoded):
                    return message
            assert self.read(), "the shard closed the link"


GARBAGE = {
    "random bytes": np.random.default_rng(1).bytes(1000),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "wrong version": HEADER.pack(MAGIC, VERSION + 1, 2, 0, 1),
    "2^32-1 bytes": HEADER.pack(MAGIC, VERSION, 2, 2**32 - 1, 1),
    "unknown kind": HEADER.pack(MAGIC, VERSION, 250, 0, 1),
    "no payload": HEADER.pack(MAGIC, VERSION, pack(Encode(("x",)))[3], 0, 1),
    "payload of another kind": HEADER.pack(MAGIC, VERSION, pack(Encode(("x",)))[3], 4, 1) + b"\x93\xc1\xc1\xc1",
    "a message for a router": pack(Encoded(b"", 0, ()), 1),
    "one id twice": pack(Encode(("!sleep=1 x",)), 7) + pack(Encode(("!sleep=1 y",)), 7),
    "4 G items": HEADER.pack(MAGIC, VERSION, pack(Encode(("x",)))[3], 5, 1) + b"\xdd\xff\xff\xff\xff",
    "2000 levels": HEADER.pack(MAGIC, VERSION, pack(Encode(("x",)))[3], 2000, 1) + b"\x91" * 2000,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_case_40_a_stranger_s_garbage_closes_its_own_link_with_a_reason_in_the_log(server, name):
    pid, path = server.shard_pid("zh"), shard_socket(server, "zh")
    before_s, lines = cpu_s(pid), server.stderr.count("link_broken")
    with Stranger(path) as stranger:
        stranger.socket.sendall(GARBAGE[name])
        while stranger.read():  # until it is closed; a timeout fails the test
            pass
    wait_until(lambda: server.stderr.count("link_broken") > lines, 5, "the reason is in the log")
    assert server.shard_pid("zh") == pid
    server.check("zh", [f"others go on {name}"])
    assert cpu_s(pid) - before_s < 1.5


def test_case_40_frames_that_never_end_and_strangers_who_leave_in_the_middle_cost_nothing(server):
    pid, path = server.shard_pid("zh"), shard_socket(server, "zh")
    files, memory, before_s = open_files(pid), resident_bytes(pid), cpu_s(pid)
    whole = pack(Encode(("half a frame",) * 50), 1)
    for cut in range(0, len(whole), 7):
        with Stranger(path) as stranger:
            stranger.socket.sendall(whole[:cut])
    with Stranger(path) as waiting:
        waiting.socket.sendall(whole[:20])
        time.sleep(1)
        assert cpu_s(pid) - before_s < 2.0, "it spins"
    wait_until(lambda: open_files(pid) <= files + 1, 5, "their links are closed")
    assert resident_bytes(pid) - memory < 20 * _MB
    server.check("zh", ["others go on"])


def test_case_40_a_cancelled_id_may_be_unknown_answered_or_used_again(server):
    model, path = server.models["zh"], shard_socket(server, "zh")
    with Stranger(path) as stranger:
        stranger.socket.sendall(pack(Cancel((5, 2**63, 5))) + pack(Encode(("one",)), 5))
        assert np.frombuffer(stranger.answer_to(5).vectors, "<f4").tolist() == model.vector("one")
        stranger.socket.sendall(pack(Cancel((5,))) + pack(Encode(("!sleep=0.3 two",)), 6) + pack(Cancel((6,))))
        stranger.socket.sendall(pack(Encode(("three",)), 6))
        assert np.frombuffer(stranger.answer_to(6).vectors, "<f4").tolist() == model.vector("three")


def test_case_41_a_request_that_arrives_byte_by_byte_is_the_same_request(server):
    path = shard_socket(server, "zh")
    frame = pack(Encode(("byte by byte 逐字节", "second")), 9)
    right = [*server.models["zh"].vector("byte by byte 逐字节"), *server.models["zh"].vector("second")]
    with Stranger(path) as stranger:
        for position in range(len(frame)):
            stranger.socket.sendall(frame[position : position + 1])
        assert np.frombuffer(stranger.answer_to(9).vectors, "<f4").tolist() == right
    for position in range(1, len(frame)):
        with Stranger(path) as stranger:
            stranger.socket.sendall(frame[:position])
            time.sleep(0.001)
            stranger.socket.sendall(frame[position:])
            assert np.frombuffer(stranger.answer_to(9).vectors, "<f4").tolist() == right


#: By number in ``tests.support.faulty.loader._LIES``.
LIES = {
    0: "its bytes backwards",
    1: "half of it, then death",
    2: "another version",
    3: "a length of 2^32-1",
    4: "an unknown kind",
    5: "no payload",
    6: "another payload",
    7: "half of its vectors",
    8: "a row too few",
    9: "a message of the wrong direction",
}


@pytest.mark.parametrize("number", LIES, ids=LIES.values())
def test_case_40_a_shard_that_answers_with_garbage_is_replaced_and_nobody_gets_a_wrong_vector(server, number):
    pid = server.shard_pid("en")
    requests = [Asked("en", [f"!wire={number} here", "and here"]), *(Asked("en", [f"{number} {n}"]) for n in range(8))]
    assert {one.status for one in Asking(server, requests).finish()} == {200}
    wait_until(lambda: server.shard_pid("en") not in (0, None, pid), 10, "it is replaced")


@pytest.mark.parametrize("number", [10, 11], ids=["an answer twice", "an answer for nobody"])
def test_case_40_what_a_shard_says_too_much_is_ignored(server, number):
    pid = server.shard_pid("en")
    router = server.router_pid()
    requests = [Asked("en", [f"!wire={number} here"]), *(Asked("en", [f"{number} {n}"]) for n in range(8))]
    assert {one.status for one in Asking(server, requests).finish()} == {200}
    assert server.shard_pid("en") == pid
    assert router in server.family()


#: 128 requests of 256 KB, each answered with 256 KB.
FLOOD = [pack(Encode(tuple(f"{n} {index} {'x' * 4000}" for index in range(64))), n) for n in range(1, 129)]


def test_case_42_both_sides_send_32_mb_at_the_same_moment_and_neither_waits_for_the_other(server):
    assert sum(map(len, FLOOD)) > 32_000_000
    with Stranger(shard_socket(server, "large")) as stranger:
        stranger.socket.settimeout(60)
        sending = threading.Thread(target=lambda: [stranger.socket.sendall(frame) for frame in FLOOD])
        sending.start()
        for request_id in range(1, 129):
            assert len(stranger.answer_to(request_id).vectors) == 64 * 1024 * 4
        sending.join(10)
        assert not sending.is_alive()


def test_case_20_a_peer_that_does_not_read_is_given_no_memory_and_gets_everything_once_it_does(server):
    pid = server.shard_pid("large")
    before = resident_bytes(pid)
    with Stranger(shard_socket(server, "large")) as stranger:
        stranger.socket.settimeout(60)
        sent = []

        def send():
            for frame in FLOOD:
                stranger.socket.sendall(frame)
                sent.append(frame)
                time.sleep(0.03)  # about what each takes to encode

        sending = threading.Thread(target=send)
        sending.start()
        most, until_s = 0, time.monotonic() + 8
        while time.monotonic() < until_s:
            most = max(most, resident_bytes(pid) - before)
            time.sleep(0.05)
        assert sending.is_alive(), "it took all there was although nobody read its answers"
        assert most < 48 * _MB
        server.check("large", ["others are served meanwhile"])
        for request_id in range(1, 129):
            assert len(stranger.answer_to(request_id).vectors) == 64 * 1024 * 4
        sending.join(10)
        assert not sending.is_alive()
