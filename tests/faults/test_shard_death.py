"""Cases 1 and 6 to 10 of the list of faults: a shard dies, or its device does."""

import pytest

from tests.support.faulty_server import FaultyModel, FaultyServer


@pytest.fixture
def server(tmp_path):
    models = {name: FaultyModel(tmp_path / name) for name in ("en", "zh")}
    with FaultyServer(tmp_path / "server", models) as it:
        it.wait_ready()
        yield it


def test_smoke(server):
    server.check("en", ["hello", "你好"])
    server.check("zh", ["hello", "你好"])
