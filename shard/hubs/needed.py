"""What of a repository is wanted, a model or code that a model of another one names. Used by ``resolve``, ``download``.

Each tells a repository that holds it from one that does not, before anything is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from emb_model_provider.errors import LoadError, LoadReason
from shard.hubs.near_names import suggest
from shard.hubs.snapshot import (
    HubName,
    RemoteFile,
    is_structurally_complete,
    read_marked,
    select_code,
    select_files,
)

_WEIGHTS: Final = (".safetensors", ".bin")
_SHOWN_FILES: Final = 3


class Wanted(Protocol):
    """What of a repository is wanted."""

    @property
    def mark(self) -> str:
        """What stands in the names of its markers: of one repository both kinds may be here."""

    def advice(self, name: str, *, of_revision: bool) -> str:
        """Return what completes the sentence of a name, or a revision, that no hub has."""

    def read_marked(self, repository: Path, revision: str) -> tuple[Path, str] | None:
        """Return (directory, revision) of what was fetched and verified, and is still here; else ``None``."""

    def needed_files(self, name: str, source: HubName, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        """Return the files to fetch; raise ``LoadError`` where they are not enough: nothing must count as complete."""

    def is_complete(self, directory: Path) -> bool:
        """Tell whether a directory nobody vouches for has it, as far as can be seen."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model with all that loading needs."""

    mark: str = ""

    def advice(self, name: str, *, of_revision: bool) -> str:
        revision = " Correct 'revision' in its mapping entry or EMB_PROVIDER_MODEL_REVISION."
        return revision if of_revision else suggest(name)

    def read_marked(self, repository: Path, revision: str) -> tuple[Path, str] | None:
        return read_marked(repository, revision)

    def needed_files(self, name: str, source: HubName, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        _refuse_empty(name, source, files)
        needed = select_files(files)
        if not any(file.path.endswith(_WEIGHTS) for file in needed):
            largest = sorted(files, key=lambda file: file.size, reverse=True)[:_SHOWN_FILES]
            raise LoadError(
                LoadReason.UNSUPPORTED_MODEL,
                f"{name!r} on {source} has no weights that can be served (model.safetensors or pytorch_model.bin); its "
                f"largest files are {', '.join(file.path for file in largest)}. Name the repository of the original.",
            )
        return needed

    def is_complete(self, directory: Path) -> bool:
        return is_structurally_complete(directory)


@dataclass(frozen=True, slots=True)
class CodeAlone:
    """Every Python file, among which must be ``files``."""

    files: tuple[str, ...]
    mark: str = "code="  # quoted in a revision

    def advice(self, name: str, *, of_revision: bool) -> str:
        del name  # not that of a model, of which near ones are known
        return " Correct 'code_revision' in its mapping entry." if of_revision else ""

    def read_marked(self, repository: Path, revision: str) -> tuple[Path, str] | None:
        found = read_marked(repository, revision, self.mark)
        # Another model may have named other files, of an older state of the branch.
        return found if found is not None and self.is_complete(found[0]) else None

    def needed_files(self, name: str, source: HubName, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        _refuse_empty(name, source, files)
        needed = select_code(files)
        missing = sorted(set(self.files) - {file.path for file in needed})
        if missing:
            raise LoadError(LoadReason.NO_SUCH_MODEL, f"{name!r} on {source} has no {' and no '.join(missing)}.")
        return needed

    def is_complete(self, directory: Path) -> bool:
        return all((directory / file).is_file() for file in self.files)


def _refuse_empty(name: str, source: HubName, files: tuple[RemoteFile, ...]) -> None:
    if not files:
        raise LoadError(
            LoadReason.NO_NETWORK,
            f"{source} lists no file of {name!r}: it is empty as yet, or the hub or mirror is out of order.",
        )
