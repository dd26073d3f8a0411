"""Every block of docs/migrate.md that says ``after`` is run as it stands there, and nothing in it may fail."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import running
from tests.support.server import Server

pytestmark = pytest.mark.clients

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```sh after\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    return [line for block in BLOCK.findall(page.read_text("utf-8")) for line in block.splitlines() if line]


def test_the_chinese_page_has_the_same_commands():
    assert commands(DOCS / "migrate.md") == commands(DOCS / "zh" / "migrate.md")


@pytest.fixture(scope="module")
def two_models(models, tmp_path_factory):
    """The page's own mapping, with a tiny reranker in the place of the large one."""
    mapping = f'''EMB_PROVIDER_MODEL_MAPPING={{
      "minilm": {{"name": "{models}/minilm"}},
      "reranker": {{"name": "{models}/reranker"}}
    }}
    '''
    with running(Server(tmp_path_factory.mktemp("moved"), dotenv=mapping)) as server:
        yield server


@pytest.mark.parametrize("command", commands(DOCS / "migrate.md"))
def test_after_the_move_each_command_of_the_page_works(two_models, command):
    here = command.replace("http://127.0.0.1:9000", two_models.url).replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", here], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert done.stdout.startswith(("{", "[")), done.stdout
