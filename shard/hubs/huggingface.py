"""HuggingFace, or a mirror of it, through ``huggingface_hub``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from emb_model_provider.errors import LoadError
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
    refused_with,
    settle_proxies,
    unusable_certificates,
    unusable_proxy,
    wrong_token,
)
from shard.hubs.snapshot import HubName, RemoteFile

log = EventLog("shard.hubs.huggingface")

_PARALLEL_FILES: Final = 4
_ANSWER_S: Final = 30.0


def prepare_environment(access: HubAccess) -> None:
    """Set what the client reads once, when it is imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # transformers would otherwise ask the hub, in a thread, to convert a repository that has only .bin weights.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    if access.endpoint or os.environ.get("HF_ENDPOINT"):
        # Mirrors carry the files, not HuggingFace's chunk store, which the client would look for elsewhere.
        os.environ["HF_HUB_DISABLE_XET"] = "1"


def forbid_requests() -> None:
    """Let no library ask the hub for anything from now on: what loading needs has been fetched and verified."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # the variable is read once, and the download was before
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


class HuggingFaceClient:
    """Implements ``client.HubClient``."""

    source: HubName = "huggingface"
    default_revision = "main"

    def __init__(self, access: HubAccess) -> None:
        prepare_environment(access)
        from huggingface_hub import constants  # noqa: PLC0415 - reads the variables above when imported

        self._access = access
        self._endpoint = access.endpoint or constants.ENDPOINT
        self._cache = Path(access.cache_dir or constants.HF_HUB_CACHE).expanduser()
        settle_proxies(self._endpoint)

    def repository(self, name: str) -> Path:
        return self._cache / f"models--{name.replace('/', '--')}"

    def cached_directories(self, name: str, revision: str | None) -> list[Path]:
        repository = self.repository(name)
        snapshots = repository / "snapshots"
        asked = revision or self.default_revision
        try:
            found = [snapshots / (repository / "refs" / asked).read_text("utf-8").strip()]
        except OSError:
            found = [snapshots / asked]
            if revision is None and snapshots.is_dir():  # downloads by commit leave no branch: the newest is meant
                found += sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        return [directory for directory in found if directory.is_dir()]

    def list_files(self, name: str, revision: str | None) -> Listing:
        from huggingface_hub import HfApi, RepoFile, get_session  # noqa: PLC0415

        from shard.hubs.long_waits import refuse_long_waits  # noqa: PLC0415

        try:
            get_session()
        except (ImportError, ValueError) as error:  # made from the environment's proxies alone
            raise unusable_proxy(self.source, error) from error
        except OSError as error:
            raise unusable_certificates(self.source, error) from error
        refuse_long_waits(self._refused_with)
        api = HfApi(endpoint=self._endpoint, token=self._access.token or None)
        with self._reasons(name, revision), _Patience().limited():
            commit = api.model_info(name, revision=revision or self.default_revision).sha
            entries = list(api.list_repo_tree(name, revision=commit, recursive=True))
        files = [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
            for entry in entries
            if isinstance(entry, RepoFile)
        ]
        return Listing(str(commit), tuple(files))

    def download(self, name: str, listing: Listing, on_bytes: Callable[[int], None]) -> Path:
        from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415

        from shard.hubs.broken_lines import go_on_after_resets  # noqa: PLC0415
        from shard.hubs.long_waits import refuse_long_waits  # noqa: PLC0415

        def get(file: RemoteFile) -> Path:
            path = hf_hub_download(
                name,
                file.path,
                revision=listing.revision,
                cache_dir=self._cache,
                endpoint=self._endpoint,
                token=self._access.token or None,
                tqdm_class=_meter_class(on_bytes),
            )
            return Path(path)

        def fetch(file: RemoteFile) -> Path:
            go_on_after_resets()  # for each: the client is made anew where a connection was refused
            refuse_long_waits(self._refused_with)
            in_pieces = not constants.HF_HUB_DISABLE_XET
            with self._reasons(name, listing.revision), _unwrapped():
                try:
                    return get(file)
                except RuntimeError as error:
                    if not in_pieces:
                        raise
                    _leave_chunk_store(name, error)
                    return get(file)

        with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
            list(pool.map(fetch, listing.files))
        return self.repository(name) / "snapshots" / listing.revision

    @contextmanager
    def _reasons(self, name: str, revision: str | None) -> Iterator[None]:
        from huggingface_hub import errors  # noqa: PLC0415

        try:
            yield
        except errors.GatedRepoError:
            raise no_permission(self.source, name) from None
        except errors.RevisionNotFoundError:
            raise no_such_revision(self.source, name, revision) from None
        except errors.RepositoryNotFoundError:
            raise no_such_model(self.source, name) from None
        except errors.HfHubHTTPError as error:
            raise self._refused(name, error) from error
        except errors.HFValidationError:
            raise no_such_model(self.source, name) from None
        except (
            ConnectionError,
            TimeoutError,
            errors.HTTPError,  # type: ignore[attr-defined]  # of whichever HTTP library this version uses
        ) as error:
            raise no_network(self.source, self._endpoint, error) from error
        except OSError as error:
            raise self._not_stored(name, error) from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # The client stumbles over the answer, as over a page to sign in at.
            raise no_answer_of_a_hub(self.source, self._endpoint, "with something else than a model's files") from error

    def _not_stored(self, name: str, error: OSError) -> LoadError:
        """Return the error of a cache that cannot be written, or of an answer that is no file of a hub."""
        from huggingface_hub.errors import FileMetadataError  # noqa: PLC0415

        if isinstance(error, FileMetadataError):
            said = f"as no hub does ({str(error).split(', ', 1)[0]})"
            return no_answer_of_a_hub(self.source, self._endpoint, said)
        if error.errno is None:  # the client has counted the file's bytes
            return not_as_announced(self.source, name, error)
        return disk_error(error, self._cache)

    def _refused(self, name: str, error: Exception) -> LoadError:
        from huggingface_hub import get_token  # noqa: PLC0415

        response = getattr(error, "response", None)
        status = getattr(response, "status_code", 0)
        if status == HTTPStatus.UNAUTHORIZED:
            # Over plain http the client does not tell an unknown repository from a closed one; neither does the hub.
            refused = self._access.token or get_token()
            return wrong_token(self.source, name) if refused else no_such_model(self.source, name)
        if status == HTTPStatus.FORBIDDEN:
            return no_permission(self.source, name)
        if response is None:
            return no_network(self.source, self._endpoint, error)
        return self._refused_with(status, response.reason_phrase)

    def _refused_with(self, status: int, phrase: str) -> LoadError:
        return refused_with(self.source, self._endpoint, status, phrase)


def _leave_chunk_store(name: str, error: RuntimeError) -> None:
    """Have whole files fetched from now on, and say so once: other files, under way at the same time, find out as well.

    The chunk store has hosts of its own, which a firewall that lets HuggingFace's pass may not know.
    """
    from huggingface_hub import constants  # noqa: PLC0415

    if not constants.HF_HUB_DISABLE_XET:
        constants.HF_HUB_DISABLE_XET = True
        log.warning("chunk_store_left", model=name, source="huggingface", error=error)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what happened when the hub was asked about a file, instead of "not in the cache, and no connection"."""
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise error.__cause__ or error from None


class _Request(Protocol):
    """A request of the HTTP library that the client uses."""

    extensions: dict[str, dict[str, float | None]]


class _Patience:
    """Ends the waiting for a hub that takes a connection and says nothing: the client would wait for ever."""

    def __init__(self) -> None:
        self._until_s = 0.0

    def __call__(self, request: _Request) -> None:
        """Limit one request, before it is sent; a further try of the client's own counts as the same waiting."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it takes connections and says nothing")
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), left_s)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Wait for all answers together as long as for one."""
        from huggingface_hub import get_session  # noqa: PLC0415

        hooks = get_session().event_hooks["request"]
        self._until_s = time.monotonic() + _ANSWER_S
        hooks.append(self)
        try:
            yield
        finally:
            hooks.remove(self)


def _meter_class(on_bytes: Callable[[int], None]) -> type:
    """Return what the client takes for a tqdm class and feeds with the bytes of one file."""

    class Meter:
        """Counts and shows nothing; ``initial`` are bytes of an earlier try."""

        def __init__(self, *_args: object, initial: int = 0, **_kwargs: object) -> None:
            on_bytes(initial)

        def __enter__(self) -> Self:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            return

        def update(self, count: float | None = 1) -> None:
            on_bytes(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None:
            """Bytes on the wire of the chunk store; ``update`` counts the same file again as it is written."""

        def close(self) -> None: ...

        def refresh(self) -> None: ...

        def set_postfix_str(self, *_args: object, **_kwargs: object) -> None: ...

        def set_transfer_postfix_str(self, *_args: object, **_kwargs: object) -> None: ...

    return Meter
