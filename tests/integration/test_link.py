"""The router's link and the shard's channel over a real Unix socket, around a fake encoder."""

import asyncio
import contextlib
import stat
from functools import partial

import numpy as np
import pytest

from emb_model_provider.black_box import MAX_ENTRIES, BlackBox, BlackBoxReader, box_path
from emb_model_provider.errors import RequestError
from emb_model_provider.frames import FrameDecoder, pack_frame
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import Detokenize, Encode, Encoded, Hello, Texts, Tokenize, Tokens
from emb_model_provider.messages.status import ShardTable
from emb_model_provider.modelmap import BatchLimits
from emb_model_provider.private_socket import bind_private
from router.link import Link, ShardLostError
from router.registry import Registry
from router.requests import EncodeRequest
from router.service import EmbeddingService
from shard.batching.lane import Lane
from shard.channel import Channel
from shard.engine import Engine
from shard.listener import FIRST_LANE
from tests.support.fake_encoder import MAX_TOKENS, FakeEncoder, expected_vector
from tests.support.plans import make_plan
from tests.support.statuses import make_info, make_status


@contextlib.asynccontextmanager
async def served(encoder: FakeEncoder, path, trace=None):
    box = BlackBox(box_path(path), FIRST_LANE + 1)
    channel = Channel(Hello("m", 1), asyncio.get_running_loop(), box, trace)
    engine = Engine(encoder, [Lane()], 1, BatchLimits(max_batch_size=4), make_plan(), channel)
    engine.start()
    await channel.serve(engine, bind_private(path))
    try:
        yield channel
    finally:
        encoder.gate.set()
        await channel.close()
        await asyncio.to_thread(engine.stop)


@contextlib.asynccontextmanager
async def linked(path, generation: int = 1):
    loop = asyncio.get_running_loop()
    _, link = await loop.create_unix_connection(
        lambda: Link("m", generation, BlackBoxReader(box_path(path))), str(path)
    )
    try:
        yield link
    finally:
        link.close()
        await link.lost


async def test_many_requests_at_once_each_get_their_own_answer(tmp_path):
    async with served(FakeEncoder(), tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        texts = [tuple(f"{a}-{b}" for b in range(a % 7 + 1)) for a in range(200)]
        answers = await asyncio.gather(*(link.request(Encode(one), Encoded) for one in texts))
        for one, answer in zip(texts, answers, strict=True):
            assert np.frombuffer(answer.vectors, "<f4").reshape(-1, 4).tolist() == [expected_vector(t) for t in one]


async def test_tokens_and_texts_cross_the_link(tmp_path):
    async with served(FakeEncoder(), tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        tokens = await link.request(Tokenize(("好a",)), Tokens)
        assert [(one.id, one.text, one.start, one.stop) for one in tokens.rows[0]] == [
            (ord("好"), "好", 0, 1),
            (ord("a"), "a", 1, 2),
        ]
        assert await link.request(Detokenize(((ord("好"), ord("a")),)), Texts) == Texts(("好a",))


async def test_an_answer_that_no_frame_can_hold_is_an_error_for_its_asker_and_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setattr("emb_model_provider.frames.MAX_PAYLOAD_BYTES", 2000)
    async with served(FakeEncoder(), tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        with pytest.raises(RequestError, match="send fewer or shorter ones") as caught:
            await link.request(Encode(tuple(map(str, range(150)))), Encoded)
        assert (caught.value.status, caught.value.code) == (400, "answer_too_large")
        assert (await link.request(Encode(("a",)), Encoded)).tokens == (1,)


async def test_requests_of_one_moment_reach_the_shard_by_eights_and_in_order(tmp_path):
    pieces: list[bytes] = []
    all_there = asyncio.Event()

    class Peer(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            pieces.append(data)
            if len(FrameDecoder().feed(b"".join(pieces))) == 20:
                all_there.set()

    BlackBox(tmp_path / "s.box", 1)
    server = await asyncio.get_running_loop().create_unix_server(Peer, str(tmp_path / "s.sock"))
    try:
        async with linked(tmp_path / "s.sock") as link:
            asked = [asyncio.create_task(link.request(Encode((f"t{index}",)), Encoded)) for index in range(20)]
            await asyncio.wait_for(all_there.wait(), timeout=5)
            received = [unpack(frame) for frame in FrameDecoder().feed(b"".join(pieces))]
            assert received == [Encode((f"t{index}",)) for index in range(20)]
            assert len(pieces) <= 3
        assert all(isinstance(one, ShardLostError) for one in await asyncio.gather(*asked, return_exceptions=True))
    finally:
        server.close()
        await server.wait_closed()


async def test_whatever_the_engine_says_before_the_loop_runs_wakes_it_once(tmp_path):
    class CountingLoop:
        def __init__(self) -> None:
            self.woken = []

        def call_soon_threadsafe(self, function) -> None:
            self.woken.append(function)

    loop = CountingLoop()
    channel = Channel(Hello("m", 1), loop, BlackBox(tmp_path / "b", 1))
    for key in range(50):
        channel.finished(key, Encoded(b"", 4, ()))
    assert len(loop.woken) == 1
    loop.woken.pop()()
    channel.finished(50, Encoded(b"", 4, ()))
    assert len(loop.woken) == 1


async def test_a_models_error_reaches_the_one_who_asked(tmp_path):
    async with served(FakeEncoder(), tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        with pytest.raises(RequestError, match="failed on input 0") as caught:
            await link.request(Encode(("POISON",)), Encoded)
        assert caught.value.status == 500
        assert len((await link.request(Encode(("fine",)), Encoded)).tokens) == 1


async def test_a_cancelled_request_is_never_encoded(tmp_path):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        first = asyncio.create_task(link.request(Encode(("first",)), Encoded))
        await asyncio.to_thread(encoder.entered.wait, 5)
        second = asyncio.create_task(link.request(Encode(("second",)), Encoded))
        third = asyncio.create_task(link.request(Encode(("third",)), Encoded))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        encoder.gate.set()
        await asyncio.gather(first, third)
        assert encoder.encoded == ["first", "third"]


async def test_nothing_is_kept_of_what_is_answered_or_taken_back_and_what_is_traced_is_told_once(tmp_path):
    traced, encoder = [], FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock", lambda *told: traced.append(told)) as channel:
        async with linked(tmp_path / "s.sock") as link:
            requests = [Encode(("a",), traceparent="00-1"), Encode(("b",), traceparent="00-2"), Encode(("c",))]
            first, second, third = [asyncio.create_task(link.request(one, Encoded)) for one in requests]
            await link.request(Tokenize(("a",)), Tokens)
            assert len(channel._askers) == 3
            second.cancel()
            while len(channel._askers) == 3:  # noqa: ASYNC110 - the channel has no event
                await asyncio.sleep(0.001)
            encoder.gate.set()
            await asyncio.gather(first, third)
            assert traced == [("00-1", first.result())]
            assert not channel._askers
            assert not channel._traced
            assert not any(one.keys for one in channel._links)
            assert channel.has_links
        while channel.has_links:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)


class OneLink:
    """A service's backend that is one link to one shard."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def encode(self, _model_id: str, message: Encode) -> Encoded:
        return await self._link.request(message, Encoded)


async def test_a_text_that_many_ask_for_at_once_is_encoded_once_however_little_a_shard_is_given(tmp_path):
    registry = Registry(ready_wait_s=5)
    registry.update(ShardTable((make_status("m", info=make_info(max_tokens=8192)),)))
    encoder, text = FakeEncoder(closed=True), "asked by everybody " * 200
    async with served(encoder, tmp_path / "s.sock") as channel, linked(tmp_path / "s.sock") as link:
        service = EmbeddingService(registry, OneLink(link))
        asked = [
            asyncio.create_task(service.embed(EncodeRequest("m", (one,), client=f"client {number}")))
            for number, one in enumerate([text, *["another " * 900] * 2, *[text] * 20, "a third " * 900])
        ]
        await asyncio.to_thread(encoder.entered.wait, 5)
        await asyncio.sleep(0.05)
        # What is not equal waits in the router for its turn.
        assert channel.requests_taken == 23
        encoder.gate.set()
        results = await asyncio.gather(*asked)
    assert sorted(encoder.encoded) == sorted({one[:MAX_TOKENS] for one in (text, "another " * 5, "a third " * 5)})
    vectors = [np.frombuffer(result.parts[0].vectors, "<f4").tolist() for result in results]
    assert vectors.count(expected_vector(text)) == 21


async def test_a_client_that_closes_its_link_costs_no_encoding(tmp_path):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock"):
        async with linked(tmp_path / "s.sock") as link:
            tasks = [asyncio.create_task(link.request(Encode((f"t{i}",) * 4), Encoded)) for i in range(5)]
            await asyncio.to_thread(encoder.entered.wait, 5)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, ShardLostError) for outcome in outcomes)
        await asyncio.sleep(0.05)
        encoder.gate.set()
        await asyncio.sleep(0.1)
        # The batch that was at the device; how many of the five it could take depends on when its thread woke.
        assert len(encoder.batch_sizes) == 1


async def test_a_shard_that_goes_away_tells_who_was_on_the_device(tmp_path):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock") as channel, linked(tmp_path / "s.sock") as link:
        running = asyncio.create_task(link.request(Encode(("a",) * 4), Encoded))
        await asyncio.to_thread(encoder.entered.wait, 5)
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(link.request(Encode(("b",)), Encoded))
        await asyncio.sleep(0.05)
        await channel.close()
        outcomes = await asyncio.gather(running, waiting, return_exceptions=True)
        assert [outcome.started for outcome in outcomes] == [True, False]
        with pytest.raises(ShardLostError):
            await link.request(Encode(("c",)), Encoded)


async def test_when_a_shard_was_at_more_than_it_could_note_all_that_wait_are_suspects(tmp_path):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock") as channel, linked(tmp_path / "s.sock") as link:
        requests = [Encode(("a",)), Encode(("b",)), Encode(("c",), alone=True)]
        asked = [asyncio.create_task(link.request(one, Encoded)) for one in requests]
        await asyncio.to_thread(encoder.entered.wait, 5)
        channel.begins(FIRST_LANE, [1] * (MAX_ENTRIES + 1))
        await channel.close()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [outcome.started for outcome in outcomes] == [True, True, False]


async def test_what_runs_alone_while_the_router_breaks_with_a_shard_has_not_killed_it(tmp_path):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        asked = asyncio.create_task(link.request(Encode(("a",), alone=True), Encoded))
        await asyncio.to_thread(encoder.entered.wait, 5)
        link.data_received(pack(Encode(("from the wrong side",))))
        (outcome,) = await asyncio.gather(asked, return_exceptions=True)
        assert not outcome.started


async def test_what_runs_alone_in_a_process_that_was_relieved_has_not_killed_it(tmp_path):
    def relieve(link):
        link.was_relieved = True

    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock") as channel:
        make = partial(Link, "m", 1, BlackBoxReader(box_path(tmp_path / "s.sock")), relieve)
        _, link = await asyncio.get_running_loop().create_unix_connection(make, str(tmp_path / "s.sock"))
        asked = asyncio.create_task(link.request(Encode(("a",), alone=True), Encoded))
        await asyncio.to_thread(encoder.entered.wait, 5)
        await channel.close()
        (outcome,) = await asyncio.gather(asked, return_exceptions=True)
        assert not outcome.started


async def test_a_link_says_that_it_is_broken_once_and_takes_no_more_from_that_moment(tmp_path):
    heard = []
    async with served(FakeEncoder(), tmp_path / "s.sock"):
        box = BlackBoxReader(box_path(tmp_path / "s.sock"))
        make = partial(Link, "m", 1, box, heard.append)
        _, link = await asyncio.get_running_loop().create_unix_connection(make, str(tmp_path / "s.sock"))
        link.data_received(pack(Encode(("from the wrong side",))))
        assert heard == [link]
        assert "Encode is not for a router" in link.complaint
        assert not link.lost.done()
        with pytest.raises(ShardLostError):
            await link.request(Encode(("a",)), Encoded)
        await link.lost
        assert heard == [link]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        pack_frame(99, 1, b""),
        pack(Hello("m", 1)),
        pack(Encode(("a",)), 1) * 2,
        pack(Encode(("a", "b"), alone=True), 1),
        pack_frame(2, 1, b"\xc1"),
    ],
    ids=["http", "unknown kind", "not for a shard", "an id twice", "two alone", "not msgpack"],
)
async def test_a_peer_that_breaks_the_protocol_is_cut_off_and_the_next_one_served(tmp_path, data):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"))
        writer.write(data)
        await asyncio.wait_for(reader.read(), timeout=5)  # its hello, then the end
        writer.close()
        await writer.wait_closed()
        encoder.gate.set()
        async with linked(tmp_path / "s.sock") as link:
            assert len((await link.request(Encode(("fine",)), Encoded)).tokens) == 1


async def test_an_answer_given_just_before_the_channel_closes_still_arrives(tmp_path):
    encoder = FakeEncoder(closed=True)
    async with served(encoder, tmp_path / "s.sock") as channel, linked(tmp_path / "s.sock") as link:
        asked = asyncio.create_task(link.request(Encode(("a",)), Encoded))
        await asyncio.to_thread(encoder.entered.wait, 5)
        outcome = Encoded(np.zeros(4, "<f4").tobytes(), 4, (1,))
        channel.finished(1, outcome)  # as the engine does; the loop has not run since when the channel closes
        await asyncio.sleep(0)
        await channel.close()
        assert await asked == outcome


async def test_a_link_to_the_wrong_generation_is_dropped(tmp_path):
    async with served(FakeEncoder(), tmp_path / "s.sock"), linked(tmp_path / "s.sock", generation=2) as link:
        await asyncio.wait_for(link.lost, timeout=5)


async def test_the_socket_and_its_box_are_private_and_no_half_made_one_is_left(tmp_path):
    async with served(FakeEncoder(), tmp_path / "s.sock"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s.box", "s.sock"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


async def test_a_router_that_does_not_read_its_answers_is_given_no_more_work_until_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr("shard.channel._HIGH_WATER_BYTES", 64 * 1024)
    encoder = FakeEncoder()
    async with served(encoder, tmp_path / "s.sock"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"), limit=2**16)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for request_id in range(1, 101):
                while len(encoder.encoded) < request_id - 3:  # noqa: ASYNC110 - the encoder has no event
                    await asyncio.sleep(0.001)
                texts = (f"again and again {request_id}",) * 1000  # encoded once, answered with 20 kB
                writer.write(pack(Encode(texts), request_id))
                await writer.drain()
                sent = request_id

        flooding = asyncio.create_task(flood())
        stalled, seen = 0, -1
        while stalled < 5:
            await asyncio.sleep(0.1)
            stalled = stalled + 1 if (sent, len(encoder.encoded)) == seen else 0
            seen = (sent, len(encoder.encoded))
        assert sent < 100, "the shard took everything"
        decoder, answered = FrameDecoder(), 0
        while answered < 100:
            frames = decoder.feed(await reader.read(2**20))
            answered += sum(isinstance(unpack(frame), Encoded) for frame in frames)
        await flooding
        writer.close()


async def test_both_sides_write_more_than_a_socket_holds_and_neither_waits_for_the_other(tmp_path):
    async with served(FakeEncoder(), tmp_path / "s.sock"), linked(tmp_path / "s.sock") as link:
        texts = tuple(f"{'x' * 2000} {index}" for index in range(300))
        asked = [link.request(Encode(texts), Encoded) for _ in range(8)]  # 600 kB each, all in the same moment
        answers = await asyncio.wait_for(asyncio.gather(*asked), 60)
        assert {len(answer.tokens) for answer in answers} == {300}
