"""Opening links: whose fault it is that a shard cannot be reached."""

import asyncio
import contextlib
import errno
import os
import struct

import pytest

from emb_model_provider.black_box import BlackBox
from emb_model_provider.errors import UnavailableError
from emb_model_provider.frames import FrameDecoder
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import Encode, Encoded, Hello
from emb_model_provider.messages.status import ShardTable
from router import backend as backend_module
from router.backend import LocalBackend
from router.link import ShardLostError
from router.registry import Registry
from tests.support.statuses import make_info, make_status


@pytest.fixture
def failing(monkeypatch):
    """Let connecting fail with these errors, one after the other."""

    def fail_with(*numbers):
        errors = [OSError(number, "told to") for number in numbers]

        async def connect(*_arguments, **_options):
            raise errors.pop(0)

        monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", connect, raising=False)
        return errors

    monkeypatch.setattr(backend_module, "_SHORTAGE_PAUSE_S", 0.0)
    return fail_with


def make_backend(directory):
    BlackBox(directory / "s.box", 1)
    registry = Registry(ready_wait_s=0.0)
    registry.update(ShardTable((make_status("en", info=make_info(), socket_path=str(directory / "s.sock")),)))
    demands = []
    return LocalBackend(registry, demands.append), demands


async def test_a_shard_that_refuses_connections_is_reported_to_the_supervisor(failing, tmp_path):
    backend, demands = make_backend(tmp_path)
    failing(errno.ECONNREFUSED)
    with pytest.raises(ShardLostError):
        await backend.encode("en", Encode(("x",)))
    assert [demand.model_id for demand in demands] == ["en"]


async def test_a_shortage_of_our_own_descriptors_is_waited_out_and_not_blamed_on_the_shard(failing, tmp_path):
    backend, demands = make_backend(tmp_path)
    left = failing(errno.EMFILE, errno.ENOBUFS, errno.ECONNREFUSED)
    with pytest.raises(ShardLostError):
        await backend.encode("en", Encode(("x",)))
    assert left == []
    assert len(demands) == 1
    assert "told to" in demands[0].why
    assert str(errno.ECONNREFUSED) in demands[0].why


@pytest.mark.parametrize(
    ("successors", "tried"),
    [pytest.param([], ["1.sock"], id="no successor"), pytest.param([2], ["1.sock", "2.sock"], id="a successor")],
)
async def test_a_process_that_cannot_be_reached_is_tried_once_however_many_wait_for_it(
    monkeypatch, tmp_path, successors, tried
):
    backend, demands = make_backend(tmp_path)
    paths, may_fail = [], asyncio.Event()

    async def connect(_make, path):
        paths.append(path.rpartition("/")[2])
        await may_fail.wait()
        raise OSError(errno.ECONNREFUSED, "told to")

    def serve(generation):
        BlackBox(tmp_path / f"{generation}.box", 1)
        path = str(tmp_path / f"{generation}.sock")
        row = make_status("en", generation=generation, info=make_info(), socket_path=path)
        backend._registry.update(ShardTable((row,)))

    monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", connect, raising=False)
    serve(1)
    asked = [asyncio.create_task(backend.encode("en", Encode(("x",)))) for _ in range(5)]
    await asyncio.sleep(0)
    for generation in successors:
        serve(generation)
    may_fail.set()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert paths == tried
    assert len(demands) == len(tried)
    # The others have no other process to go to, and no time to wait for one.
    assert [type(one) for one in outcomes].count(UnavailableError) == 5 - len(tried)


async def test_a_shard_that_answers_with_too_few_rows_gets_nothing_more_and_is_reported(tmp_path):
    backend, demands = make_backend(tmp_path)
    links, asked = 0, []

    class Liar(asyncio.Protocol):
        def connection_made(self, transport):
            nonlocal links
            links += 1
            self._transport, self._decoder = transport, FrameDecoder()
            transport.write(pack(Hello("en", 1)))

        def data_received(self, data):
            for frame in self._decoder.feed(data):
                asked.append(unpack(frame))
                self._transport.write(pack(Encoded(bytes(16), 4, (1,)), frame.request_id))

    server = await asyncio.get_running_loop().create_unix_server(Liar, str(tmp_path / "s.sock"))
    try:
        with pytest.raises(ShardLostError) as lost:
            await backend.encode("en", Encode(("x", "y")))
        assert lost.value.started
        # At once, before the loop has closed the connection.
        with pytest.raises(UnavailableError):
            await backend.encode("en", Encode(("x",), alone=True))
        await asyncio.sleep(0.05)
        assert (links, len(asked)) == (1, 1)
        assert [demand.model_id for demand in demands] == ["en"]
        assert "1 rows are no answer to 2 inputs" in demands[0].why
    finally:
        server.close()
        await server.wait_closed()


async def test_a_process_whose_place_another_has_taken_was_relieved(tmp_path):
    backend, demands = make_backend(tmp_path)
    server = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, str(tmp_path / "s.sock"))
    try:
        asked = asyncio.create_task(backend.encode("en", Encode(("x",))))
        await asyncio.sleep(0.05)
        assert backend.in_flight() == 1
        link = backend._links["en"]
        successor = make_status("en", generation=2, info=make_info(), socket_path="next.sock")
        backend._registry.update(ShardTable((successor,)))
        link.close()
        with pytest.raises(ShardLostError):
            await asked
        assert link.was_relieved
        assert demands == []
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def silent_shard(backend, tmp_path):
    """A shard that takes a link and says nothing on it; yields what its end of the link will be."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()

    class Shard(asyncio.Protocol):
        def connection_made(self, transport):
            end.set_result(transport)

    server = await loop.create_unix_server(Shard, str(tmp_path / "s.sock"))
    try:
        yield end
    finally:
        backend.close()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(("who", "warnings"), [("the router", []), ("the shard", ["shard_lost"])])
async def test_a_link_that_the_router_itself_closes_is_no_shard_lost(who, warnings, tmp_path, caplog):
    """As it does when it has finished: at every orderly stop, and when a reload replaces it."""
    caplog.set_level("INFO")
    backend, demands = make_backend(tmp_path)
    async with silent_shard(backend, tmp_path) as end:
        link = await backend._link("en")
        theirs = await end
        if who == "the router":
            backend.close()
        else:
            theirs.close()
        await link.lost
        assert [record.message for record in caplog.records if record.name == "router.backend"] == warnings
        assert demands == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [({}, ["it has ended its link, and lives on"]), ({"state": "restarting"}, []), ({"generation": 2}, [])],
    ids=["lives on", "has died", "has a successor"],
)
async def test_a_process_that_ends_its_link_and_lives_on_is_replaced(monkeypatch, tmp_path, changes, why):
    monkeypatch.setattr(backend_module, "_DEATH_S", 0.02)
    backend, demands = make_backend(tmp_path)
    async with silent_shard(backend, tmp_path) as end:
        link = await backend._link("en")
        (await end).close()
        await link.lost
        assert demands == []
        row = backend._registry.find("en").replace(**changes)
        backend._registry.update(ShardTable((row,)))
        await asyncio.sleep(0.05)
        assert [demand.why for demand in demands] == why


async def test_nothing_is_sent_to_another_user_who_has_taken_a_shard_s_place(monkeypatch, tmp_path):
    heard = bytearray()

    class Stranger(asyncio.Protocol):
        def data_received(self, data):
            heard.extend(data)

    backend, demands = make_backend(tmp_path)
    server = await asyncio.get_running_loop().create_unix_server(Stranger, str(tmp_path / "s.sock"))
    monkeypatch.setattr(backend_module, "peer_user", lambda _socket: os.getuid() + 1)
    try:
        with pytest.raises(ShardLostError):
            await backend.encode("en", Encode(("secret",)))
        await asyncio.sleep(0.02)
        assert not heard
        assert "another user's" in demands[-1].why
    finally:
        backend.close()
        server.close()
        await server.wait_closed()


async def test_requests_go_to_a_successor_although_its_predecessor_still_answers(tmp_path):
    backend, _ = make_backend(tmp_path)
    BlackBox(tmp_path / "next.box", 1)

    def shard(generation):
        class Shard(asyncio.Protocol):
            def connection_made(self, transport):
                self._transport, self._decoder = transport, FrameDecoder()
                transport.write(pack(Hello("en", generation)))

            def data_received(self, data):
                for frame in self._decoder.feed(data):
                    self._transport.write(pack(Encoded(bytes(4), 1, (generation,)), frame.request_id))

        return Shard

    async def answering() -> int:
        return (await backend.encode("en", Encode(("x",)))).tokens[0]

    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_unix_server(shard(generation), str(tmp_path / name))
        for generation, name in [(1, "s.sock"), (2, "next.sock")]
    ]
    try:
        assert [await answering(), await answering()] == [1, 1]
        successor = make_status("en", generation=2, info=make_info(), socket_path=str(tmp_path / "next.sock"))
        old = backend._links["en"]
        backend._registry.update(ShardTable((successor,)))
        assert [await answering(), await answering()] == [2, 2]
        assert not old.lost.done()
    finally:
        backend.close()
        old.close()
        for server in servers:
            server.close()
            await server.wait_closed()


@pytest.mark.parametrize(("who", "told"), [("the router", 0), ("the shard", 1)])
async def test_of_what_a_shard_was_at_nobody_is_told_when_it_is_the_router_that_leaves(who, told, tmp_path):
    """A shard that lives on has not died of anything, and a text is not to be refused for it."""
    backend, _ = make_backend(tmp_path)
    left = []
    backend.on_left = left.append
    async with silent_shard(backend, tmp_path) as end:
        asked = asyncio.create_task(backend.encode("en", Encode(("a",), alone=True)))
        theirs = await end
        link = await backend._link("en")
        asked.cancel()
        await asyncio.wait([asked])
        with (tmp_path / "s.box").open("r+b") as box:
            box.write(struct.pack("<QQQ", 1, os.getpid(), 1))
        if who == "the router":
            backend.close()
        else:
            theirs.close()
        await link.lost
        assert [one.alone for one in left] == [True] * told
