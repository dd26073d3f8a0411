import contextlib
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider import codec
from emb_model_provider.errors import ProtocolError
from emb_model_provider.frames import Frame, FrameDecoder
from emb_model_provider.messages.configs import LogConfig, RouterConfig, ShardConfig
from emb_model_provider.messages.framing import _CLASSES, pack, unpack
from emb_model_provider.messages.link import (
    Cancel,
    Detokenize,
    Encode,
    Encoded,
    Failed,
    Hello,
    InputError,
    Timing,
    TokenVectors,
)
from emb_model_provider.messages.status import ShardTable
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from tests.support.statuses import make_info, make_status

texts = st.lists(st.text(max_size=20), max_size=5).map(tuple)
messages = st.one_of(
    st.builds(Hello, st.text(max_size=9), st.integers(0, 9)),
    st.builds(Encode, texts, dimensions=st.none() | st.integers(1, 9999), first_index=st.integers(0, 2048)),
    st.builds(Encoded, st.binary(max_size=40), st.integers(1, 9), st.lists(st.integers(0, 99)).map(tuple)),
    st.builds(
        Failed,
        st.integers(400, 599),
        st.text(),
        code=st.none() | st.text(),
        message=st.text(),
        param=st.none() | st.text(),
    ),
    st.builds(Cancel, st.lists(st.integers(0, 2**63)).map(tuple)),
)


@given(messages, st.integers(0, 2**64 - 1))
def test_a_message_arrives_as_it_was_sent(message, request_id):
    (frame,) = FrameDecoder().feed(pack(message, request_id))
    assert frame.request_id == request_id
    assert unpack(frame) == message


def test_the_whole_configuration_of_a_shard_crosses_with_every_nested_value():
    config = ShardConfig(
        spec=ModelSpec(id="a", name="o/a", cpus=(0, 1), prompts=(("query", "问题："),), normalize=True),
        hubs=Hubs(HubAccess("c", "http://h", "t"), HubAccess(trust_remote_code=True), offline=True),
        log=LogConfig("INFO", "json"),
        generation=3,
        device="cpu",
        threads=2,
        cpus=(),
        thread_cpus=(0, 1),
        socket_path="s",
        cache_dir="d",
        drain_s=30,
    )
    (frame,) = FrameDecoder().feed(pack(config))
    assert unpack(frame) == config.replace(drain_s=30.0)


def test_a_shard_table_crosses_with_and_without_measured_facts():
    table = ShardTable((make_status("a", state="failed", reason="no_network"), make_status("b", info=make_info())))
    (frame,) = FrameDecoder().feed(pack(table))
    assert unpack(frame) == table


@pytest.mark.parametrize(
    "plain",
    [
        ["a"],  # a field is missing
        ["a", 1, 2],  # one too many
        [1, 1],  # not a string
        ["a", True],  # a boolean is not an integer
        ["a", 1.5],
        {"model_id": "a"},
        None,
    ],
)
def test_a_payload_of_the_wrong_shape_is_refused(plain):
    with pytest.raises(ProtocolError, match="Hello"):
        codec.decode(Hello, msgpack.packb(plain))


def test_values_outside_a_closed_set_are_refused():
    payload = codec.encode(RouterConfig(LogConfig("INFO", "xml"), (), 1.0, 1, 1.0))
    with pytest.raises(ProtocolError, match=r"RouterConfig: .*'xml' - at `\$\[0\]\[1\]`"):
        codec.decode(RouterConfig, payload)


def test_values_are_checked_although_a_message_of_the_same_types_was_right_before():
    right, wrong = LogConfig("INFO", "plain"), LogConfig("INFO", "xml")
    assert codec.decode(LogConfig, codec.encode(right)) == right
    with pytest.raises(ProtocolError, match=r"LogConfig: .*'xml' - at `\$\[1\]`"):
        codec.decode(LogConfig, codec.encode(wrong))


def test_a_whole_number_where_a_fraction_is_due_arrives_as_a_fraction_every_time():
    for _ in range(2):
        arrived = codec.decode(Timing, msgpack.packb([1, 2.0, 3]))
        assert [type(value) for value in (arrived.tokenize_ms, arrived.queue_ms, arrived.encode_ms)] == [float] * 3


def test_extension_types_and_deep_nesting_are_refused():
    with pytest.raises(ProtocolError, match="got `ext`"):
        codec.decode(Hello, msgpack.packb([msgpack.ExtType(5, b"x"), 1]))
    with pytest.raises(ProtocolError, match="Hello"):
        codec.decode(Hello, b"\x91" * 5000)


@pytest.mark.parametrize("header", [b"\xdd\xff\xff\xff\xff", b"\x91\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_a_length_that_nothing_follows_is_refused_and_nothing_is_allocated_for_it(header):
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="Cancel"):
            codec.decode(Cancel, header)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_field_that_has_a_default_may_not_be_missing_either():
    whole = msgpack.unpackb(codec.encode(Encode(("a",))))
    assert codec.decode(Encode, msgpack.packb(whole)) == Encode(("a",))
    with pytest.raises(ProtocolError, match=f"Encode: expected an array of {len(whole)} fields"):
        codec.decode(Encode, msgpack.packb(whole[:-1]))


def test_what_a_message_has_within_it_may_have_no_field_more_either():
    plain = msgpack.unpackb(codec.encode(Encoded(bytes(4), 1, (1,), errors=(InputError(0, 400, "kind", None, "no"),))))
    (error,) = plain[Encoded.__struct_fields__.index("errors")]
    error.append("more")
    with pytest.raises(ProtocolError, match="Encoded"):
        codec.decode(Encoded, msgpack.packb(plain))


def test_a_key_that_nobody_knows_is_not_followed_however_deep():
    assert ShardConfig.__struct_fields__[0] == "spec"
    header = msgpack.Packer().pack_array_header(len(ShardConfig.__struct_fields__))
    with pytest.raises(ProtocolError, match="ShardConfig"):
        codec.decode(ShardConfig, header + b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0")


@pytest.mark.parametrize("within", [lambda many: many, lambda many: [many]])
def test_more_than_a_million_items_are_refused(within):
    with pytest.raises(ProtocolError, match="length <= 1000000"):
        codec.decode(Detokenize, msgpack.packb([within([0] * 1_000_001), True, "", False]))


@pytest.mark.parametrize("within", [lambda many: many, lambda many: (many,)])
def test_nor_are_they_sent_for_who_is_sent_them_would_end_the_link(within):
    ids = (0,) * 1_000_000
    (frame,) = FrameDecoder().feed(pack(Detokenize((ids,))))
    assert unpack(frame) == Detokenize((ids,))
    with pytest.raises(ProtocolError, match="length <= 1000000"):
        pack(Detokenize(within((*ids, 0))))


@pytest.mark.parametrize(
    "message",
    [
        Encode((), token_ids=((0,), (0,) * 1_000_001)),
        Encoded(b"", 0, (), token_vectors=TokenVectors(b"", 1, (0,) * 1_000_001)),
    ],
)
def test_a_list_that_is_too_long_is_found_behind_others_and_within_what_is_sent_along(message):
    with pytest.raises(ProtocolError, match="length <= 1000000"):
        pack(message)


def test_text_that_is_no_utf_8_is_refused():
    with pytest.raises(ProtocolError, match=r"Hello: .*(?i:utf-8)"):  # "Invalid UTF-8" from msgspec 0.23 on
        codec.decode(Hello, b"\x92\xa1\xff\x01")


def test_another_msgpack_reads_what_is_sent():
    assert msgpack.unpackb(codec.encode(Encoded(b"\0" * 4, 1, (3,), timing=Timing(1.5)))) == [
        b"\0" * 4, 1, [3], [], [], None, None, [], [1.5, 0.0, 0.0],
    ]  # fmt: skip


def test_an_unknown_kind_is_refused():
    with pytest.raises(ProtocolError, match="unknown frame kind 255"):
        unpack(Frame(255, 0, b""))


@given(st.sampled_from(sorted(_CLASSES)), st.binary(max_size=300))
def test_random_payloads_never_raise_anything_but_a_protocol_error(kind, payload):
    with contextlib.suppress(ProtocolError):
        unpack(Frame(kind, 1, payload))
