"""One server with a real embedding model and a tiny reranker, run by the server's own interpreter.

``EMB_CLIENTS_SERVER_PYTHON`` names that interpreter; ``make test-clients`` sets it.
"""

import contextlib
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.server import KeyedServer, Server

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-the-client-tests"


class ClientsServer(KeyedServer):
    key = KEY


def vocabulary_directory() -> str:
    """Where llama-index carries the cl100k vocabulary that tiktoken would otherwise download."""
    package = importlib.util.find_spec("llama_index.core")
    assert package is not None
    assert package.origin is not None
    directory = Path(package.origin).parent / "_static" / "tiktoken_cache"
    assert any(directory.iterdir())
    return str(directory)


@pytest.fixture(scope="session", autouse=True)
def _offline_vocabulary():
    os.environ["TIKTOKEN_CACHE_DIR"] = vocabulary_directory()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    subprocess.run([server_python(), "-m", "tests.clients.make_models", str(directory)], cwd=ROOT, check=True)
    return directory


@pytest.fixture(scope="session")
def server(tmp_path_factory, models, _offline_vocabulary):
    mapping = f"""EMB_PROVIDER_MODEL_MAPPING={{
      "minilm": {{"name": "{models}/minilm"}},
      "minilm-cl100k": {{"name": "{models}/minilm", "token_ids": "cl100k"}},
      "reranker": {{"name": "{models}/reranker"}}
    }}
    EMB_PROVIDER_API_KEYS={KEY}
    """
    with running(ClientsServer(tmp_path_factory.mktemp("clients"), dotenv=mapping)) as one:
        yield one


@pytest.fixture(scope="session")
def key():
    return KEY


@contextlib.contextmanager
def running(one: Server):
    """Start a server with its own interpreter, and end it."""
    one.start((server_python(), "-m", "supervisor"))
    try:
        one.wait_ready()
        yield one
    finally:
        assert one.stop() == 0, one.story()


def server_python() -> str:
    return os.environ["EMB_CLIENTS_SERVER_PYTHON"]
