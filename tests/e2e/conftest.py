import pytest

from tests.support.server import Server


@pytest.fixture(scope="session")
def default_server(tmp_path_factory):
    """The server a newcomer gets: no settings at all, the embedded model. Shared: a start costs seconds."""
    with Server(tmp_path_factory.mktemp("default")) as server:
        server.wait_ready()
        yield server
