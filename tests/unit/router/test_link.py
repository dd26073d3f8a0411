"""One link over a transport that only remembers; a real socket and a real shard are in ``integration``."""

import asyncio
import contextlib
import os

import pytest

from emb_model_provider.black_box import BlackBox, BlackBoxReader
from emb_model_provider.errors import PayloadTooLargeError, RequestError
from emb_model_provider.frames import FrameDecoder
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import (
    Cancel,
    Detokenize,
    Encode,
    Encoded,
    Failed,
    Hello,
    Texts,
    Tokenize,
    Tokens,
)
from router.link import Left, Link, ShardLostError
from router.quarantine import fingerprint


class Wire:
    """What a link has written, and whether it has hung up."""

    def __init__(self) -> None:
        self.written = b""
        self.is_aborted = False

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.is_aborted = True

    def messages(self) -> list[object]:
        return [unpack(frame) for frame in FrameDecoder().feed(self.written)]


@pytest.fixture
async def wire():
    return Wire()


@pytest.fixture
async def link(wire, tmp_path):
    BlackBox(tmp_path / "box", 1)
    link = Link("m", 1, BlackBoxReader(tmp_path / "box"))
    link.connection_made(wire)
    yield link
    if not link.lost.done():
        link.connection_lost(None)


ONE = Encoded(bytes(4), 1, (1,))


async def ask(link: Link, message=None, kind=Encoded):
    asked = asyncio.create_task(link.request(message or Encode(("a",)), kind))
    await asyncio.sleep(0)
    return asked


async def test_who_asks_after_the_protocol_was_broken_does_not_wait_until_more_may_be_written(link):
    link.pause_writing()
    link.data_received(b"no frame at all.")
    with pytest.raises(ShardLostError):
        await asyncio.wait_for(link.request(Encode(("a",)), Encoded), 1)


async def test_an_answer_that_comes_after_its_client_left_disturbs_nobody(link, wire):
    left, error_left, stays = [await ask(link) for _ in range(3)]
    left.cancel()
    error_left.cancel()
    await asyncio.wait([left, error_left])
    assert link.in_flight == 1
    link.data_received(pack(ONE, 1) + pack(Failed(500, "internal_error", None, "late"), 2) + pack(ONE, 3))
    assert await stays == ONE
    assert not link.complaint
    assert wire.messages()[3:] == [Cancel((1,)), Cancel((2,))]
    assert link.in_flight == 0


async def test_an_answer_that_comes_in_the_moment_in_which_its_client_leaves_disturbs_nobody(link):
    left, error_left, stays = [await ask(link) for _ in range(3)]
    left.cancel()
    error_left.cancel()
    link.data_received(pack(ONE, 1) + pack(Failed(500, "internal_error", None, "late"), 2) + pack(ONE, 3))
    assert await stays == ONE
    assert not link.complaint


async def test_a_models_error_is_its_clients_in_every_field(link):
    asked = await ask(link)
    link.data_received(pack(Failed(422, "invalid_request_error", "too_long", "no", param="input"), 1))
    with pytest.raises(RequestError) as caught:
        await asked
    error = caught.value
    assert (error.status, error.kind, error.code, error.message) == (422, "invalid_request_error", "too_long", "no")
    assert error.param == "input"
    assert link.in_flight == 0


@pytest.mark.parametrize(
    ("message", "kind", "answer", "complaint", "started"),
    [
        (Encode(("a",)), Encoded, Tokens(((),)), "Tokens is no answer to Encode", False),
        (Encode(("a",)), Encoded, Encoded(bytes(8), 1, (1, 1)), "2 rows are no answer to 1 inputs", True),
        (Tokenize(("a",)), Tokens, Tokens(((), ())), "2 rows are no answer to 1 inputs", True),
        (Detokenize(((1,),)), Texts, Texts(("a", "b")), "2 rows are no answer to 1 inputs", True),
        (Encode(("a",)), Encoded, Encoded(bytes(8), 1, (1,)), "bytes do not match their count and dimension", False),
        (Encode(("a",)), Encoded, Encoded(bytes(4), 2, (1,)), "bytes do not match their count and dimension", False),
    ],
)
async def test_a_shard_that_gives_a_wrong_answer_is_asked_nothing_more(
    link, wire, message, kind, answer, complaint, started
):
    asked = await ask(link, message, kind)
    link.data_received(pack(answer, 1))
    await asyncio.sleep(0)
    link.connection_lost(None)
    with pytest.raises(ShardLostError) as lost:
        await asked
    assert lost.value.started is started
    assert complaint in link.complaint
    assert wire.is_aborted
    with pytest.raises(ShardLostError):
        await link.request(Tokenize(("a",)), Tokens)
    assert len(wire.messages()) == 1


async def test_while_a_shard_takes_nothing_no_more_is_written_and_all_is_once_it_does(link, wire):
    link.pause_writing()
    asked = [await ask(link) for _ in range(2)]
    await asyncio.sleep(0)
    assert wire.written == b""
    asked.pop().cancel()
    link.resume_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    assert wire.messages() == [Encode(("a",))]
    link.data_received(pack(ONE, 1))
    assert await asked[0] == ONE


async def test_a_shard_that_takes_nothing_again_at_once_is_written_nothing(link, wire):
    link.pause_writing()
    asked = await ask(link)
    link.resume_writing()
    link.pause_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    assert wire.written == b""
    link.resume_writing()
    for _ in range(3):
        await asyncio.sleep(0)
    link.data_received(pack(ONE, 1))
    assert await asked == ONE


async def test_who_waits_to_be_written_to_a_shard_that_dies_has_not_killed_it(link):
    link.pause_writing()
    asked = await ask(link)
    link.connection_lost(None)
    with pytest.raises(ShardLostError) as lost:
        await asyncio.wait_for(asked, 1)
    assert not lost.value.started


async def test_a_shard_that_answers_one_request_and_is_gone_at_once_leaves_nobody_waiting(link):
    answered, lost = [await ask(link) for _ in range(2)]
    link.data_received(pack(ONE, 1))
    link.connection_lost(None)
    assert await asyncio.wait_for(answered, 1) == ONE
    with pytest.raises(ShardLostError):
        await asyncio.wait_for(lost, 1)


async def test_what_runs_alone_did_not_kill_a_process_that_we_have_broken_with(wire, tmp_path):
    BlackBox(tmp_path / "box", 1).enter(0, [(os.getpid(), 1), (os.getpid(), 2)])
    link = Link("m", 1, BlackBoxReader(tmp_path / "box"))
    link.connection_made(wire)
    asked = [await ask(link, Encode(("a",), alone=alone)) for alone in (True, False)]
    link.data_received(b"no frame at all.")
    link.connection_lost(None)
    lost = await asyncio.gather(*asked, return_exceptions=True)
    assert [one.started for one in lost] == [False, True]


async def test_nothing_is_taken_back_from_a_shard_that_is_gone(link, wire):
    asked = await ask(link)
    link.connection_lost(None)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError, ShardLostError):
        await asked
    await asyncio.sleep(0)
    assert wire.messages() == [Encode(("a",))]


@pytest.mark.parametrize("message", [Encode(("a",) * 8), Tokenize(("a",) * 8)])
async def test_what_no_frame_holds_is_told_to_its_client_and_the_link_goes_on(link, wire, monkeypatch, message):
    monkeypatch.setattr("emb_model_provider.frames.MAX_PAYLOAD_BYTES", 64)
    with pytest.raises(PayloadTooLargeError, match="64 MiB") as caught:
        await link.request(message.replace(request_id="r" * 64), Encoded)
    assert caught.value.status == 413
    assert link.in_flight == 0
    monkeypatch.undo()
    asked = await ask(link)
    link.data_received(pack(ONE, 2))
    assert await asked == ONE


@pytest.mark.parametrize("message", [Encode((), ((0,) * 1_000_001,)), Detokenize(((0,) * 1_000_001,))])
async def test_more_token_ids_than_a_shard_takes_are_never_sent(link, wire, message):
    with pytest.raises(PayloadTooLargeError, match="token ids a million"):
        await link.request(message, Encoded)
    await asyncio.sleep(0)
    assert wire.written == b""


@pytest.mark.parametrize(("generation", "is_wrong"), [(1, False), (2, True)])
async def test_a_link_to_another_process_than_it_was_made_for_is_broken(link, wire, generation, is_wrong):
    link.data_received(pack(Hello("m", generation)))
    assert (bool(link.complaint), wire.is_aborted) == (is_wrong, is_wrong)


@pytest.mark.parametrize(
    ("noted", "was_relieved", "started"),
    [
        ((1, 2), False, [True, True, False]),
        ((1, 2), True, [False, True, False]),  # what runs alone did not kill a process that was told to go
        (range(1, 2000), False, [False, True, True]),  # more than it could note is nothing that runs alone
        ((), False, [False, False, False]),
    ],
)
async def test_what_a_process_was_at_when_it_died_is_what_it_noted(wire, tmp_path, noted, was_relieved, started):
    BlackBox(tmp_path / "box", 1).enter(0, [(os.getpid(), number) for number in noted])
    link = Link("m", 1, BlackBoxReader(tmp_path / "box"), lambda link: setattr(link, "was_relieved", was_relieved))
    link.connection_made(wire)
    asked = [await ask(link, Encode(("a",), alone=alone)) for alone in (True, False, False)]
    link.connection_lost(None)
    lost = await asyncio.gather(*asked, return_exceptions=True)
    assert [one.started for one in lost] == started


@pytest.mark.parametrize("breaks", [True, False])
async def test_that_a_link_is_broken_is_told_once_and_at_once_and_its_black_box_is_closed(wire, tmp_path, breaks):
    BlackBox(tmp_path / "box", 1)
    box, broken = BlackBoxReader(tmp_path / "box"), []
    link = Link("m", 1, box, broken.append)
    link.connection_made(wire)
    if breaks:
        link.data_received(pack(Hello("another", 1)))
        assert broken == [link]
    link.connection_lost(None)
    assert broken == [link]
    with pytest.raises(ValueError, match="closed"):
        box.requests_of(os.getpid())


@pytest.fixture
async def told():
    return []


@pytest.fixture
async def mortal(wire, tmp_path, told):
    """A link, and the black box of the shard at its other end."""
    box = BlackBox(tmp_path / "mortal", 1)
    link = Link("m", 1, BlackBoxReader(tmp_path / "mortal"), on_left=told.append)
    link.connection_made(wire)
    return link, box


async def leave(asked: asyncio.Task) -> None:
    asked.cancel()
    await asyncio.wait([asked])


async def test_what_a_shard_was_at_when_it_died_is_told_of_though_its_client_had_left(mortal, told):
    link, box = mortal
    two, alone, never_begun = Encode(("a", "b")), Encode(("c",), alone=True), Encode(("d",))
    asked = [await ask(link, one) for one in (two, alone, never_begun)]
    stays = await ask(link)
    box.enter(0, [(os.getpid(), 1), (os.getpid(), 2), (os.getpid(), 4)])
    for one in asked:
        await leave(one)
    link.connection_lost(None)
    assert told == [
        Left("m", (fingerprint("m", two, 0), fingerprint("m", two, 1)), alone=False),
        Left("m", (fingerprint("m", alone, 0),), alone=True),
    ]
    with pytest.raises(ShardLostError):
        await stays


@pytest.mark.parametrize("why", ["relieved", "complaint", "more than it notes"])
async def test_a_shard_that_did_not_die_of_what_it_was_at_says_nothing_of_it(mortal, told, why):
    link, box = mortal
    asked = await ask(link)
    box.enter(0, [(os.getpid(), 1)] * (1001 if why == "more than it notes" else 1))
    await leave(asked)
    link.was_relieved, link.complaint = why == "relieved", "it lied" if why == "complaint" else ""
    link.connection_lost(None)
    assert told == []


async def test_no_more_of_those_that_left_are_kept_in_mind_than_the_last_ones(mortal, told, monkeypatch):
    monkeypatch.setattr("router.link._MAX_LEFT", 2)
    link, box = mortal
    for number in range(3):
        await leave(await ask(link, Encode((f"text {number}",))))
    box.enter(0, [(os.getpid(), number) for number in (1, 2, 3)])
    link.connection_lost(None)
    assert [left.marks for left in told] == [(fingerprint("m", Encode((f"text {n}",)), 0),) for n in (1, 2)]
