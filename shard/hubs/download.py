"""Fetches what is wanted of one repository from one hub: one process at a time, verified, with a marker at its end.

Called by ``resolve``, which has decided that there is nothing here to go without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.modelmap import ModelSpec
from shard.hubs.client import HubClient, Listing, disk_error
from shard.hubs.needed import Wanted
from shard.hubs.snapshot import (
    Marker,
    Progress,
    Snapshot,
    damaged_file,
    note_begun,
    progress_of_another,
    remove_file,
    write_marker,
)

log = EventLog("shard.hubs")

OnProgress = Callable[[Progress], None]

_REPORT_EVERY_S: Final = 0.25
#: How often somebody who waits for another process's download looks at it.
_LOOK_EVERY_S: Final = 0.5


class NothingBegunError(LoadError):
    """A cache that cannot be written: nothing was fetched, and what it has may be enough. A full disk leaves halves."""


def download(spec: ModelSpec, wanted: Wanted, client: HubClient, on_progress: OnProgress) -> Snapshot:
    """Return the complete directory; raise ``LoadError``, which is a ``NothingBegunError`` where the cache is closed.

    ``spec`` has the repository's name and revision, and the model's id.
    """
    repository = client.repository(spec.name)
    asked = spec.revision or client.default_revision
    with _locked(repository, on_progress):
        # Another shard may have fetched the same while this one waited.
        if (found := wanted.read_marked(repository, asked)) is not None:
            return Snapshot(found[0], client.source, found[1])
        listing = client.list_files(spec.name, spec.revision)
        listing = Listing(listing.revision, wanted.needed_files(spec.name, client.source, listing.files))
        meter = _Meter(sum(file.size for file in listing.files), on_progress)
        log.info("download", model=spec.id, source=client.source, files=len(listing.files), bytes=meter.total_bytes)
        note = _note_begun(repository, listing, wanted.mark)
        directory = client.download(spec.name, listing, meter.add)
        meter.finish()
        _verify(spec, directory, listing)
        relative = os.path.relpath(directory, repository)
        write_marker(repository, asked, Marker(relative, listing.revision, listing.files), wanted.mark)
        note.unlink(missing_ok=True)
    return Snapshot(directory, client.source, listing.revision)


def _note_begun(repository: Path, listing: Listing, mark: str) -> Path:
    """Both clients download into a folder of the revision's name."""
    try:
        begun = Marker(f"snapshots/{listing.revision}", listing.revision, listing.files)
        return note_begun(repository, begun, mark)
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
def _locked(repository: Path, on_progress: OnProgress) -> Iterator[None]:
    """Let one process at a time download one model; the progress of another that does is ours meanwhile."""
    try:
        repository.mkdir(parents=True, exist_ok=True)
        lock = os.open(repository / ".emb-provider.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        problem = disk_error(error, repository)
        raise NothingBegunError(problem.reason, str(problem)) from error
    try:
        while not _is_taken(lock):
            if (progress := progress_of_another(repository)) is not None:
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

    def __init__(self, total_bytes: int, on_progress: OnProgress) -> None:
        self.total_bytes = total_bytes
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
        self._on_progress(Progress(min(self._done_bytes, self.total_bytes), self.total_bytes))
