"""What a child hears first."""

import socket

import pytest

from emb_model_provider.errors import ProtocolError
from emb_model_provider.frames import HEADER, FrameDecoder, pack_frame
from emb_model_provider.lifecycle import ControlChannel
from emb_model_provider.messages.configs import LogConfig, RouterConfig
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.status import Acquitted, ShardTable

CONFIG = RouterConfig(LogConfig("INFO", "plain"), (), 1.0, 1, 1.0)


@pytest.fixture
def told():
    """A function that takes the bytes a supervisor has sent and returns the channel that hears them."""
    ours, theirs = socket.socketpair()
    channel = ControlChannel(theirs.detach())

    def tell(data: bytes) -> ControlChannel:
        ours.sendall(data)
        ours.close()
        return channel

    yield tell
    channel._socket.close()


def test_the_first_messages_are_given_in_their_order(told):
    channel = told(pack(CONFIG) + pack(ShardTable(())))
    assert channel.receive_first(RouterConfig) == CONFIG
    assert channel.receive_first(ShardTable) == ShardTable(())


def test_a_supervisor_from_before_an_upgrade_is_told_of_and_what_to_do(told):
    packed = pack(CONFIG)
    with pytest.raises(ProtocolError, match=r"expected an array .*of another version.* Restart the server\."):
        told(pack_frame(packed[3], 0, b"\x91" + packed[HEADER.size + 1 :])).receive_first(RouterConfig)


@pytest.mark.parametrize("data", [b"", pack(ShardTable(()))])
def test_another_message_or_none_is_no_configuration(told, data):
    with pytest.raises(ProtocolError, match="must be a RouterConfig"):
        told(data).receive_first(RouterConfig)


def test_an_event_loop_waits_for_no_supervisor_that_does_not_read_and_nothing_is_lost_or_out_of_order():
    ours, theirs = socket.socketpair()
    channel = ControlChannel(theirs.detach())
    sent = [Acquitted(f"{number}-" + "m" * 1000) for number in range(1000)]  # more than any buffer holds
    for message in sent:
        channel.post(message)
    decoder, heard = FrameDecoder(), []
    while len(heard) < len(sent):
        heard.extend(unpack(frame) for frame in decoder.feed(ours.recv(65536)))
    assert heard == sent
    ours.close()
    channel._socket.close()
