"""One server with a real embedding model and tiny others, run by the server's own interpreter.

``EMB_CLIENTS_SERVER_PYTHON`` names that interpreter; ``make test-clients`` sets it.
"""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]
KEY = "a-key-of-the-client-tests"


class KeyedServer(Server):
    def get(self, path, headers=None):
        return super().get(path, {"Authorization": f"Bearer {KEY}"} | (headers or {}))


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
def server(tmp_path_factory, _offline_vocabulary):
    python = os.environ["EMB_CLIENTS_SERVER_PYTHON"]
    directory = tmp_path_factory.mktemp("clients")
    models = directory / "models"
    subprocess.run([python, "-m", "tests.clients.make_models", str(models)], cwd=ROOT, check=True)
    mapping = f"""EMB_PROVIDER_MODEL_MAPPING={{
      "minilm": {{"name": "{models}/minilm"}},
      "minilm-cl100k": {{"name": "{models}/minilm", "token_ids": "cl100k"}},
      "reranker": {{"name": "{models}/reranker"}},
      "splade": {{"name": "{models}/splade"}}
    }}
    EMB_PROVIDER_API_KEYS={KEY}
    """
    one = KeyedServer(directory, dotenv=mapping)
    one.start((python, "-m", "supervisor"))
    try:
        one.wait_ready()
        yield one
    finally:
        assert one.stop() == 0, one.story()


@pytest.fixture(scope="session")
def key():
    return KEY
