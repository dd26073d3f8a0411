import asyncio
import threading

import pytest
from aiohttp import ClientResponse
from aiohttp.http_writer import StreamWriter

from emb_model_provider.errors import InvalidRequestError, OverloadedError, PayloadTooLargeError
from emb_model_provider.messages.link import Detokenize, Encode, Encoded, Texts
from router import body as body_module
from router.admission import Budget
from router.body import HeldBytes, PiecedBody, read_body
from tests.unit.router.test_app import LIMIT, make_app
from tests.unit.router.test_service import LengthBackend


def test_what_a_body_holds_grows_with_it_and_is_given_back_once():
    budget = Budget(100)
    held = HeldBytes(budget, "a")
    for size, total in [(0, 0), (40, 40), (10, 40), (40, 40), (60, 60)]:
        held.grow_to(size)
        assert budget.total == total
    with pytest.raises(OverloadedError):
        held.grow_to(90)
    assert budget.total == 60
    held.release()
    held.release()
    assert budget.total == 0


async def in_pieces(body: bytes, pause_s: float = 0.0):
    for at in range(0, len(body), 512):
        yield body[at : at + 512]
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("make", [bytes, in_pieces], ids=["at once", "in pieces"])
async def test_a_body_may_be_as_large_as_the_limit(aiohttp_client, over, status, make):
    client = await aiohttp_client(make_app())
    empty = b'{"model": "m", "input": ""}'
    body = empty.replace(b'""', b'"%b"' % (b"x" * (LIMIT + over - len(empty))))
    assert len(body) == LIMIT + over
    assert (await client.post("/v1/embeddings", data=make(body))).status == status


async def test_a_large_body_is_read_also_where_no_thread_can_be_started(aiohttp_client, monkeypatch):
    monkeypatch.setattr(body_module, "_JOINED_ELSEWHERE_BYTES", 1024)
    monkeypatch.setattr(body_module, "_JOINER", body_module._Joiner())
    client = await aiohttp_client(make_app())
    body = b'{"model": "m", "input": "%b"}' % (b"x" * 2048)
    with monkeypatch.context() as no_threads:
        no_threads.setattr(threading.Thread, "start", refuse_to_start)
        assert (await client.post("/v1/embeddings", data=in_pieces(body))).status == 200
    assert (await client.post("/v1/embeddings", data=in_pieces(body))).status == 200


def refuse_to_start(_thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_a_body_that_takes_too_long_is_not_waited_for(aiohttp_client, monkeypatch):
    monkeypatch.setattr(body_module, "_BODY_TIMEOUT_S", 0.05)
    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", data=in_pieces(b'{"model": "m"}' * 100, pause_s=1))
    assert response.status == 408
    assert "did not arrive within" in (await response.json())["error"]["message"]


class Arriving:
    """A request whose body comes piece by piece."""

    def __init__(self, *pieces: bytes, length: int | None = None, held: HeldBytes | None = None) -> None:
        self.headers: dict[str, str] = {}
        self.content_length = length
        self.content = self
        self.left = list(pieces)
        self._held = held

    def get(self, _key):
        return self._held

    is_here = False

    def is_eof(self) -> bool:
        return self.is_here

    def read_nowait(self) -> bytes:
        return b"".join(self.left)

    broken: Exception | None = None

    def exception(self) -> Exception | None:
        return self.broken

    async def readany(self) -> bytes:
        return self.left.pop(0) if self.left else b""


async def test_a_body_without_a_length_is_refused_once_it_is_too_large_and_not_read_to_its_end():
    request = Arriving(b"ab", b"cd", b"e", b"more", b"and more")
    with pytest.raises(PayloadTooLargeError):
        await read_body(request, 4)
    assert request.left == [b"more", b"and more"]


@pytest.mark.parametrize(("length", "before_the_first"), [(None, 0), (5, 5)])
async def test_a_body_takes_room_as_it_comes_or_at_once_where_it_says_how_large_it_is(length, before_the_first):
    budget = Budget(100)
    seen: list[int] = []

    class Watched(Arriving):
        async def readany(self) -> bytes:
            seen.append(budget.total)
            return await super().readany()

    assert await read_body(Watched(b"ab", b"cde", length=length, held=HeldBytes(budget, "a")), 5) == b"abcde"
    assert seen == [before_the_first, max(2, before_the_first), 5]


@pytest.mark.parametrize("length", [None, 5])
async def test_a_body_that_came_with_its_headers_takes_room_whether_it_says_how_large_it_is_or_not(length):
    budget = Budget(8)
    request = Arriving(b"ab", b"cde", length=length, held=HeldBytes(budget, "a"))
    request.is_here = True
    assert await read_body(request, 5) == b"abcde"
    assert budget.total == 5
    second = Arriving(b"wxyz", held=HeldBytes(budget, "b"))
    second.is_here = True
    with pytest.raises(OverloadedError):
        await read_body(second, 5)
    with pytest.raises(PayloadTooLargeError):
        await read_body(request, 4)


async def test_a_large_body_is_put_together_in_the_order_in_which_it_came():
    pieces = [bytes([letter]) * 2**18 for letter in b"abcdef"]
    assert await read_body(Arriving(*pieces), 2**21) == b"".join(pieces)


async def test_a_body_that_breaks_off_between_two_pieces_is_not_taken_for_a_short_one():
    request = Arriving(b'{"input": "a"}')
    request.broken = InvalidRequestError("The body is not valid HTTP.")
    with pytest.raises(InvalidRequestError, match="not valid HTTP"):
        await read_body(request, 100)


async def test_a_body_that_says_it_is_too_large_is_not_read_and_one_of_nothing_is_told_what_to_send():
    request = Arriving(b"abcde", length=5)
    with pytest.raises(PayloadTooLargeError):
        await read_body(request, 4)
    assert request.left == [b"abcde"]
    with pytest.raises(InvalidRequestError, match="empty"):
        await read_body(Arriving(), 4)


async def test_an_answer_in_pieces_knows_its_size_and_frees_each_piece_as_it_leaves():
    body = PiecedBody([b"ab", b"c"], "application/json")
    assert (body.size, body.content_type, body.decode()) == (3, "application/json", "abc")
    written: list[tuple[bytes, str]] = []

    class Writer:
        async def write(self, piece: bytes) -> None:
            written.append((piece, body.decode()))

    await body.write(Writer())
    assert written == [(b"ab", "c"), (b"c", "")]


async def test_what_an_answer_takes_is_given_back_as_it_leaves_and_where_it_never_does():
    budget, totals = Budget(100), []
    gone, whole, unwritten = (PiecedBody([b"ab", b"c", b"", b"de"], "application/json") for _ in range(3))

    class Writer:
        def __init__(self, last: bytes) -> None:
            self.last = last

        async def write(self, piece: bytes) -> None:
            totals.append(budget.total)
            if piece == self.last:
                raise ConnectionResetError

    whole.count_in(budget, "a")
    await whole.write(Writer(b"none"))
    assert (totals, budget.total) == ([5, 3, 2, 2], 0)
    gone.count_in(budget, "a")
    with pytest.raises(ConnectionResetError):
        await gone.write(Writer(b"c"))
    assert budget.total == 0
    unwritten.count_in(budget, "a")
    assert budget.total == 5
    del unwritten
    assert budget.total == 0


async def test_an_answer_that_nobody_takes_is_given_up_and_holds_nothing_more(monkeypatch):
    monkeypatch.setattr(body_module, "_LEAVING_S", 0.02)
    budget = Budget(100)
    body = PiecedBody([b"ab", b"c"], "application/json")
    body.count_in(budget, "a")

    class Stuck:
        async def write(self, piece: bytes) -> None:
            await asyncio.Event().wait()

    with pytest.raises(ConnectionResetError):
        await body.write(Stuck())
    assert budget.total == 0


class WideBackend(LengthBackend):
    async def encode(self, model_id: str, message: Encode) -> Encoded:
        encoded = await super().encode(model_id, message)
        return encoded.replace(vectors=b"\xdb\x0f\x49\x40" * 128 * message.count, dimension=128)


async def test_who_does_not_read_large_answers_gets_no_more_of_them_and_others_do(aiohttp_client, monkeypatch):
    asked = {"model": "m", "input": ["a"] * 2000}
    client = await aiohttp_client(make_app(WideBackend(), limit=2**16))
    size = len(await (await client.post("/v1/embeddings", json=asked)).read())
    client = await aiohttp_client(make_app(WideBackend(), ("slow", "quick"), limit=2**16, held=size * 13 // 10))

    async def ask(key: str) -> ClientResponse:
        return await client.post("/v1/embeddings", json=asked, headers={"Authorization": f"Bearer {key}"})

    is_read, write = asyncio.Event(), StreamWriter.write

    async def wait(writer: StreamWriter, piece: bytes) -> None:
        await write(writer, piece)
        if piece.startswith(b'{"id"'):  # the first of an answer
            await is_read.wait()

    with monkeypatch.context() as slow:
        slow.setattr(StreamWriter, "write", wait)
        first = await ask("slow")
        refused = await ask("slow")
    assert (first.status, refused.status, refused.headers["Retry-After"]) == (200, 429, "1")
    assert "read" in (await refused.json())["error"]["message"]
    other = await ask("quick")
    assert (other.status, len(await other.read())) == (200, size)
    is_read.set()
    assert len(await first.read()) == size
    assert (await ask("slow")).status == 200


class TalkativeBackend(LengthBackend):
    async def detokenize(self, _model_id: str, message: Detokenize) -> Texts:
        return Texts(("x" * 2_000_000,) * message.count)


async def test_the_texts_of_token_ids_are_a_large_answer_as_any_other(aiohttp_client, monkeypatch):
    counted = []
    monkeypatch.setattr(PiecedBody, "count_in", lambda body, *_: counted.append(body.size))
    client = await aiohttp_client(make_app(TalkativeBackend()))
    answer = await client.post("/decode", json={"model": "m", "ids": [1]})
    assert await answer.json() == ["x" * 2_000_000]
    assert counted == [2_000_004]
