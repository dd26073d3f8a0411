"""Which hubs are asked for code of other repositories, and what is said where it cannot be had."""

import json

import pytest

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from shard.hubs import Snapshot
from shard.hubs.needed import CodeAlone, WholeModel
from shard.hubs.snapshot import Marker, RemoteFile, is_half_fetched, note_begun, write_marker
from shard.loading.foreign_code import code_sources, fetch_foreign_code

HF, MS = "huggingface", "modelscope"
BOTH = Hubs(HubAccess(trust_remote_code=True), HubAccess(trust_remote_code=True))
ONE = Hubs(HubAccess(trust_remote_code=True), HubAccess())


def spec(**fields) -> ModelSpec:
    return ModelSpec(id="m", **({"name": "o/m"} | fields))


@pytest.mark.parametrize(
    ("source", "origin", "trusted", "hubs", "repository", "asked"),
    [
        ("auto", HF, True, Hubs(), "o/code", (HF, MS)),
        ("auto", MS, True, Hubs(), "o/code", (MS, HF)),
        ("auto", "local", True, Hubs(), "o/code", (HF, MS)),
        ("auto", "local", True, Hubs(), "iic/code", (MS, HF)),
        ("auto", HF, True, Hubs(), "iic/code", (HF, MS)),
        (MS, MS, True, Hubs(), "o/code", (MS,)),
        (HF, "local", True, Hubs(), "iic/code", (HF,)),
        ("auto", HF, None, BOTH, "o/code", (HF, MS)),
        ("auto", HF, None, ONE, "o/code", (HF,)),
        (HF, HF, None, BOTH, "o/code", (HF,)),
    ],
)
def test_code_is_asked_of_hubs_that_the_source_allows_and_whose_code_is_trusted(
    source, origin, trusted, hubs, repository, asked
):
    assert code_sources(repository, spec(source=source, trust_remote_code=trusted), origin, hubs) == asked


def snapshot(directory, *repositories: str, source=HF) -> Snapshot:
    wanted = {f"Auto{n}": f"{name}--modeling.M" for n, name in enumerate(repositories)}
    (directory / "config.json").write_text(json.dumps({"auto_map": wanted}))
    return Snapshot(directory, source, "c0ffee")


def fetched(model, tmp_path, *, hubs=None, **fields):
    caches = Hubs(HubAccess(str(tmp_path / "hf")), HubAccess(str(tmp_path / "ms")), offline=True)
    return fetch_foreign_code(spec(**({"trust_remote_code": True} | fields)), model, hubs or caches, lambda _: None)


def put_code(repository, *names: str):
    repository.mkdir(parents=True)
    for name in names:
        (repository / name).write_text("")
    return repository


def test_a_model_that_names_no_other_repository_needs_nothing(tmp_path):
    assert fetched(snapshot(tmp_path), tmp_path) == {}


def test_a_model_that_names_itself_in_full_has_its_own_code_of_its_own_revision(tmp_path):
    model = snapshot(tmp_path, "o/m")
    (tmp_path / "modeling.py").write_text("")
    assert fetched(model, tmp_path) == {"o/m": tmp_path}
    with pytest.raises(LoadError, match="'o/m' is not in the cache"):
        fetched(model, tmp_path, code_revision="v2")
    (tmp_path / "modeling.py").unlink()
    with pytest.raises(LoadError, match="'o/m' is not in the cache"):
        fetched(model, tmp_path)


def test_an_existing_directory_of_the_name_is_taken_as_transformers_does(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    assert fetched(snapshot(tmp_path, str(code)), tmp_path) == {str(code): code}


@pytest.mark.parametrize(
    "place", ["hf/models--o--code/snapshots/c0ffee", "ms/models/o--code/snapshots/master", "ms/hub/models/o/code"]
)
def test_offline_code_that_another_tool_has_fetched_is_taken_with_all_named_files(tmp_path, place):
    model = snapshot(tmp_path, "o/code")
    code = put_code(tmp_path / place, "other.py")
    with pytest.raises(LoadError, match=r"'o/code' is in .* but not complete, and EMB_PROVIDER_OFFLINE is on"):
        fetched(model, tmp_path)
    (code / "modeling.py").write_text("")
    assert fetched(model, tmp_path) == {"o/code": code}


def test_offline_code_of_the_revision_that_is_set_is_taken_and_no_other(tmp_path):
    model = snapshot(tmp_path, "o/code")
    code = put_code(tmp_path / "hf/models--o--code/snapshots/c0ffee", "modeling.py")
    assert fetched(model, tmp_path, code_revision="c0ffee") == {"o/code": code}
    with pytest.raises(LoadError, match=r"its files name code of the repository 'o/code'.*not in the cache"):
        fetched(model, tmp_path, code_revision="decade")


def test_what_is_said_names_the_repository_and_how_the_other_hub_comes_to_be_asked(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise LoadError(LoadReason.NO_SUCH_MODEL, "there is none.")

    monkeypatch.setattr("shard.loading.foreign_code.fetch_code", refuse)
    model = snapshot(tmp_path, "o/code", source=MS)
    with pytest.raises(
        LoadError, match=r'\'o/code\', .*: there is none\. With "source": "auto" .* huggingface is'
    ) as one:
        fetched(model, tmp_path, source=MS, hubs=Hubs())
    assert one.value.reason == LoadReason.NO_SUCH_MODEL
    with pytest.raises(LoadError, match=r"there is none\.$"):
        fetched(model, tmp_path, hubs=Hubs())


def test_code_is_every_python_file_and_nothing_else(tmp_path):
    paths = ["a.py", "sub/b.py", "onnx_export.py", "model.safetensors", "README.md", ".hidden.py", "../c.py", "/d.py"]
    files = tuple(RemoteFile(path, 1) for path in paths)
    needed = CodeAlone(("a.py",)).needed_files("o/code", "huggingface", files)
    assert [file.path for file in needed] == ["a.py", "sub/b.py", "onnx_export.py"]


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ((), LoadReason.NO_NETWORK, "lists no file"),
        (("x.py",), LoadReason.NO_SUCH_MODEL, "has no a.py and no b.py"),
    ],
)
def test_a_repository_without_the_files_that_are_named_is_not_fetched(files, reason, words):
    with pytest.raises(LoadError, match=words) as caught:
        CodeAlone(("b.py", "a.py")).needed_files("o/code", "modelscope", tuple(RemoteFile(one, 1) for one in files))
    assert caught.value.reason == reason


def test_code_alone_is_no_model_and_half_a_model_no_half_code(tmp_path):
    put_code(tmp_path / "snapshots/c", "a.py")
    code, model = CodeAlone(("a.py",)), WholeModel()
    marker = Marker("snapshots/c", "c", (RemoteFile("a.py", 0),))
    write_marker(tmp_path, "main", marker, code.mark)
    assert code.read_marked(tmp_path, "main") == (tmp_path / "snapshots/c", "c")
    assert model.read_marked(tmp_path, "main") is None
    note_begun(tmp_path, Marker("snapshots/c", "c", (RemoteFile("model.safetensors", 9),)), model.mark)
    note_begun(tmp_path, marker, code.mark).unlink()
    assert is_half_fetched(tmp_path, model.mark)
    assert not is_half_fetched(tmp_path, code.mark)


def test_code_that_lacks_a_file_which_another_model_names_is_looked_for_again(tmp_path):
    put_code(tmp_path / "snapshots/c", "a.py")
    write_marker(tmp_path, "main", Marker("snapshots/c", "c", (RemoteFile("a.py", 0),)), CodeAlone(()).mark)
    assert CodeAlone(("a.py",)).read_marked(tmp_path, "main") is not None
    assert CodeAlone(("a.py", "new.py")).read_marked(tmp_path, "main") is None
