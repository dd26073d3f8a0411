"""A model whose classes are in another repository: fetched by the real clients, loaded by transformers, offline."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import dynamic_module_utils

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from shard.encoder import Reading
from shard.encoders.foreign_classes import take_classes_from
from shard.hubs import fetch
from shard.loading.foreign_code import fetch_foreign_code
from tests.support.foreign_code import CODE, turn
from tests.support.hub import LoopbackHub
from tests.support.opening import opener
from tests.support.tiny_models import make_plain

MODEL = "acme/turning"
TEXTS = ["hello world", "你好，世界。", "a much longer text, 和中文"]
HF, MS = "huggingface", "modelscope"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Path(make_plain(tmp_path_factory.mktemp("plain")))


@pytest.fixture
def shelf(tmp_path, plain):
    """The model's directory, and the files of the repository that it names."""
    directory = shutil.copytree(plain, tmp_path / "model")
    return directory, turn(directory)


@pytest.fixture
def hub(shelf):
    directory, code = shelf
    with LoopbackHub() as hub:
        hub.add(MODEL, directory)
        hub.add(CODE, code)
        yield hub


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))


def get(hub, cache, *, source=HF, offline=False, **fields):
    """Return model and code as a shard fetches them, with what is said of the progress."""
    hubs = Hubs(*(HubAccess(str(cache / kind), hub.endpoint) for kind in ("hf", "ms")), offline=offline)
    spec = ModelSpec(id="m", name=MODEL, source=source, trust_remote_code=True, **fields)
    model = fetch(spec, hubs, lambda _progress: None)
    progress: list[object] = []
    return model, fetch_foreign_code(spec, model, hubs, progress.append), progress


@pytest.mark.parametrize("source", [HF, MS])
def test_python_files_alone_are_fetched_once_and_then_cost_no_request(hub, tmp_path, shelf, source):
    model, code, progress = get(hub, tmp_path, source=source)
    directory = code[CODE]
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.name[0] != "."} == {
        name: content for name, content in shelf[1].items() if name.endswith(".py")
    }
    assert hub.sent_bytes(CODE, "model.safetensors") == hub.sent_bytes(CODE, "README.md") == 0
    assert progress[-1].done_bytes == progress[-1].total_bytes > 500
    hub.clear_requests()
    hub.add(CODE, {"modeling_turning.py": b"what main is by now"})
    assert get(hub, tmp_path, source=source)[:2] == (model, code)
    assert get(hub, tmp_path, source=source, offline=True)[:2] == (model, code)
    assert hub.requests == []


@pytest.mark.parametrize("source", [HF, MS])
def test_a_pinned_revision_of_the_code_is_taken_whatever_main_is(hub, tmp_path, shelf, source):
    hub.add(CODE, shelf[1] | {"signs.py": b"# the second"}, revision="v2")
    assert (get(hub, tmp_path, source=source, code_revision="v2")[1][CODE] / "signs.py").read_bytes() == b"# the second"
    assert (get(hub, tmp_path, source=source)[1][CODE] / "signs.py").read_bytes() == shelf[1]["signs.py"]
    with pytest.raises(LoadError, match=r"no revision 'v9'\. Correct 'code_revision' in its mapping entry\.") as caught:
        get(hub, tmp_path, source=source, code_revision="v9")
    assert caught.value.reason == LoadReason.NO_SUCH_MODEL


@pytest.mark.parametrize("source", [HF, MS])
def test_a_hub_that_alone_may_be_asked_and_lacks_the_code_is_named_and_the_other_one_is_left_alone(
    hub, tmp_path, shelf, source
):
    other = MS if source == HF else HF
    hub.add(CODE, shelf[1], hubs={other})
    with pytest.raises(LoadError, match=rf"repository '{CODE}'.*{source} has no model.*{other} is asked") as caught:
        get(hub, tmp_path, source=source)
    assert caught.value.reason == LoadReason.NO_SUCH_MODEL
    hub.clear_requests()
    hub.add(MODEL, shelf[0], hubs={source})
    assert get(hub, tmp_path, source="auto")[1][CODE].is_relative_to(tmp_path / ("hf" if other == HF else "ms"))


def test_a_repository_that_lacks_a_named_file_is_looked_for_on_the_other_hub(hub, tmp_path, shelf):
    hub.add(CODE, {"modeling_turning.py": b""})
    with pytest.raises(LoadError, match=r"has no configuration_turning\.py and no tokenization_turning\.py") as caught:
        get(hub, tmp_path, source="auto")
    assert all(source in str(caught.value) for source in (HF, MS))
    assert not list(tmp_path.rglob("snapshots/**/modeling_turning.py"))


def test_damaged_code_is_refused_and_fetched_anew(hub, tmp_path):
    hub.corrupt(CODE, "modeling_turning.py")
    with pytest.raises(LoadError, match=r"modeling_turning\.py: its hash is not the hub's") as caught:
        get(hub, tmp_path)
    assert caught.value.reason == LoadReason.CORRUPT_DOWNLOAD
    hub.heal()
    assert get(hub, tmp_path)[1][CODE].is_dir()


def test_without_a_network_code_that_another_tool_has_fetched_is_taken(hub, tmp_path):
    model, code, _ = get(hub, tmp_path)
    for marker in tmp_path.rglob(".emb-provider-code=*.json"):
        marker.unlink()
    hub.down("refuse")
    assert get(hub, tmp_path)[:2] == (model, code)
    shutil.rmtree(code[CODE])
    with pytest.raises(LoadError, match=rf"repository '{CODE}'.*cannot be reached") as caught:
        get(hub, tmp_path)
    assert caught.value.reason == LoadReason.NO_NETWORK
    with pytest.raises(LoadError, match=rf"'{CODE}' is not in the cache .* EMB_PROVIDER_OFFLINE is on"):
        get(hub, tmp_path, offline=True)


def test_code_of_a_repository_is_no_model_for_who_serves_that_next(hub, tmp_path, shelf):
    get(hub, tmp_path)
    hub.add(CODE, shelf[0])
    hubs = Hubs(HubAccess(str(tmp_path / "hf"), hub.endpoint))
    model = fetch(ModelSpec(id="m", name=CODE, source=HF), hubs, lambda _progress: None)
    assert (model.directory / "model.safetensors").is_file()


@pytest.fixture
def _own_modules(monkeypatch, tmp_path):
    """Let transformers keep its copies of code here, as in a process of its own."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.setattr("shard.encoders.foreign_classes.HF_MODULES_CACHE", modules)
    monkeypatch.setattr(sys, "path", [modules, *sys.path])
    # As it is again when this ends.
    monkeypatch.setattr(dynamic_module_utils, "get_cached_module_file", dynamic_module_utils.get_cached_module_file)
    _forget_code()
    yield
    _forget_code()


def _forget_code() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.mark.parametrize("source", [HF, MS])
@pytest.mark.usefixtures("_own_modules")
def test_its_vectors_are_those_of_its_classes_and_of_what_was_fetched(hub, tmp_path, plain, source):
    open_model = opener(tmp_path / "converted")
    model, code, _ = get(hub, tmp_path, source=source)
    take_classes_from(code)
    encoder = open_model(model.directory, trust=True)

    def vectors(one):
        return one.encode(one.tokenize(TEXTS, Reading())).rows

    expected = vectors(open_model(plain))
    np.testing.assert_allclose(vectors(encoder), expected * (1 - 2 * (np.arange(expected.shape[1]) % 2)), atol=1e-5)
