import json
import socket
import threading

import pytest

from benchmarks.ceiling import Responder
from benchmarks.load import Generator, Load, LoadError, LoadRun
from benchmarks.serving import free_port


def answering(answers: list[bytes]) -> int:
    """Serve one connection: one answer for each request; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with listener, client:
            for answer in answers:
                if not client.recv(1 << 20):
                    return
                client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def answer(status: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def vectors(count: int) -> bytes:
    return answer("200 OK", {"data": [{"index": index, "embedding": ""} for index in range(count)]})


def test_every_answer_is_counted_with_its_texts():
    port = answering([vectors(2), vectors(1), vectors(2)])
    run = Generator().run(Load(port, [["a", "b"], ["c"]], connections=1, count=3))
    assert run.texts == [2, 1, 2]
    assert len(run.done_s) == 3
    assert run.answer_bytes == len(vectors(2).split(b"\r\n\r\n")[1])


def test_a_pause_comes_before_each_request_and_is_none_of_its_time():
    port = answering([vectors(1)] * 3)
    run = Generator().run(Load(port, [["a"]], connections=1, count=3, pause_s=0.2))
    assert run.sent_s[1] - run.done_s[0] >= 0.2 <= run.sent_s[2] - run.done_s[1]
    assert run.latency_ms(50) < 200


def test_an_answer_that_comes_in_pieces_is_one_answer():
    whole = vectors(1)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listener.accept()
        with listener, client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.recv(1 << 20)
            for index in range(len(whole)):
                client.sendall(whole[index : index + 1])

    threading.Thread(target=serve, daemon=True).start()
    run = Generator().run(Load(listener.getsockname()[1], [["a"]], connections=1, count=1))
    assert run.texts == [1]


def test_an_error_answer_is_no_figure():
    port = answering([vectors(1), answer("503 Service Unavailable", {"error": "later"})])
    with pytest.raises(LoadError, match="503"):
        Generator().run(Load(port, [["a"]], connections=1, count=2))


def test_missing_vectors_are_no_figure():
    port = answering([vectors(1)])
    with pytest.raises(LoadError, match="2 texts got 1"):
        Generator().run(Load(port, [["a", "b"]], connections=1, count=1))


def test_a_server_that_hangs_up_is_no_figure():
    port = answering([vectors(1)])
    with pytest.raises((LoadError, ConnectionError)):
        Generator().run(Load(port, [["a"]], connections=1, count=2))


def test_the_responder_answers_a_load_until_its_time_is_over():
    port = free_port()
    responder = Responder(port, 1000)
    thread = threading.Thread(target=responder.serve, args=(0.5,))
    thread.start()
    run = Generator().run_unchecked(Load(port, [["a"], ["字" * 50_000]], connections=4, seconds=0.2))
    thread.join()
    assert len(run.done_s) > 20
    assert run.answer_bytes == 1000


def test_requests_across_the_edge_of_a_window_count_by_their_share():
    run = LoadRun(sent_s=[0.0, 1.0, 2.0], done_s=[1.0, 2.0, 3.0], texts=[10, 20, 30], answer_bytes=0)
    assert run.texts_per_s == 20
    assert run.texts_per_s_within(0.0, 3.0) == 20
    assert run.texts_per_s_within(0.5, 1.5) == 15
    assert run.texts_per_s_within(2.9, 3.9) == pytest.approx(3)


def test_latencies_are_of_the_requests_sent_between_two_moments():
    run = LoadRun(sent_s=[0.0, 1.0, 2.0], done_s=[0.5, 1.1, 2.2], texts=[1, 1, 1], answer_bytes=0)
    assert run.latency_ms(100) == 500
    assert run.latency_ms(100, begin_s=0.9, end_s=1.9) == pytest.approx(100)
