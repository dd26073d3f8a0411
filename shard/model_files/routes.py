"""What a model says of its routes, where queries and documents take different ways through it. Called by ``layouts``.

sentence-transformers' ``Router`` (up to its version 4 ``Asym``). Pure reading: which way a text takes is decided here
once for every task, by the rules of ``Router._resolve_route_name`` for texts.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from emb_model_provider.modelmap import Task
from shard.model_files.json_files import Document, as_object, read_object
from shard.model_files.prompt_families import find_prompt
from shard.model_files.recipe import ModuleEntry, Routes, stays_inside
from shard.model_files.trust import own_module_name

_SPARSE_STATIC: Final = "SparseStaticEmbedding"
_ROUTERS: Final = ("Router", "Asym")
_TRANSFORMERS: Final = ("Transformer", "MLMTransformer")
#: The newer name first: an older file of this name may be that of a transformer.
_CONFIGURATIONS: Final = ("router_config.json", "config.json")
#: Those that sentence-transformers' ``encode_query`` and ``encode_document`` name.
_TASKS: Final = ("query", "document")
_TEXT: Final = "text"
_SERVED: Final[Mapping[Task, str]] = {
    "sparse": f"one route with a transformer, and beside it such as are a {_SPARSE_STATIC}",
    "embed": "routes that begin with one and the same transformer",
    "multi_vector": "one route alone",
    "rerank": "one route alone",
    "classify": "one route alone",
}
_Mappings = Mapping[tuple[object, object], str]


def read_routes(directory: Path, modules: Sequence[ModuleEntry]) -> Routes | None:
    """Return the ways through ``modules``, ``None`` where there is one alone; raise ``LoadError`` for broken files."""
    places = [place for place, entry in enumerate(modules) if own_module_name(entry.type) in _ROUTERS]
    if not places:
        return None
    if len(places) > 1:
        raise unsupported("it has several routers, one behind the other")
    (place,) = places
    path = _configuration(directory / modules[place].path)
    said = read_object(path)
    before, after = modules[:place], modules[place + 1 :]
    routes = {name: (*before, *own, *after) for name, own in _read_structure(said, modules[place].path, path).items()}
    parameters = as_object(said.get("parameters"))
    mappings, default = _read_mappings(parameters), _read_default(parameters, list(routes))
    if not {default, *mappings.values()} <= {None, *routes}:
        raise _corrupt(path, "names a route that it does not have")
    tasks = dict.fromkeys([*routes, *(task for task, _ in mappings if isinstance(task, str)), *_TASKS])
    found = {task: route for task in tasks if (route := _resolve(task, routes, mappings)) is not None}
    usual = _resolve(None, routes, mappings) or default
    first = _find_first(routes, [usual, *found.values()])
    ways = list(dict.fromkeys([first, *(routes[route] for route in found.values())]))
    if usual is not None and routes[usual] not in ways:
        ways.append(routes[usual])
    return Routes(
        tuple(ways),
        tuple((task, ways.index(routes[route])) for task, route in found.items()),
        0 if usual is None else ways.index(routes[usual]),
    )


def check_routes(routes: Routes, task: Task) -> None:
    """Raise ``LoadError`` for ways that we do not have; it names the routes and says what can be done."""
    for number, way in enumerate(routes.ways[1:], start=1):
        is_served = {
            "sparse": is_sparse_static(way),
            "embed": number in routes.beside_first,
        }
        if not is_served.get(task, False):
            raise unsupported(
                f"its texts take several routes: {_describe(routes)}. A model for {task!r} can have {_SERVED[task]}. "
                "Save the route that you need as a model of its own (with sentence-transformers, from the router's "
                "sub_modules) and serve that"
            )


def prompts_of_routes(routes: Routes, prompts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return ``prompts`` and an empty one for each task that has none: by a prompt's name is a route asked for."""
    known = dict(prompts)
    return (*prompts, *((task, "") for task, _ in routes.by_task if find_prompt(known, task) is None))


def is_sparse_static(way: Sequence[ModuleEntry]) -> bool:
    """Tell whether texts have the weights of their tokens and nothing is computed."""
    return [own_module_name(entry.type) for entry in way] == [_SPARSE_STATIC]


def _describe(routes: Routes) -> str:
    tasks = [[task for task, way in routes.by_task if way == index] for index in range(len(routes.ways))]
    return "; ".join(
        f"{', '.join(own) or 'by default'}: {', '.join(entry.type.rpartition('.')[2] for entry in way)}"
        for own, way in zip(tasks, routes.ways, strict=True)
    )


def _configuration(folder: Path) -> Path:
    return next((folder / name for name in _CONFIGURATIONS if (folder / name).exists()), folder / _CONFIGURATIONS[0])


def _read_structure(said: Document, folder: str, path: Path) -> dict[str, tuple[ModuleEntry, ...]]:
    """Return the modules of each route, in the order of the file."""
    types = as_object(said.get("types"))
    routes: dict[str, tuple[ModuleEntry, ...]] = {}
    for name, identities in as_object(said.get("structure")).items():
        entries = []
        for identity in identities if isinstance(identities, list) else []:
            kind = types.get(identity) if isinstance(identity, str) else None
            if not isinstance(kind, str) or not stays_inside(identity):
                raise _corrupt(path, f"says no type of the module {identity!r}")
            entries.append(ModuleEntry(kind, _below(folder, identity)))
        if not entries:
            raise _corrupt(path, f"names no modules of the route {name!r}")
        routes[name] = tuple(entries)
    if not routes:
        raise _corrupt(path, "names no routes")
    return routes


def _below(folder: str, identity: str) -> str:
    path = str(PurePosixPath(folder, identity))
    return "" if path == "." else path


def _read_mappings(parameters: Document) -> dict[tuple[object, object], str]:
    """Return the route of (task, modality); what is no such pair, sentence-transformers ignores as well."""
    found: dict[tuple[object, object], str] = {}
    for key, route in as_object(parameters.get("route_mappings")).items():
        try:
            task, modality = ast.literal_eval(key)
            found[task, modality] = str(route)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return found


def _read_default(parameters: Document, names: Sequence[str]) -> str | None:
    default = parameters.get("default_route")
    if default is None:
        return names[0] if parameters.get("allow_empty_key", True) else None
    return str(default)


def _resolve(task: str | None, routes: Mapping[str, object], mappings: _Mappings) -> str | None:
    for key in ((task, _TEXT), (task, None), (None, _TEXT), (None, None)):
        if key in mappings:
            return mappings[key]
    return next((name for name in (task, _TEXT) if name in routes), None)


def _find_first(routes: Mapping[str, tuple[ModuleEntry, ...]], wanted: Sequence[str | None]) -> tuple[ModuleEntry, ...]:
    """Return the way that is computed as other models are: of those that are ``wanted`` the first with a transformer.

    Where none has one it is the first of all, which is refused for what it is.
    """
    ways = [routes[name] for name in wanted if name is not None]
    return next((way for way in ways if own_module_name(way[0].type) in _TRANSFORMERS), ways[0])


def _corrupt(path: Path, finding: str) -> LoadError:
    return LoadError(LoadReason.CORRUPT_DOWNLOAD, f"{path} {finding}")
