"""What a router's file says, and which way texts of a task then take: by the rules of the installed ``Router``."""

import contextlib
import itertools
import json

import pytest
from sentence_transformers.base.modules import Router
from torch import nn

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import ModelSpec
from shard.hubs.snapshot import RemoteFile, is_structurally_complete, select_files
from shard.model_files.layouts import read_recipe
from shard.model_files.recipe import ModuleEntry
from shard.model_files.routes import read_routes
from shard.model_files.trust import refuse_code

HOME = "sentence_transformers"
STATIC = f"{HOME}.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding"
LANGUAGE = f"{HOME}.sparse_encoder.models.MLMTransformer"
SPLADE = f"{HOME}.sparse_encoder.models.SpladePooling"
TRANSFORMER = f"{HOME}.models.Transformer.Transformer"
POOLING = f"{HOME}.models.Pooling.Pooling"
DENSE = f"{HOME}.models.Dense.Dense"
ROUTER = f"{HOME}.base.modules.router.Router"
QUERY = ModuleEntry(STATIC, "query_0")
DOCUMENT = (ModuleEntry(LANGUAGE, "document_0"), ModuleEntry(SPLADE, "document_1"))
SPARSE = {"query": [("query_0", STATIC)], "document": [("document_0", LANGUAGE), ("document_1", SPLADE)]}


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def write_model(
    directory, routes=None, *, modules=((ROUTER, ""),), file="router_config.json", kind="SparseEncoder", **parameters
):
    """``routes``: of each its modules, folder and type; ``parameters`` are the router's."""
    routes = SPARSE if routes is None else routes
    write(directory / "modules.json", [{"type": name, "path": path} for name, path in modules])
    folder = next(path for name, path in modules if "Router" in name or "Asym" in name)
    types = {path: name for way in routes.values() for path, name in way}
    structure = {name: [path for path, _ in way] for name, way in routes.items()}
    write(directory / folder / file, {"types": types, "structure": structure, "parameters": parameters})
    write(
        directory / "config_sentence_transformers.json", {"model_type": kind, "prompts": {"query": "", "document": ""}}
    )
    return directory


def read(directory, **settings):
    return read_recipe(directory, ModelSpec(id="m", name="some/model", **settings))


def test_an_inference_free_sparse_model_has_a_way_for_queries_beside_that_of_documents(tmp_path):
    recipe = read(write_model(tmp_path, default_route="document"))
    assert recipe.modules == DOCUMENT
    assert recipe.routes.ways == (DOCUMENT, (QUERY,))
    assert dict(recipe.routes.by_task) == {"query": 1, "document": 0}
    assert (recipe.routes.default, recipe.task, dict(recipe.prompts)) == (0, "sparse", {"query": "", "document": ""})


def test_the_documents_modules_may_lie_in_the_root(tmp_path):
    routes = {"query": [("query_0", STATIC)], "document": [("", LANGUAGE), ("document_1", SPLADE)]}
    assert read(write_model(tmp_path, routes)).modules == (ModuleEntry(LANGUAGE, ""), DOCUMENT[1])


def test_each_task_has_a_prompt_to_be_asked_for_by(tmp_path):
    directory = write_model(tmp_path)
    write(directory / "config_sentence_transformers.json", {"model_type": "SparseEncoder", "prompts": {"query": "q: "}})
    assert dict(read(directory).prompts) == {"query": "q: ", "document": ""}


MAPPINGS = [
    {},
    {"('query', 'text')": "b"},
    {"('query', None)": "c", "('query', 'text')": "b"},
    {"(None, 'text')": "c"},
    {"(None, None)": "b", "('query', None)": "a"},
    {"('search', None)": "c", "not a pair": "b", "(None, 'image')": "b"},
]


@pytest.mark.parametrize(("mappings", "default", "allow"), [*itertools.product(MAPPINGS, ["b", None], [True, False])])
@pytest.mark.parametrize("names", [("a", "b", "c"), ("query", "b", "c"), ("a", "b", "c", "text")])
def test_every_task_takes_the_way_that_the_library_finds_for_it(tmp_path, names, mappings, default, allow):
    if not {*mappings.values()} <= {*names}:
        mappings = {key: route for key, route in mappings.items() if route in names}
    routes = {name: [("one", TRANSFORMER), (f"dense_{name}", DENSE)] for name in names}
    write_model(tmp_path, routes, default_route=default, allow_empty_key=allow, route_mappings=mappings)
    found = read_routes(tmp_path, (ModuleEntry(ROUTER, ""),))
    pairs = {eval(key): route for key, route in mappings.items() if key.startswith("(")}
    library = Router({name: [nn.Identity()] for name in names}, default, allow, pairs)

    def route_of(way):
        return found.ways[way][1].path.removeprefix("dense_")

    for task in (*names, "query", "document", *(task for task, _ in pairs if task)):
        expected = None
        with contextlib.suppress(ValueError):
            expected = library._resolve_route(task, "text")
        way = dict(found.by_task).get(task)
        assert (None if way is None else route_of(way)) == expected
    try:
        assert route_of(found.default) == library._resolve_route(None, "text")
    except ValueError:  # nobody says which: it is the first
        assert found.default == 0


def test_a_router_behind_others_and_of_the_old_name_has_ways_with_them(tmp_path):
    old = (f"{HOME}.models.Asym", "2_Asym")
    routes = {"query": [("query_0_Dense", f"{HOME}.models.Dense")], "doc": [("doc_0_Dense", f"{HOME}.models.Dense")]}
    modules = ((f"{HOME}.models.Transformer", ""), (f"{HOME}.models.Pooling", "1_Pooling"), old)
    write_model(tmp_path, routes, modules=modules, file="config.json", kind="SentenceTransformer", allow_empty_key=True)
    recipe = read(tmp_path)
    assert [entry.path for entry in recipe.modules] == ["", "1_Pooling", "2_Asym/query_0_Dense"]
    assert recipe.routes.ways[1][-1].path == "2_Asym/doc_0_Dense"
    assert dict(recipe.routes.by_task) == {"query": 0, "doc": 1}
    assert recipe.routes.beside_first == (1,)


def test_ways_that_are_not_served_are_refused_by_name(tmp_path):
    routes = {"query": [("q", TRANSFORMER), ("p", POOLING)], "document": [("d", TRANSFORMER), ("e", POOLING)]}
    message = r"document: Transformer, Pooling; query: Transformer, Pooling.*Save the route"
    with pytest.raises(LoadError, match=message) as caught:
        read(write_model(tmp_path, routes, kind="SentenceTransformer", default_route="document"))
    assert caught.value.reason == LoadReason.UNSUPPORTED_MODEL
    with pytest.raises(LoadError, match="several routers"):
        read_routes(tmp_path, (ModuleEntry(ROUTER, ""), ModuleEntry(ROUTER, "1")))


@pytest.mark.parametrize(
    ("routes", "parameters"),
    [
        ({}, {}),
        ({"query": []}, {}),
        ({"query": [("../x", STATIC)]}, {}),
        ({"query": [("x", None)]}, {}),
        (SPARSE, {"default_route": "other"}),
        (SPARSE, {"route_mappings": {"('query', None)": "other"}}),
    ],
)
def test_a_broken_router_is_said_to_be_broken(tmp_path, routes, parameters):
    with pytest.raises(LoadError, match=r"router_config\.json") as caught:
        read(write_model(tmp_path, routes, **parameters))
    assert caught.value.reason == LoadReason.CORRUPT_DOWNLOAD


@pytest.mark.parametrize("file", ["router_config.json", "config.json"])
def test_classes_that_a_router_names_are_trusted_no_further_than_those_of_modules(tmp_path, file):
    refuse_code(write_model(tmp_path, file=file), "local", "some/model")
    routes = SPARSE | {"document": [("document_0", LANGUAGE), ("document_1", "modeling.Own")]}
    with pytest.raises(LoadError, match=r"names the module type 'modeling.Own'") as caught:
        refuse_code(write_model(tmp_path, routes, file=file), "local", "some/model")
    assert caught.value.reason == LoadReason.CODE_NOT_TRUSTED


def test_all_that_its_routes_need_is_fetched():
    names = [
        f"{folder}/{file}" for folder in ("query_0", "document_0") for file in ("model.safetensors", "tokenizer.json")
    ]
    names += ["router_config.json", "modules.json", "document_1/config.json"]
    assert {file.path for file in select_files(RemoteFile(name, 1) for name in names)} == {*names}


def test_a_copy_without_a_folder_of_its_routes_is_not_complete(tmp_path):
    directory = write_model(tmp_path)
    for folder in ("query_0", "document_0"):
        (directory / folder).mkdir()
        (directory / folder / "pytorch_model.bin").write_bytes(b"PK")
    assert not is_structurally_complete(directory)
    (directory / "document_1").mkdir()
    assert is_structurally_complete(directory)
    write(directory / "router_config.json", {"types": []})
    assert not is_structurally_complete(directory)
