"""Tells a repository that holds a model from one that holds none. Called by ``resolve`` before anything is fetched."""

from __future__ import annotations

from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from shard.hubs.snapshot import HubName, RemoteFile, select_files

_WEIGHTS: Final = (".safetensors", ".bin")
_SHOWN_FILES: Final = 3


def needed_files(name: str, source: HubName, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    """Return the files to fetch; raise ``LoadError`` where they are no model: nothing must count as complete."""
    if not files:
        raise LoadError(
            LoadReason.NO_NETWORK,
            f"{source} lists no file of {name!r}: it is empty as yet, or the hub or mirror is out of order.",
        )
    needed = select_files(files)
    if not any(file.path.endswith(_WEIGHTS) for file in needed):
        largest = sorted(files, key=lambda file: file.size, reverse=True)[:_SHOWN_FILES]
        raise LoadError(
            LoadReason.UNSUPPORTED_MODEL,
            f"{name!r} on {source} has no weights that can be served (model.safetensors or pytorch_model.bin); its "
            f"largest files are {', '.join(file.path for file in largest)}. Name the repository of the original.",
        )
    return needed
