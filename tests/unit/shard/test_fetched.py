"""Whose code may run is decided by the entry, and else by the setting of the hub that the model came from."""

from pathlib import Path

import pytest

from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from shard.hubs import Snapshot
from shard.loading import fetched, foreign_code

HUBS = Hubs(HubAccess(trust_remote_code=True), HubAccess())
CODE = {"o/code": Path("/code")}


@pytest.mark.parametrize(
    ("said", "source", "is_trusted"),
    [
        (None, "huggingface", True),
        (None, "modelscope", False),
        (None, "local", False),
        (None, "embedded", False),
        (False, "huggingface", False),
        (True, "modelscope", True),
        (True, "local", True),
    ],
)
def test_code_of_other_repositories_is_fetched_where_it_may_run_and_no_request_is_made_afterwards(
    monkeypatch, said, source, is_trusted
):
    done = []
    snapshot = Snapshot(Path("/m"), source, "c0ffee")
    monkeypatch.setattr(fetched, "fetch", lambda *_asked: done.append("model") or snapshot)
    monkeypatch.setattr(foreign_code, "fetch_foreign_code", lambda *_asked: done.append("code") or CODE)
    monkeypatch.setattr(fetched, "forbid_requests", lambda: done.append("no more"))
    spec = ModelSpec(id="m", name="o/m", trust_remote_code=said)
    found = fetched.fetch_model(spec, HUBS, lambda _progress: None)
    assert found == fetched.Fetched(Path("/m"), source, "c0ffee", is_trusted, CODE if is_trusted else {})
    assert done == (["model", "code", "no more"] if is_trusted else ["model", "no more"])
