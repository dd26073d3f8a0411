"""What the loopback hub has on its shelves: repositories, their revisions and files, with real hashes.

``tests.support.hub`` fills the shelf, ``tests.support.hub_protocols`` reads it. No I/O after a snapshot is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

Hub = Literal["huggingface", "modelscope"]
Access = Literal["public", "private", "gated"]

BOTH_HUBS: Final[frozenset[Hub]] = frozenset({"huggingface", "modelscope"})
#: What huggingface.co's default ``.gitattributes`` keeps in LFS, as far as a model repository is concerned.
LFS_SUFFIXES: Final = (".bin", ".safetensors", ".pt", ".onnx", ".h5", ".model")
#: The two hubs' names of the default branch; here they mean the same snapshot.
DEFAULT_BRANCHES: Final = ("main", "master")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file: repository-relative POSIX path and content."""

    path: str
    content: bytes = field(repr=False)
    sha256: str
    git_sha1: str

    @classmethod
    def of(cls, path: str, content: bytes) -> HubFile:
        """Hash ``content`` the way git and LFS do."""
        blob = b"blob %d\0" % len(content) + content
        return cls(path, content, hashlib.sha256(content).hexdigest(), hashlib.sha1(blob).hexdigest())

    @property
    def is_lfs(self) -> bool:
        return self.path.endswith(LFS_SUFFIXES)

    @property
    def lfs_pointer(self) -> bytes:
        """The small text file that git itself keeps for an LFS file."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        ).encode()

    @property
    def blob_id(self) -> str:
        """Git's object id: of the content, or of the pointer of an LFS file."""
        return HubFile.of(self.path, self.lfs_pointer).git_sha1 if self.is_lfs else self.git_sha1

    @property
    def etag(self) -> str:
        """What huggingface.co sends as (linked) ETag."""
        return self.sha256 if self.is_lfs else self.git_sha1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All files of one revision. ``commit`` is 40 hex digits and follows from the content."""

    commit: str
    files: Mapping[str, HubFile]

    @classmethod
    def of(cls, source: Path | Mapping[str, bytes]) -> Snapshot:
        """Read a directory (or take a mapping of path to content) as it is now."""
        if isinstance(source, Path):
            source = {
                path.relative_to(source).as_posix(): path.read_bytes()
                for path in sorted(source.rglob("*"))
                if path.is_file()
            }
        files = {path: HubFile.of(path, content) for path, content in sorted(source.items())}
        listing = "".join(f"{file.path}\0{file.sha256}\n" for file in files.values())
        return cls(hashlib.sha1(listing.encode()).hexdigest(), files)


@dataclass(slots=True)
class Repository:
    """One repository: who may read it, on which hubs it is, and its snapshot at each revision."""

    name: str
    hubs: frozenset[Hub]
    access: Access
    revisions: dict[str, Snapshot] = field(default_factory=dict)

    def at(self, revision: str) -> Snapshot | None:
        """The snapshot of a branch, a tag or a commit."""
        if revision in DEFAULT_BRANCHES:
            revision = DEFAULT_BRANCHES[0]
        by_commit = {snapshot.commit: snapshot for snapshot in self.revisions.values()}
        return self.revisions.get(revision) or by_commit.get(revision)

    def put(self, revision: str, snapshot: Snapshot) -> None:
        """Let ``revision`` point to ``snapshot``."""
        self.revisions[DEFAULT_BRANCHES[0] if revision in DEFAULT_BRANCHES else revision] = snapshot


@dataclass(slots=True)
class Shelf:
    """Every repository of the hub by name."""

    repositories: dict[str, Repository] = field(default_factory=dict)

    def find(self, name: str, hub: Hub) -> Repository | None:
        """A repository as ``hub`` resolves names: ModelScope answers for old ``damo/`` names with ``iic/``."""
        repository = self.repositories.get(name)
        if repository is None and hub == "modelscope" and name.startswith("damo/"):
            repository = self.repositories.get("iic/" + name.removeprefix("damo/"))
        return repository if repository is not None and hub in repository.hubs else None
