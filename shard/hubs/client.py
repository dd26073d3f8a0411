"""What ``resolve`` needs of a hub, and the words it may answer with instead. Implemented once per hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from emb_model_provider.errors import LoadError, LoadReason
from shard.hubs.snapshot import HubName, RemoteFile

_OTHER_WAYS: Final = "take the model from the other hub, or copy it into the cache and set EMB_PROVIDER_OFFLINE=true."
_URL_PASSWORD: Final = re.compile(r"//[^/\s]*@")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one revision: ``revision`` is the commit where the hub has one, else the branch."""

    revision: str
    files: tuple[RemoteFile, ...]


class HubClient(Protocol):
    """One hub. Methods that use the network raise ``LoadError`` and nothing else."""

    source: HubName
    default_revision: str

    def repository(self, name: str) -> Path:
        """Return the directory of the cache that holds everything of one model."""

    def cached_directories(self, name: str, revision: str | None) -> list[Path]:
        """Return existing directories that may hold the model, whoever put it there, best first."""

    def list_files(self, name: str, revision: str | None) -> Listing:
        """Ask the hub what the model consists of."""

    def download(self, name: str, listing: Listing, on_bytes: Callable[[int], None]) -> Path:
        """Fetch the listed files and return their directory; ``on_bytes`` hears of each piece, from any thread."""


def no_network(source: HubName, endpoint: str, error: object) -> LoadError:
    """Return the error of a hub that cannot be reached."""
    return LoadError(
        LoadReason.NO_NETWORK,
        f"{source} ({_shown(endpoint)}) cannot be reached: {_first_line(error)}. Check the network and the proxy, set "
        f"EMB_PROVIDER_{source.upper()}_ENDPOINT to a mirror, {_OTHER_WAYS}",
    )


def no_answer_of_a_hub(source: HubName, endpoint: str, answer: str) -> LoadError:
    """Return the error of a server that is reached and answers with what no model can be had from."""
    return LoadError(
        LoadReason.NO_NETWORK,
        f"{source} ({_shown(endpoint)}) answers {answer}: it is out of order, no such hub or mirror, or a proxy "
        f"answers in its place. Check EMB_PROVIDER_{source.upper()}_ENDPOINT and the proxy, {_OTHER_WAYS}",
    )


def no_such_model(source: HubName, name: str) -> LoadError:
    """Return the error of a name the hub does not know; ``resolve`` adds names that are near."""
    return LoadError(LoadReason.NO_SUCH_MODEL, f"{source} has no model {name!r}, or it is private and needs a token.")


def no_such_revision(source: HubName, name: str, revision: str | None) -> LoadError:
    """Return the error of a model without the branch, tag or commit that was asked for."""
    return LoadError(
        LoadReason.NO_SUCH_MODEL,
        f"the model {name!r} on {source} has no revision {revision!r}: correct 'revision' in its mapping entry or "
        "EMB_PROVIDER_MODEL_REVISION.",
    )


def wrong_token(source: HubName, name: str) -> LoadError:
    """Return the error of a token that the hub does not know, with which it does not even give what all may have."""
    return LoadError(
        LoadReason.NO_PERMISSION,
        f"{source} does not let us have {name!r} with the token that is set, which is wrong or has expired: correct "
        f"EMB_PROVIDER_{source.upper()}_TOKEN, or what the hub's own tools have stored; a public model needs none.",
    )


def no_permission(source: HubName, name: str) -> LoadError:
    """Return the error of a model that needs a token, or another one."""
    return LoadError(
        LoadReason.NO_PERMISSION,
        f"{source} does not let us have {name!r}: ask for access on its page if it is gated, and set "
        f"EMB_PROVIDER_{source.upper()}_TOKEN to a token that has it.",
    )


def disk_error(error: OSError, directory: Path) -> LoadError:
    """Return the error of a cache that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LoadError(LoadReason.DISK_FULL, f"the disk of {directory} is full: free some space, or move the cache.")
    reason = f"{directory} cannot be written: {os.strerror(error.errno) if error.errno else error}"
    return LoadError(LoadReason.NO_PERMISSION, f"{reason}. Set the hub's cache directory to a writable one.")


def _shown(text: str) -> str:
    """Return a text without the password of an address in it, which the clients' own variables may hold."""
    return _URL_PASSWORD.sub("//***@", text)


def _first_line(error: object) -> str:
    lines = _shown(str(error)).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
