"""ModelScope through its light client, ``modelscope_hub``, which needs neither modelscope nor torch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.modelmap import HubAccess
from shard.hubs.client import (
    Listing,
    disk_error,
    no_answer_of_a_hub,
    no_network,
    no_permission,
    no_such_model,
    no_such_revision,
    not_as_announced,
    proxy_of,
    refused_with,
    settle_proxies,
    unusable_proxy,
    wrong_token,
)
from shard.hubs.snapshot import HubName, RemoteFile

if TYPE_CHECKING:
    from modelscope_hub import HubApi

log = EventLog("shard.hubs.modelscope")

_SILENT_TRIES: Final = 2
_PAUSE_S: Final = 1.0
#: The institute's models were published under the first owner and moved to the second; the hub answers to both.
_RENAMED_OWNERS = (("damo/", "iic/"), ("iic/", "damo/"))


class _FileGoneError(LoadError):
    """A file that is listed and not there: to ask again at once is of no use."""


class ModelScopeClient:
    """Implements ``client.HubClient``."""

    source: HubName = "modelscope"
    default_revision = "master"

    def __init__(self, access: HubAccess) -> None:
        if access.endpoint:
            # Some paths of the client read the variable instead of what it is given.
            os.environ["MODELSCOPE_ENDPOINT"] = access.endpoint
        # Read when the client is imported. A silent hub would be asked four times for 15 s each, and again by us.
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")
        # In the midst of a file it would be asked six times for 60 s. How often is up to ``download``: the client would
        # count all tries of a file, also those that brought half of it.
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_TIMEOUT", "15")
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "0")
        self._access = access
        self._endpoint = access.endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn"
        settle_proxies(self._endpoint)
        default = os.environ.get("MODELSCOPE_CACHE") or str(Path.home() / ".cache" / "modelscope")
        self._cache = Path(access.cache_dir or default).expanduser()

    def repository(self, name: str) -> Path:
        return self._cache / "models" / name.replace("/", "--")

    def cached_directories(self, name: str, revision: str | None) -> list[Path]:
        asked = revision or self.default_revision
        found: list[Path] = []
        for one in other_names(name):
            found.append(self.repository(one) / "snapshots" / asked)
            found += [directory for directory in self._older_directories(one) if _may_hold(directory, revision)]
        return [directory for directory in found if directory.is_dir()]

    def _older_directories(self, name: str) -> Iterator[Path]:
        """Where clients up to 1.37 put a model: below "hub" unless MODELSCOPE_CACHE was set, at first not in "models".

        A dot in its name they came to write as three underscores.
        """
        owner, _, model = name.partition("/")
        for folder in ("models", "hub/models", "", "hub"):
            for written in dict.fromkeys((model.replace(".", "___"), model)):
                yield self._cache / folder / owner / written

    def list_files(self, name: str, revision: str | None) -> Listing:
        asked = revision or self.default_revision
        with self._reasons(name, revision):
            entries = self._api().list_repo_files(name, "model", revision=asked, recursive=True)
        files = [RemoteFile(entry.path, entry.size, entry.sha256) for entry in entries if entry.type != "tree"]
        return Listing(asked, tuple(files))

    def download(self, name: str, listing: Listing, on_bytes: Callable[[int], None]) -> Path:
        wanted = [{"Path": f["path"], "Size": f["size"], "Sha256": f["sha256"]} for f in map(asdict, listing.files)]
        arrival = _Arrival(on_bytes)
        while True:
            try:
                return self._fetch(name, listing.revision, wanted, arrival)
            except _FileGoneError:
                raise
            except LoadError as error:
                if error.reason != LoadReason.NO_NETWORK or arrival.is_over():
                    raise
                log.warning("download_broken", model=name, source=self.source, error=error)
            time.sleep(_PAUSE_S)

    def _fetch(self, name: str, revision: str, wanted: list[dict[str, object]], arrival: _Arrival) -> Path:
        """Fetch what is missing, trying each file once; what has come of it is kept."""
        # The client goes on with the directory of an older one where there is such, in which each revision would take
        # the place of the other.
        own = None if revision == self.default_revision else self.repository(name) / "snapshots" / revision
        with self._reasons(name, revision):
            directory = self._api().download_repo(
                name,
                "model",
                revision=revision,
                cache_dir=self._cache,
                local_dir=own,
                file_list=wanted,
                progress_callbacks=[arrival.meter_class()],
            )
        return Path(directory)

    def _api(self) -> HubApi:
        from modelscope_hub import HubApi  # noqa: PLC0415 - 0.2 s that a cached model need not wait for

        # The client gives its logger a handler of its own; ours writes the same lines already.
        logging.getLogger("modelscope_hub").handlers.clear()
        return HubApi(endpoint=self._access.endpoint or None, token=self._access.token or None)

    @contextmanager
    def _reasons(self, name: str, revision: str | None) -> Iterator[None]:
        from modelscope_hub import errors  # noqa: PLC0415

        try:
            yield
        except errors.FileDownloadError as error:
            # One error for many files; the first says what happened to all of them.
            file, first = next(iter(error.failed_files.items()), ("", error))
            if isinstance(first, errors.NotExistError):  # of a model that is there: it has listed its files
                said = no_answer_of_a_hub(self.source, self._endpoint, f"404 for {file}, which it has listed")
                raise _FileGoneError(said.reason, str(said)) from error
            raise self._reason(first, name, revision) from error
        except (errors.HubError, OSError, ValueError) as error:  # the last of a proxy with a scheme that is none
            raise self._reason(error, name, revision) from error

    def _reason(self, error: BaseException, name: str, revision: str | None) -> LoadError:
        from modelscope_hub import errors  # noqa: PLC0415

        if isinstance(error, errors.NotExistError):
            if revision is not None and revision != self.default_revision and self._exists(name):
                return no_such_revision(self.source, name, revision)
            return no_such_model(self.source, name)
        if isinstance(error, (errors.AuthenticationError, errors.PermissionDeniedError)):
            refused = isinstance(error, errors.AuthenticationError) and self._access.token
            return wrong_token(self.source, name) if refused else no_permission(self.source, name)
        if isinstance(error, errors.FileIntegrityError):
            return not_as_announced(self.source, name, error)
        if isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.errno is not None:
            return disk_error(error, self._cache)
        return self._unusable(error)

    def _unusable(self, error: BaseException) -> LoadError:
        from requests.exceptions import InvalidSchema, InvalidURL  # noqa: PLC0415

        if status := getattr(error, "status_code", None):
            return refused_with(self.source, self._endpoint, int(status))
        is_of_proxy = isinstance(error, (InvalidSchema, InvalidURL)) or (
            type(error) is ValueError and "SOCKS" in str(error)
        )
        if is_of_proxy and proxy_of(self._endpoint):
            return unusable_proxy(self.source, error)
        if isinstance(error, ValueError):
            return no_answer_of_a_hub(self.source, self._endpoint, "with something else than a model's files")
        return no_network(self.source, self._endpoint, error)

    def _exists(self, name: str) -> bool:
        try:
            self.list_files(name, None)
        except LoadError:
            return False
        return True


def other_names(name: str) -> list[str]:
    """Return ``name`` and, for the institute's models, the name under the other owner."""
    return [name, *(new + name.removeprefix(old) for old, new in _RENAMED_OWNERS if name.startswith(old))]


def _may_hold(directory: Path, revision: str | None) -> bool:
    """Tell whether an older client's directory, which has one revision alone, can be of the one that is asked for."""
    try:
        said = (directory / ".mv").read_text("utf-8")
    except (OSError, ValueError):
        return True
    return revision is None or revision == said.strip().removeprefix("Revision:").partition(",CreatedAt:")[0]


class _Arrival:
    """How far each file of a download has come, over all tries; told to ``on_bytes``."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes
        self._most: dict[str, int] = {}
        self._grew_s = time.monotonic()

    def is_over(self) -> bool:
        """Tell whether nothing has come for as long as two silent tries last."""
        from modelscope_hub import constants  # noqa: PLC0415

        return time.monotonic() - self._grew_s >= _SILENT_TRIES * constants.DOWNLOAD_TIMEOUT

    def _is_at(self, filename: str, done_bytes: int) -> None:
        more = done_bytes - self._most.get(filename, 0)
        if more > 0:  # and not what an earlier try has brought
            self._most[filename] = done_bytes
            self._grew_s = time.monotonic()
            self._on_bytes(more)

    def meter_class(self) -> type:
        """Return the client's progress callback for one file."""
        is_at = self._is_at

        class Meter:
            def __init__(self, filename: str, file_size: int) -> None:
                del file_size
                self._filename = filename
                self._done_bytes = 0

            def update(self, size: int) -> None:
                self._done_bytes += size
                is_at(self._filename, self._done_bytes)

            def end(self) -> None: ...

        return Meter
