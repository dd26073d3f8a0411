"""Cases 1 and 6 to 10 of the list of faults: a shard dies, or its device does."""

import time

import pytest

from tests.support.faulty_server import FaultyModel, FaultyServer


@pytest.fixture
def server(tmp_path):
    with FaultyServer(tmp_path / "server", {"en": FaultyModel(tmp_path / "en"), "zh": FaultyModel(tmp_path / "zh")}) as it:
        it.wait_ready()
        yield it


def test_smoke(server):
    server.check("en", ["hello", "你好"])
    server.check("zh", ["hello", "你好"])
