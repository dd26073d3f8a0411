"""``fetch`` with the real clients against the loopback hub: what the end-to-end tests have no time for."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import textwrap

import huggingface_hub
import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from shard.hubs import Progress, Snapshot, fetch
from shard.hubs.client import Listing
from shard.hubs.modelscope import ModelScopeClient
from shard.hubs.snapshot import RemoteFile
from tests.support.hub import OWNER_TOKEN, STRANGER_TOKEN, LoopbackHub
from tests.support.tiny_models import make_gte, make_sentence_transformers

MS, HF = "iic/gte", "acme/english"


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {MS: make_gte(root / "gte"), HF: make_sentence_transformers(root / "english")}


@pytest.fixture
def hub(directories):
    with LoopbackHub() as hub:
        hub.add(MS, directories[MS], hubs={"modelscope"})
        hub.add(HF, directories[HF], hubs={"huggingface"})
        yield hub


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # What the clients are told through the environment must not outlive the test.
    for name in (
        "MODELSCOPE_ENDPOINT",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_DISABLE_TELEMETRY",
        "DISABLE_SAFETENSORS_CONVERSION",
    ):
        monkeypatch.setenv(name, "1" if name != "MODELSCOPE_ENDPOINT" else "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))


def get(hub, cache, name, *, token="", offline=False, progress=None, **fields) -> Snapshot:
    access = [HubAccess(str(cache / kind), hub.endpoint, token) for kind in ("hf", "ms")]
    spec = ModelSpec(id="m", name=name, **fields)
    return fetch(spec, Hubs(*access, offline=offline), (progress if progress is not None else []).append)


def refused(hub, cache, name, **more) -> LoadError:
    with pytest.raises(LoadError) as caught:
        get(hub, cache, name, **more)
    return caught.value


@pytest.mark.parametrize(("name", "source"), [(MS, "modelscope"), (HF, "huggingface")])
def test_a_model_is_fetched_once_reported_to_the_last_byte_and_then_costs_no_request(
    hub, tmp_path, directories, name, source
):
    progress: list[Progress] = []
    first = get(hub, tmp_path, name, progress=progress)
    assert first.source == source
    assert progress[0].done_bytes == 0
    assert progress[-1].done_bytes == progress[-1].total_bytes > 100_000
    weights = next(path.name for path in directories[name].iterdir() if path.suffix in (".bin", ".safetensors"))
    assert (first.directory / weights).read_bytes() == (directories[name] / weights).read_bytes()
    hub.clear_requests()
    assert get(hub, tmp_path, name) == first
    assert get(hub, tmp_path, name, offline=True) == first
    assert hub.requests == []


def test_the_old_owners_name_finds_what_the_new_one_has_cached(hub, tmp_path):
    first = get(hub, tmp_path, MS)
    hub.clear_requests()
    assert get(hub, tmp_path, "damo/gte").directory == first.directory
    assert hub.requests == []


def test_another_revision_does_not_take_the_place_of_the_first_in_an_older_cache_of_modelscope(
    hub, tmp_path, directories
):
    older = tmp_path / "ms/hub/models" / MS
    shutil.copytree(directories[MS], older)
    changed = {path.name: path.read_bytes() for path in directories[MS].iterdir() if path.is_file()}
    changed["pytorch_model.bin"] = changed["pytorch_model.bin"][::-1]
    hub.add(MS, changed, hubs={"modelscope"}, revision="v2")

    def fetched(**fields):
        return get(hub, tmp_path, MS, **fields).directory

    assert fetched() == older
    assert (fetched(revision="v2") / "pytorch_model.bin").read_bytes() == changed["pytorch_model.bin"]
    assert fetched() == older, "the same path at each start: converted weights are kept under it"
    assert (older / "pytorch_model.bin").read_bytes() == (directories[MS] / "pytorch_model.bin").read_bytes()


def test_modelscope_resumes_where_a_killed_download_stopped(hub, tmp_path, directories):
    size = (directories[MS] / "pytorch_model.bin").stat().st_size
    hub.throttle(size // 3)
    code = f"""
        from emb_model_provider.modelmap import *; from shard.hubs import fetch
        access = HubAccess({str(tmp_path / "ms")!r}, {hub.endpoint!r})
        fetch(ModelSpec(id="m", name={MS!r}, source="modelscope"), Hubs(access, access), lambda p: None)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2.5)
    process.kill()
    process.wait()
    hub.heal()
    hub.clear_requests()
    get(hub, tmp_path, MS)
    resumed = [request.range for request in hub.requests if "pytorch_model.bin" in request.path]
    assert any(one.startswith("bytes=") and not one.startswith("bytes=0-") for one in resumed), resumed
    assert hub.sent_bytes(MS, "pytorch_model.bin") < size


@pytest.mark.parametrize(("name", "path"), [(MS, "pytorch_model.bin"), (HF, "model.safetensors"), (HF, "config.json")])
def test_a_corrupt_file_is_refused_and_fetched_again_next_time(hub, tmp_path, monkeypatch, name, path):
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    hub.corrupt(name, path)
    error = refused(hub, tmp_path, name)
    assert error.reason == LoadReason.CORRUPT_DOWNLOAD
    hub.heal()
    assert get(hub, tmp_path, name).directory.is_dir()


@pytest.mark.parametrize("name", [MS, HF])
def test_a_hub_that_is_gone_is_no_network_and_a_cache_of_another_tool_helps_out(hub, tmp_path, name):
    complete = get(hub, tmp_path, name)
    for marker in tmp_path.rglob(".emb-provider-*.json"):
        marker.unlink()
    hub.down("refuse")
    assert get(hub, tmp_path, name).directory == complete.directory
    error = refused(hub, tmp_path / "empty", name)
    assert error.reason == LoadReason.NO_NETWORK
    assert "EMB_PROVIDER_MODELSCOPE_ENDPOINT" in str(error)


@pytest.mark.parametrize("name", [MS, HF])
def test_a_complete_cache_that_is_mounted_read_only_is_used_and_an_empty_one_is_named(hub, tmp_path, monkeypatch, name):
    complete = get(hub, tmp_path, name)
    for marker in tmp_path.rglob(".emb-provider-*.json"):
        marker.unlink()
    really_open = os.open

    def read_only(path, flags, *rest, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return really_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert get(hub, tmp_path, name).directory == complete.directory
    error = refused(hub, tmp_path / "empty", name)
    assert error.reason == LoadReason.NO_PERMISSION
    assert "cannot be written" in str(error)


def test_what_a_full_disk_left_of_a_download_is_not_taken_for_a_model(hub, tmp_path, monkeypatch):
    really_fetch = huggingface_hub.hf_hub_download

    def fetch_some(name, path, **options):
        if path.startswith("tokenizer"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_fetch(name, path, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_some)
    assert refused(hub, tmp_path, HF).reason == LoadReason.DISK_FULL


def test_what_a_lost_network_left_of_a_download_is_not_taken_for_a_model_and_completed_later(
    hub, tmp_path, monkeypatch
):
    really_fetch = huggingface_hub.hf_hub_download

    def fetch_some(name, path, **options):
        if path.startswith("tokenizer"):
            raise ConnectionError("the network is gone")
        return really_fetch(name, path, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_some)
    assert refused(hub, tmp_path, HF).reason == LoadReason.NO_NETWORK
    assert refused(hub, tmp_path, HF, offline=True).reason == LoadReason.INCOMPLETE_DOWNLOAD
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", really_fetch)
    assert (get(hub, tmp_path, HF).directory / "tokenizer.json").is_file()
    for marker in tmp_path.rglob(".emb-provider-*.json"):
        marker.unlink()
    assert get(hub, tmp_path, HF, offline=True)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ({}, LoadReason.NO_NETWORK, "lists no file of 'o/new'"),
        ({"config.json": b"{}", "q8.gguf": b"12345"}, LoadReason.UNSUPPORTED_MODEL, "its largest files are q8.gguf, "),
    ],
)
def test_a_repository_without_weights_is_none_that_is_complete_for_ever(
    hub, tmp_path, directories, source, files, reason, words
):
    hub.add("o/new", files)
    error = refused(hub, tmp_path, "o/new", source=source)
    assert (error.reason, words in str(error)) == (reason, True), str(error)
    hub.add("o/new", directories[HF])
    assert weights_of(get(hub, tmp_path, "o/new", source=source).directory).is_file()


def test_half_a_cache_of_another_tool_is_not_taken_for_a_model(hub, tmp_path):
    directory = get(hub, tmp_path, HF).directory
    for marker in tmp_path.rglob(".emb-provider-*.json"):
        marker.unlink()
    (directory / "model.safetensors").unlink()
    assert refused(hub, tmp_path, HF, offline=True).reason == LoadReason.INCOMPLETE_DOWNLOAD


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_private_model_needs_a_token_that_may_see_it(hub, tmp_path, directories, source):
    hub.add("acme/closed", directories[HF], access="private")
    without = refused(hub, tmp_path, "acme/closed", source=source)
    assert without.reason in (LoadReason.NO_PERMISSION, LoadReason.NO_SUCH_MODEL)
    assert "token" in str(without).lower()
    assert refused(hub, tmp_path, "acme/closed", source=source, token=STRANGER_TOKEN).reason in (
        LoadReason.NO_PERMISSION,
        LoadReason.NO_SUCH_MODEL,
    )
    assert get(hub, tmp_path, "acme/closed", source=source, token=OWNER_TOKEN).source == source


@pytest.mark.parametrize("name", [MS, HF])
def test_a_wrong_token_is_named_as_the_mistake_also_where_none_is_needed(hub, tmp_path, name):
    error = refused(hub, tmp_path, name, token="wrong", source="modelscope" if name == MS else "huggingface")
    assert (error.reason, "wrong or has expired" in str(error)) == (LoadReason.NO_PERMISSION, True)


def test_a_wrong_token_of_the_hub_s_own_variable_is_not_taken_for_a_model_that_is_missing(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    error = refused(hub, tmp_path, HF, source="huggingface")
    assert (error.reason, "wrong or has expired" in str(error)) == (LoadReason.NO_PERMISSION, True)


@pytest.mark.parametrize("name", [MS, HF])
def test_a_revision_that_does_not_exist_is_named_as_the_mistake(hub, tmp_path, name):
    source = "modelscope" if name == MS else "huggingface"
    error = refused(hub, tmp_path, name, source=source, revision="v9")
    assert error.reason == LoadReason.NO_SUCH_MODEL
    assert "no revision 'v9'" in str(error)


def test_a_file_that_modelscope_lists_and_does_not_have_is_no_model_that_does_not_exist(hub, tmp_path):
    client = ModelScopeClient(HubAccess(str(tmp_path), hub.endpoint))
    with pytest.raises(LoadError, match=r"answers 404 for gone\.txt, which it has listed") as caught:
        client.download(MS, Listing("master", (RemoteFile("gone.txt", 3, "0" * 64),)), [].append)
    assert caught.value.reason == LoadReason.NO_NETWORK


def test_fetching_imports_neither_torch_nor_transformers():
    code = "import sys, shard.hubs; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_modelscope_that_takes_connections_and_says_nothing_is_asked_twice_and_no_more(tmp_path):
    code = """
    import sys
    from emb_model_provider.modelmap import HubAccess
    from shard.hubs.modelscope import ModelScopeClient
    ModelScopeClient(HubAccess(cache_dir=sys.argv[1], endpoint=sys.argv[2])).list_files("a/b", None)
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), endpoint],
            env=os.environ | {"MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": "1"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "cannot be reached" in done.stderr
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert asked == 2


FETCH = """
import sys
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from shard.hubs import fetch
access = HubAccess(sys.argv[1], sys.argv[2])
fetch(ModelSpec(id="m", name="iic/gte", source="modelscope"), Hubs(access, access, offline=False), lambda _: None)
"""


def fetch_from_modelscope(hub, cache, **env) -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own: the client reads its settings when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", FETCH, str(cache), hub.endpoint],
        env=os.environ | env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def weights_of(directory):
    return next(path for path in directory.iterdir() if path.suffix in (".bin", ".safetensors"))


def test_a_modelscope_that_falls_silent_in_the_midst_of_a_file_is_asked_twice_and_no_more(hub, tmp_path, directories):
    weights = weights_of(directories[MS])
    hub.stall_after(MS, weights.name, 100_000)
    done = fetch_from_modelscope(hub, tmp_path, MODELSCOPE_DOWNLOAD_TIMEOUT="1")
    assert "cannot be reached" in done.stderr
    asked = [one for one in hub.requests if weights.name in one.path]
    assert len(asked) == 2
    assert asked[-1].range == "bytes=100000-"


def test_a_modelscope_that_cuts_every_connection_is_asked_as_long_as_each_brings_something(hub, tmp_path, directories):
    weights = weights_of(directories[MS])
    assert weights.stat().st_size > 6 * 50_000
    hub.cut_each_after(MS, weights.name, 50_000)
    done = fetch_from_modelscope(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    (fetched,) = tmp_path.rglob(weights.name)
    assert fetched.read_bytes() == weights.read_bytes()


def test_the_client_of_modelscope_waits_for_a_file_for_15_s_and_tries_once():
    code = """
    from emb_model_provider.modelmap import HubAccess
    from shard.hubs.modelscope import ModelScopeClient
    ModelScopeClient(HubAccess())
    from modelscope_hub import constants
    assert (constants.DOWNLOAD_TIMEOUT, constants.DOWNLOAD_RETRY_TIMES) == (15, 0)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0
