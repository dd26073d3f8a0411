"""The loopback hub against the real client libraries: what later tests of downloading stand on."""

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import IncompleteRead
from pathlib import Path

import huggingface_hub
import modelscope_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from modelscope_hub.errors import AuthenticationError, FileDownloadError, NotExistError, PermissionDeniedError

from tests.support.hub import OWNER_TOKEN, STRANGER_TOKEN, LoopbackHub

WEIGHTS = bytes(range(256)) * 2048
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "README.md": "# 模型\n".encode(),
    "model.safetensors": WEIGHTS,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
}


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope-home"))


@pytest.fixture
def hub():
    before = set(threading.enumerate())
    with LoopbackHub() as running:
        yield running
    assert {thread for thread in threading.enumerate() if "loopback" in thread.name} <= before


def from_huggingface(hub, name, cache, *, token=False, revision=None):
    path = huggingface_hub.snapshot_download(
        name, endpoint=hub.endpoint, cache_dir=cache, token=token, revision=revision
    )
    return files_below(path)


def from_modelscope(hub, name, cache, *, token=None, revision=None):
    api = modelscope_hub.HubApi(token=token, endpoint=hub.endpoint)
    return files_below(api.download_repo(name, "model", cache_dir=cache, revision=revision))


def files_below(directory):
    root = Path(directory)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("download", [from_huggingface, from_modelscope])
def test_a_repository_arrives_byte_for_byte(hub, tmp_path, download):
    hub.add("acme/model", FILES)

    assert download(hub, "acme/model", tmp_path) == FILES


def test_a_directory_can_be_published(hub, tmp_path):
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for path, content in FILES.items():
        (source / path).write_bytes(content)
    hub.add("acme/model", source)

    assert from_modelscope(hub, "acme/model", tmp_path / "cache") == FILES


def test_a_repository_of_one_hub_is_unknown_to_the_other(hub, tmp_path):
    hub.add("acme/here", FILES, hubs={"huggingface"})
    hub.add("acme/there", FILES, hubs={"modelscope"})

    with pytest.raises(NotExistError):
        from_modelscope(hub, "acme/here", tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        from_huggingface(hub, "acme/there", tmp_path)


def test_modelscope_answers_for_an_old_damo_name(hub, tmp_path):
    hub.add("iic/model", FILES, hubs={"modelscope"})

    assert from_modelscope(hub, "damo/model", tmp_path) == FILES


def test_the_token_never_reaches_the_storage_of_large_files(hub, tmp_path):
    hub.add("acme/model", FILES)

    from_huggingface(hub, "acme/model", tmp_path, token=OWNER_TOKEN)

    tokens = {request.path.startswith("/lfs/"): request.token for request in hub.requests}
    assert tokens == {False: OWNER_TOKEN, True: None}


def test_hashes_are_those_that_git_and_lfs_give(hub):
    hub.add("acme/model", {"a.txt": b"hello\n", "b.bin": b"hello\n"})

    entries = huggingface_hub.HfApi(endpoint=hub.endpoint, token=False).list_repo_tree("acme/model")

    small, large = entries
    assert (small.blob_id, small.lfs) == ("ce013625030ba8dba906f756967f9e9ca394464a", None)
    assert large.lfs.sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert large.lfs.size == 6


@pytest.mark.parametrize("token", [False, OWNER_TOKEN, STRANGER_TOKEN])
def test_huggingface_does_not_know_a_repository_that_is_not_there(hub, tmp_path, token):
    with pytest.raises(RepositoryNotFoundError) as caught:
        from_huggingface(hub, "acme/nothing", tmp_path, token=token)

    assert caught.value.response.status_code == (404 if token else 401)


def test_modelscope_does_not_know_a_repository_that_is_not_there(hub, tmp_path):
    with pytest.raises(NotExistError, match="Record Not Found"):
        from_modelscope(hub, "acme/nothing", tmp_path)


def test_a_revision_or_file_that_is_not_there_is_named_as_such(hub, tmp_path):
    hub.add("acme/model", FILES)

    with pytest.raises(RevisionNotFoundError):
        from_huggingface(hub, "acme/model", tmp_path, revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        huggingface_hub.hf_hub_download("acme/model", "no.json", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    with pytest.raises(NotExistError):
        from_modelscope(hub, "acme/model", tmp_path, revision="v9")


def test_each_revision_has_its_own_files_and_commit(hub, tmp_path):
    first = hub.add("acme/model", FILES, revision="v1")
    second = hub.add("acme/model", FILES | {"config.json": b"{}"})

    assert first.commit != second.commit
    assert from_huggingface(hub, "acme/model", tmp_path, revision="v1") == FILES
    assert from_huggingface(hub, "acme/model", tmp_path, revision=first.commit) == FILES
    assert from_huggingface(hub, "acme/model", tmp_path)["config.json"] == b"{}"
    assert from_modelscope(hub, "acme/model", tmp_path, revision="v1") == FILES


@pytest.mark.parametrize("token", [False, STRANGER_TOKEN])
def test_a_private_repository_looks_missing_on_huggingface(hub, tmp_path, token):
    hub.add("acme/secret", FILES, access="private")

    with pytest.raises(RepositoryNotFoundError):
        from_huggingface(hub, "acme/secret", tmp_path, token=token)
    assert from_huggingface(hub, "acme/secret", tmp_path, token=OWNER_TOKEN) == FILES


def test_a_private_repository_needs_the_right_token_on_modelscope(hub, tmp_path):
    hub.add("acme/secret", FILES, access="private")

    with pytest.raises(AuthenticationError):
        from_modelscope(hub, "acme/secret", tmp_path)
    with pytest.raises(PermissionDeniedError):
        from_modelscope(hub, "acme/secret", tmp_path, token=STRANGER_TOKEN)
    assert from_modelscope(hub, "acme/secret", tmp_path, token=OWNER_TOKEN) == FILES


def test_a_gated_repository_shows_its_name_but_not_its_files(hub, tmp_path):
    hub.add("acme/gated", FILES, access="gated")
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token=False)

    assert api.model_info("acme/gated").gated == "auto"
    for token in (False, STRANGER_TOKEN):
        with pytest.raises(GatedRepoError):
            from_huggingface(hub, "acme/gated", tmp_path, token=token)
    assert from_huggingface(hub, "acme/gated", tmp_path, token=OWNER_TOKEN) == FILES


def test_a_token_that_nobody_has_is_refused_by_both(hub, tmp_path):
    hub.add("acme/model", FILES)

    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        from_huggingface(hub, "acme/model", tmp_path, token="hf_made_up")
    with pytest.raises(AuthenticationError):
        from_modelscope(hub, "acme/model", tmp_path, token="made-up")


def test_modelscope_resumes_a_cut_file_where_it_broke(hub, tmp_path):
    hub.add("acme/model", FILES)
    hub.cut_after("acme/model", "model.safetensors", 100_000)

    assert from_modelscope(hub, "acme/model", tmp_path) == FILES
    assert [request.range for request in hub.requests if request.range] == ["bytes=100000-"]
    assert hub.sent_bytes("acme/model", "model.safetensors") == len(WEIGHTS)


def test_huggingface_fetches_a_cut_file_again_below_its_chunk_of_ten_megabytes(hub, tmp_path):
    hub.add("acme/model", FILES)
    hub.cut_after("acme/model", "model.safetensors", 100_000)

    assert from_huggingface(hub, "acme/model", tmp_path) == FILES
    assert hub.sent_bytes("acme/model", "model.safetensors") == 100_000 + len(WEIGHTS)


def test_a_range_is_answered_with_exactly_that_range(hub):
    hub.add("acme/model", FILES)
    url = f"{hub.endpoint}/api/v1/models/acme/model/repo?Revision=master&FilePath=model.safetensors"

    with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=10-19"})) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes 10-19/{len(WEIGHTS)}"
        assert response.read() == WEIGHTS[10:20]
    assert status_of(urllib.request.Request(url, headers={"Range": f"bytes={len(WEIGHTS)}-"})) == 416


def test_a_file_that_is_always_cut_never_arrives(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 2)
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_MAX_DELAY_SECONDS", 0)
    hub.add("acme/model", FILES)
    hub.cut_after("acme/model", "model.safetensors", 100_000, times=None)

    with pytest.raises(FileDownloadError):
        from_modelscope(hub, "acme/model", tmp_path)
    assert hub.sent_bytes("acme/model", "model.safetensors") == 100_000
    hub.heal()
    assert from_modelscope(hub, "acme/model", tmp_path) == FILES


def test_modelscope_refuses_a_corrupt_body(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    hub.add("acme/model", FILES)
    hub.corrupt("acme/model", "model.safetensors")

    with pytest.raises(FileDownloadError) as caught:
        from_modelscope(hub, "acme/model", tmp_path)
    assert list(caught.value.failed_files) == ["model.safetensors"]


def test_huggingface_accepts_a_corrupt_body_of_the_right_length(hub, tmp_path):
    hub.add("acme/model", FILES)
    hub.corrupt("acme/model", "model.safetensors")

    arrived = from_huggingface(hub, "acme/model", tmp_path)["model.safetensors"]

    assert arrived != WEIGHTS
    assert len(arrived) == len(WEIGHTS)


def test_a_killed_modelscope_download_goes_on_where_it_was(hub, tmp_path):
    hub.add("acme/model", FILES, hubs={"modelscope"})
    hub.throttle(200_000)
    program = (
        "import modelscope_hub, sys; "
        "modelscope_hub.HubApi(endpoint=sys.argv[1]).download_repo('acme/model', 'model', cache_dir=sys.argv[2])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, hub.endpoint, str(tmp_path)], stderr=subprocess.DEVNULL
    ) as download:
        wait_until(lambda: hub.sent_bytes("acme/model", "model.safetensors") > 100_000)
        download.kill()
        assert download.wait() == -signal.SIGKILL
    hub.heal()
    hub.clear_requests()

    assert from_modelscope(hub, "acme/model", tmp_path) == FILES
    assert 0 < hub.sent_bytes("acme/model", "model.safetensors") < len(WEIGHTS)


def test_a_hub_that_is_down_refuses_and_comes_back_on_the_same_port(hub):
    hub.add("acme/model", FILES)
    endpoint = hub.endpoint

    hub.down()
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{endpoint}/api/models/acme/model")
    hub.up()

    assert hub.endpoint == endpoint
    assert status_of(f"{endpoint}/api/models/acme/model") == 200


def test_a_hub_out_of_order_answers_500_until_it_is_up(hub):
    hub.add("acme/model", FILES)
    url = f"{hub.endpoint}/api/models/acme/model"

    hub.down("500")
    assert status_of(url) == 500
    hub.up()
    assert status_of(url) == 200


def test_going_down_drops_a_download_under_way(hub, tmp_path):
    hub.add("acme/model", FILES)
    hub.throttle(50_000)
    with urllib.request.urlopen(f"{hub.endpoint}/acme/model/resolve/main/model.safetensors") as response:
        response.read(1000)
        started = time.monotonic()
        hub.down()
        with pytest.raises((IncompleteRead, ConnectionError)):
            response.read()
    assert time.monotonic() - started < 2


def test_requests_are_seen_and_can_be_forgotten(hub):
    hub.add("acme/model", FILES)
    assert hub.requests == []

    assert status_of(f"{hub.endpoint}/api/models/acme/model?x=1") == 200
    assert [(request.method, request.path) for request in hub.requests] == [("GET", "/api/models/acme/model?x=1")]
    hub.clear_requests()
    assert hub.requests == []


def status_of(url):
    try:
        with urllib.request.urlopen(url) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
