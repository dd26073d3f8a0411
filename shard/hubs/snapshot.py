"""What a complete local model is: the files it needs, their proofs, and the marker that says "all of it is here".

Both hubs' clients call a directory cached that holds one file of ten; this module does not believe them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Final, Literal
from urllib.parse import quote

HubName = Literal["huggingface", "modelscope"]
Origin = Literal["huggingface", "modelscope", "local", "embedded"]

_READ_BYTES: Final = 4 * 1024 * 1024
#: A marker of a download that has not ended.
_BEGUN: Final = ".emb-provider.{}begun"
_MARKER_VERSION: Final = 1
#: Whatever the disk's own are (stat(2)).
_BLOCK_BYTES: Final = 512
#: FlagEmbedding's names of BGE-M3's layers for sparse and for token vectors.
SPARSE_LINEAR: Final = "sparse_linear.pt"
COLBERT_LINEAR: Final = "colbert_linear.pt"
#: What Stanford's ColBERT says of its lengths and markers.
COLBERT_METADATA: Final = "artifact.metadata"
#: What models keep beside their weights that counts as these do.
COMPANIONS: Final = (SPARSE_LINEAR, COLBERT_LINEAR, COLBERT_METADATA)
_KEPT_SUFFIXES: Final = (".json", ".txt", ".model", ".safetensors", ".bin", ".py", ".jinja", ".vocab", ".spm")
_OTHER_FORMATS: Final = (
    "onnx",
    "openvino",
    "tf_",
    "flax_",
    "rust_",
    "coreml",
    "training_args",
    "optimizer",
    "scheduler",
)
#: By these names alone transformers finds safetensors; others beside a ``.bin`` do not take its place.
_SAFETENSORS_NAMES: Final = ("model.safetensors", "model.safetensors.index.json")
_SAFETENSORS_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A directory to load from. ``revision`` is the commit or branch that was really used."""

    directory: Path
    source: Origin
    revision: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of one download so far and in all."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as its hub describes it. ``sha256`` is of the content, ``git_sha1`` of git's blob object."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


def select_files(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the files that loading needs: configuration, tokenizer, one format of weights, code (to judge it)."""
    wanted = [file for file in files if _is_wanted(PurePosixPath(file.path))]
    paths = [PurePosixPath(file.path) for file in wanted]
    with_safetensors = {path.parent for path in paths if path.name in _SAFETENSORS_NAMES}
    return tuple(
        file
        for file in wanted
        if not (file.path.endswith(".bin") and PurePosixPath(file.path).parent in with_safetensors)
    )


def select_code(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the Python files and no others."""
    paths = ((file, PurePosixPath(file.path)) for file in files)
    return tuple(file for file, path in paths if path.suffix == ".py" and _stays_below(path))


def _is_wanted(path: PurePosixPath) -> bool:
    if not _stays_below(path) or any(part.lower().startswith(_OTHER_FORMATS) for part in path.parts):
        return False
    return path.suffix in _KEPT_SUFFIXES or path.name in COMPANIONS


def _stays_below(path: PurePosixPath) -> bool:
    """Tell whether a file is neither hidden nor, as one client would write it, outside of the directory."""
    return not path.is_absolute() and not any(part.startswith(".") for part in path.parts)


# ------------------------------------------------------------------------------------------------- verification


def damaged_file(directory: Path, file: RemoteFile, *, hashes: bool) -> str:
    """Return what is wrong with a local file in a few words, or an empty string."""
    path = directory / file.path
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    if path.suffix == ".safetensors" and not is_whole_safetensors(path):
        return "its header does not match its length"
    if hashes and file.sha256 is not None and _sha256(path) != file.sha256:
        return "its SHA-256 is not the hub's"
    if hashes and file.sha256 is None and file.git_sha1 is not None and _git_sha1(path, size) != file.git_sha1:
        return "its hash is not the hub's"
    return ""


def is_whole_safetensors(path: Path) -> bool:
    """Tell whether the header's last tensor ends where the file does.

    Format: https://huggingface.co/docs/safetensors: u64 little-endian header length, JSON, data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_SAFETENSORS_LENGTH.size)
        if len(prefix) < _SAFETENSORS_LENGTH.size:
            return False
        (length,) = _SAFETENSORS_LENGTH.unpack(prefix)
        if length > size - len(prefix):
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return bool(len(prefix) + length + max(ends, default=0) == size)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return False


def is_structurally_complete(directory: Path) -> bool:
    """Tell whether a directory nobody vouches for holds all that loading needs, as far as its own files say."""
    if not (directory / "config.json").is_file() and not (directory / "modules.json").is_file():
        return False
    if any(directory.rglob("*.incomplete")):
        return False
    folders = _module_folders(directory)
    if not all((directory / folder).is_dir() for folder in folders):
        return False
    return any(_has_whole_weights(directory / folder) for folder in {"", *folders})


def _module_folders(directory: Path) -> set[str]:
    """Folders that modules.json and its router name; Normalize has none in newer versions, so only saved ones count."""
    try:
        modules = json.loads((directory / "modules.json").read_text("utf-8"))
        named = {str(module["path"]): str(module["type"]) for module in modules}
        for folder in list(named):
            named |= _routed_folders(directory, folder)
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"modules.json is not readable"}
    return {folder for folder, kind in named.items() if folder and "Normalize" not in kind}


def _routed_folders(directory: Path, folder: str) -> dict[str, str]:
    """Return the folders, with their classes, of what a router in ``folder`` sends texts through."""
    router = directory / folder / "router_config.json"
    types = json.loads(router.read_text("utf-8"))["types"] if router.is_file() else {}
    return {str(PurePosixPath(folder, name)): str(kind) for name, kind in types.items()}


def _has_whole_weights(directory: Path) -> bool:
    # Each may be a link whose blob is gone.
    if safetensors := sorted(directory.glob("*.safetensors")):
        are_whole = all(path.is_file() and is_whole_safetensors(path) for path in safetensors)
        return are_whole and not _missing_parts(directory, ".safetensors")
    is_there = any(path.is_file() and path.stat().st_size > 0 for path in directory.glob("*.bin"))
    return is_there and not _missing_parts(directory, ".bin")


def _missing_parts(directory: Path, suffix: str) -> bool:
    """Tell whether weights of one format lack a part; the list of another may be there, whose files nobody fetched."""
    for index in directory.glob(f"*{suffix}.index.json"):
        try:
            parts = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return True
        if not all((directory / str(part)).is_file() for part in parts):
            return True
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path, size: int) -> str:
    """Hash as git names a blob: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------- the marker


@dataclass(frozen=True, slots=True)
class Marker:
    """Written beside a snapshot once every file of it has been verified."""

    directory: str
    revision: str
    files: tuple[RemoteFile, ...]


def marker_path(repository: Path, revision: str, mark: str = "") -> Path:
    """Return where the marker of one asked-for revision stands: beside the snapshots, never inside one.

    ``mark`` is that of ``needed.Wanted``, and no part of any revision as it is written here.
    """
    return repository / f".emb-provider-{mark}{quote(revision, safe='')}.json"


def write_marker(repository: Path, asked_revision: str, marker: Marker, mark: str = "") -> None:
    """Write atomically: a marker is whole or absent."""
    _write(marker_path(repository, asked_revision, mark), marker)


def note_begun(repository: Path, marker: Marker, mark: str = "") -> Path:
    """Note what a download is to bring, and return the note, to be removed when it has."""
    path = repository / _BEGUN.format(mark)
    _write(path, marker)
    return path


def is_half_fetched(repository: Path, mark: str = "") -> bool:
    """Tell whether a download of ours was begun here and still lacks files, which may look complete."""
    note = repository / _BEGUN.format(mark)
    return note.exists() and _read_whole(repository, note) is None


def progress_of_another(repository: Path) -> Progress | None:
    """Return how far the download is that another process has begun here; ``None`` where none says what it brings.

    What was there before it does not count, and of a file only what is written: room may be taken for all of it first.
    """
    try:
        note = max(repository.glob(_BEGUN.format("*")), key=lambda path: path.stat().st_mtime)
        total_bytes = sum(file["size"] for file in json.loads(note.read_text("utf-8"))["files"])
        began_s = note.stat().st_mtime
        found = [entry.lstat() for entry in repository.rglob("*")]
    except (OSError, ValueError, KeyError, TypeError):  # it has ended, or a file was renamed, at this moment
        return None
    done_bytes = sum(_BLOCK_BYTES * one.st_blocks for one in found if S_ISREG(one.st_mode) and one.st_mtime >= began_s)
    return Progress(min(done_bytes, total_bytes), total_bytes)


def _write(path: Path, marker: Marker) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps({"version": _MARKER_VERSION} | asdict(marker), indent=1), "utf-8")
    unfinished.replace(path)


def read_marked(repository: Path, asked_revision: str, mark: str = "") -> tuple[Path, str] | None:
    """Return (directory, revision) of a marked snapshot whose files all have their sizes still; else ``None``."""
    return _read_whole(repository, marker_path(repository, asked_revision, mark))


def _read_whole(repository: Path, marker: Path) -> tuple[Path, str] | None:
    try:
        data = json.loads(marker.read_text("utf-8"))
        files = [RemoteFile(**file) for file in data["files"]]
        directory, revision = Path(os.path.normpath(repository / data["directory"])), str(data["revision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(damaged_file(directory, file, hashes=False) for file in files):
        return None
    return directory, revision


def remove_file(path: Path) -> None:
    """Remove a bad file, and what it links to in HuggingFace's cache, so that the next start fetches it again."""
    with contextlib.suppress(OSError):
        target = path.resolve()
        path.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
