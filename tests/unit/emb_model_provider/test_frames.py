import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import ProtocolError
from emb_model_provider.frames import HEADER, MAGIC, MAX_PAYLOAD_BYTES, VERSION, FrameDecoder, Outbox, pack_frame

frames = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=200)), min_size=1, max_size=8
)


@given(frames, st.data())
def test_a_stream_cut_anywhere_decodes_to_the_same_frames(sent, data):
    stream = b"".join(pack_frame(*one) for one in sent)
    decoder = FrameDecoder()
    received = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert [tuple(frame) for frame in received] == sent


def test_every_single_byte_position_is_a_safe_place_to_cut():
    stream = pack_frame(1, 7, b"hello") + pack_frame(2, 8, b"")
    for position in range(len(stream) + 1):
        decoder = FrameDecoder()
        received = decoder.feed(stream[:position]) + decoder.feed(stream[position:])
        assert [tuple(frame) for frame in received] == [(1, 7, b"hello"), (2, 8, b"")]


def test_a_frame_of_length_zero_is_a_whole_frame():
    assert [tuple(frame) for frame in FrameDecoder().feed(pack_frame(3, 9, b""))] == [(3, 9, b"")]


def test_a_header_has_sixteen_bytes_of_which_the_highest_comes_first():
    assert pack_frame(3, 0x0102, b"ab") == b"EP\x01\x03\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x01\x02ab"


def test_a_payload_may_be_as_long_as_the_limit_and_no_longer(monkeypatch):
    monkeypatch.setattr("emb_model_provider.frames.MAX_PAYLOAD_BYTES", 8)
    assert pack_frame(1, 1, bytes(8))[-8:] == bytes(8)
    with pytest.raises(ProtocolError, match="over the limit of 8"):
        pack_frame(1, 1, bytes(9))


def test_a_huge_claimed_length_is_refused_before_any_byte_of_it_arrives():
    header = HEADER.pack(MAGIC, VERSION, 1, MAX_PAYLOAD_BYTES + 1, 1)
    with pytest.raises(ProtocolError, match="claims"):
        FrameDecoder().feed(header)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [(HEADER.pack(b"GE", VERSION, 1, 0, 1), "not a frame"), (HEADER.pack(MAGIC, VERSION + 1, 1, 0, 1), "version")],
)
def test_foreign_bytes_are_refused_and_so_is_everything_after_them(header, sentence):
    decoder = FrameDecoder()
    with pytest.raises(ProtocolError, match=sentence):
        decoder.feed(header)
    with pytest.raises(ProtocolError, match="broken"):
        decoder.feed(pack_frame(1, 1, b""))


@given(st.binary(max_size=500))
def test_garbage_never_raises_anything_but_a_protocol_error(data):
    with contextlib.suppress(ProtocolError):
        FrameDecoder().feed(data)


def test_a_payload_no_peer_would_take_is_refused_by_the_sender():
    with pytest.raises(ProtocolError, match="over the limit"):
        pack_frame(1, 1, bytes(MAX_PAYLOAD_BYTES + 1))


class FakeLoop:
    """Runs what is due when told to."""

    def __init__(self) -> None:
        self.due = []
        self.written = []

    def outbox(self) -> Outbox:
        return Outbox(self.due.append, self.written.append)

    def run(self) -> None:
        for _ in range(len(self.due)):
            self.due.pop(0)()


@given(st.lists(st.lists(st.binary(min_size=1, max_size=9), max_size=20), max_size=5))
def test_what_is_added_in_one_turn_of_the_loop_leaves_by_eights_and_in_order(turns):
    loop = FakeLoop()
    outbox = loop.outbox()
    for turn in turns:
        for frame in turn:
            outbox.add(frame)
        loop.run()
    eights = [turn[begin : begin + 8] for turn in turns for begin in range(0, len(turn), 8)]
    assert loop.written == [b"".join(eight) for eight in eights]


def test_eight_frames_do_not_wait_for_the_turn_to_end():
    loop = FakeLoop()
    outbox = loop.outbox()
    for frame in b"abcdefghi":
        outbox.add(bytes([frame]))
    assert loop.written == [b"abcdefgh"]
    loop.run()
    assert loop.written == [b"abcdefgh", b"i"]


def test_a_flush_by_hand_leaves_nothing_for_the_turn_that_was_planned():
    loop = FakeLoop()
    outbox = loop.outbox()
    outbox.add(b"a")
    outbox.flush()
    loop.run()
    outbox.add(b"b")
    loop.run()
    assert loop.written == [b"a", b"b"]


def test_a_payload_of_exactly_the_limit_is_taken_and_one_byte_more_is_not():
    (frame,) = FrameDecoder(max_payload_bytes=4).feed(pack_frame(1, 0, b"1234"))
    assert frame.payload == b"1234"
    with pytest.raises(ProtocolError, match="claims 5 bytes; the limit is 4"):
        FrameDecoder(max_payload_bytes=4).feed(pack_frame(1, 0, b"12345"))
