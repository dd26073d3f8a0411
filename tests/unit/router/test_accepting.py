import asyncio
import socket

from router import accepting
from router.accepting import Accepting
from router.connection import Runner
from router.metrics.meter import Meter
from tests.unit.router.test_app import make_app


async def test_a_connection_over_the_limit_hears_503_and_is_counted(monkeypatch):
    monkeypatch.setattr(accepting, "_REFUSAL_S", 0.01)
    meter = Meter()
    runner = Runner(make_app())
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    await Accepting(runner, listener, 1, on_refused=meter.refused).start()
    try:
        first, first_writer = await asyncio.open_connection(*where)
        first_writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await first.readline() == b"HTTP/1.1 200 OK\r\n"
        over, over_writer = await asyncio.open_connection(*where)
        assert b" 503 " in await over.readline()
        over_writer.close()
        first_writer.close()
        await asyncio.sleep(0.05)
    finally:
        await runner.cleanup()
    text, _ = meter.render([], "")
    assert b'emb_refused_total{reason="too_many_connections"} 1.0' in text
