import errno
import fcntl
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from shard.hubs import download, fetch
from shard.hubs.modelscope import other_names
from shard.hubs.near_names import suggest
from shard.hubs.resolve import hub_order
from shard.hubs.snapshot import Marker, RemoteFile, note_begun


def spec(name: str, **fields) -> ModelSpec:
    return ModelSpec(id="m", name=name, **fields)


@pytest.mark.parametrize(
    ("name", "source", "order"),
    [
        ("BAAI/bge-m3", "auto", ("huggingface", "modelscope")),
        ("iic/nlp_gte_sentence-embedding_chinese-base", "auto", ("modelscope", "huggingface")),
        ("damo/nlp_corom_sentence-embedding_chinese-base", "auto", ("modelscope", "huggingface")),
        ("iicx/model", "auto", ("huggingface", "modelscope")),
        ("BAAI/bge-m3", "modelscope", ("modelscope",)),
        ("iic/model", "huggingface", ("huggingface",)),
    ],
)
def test_the_hubs_are_asked_in_the_order_the_name_and_the_source_say(name, source, order):
    assert hub_order(spec(name, source=source)) == order


def test_an_existing_directory_is_taken_as_it_is_whatever_the_source_says(tmp_path):
    snapshot = fetch(spec(str(tmp_path), source="modelscope"), Hubs(), lambda _progress: None)
    assert (snapshot.directory, snapshot.source) == (tmp_path, "local")


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/directory",
        "no-owner",
        "a/b/c",
        "../etc",
        "o/m?x=1",
        "~no-such-user/m",
        f"/{'m' * 300}",
        f"o/{'m' * 300}",
    ],
)
def test_what_is_neither_a_directory_nor_a_hub_name_is_refused_without_asking_a_hub(name):
    with pytest.raises(LoadError, match="neither an existing directory nor a hub name") as caught:
        fetch(spec(name), Hubs(), lambda _progress: None)
    assert caught.value.reason == LoadReason.NO_SUCH_MODEL


def test_the_embedded_model_is_a_directory_with_weights():
    snapshot = fetch(spec("any", embedded=True), Hubs(offline=True), lambda _progress: None)
    assert snapshot.source == "embedded"
    assert (snapshot.directory / "model.safetensors").is_file()


def test_offline_an_absent_model_is_named_with_the_caches_that_were_searched(tmp_path):
    hubs = Hubs(HubAccess(str(tmp_path / "hf")), HubAccess(str(tmp_path / "ms")), offline=True)
    with pytest.raises(LoadError, match="EMB_PROVIDER_OFFLINE is on") as caught:
        fetch(spec("o/m"), hubs, lambda _progress: None)
    assert str(tmp_path / "hf") in str(caught.value)
    assert str(tmp_path / "ms") in str(caught.value)


def put_model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"x")
    return directory


@pytest.mark.parametrize(
    "folder",
    [
        "models/AI-ModelScope/bge-large-zh-v1___5",
        "hub/models/AI-ModelScope/bge-large-zh-v1___5",
        "hub/AI-ModelScope/bge-large-zh-v1___5",
        "hub/AI-ModelScope/bge-large-zh-v1.5",
        "AI-ModelScope/bge-large-zh-v1___5",
        "AI-ModelScope/bge-large-zh-v1.5",
    ],
)
def test_offline_a_model_is_found_where_any_version_of_modelscope_put_it(tmp_path, folder):
    hubs = Hubs(HubAccess(str(tmp_path / "hf")), HubAccess(str(tmp_path / "ms")), offline=True)
    directory = put_model(tmp_path / "ms" / folder)
    assert fetch(spec("AI-ModelScope/bge-large-zh-v1.5"), hubs, lambda _progress: None).directory == directory


@pytest.mark.parametrize(("written", "found"), [("Revision:v1.0,CreatedAt:1690000000", False), ("v1.1", True)])
def test_a_directory_of_an_older_modelscope_that_names_another_revision_is_not_taken(tmp_path, written, found):
    hubs = Hubs(HubAccess(str(tmp_path / "hf")), HubAccess(str(tmp_path / "ms")), offline=True)
    (put_model(tmp_path / "ms/hub/iic/m") / ".mv").write_text(written)
    assert fetch(spec("iic/m"), hubs, lambda _progress: None).source == "modelscope"
    with nullcontext() if found else pytest.raises(LoadError, match="is not in the cache"):
        fetch(spec("iic/m", revision="v1.1"), hubs, lambda _progress: None)


def test_the_institutes_old_and_new_owner_are_one():
    assert other_names("damo/x") == ["damo/x", "iic/x"]
    assert other_names("iic/x") == ["iic/x", "damo/x"]
    assert other_names("BAAI/x") == ["BAAI/x"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("iic/nlp_gte_sentence-embedding_chinese-tiny", "iic/nlp_gte_sentence-embedding_chinese-"),
        ("damo/nlp_gte_sentence-embedding_chinese-bas", "iic/nlp_gte_sentence-embedding_chinese-base"),
        ("BAAI/bge-larg-zh-v1.5", "BAAI/bge-large-zh-v1.5"),
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("BGE/BGE-M3", "BAAI/bge-m3"),
    ],
)
def test_a_wrong_name_gets_names_that_exist(name, near):
    assert near in suggest(name)


@pytest.mark.parametrize(
    "address",
    [
        "https://huggingface.co/my-org/my.model",
        "https://huggingface.co/my-org/my.model/tree/main",
        "https://hf-mirror.com/my-org/my.model?library=transformers",
        "https://huggingface.co/my-org/my.model.git",
        "https://modelscope.cn/models/my-org/my.model/files",
        "https://www.modelscope.cn/my-org/my.model.git",
    ],
)
def test_of_the_address_of_a_page_the_name_in_it_is_told(address):
    assert suggest(address) == " Did you mean 'my-org/my.model'?"


def test_the_address_of_something_else_holds_no_name_of_a_model():
    for address in ("https://huggingface.co/datasets/a/b", "https://huggingface.co/BAAI", "https://a.example/"):
        assert suggest(address) == ""


def test_a_name_like_no_other_gets_no_advice():
    assert suggest("zzz/qqqqqqqqqq") == ""
    assert suggest("/models/bge-m3") == "", "a directory that is not there"


@pytest.mark.parametrize(("name", "offline"), [("/secret/model", False), ("owner/model", True)])
def test_what_this_user_may_not_look_into_is_said_and_no_mistake_of_ours(monkeypatch, tmp_path, name, offline):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    hubs = Hubs(HubAccess(cache_dir=str(tmp_path)), HubAccess(cache_dir=str(tmp_path)), offline=offline)
    with pytest.raises(LoadError, match=r"may not be read by this server's user \(\d+\)") as caught:
        fetch(spec(name), hubs, lambda _progress: None)
    assert caught.value.reason == LoadReason.NO_PERMISSION


def test_who_waits_for_another_process_to_download_the_model_reports_its_progress(tmp_path, monkeypatch):
    """Or it would be ended for making none, as long as the other takes."""
    monkeypatch.setattr(download, "_LOOK_EVERY_S", 0.001)
    reports, has_moved, is_inside = [], threading.Event(), threading.Event()

    def hear(progress):
        reports.append(progress)
        if progress.done_bytes >= 100_000:
            has_moved.set()

    def wait_and_enter():
        with download._locked(tmp_path, hear):
            is_inside.set()

    waiting = threading.Thread(target=wait_and_enter)
    with download._locked(tmp_path, reports.append):
        assert reports == [], "nobody else downloads"
        waiting.start()
        note_begun(tmp_path, Marker("snapshots/c", "c", (RemoteFile("m", 200_000),)))
        (tmp_path / "m.incomplete").write_bytes(b"x" * 100_000)
        assert has_moved.wait(10)
        assert not is_inside.is_set()
    assert is_inside.wait(10)
    waiting.join()
    assert {report.total_bytes for report in reports} == {200_000}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_cache_on_a_file_system_without_locks_is_used_all_the_same(tmp_path, monkeypatch, number):
    def refuse(_descriptor, _how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with download._locked(tmp_path / "models--o--m", lambda _progress: None):
        assert (tmp_path / "models--o--m").is_dir()
