"""What is asked of HuggingFace's client so that mirrors and silent hubs do not hold up a start."""

import os
import socket

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess
from shard.hubs import huggingface
from shard.hubs.huggingface import HuggingFaceClient, prepare_environment


@pytest.mark.parametrize(
    ("access", "env", "off"),
    [
        (HubAccess(endpoint="https://mirror.example"), {}, True),
        (HubAccess(), {"HF_ENDPOINT": "https://mirror.example"}, True),
        (HubAccess(), {}, False),
    ],
)
def test_the_chunk_store_is_not_looked_for_behind_a_mirror_however_that_was_set(monkeypatch, access, env, off):
    monkeypatch.setattr(os, "environ", dict(env))
    prepare_environment(access)
    assert ("HF_HUB_DISABLE_XET" in os.environ) is off


def test_a_hub_that_takes_a_connection_and_says_nothing_is_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = HuggingFaceClient(HubAccess(cache_dir=str(tmp_path), endpoint=endpoint))
        with pytest.raises(LoadError, match="cannot be reached") as caught:
            client.list_files("a/b", None)
    assert caught.value.reason == LoadReason.NO_NETWORK
