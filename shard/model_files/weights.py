"""Checkpoint files: which there are, are they whole, do they fill the model.

Called by ``loader``. Nothing here unpickles anything but tensors.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from shard.model_files.foreign_weights import refuse_foreign

#: The order in which transformers itself looks for weights.
_CANDIDATES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: What torch has written with since 2020, and before.
_PICKLED: Final = (b"PK", b"\x80")
_POINTER: Final = b"version https://git-lfs"
#: How NVIDIA's ModelOpt, compressed-tensors, transformers' fp8 and bitsandbytes name them.
_SCALES: Final = re.compile(r"\.(weight_scale(_inv|_2)?|SCB)$")
TAKE_PLAIN: Final = 'Take the model that they were made from; "precision" makes it int8 or int4'
_SHOWN_KEYS: Final = 4


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one model: every file, in a format that all of them share."""

    folder: Path
    files: tuple[Path, ...]

    @property
    def pickled(self) -> bool:
        """Whether these are ``.bin`` files, which cannot be mapped into memory."""
        return self.files[0].suffix == ".bin"


def weight_files(folders: Iterable[Path]) -> list[Path]:
    """Return the weights in these folders, each file once; a folder may have none."""
    present = [folder for folder in folders if any((folder / name).exists() for name in _CANDIDATES)]
    return list(dict.fromkeys(file for folder in present for file in find_checkpoint(folder).files))


def find_checkpoint(folder: Path) -> Checkpoint:
    """Find the weights in ``folder`` and check that each file is whole, from its header.

    Raises ``LoadError``: INCOMPLETE_DOWNLOAD for a missing or short file, WRONG_WEIGHTS for one that is no weights,
    UNSUPPORTED_MODEL where all are in other programs' formats.
    """
    for name in _CANDIDATES:
        path = folder / name
        if path.exists():
            files = _files_of_index(path) if name.endswith(".index.json") else (path,)
            for file in files:
                check_whole(file)
            return Checkpoint(folder, files)
    refuse_foreign(folder)
    raise LoadError(
        LoadReason.INCOMPLETE_DOWNLOAD,
        f"{folder} holds no weights (model.safetensors or pytorch_model.bin): the download is not complete, or the "
        "repository keeps its weights in a format that torch does not read",
    )


def check_filled(missing: Iterable[str], mismatched: Iterable[object], folder: Path, *, needs_pooler: bool) -> None:
    """Raise WRONG_WEIGHTS if any parameter would keep its random start value.

    ``missing`` and ``mismatched`` are transformers' own account of the loading, after its renaming of old keys, its
    prefixes and tied weights. A pooler that nothing reads may be missing.
    """
    gone = sorted(key for key in missing if needs_pooler or not key.startswith("pooler."))
    wrong = sorted(str(key) for key in mismatched)
    if not gone and not wrong:
        return
    shown = ", ".join((gone or wrong)[:_SHOWN_KEYS])
    more = len(gone or wrong) - _SHOWN_KEYS
    raise LoadError(
        LoadReason.WRONG_WEIGHTS,
        f"the weights in {folder} do not {'fill' if gone else 'fit'} the model that config.json describes: "
        f"{len(gone or wrong)} parameter(s) {'are missing' if gone else 'have another shape'} ({shown}"
        f"{f' and {more} more' if more > 0 else ''}). Serving it would give random vectors; use the weights that "
        "belong to this configuration",
    )


def check_unscaled(unexpected: Iterable[str], folder: Path) -> None:
    """Raise UNSUPPORTED_MODEL where numbers of few bits were read as weights and what scales them was left over.

    ``unexpected`` is transformers' own account of what the model has no place for: with a scale also its weight, of a
    layer that is not loaded at all, such as a pooler that nothing reads.
    """
    left = set(unexpected)
    scales = sorted(key for key in left if _SCALES.search(key) and _SCALES.sub(".weight", key) not in left)
    if scales:
        raise unsupported(
            f"the weights in {folder} are quantised, and transformers read them without their {len(scales)} scale(s) "
            f"({scales[0]}). {TAKE_PLAIN}"
        )


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Read a ``.bin`` file as tensors and nothing else; raise WRONG_WEIGHTS for a pickle that holds more."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise hostile_pickle(path) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AssertionError, TypeError) as error:
        reason = str(error) or "it ends too early"
        raise LoadError(LoadReason.WRONG_WEIGHTS, f"{path} cannot be read as weights: {reason}") from error
    if not isinstance(tensors, Mapping):
        raise LoadError(LoadReason.WRONG_WEIGHTS, f"{path} holds a {type(tensors).__name__}, not named tensors")
    return {str(name): value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def hostile_pickle(path: Path) -> LoadError:
    """Return the refusal of a pickle that would run code."""
    return LoadError(
        LoadReason.WRONG_WEIGHTS,
        f"{path} is a pickle that holds more than tensors; nothing of it was run. Weights never need that: do not "
        "use this file, and prefer a revision with safetensors",
    )


def _files_of_index(path: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD, f"{path} cannot be read as a list of weights: {error}"
        ) from error
    absent = [name for name in names if not _is_beside(path, name)]
    if absent or not names:
        what = f"weights that are not there: {', '.join(map(repr, absent))}" if absent else "no weights"
        raise LoadError(LoadReason.INCOMPLETE_DOWNLOAD, f"{path} lists {what}")
    return tuple(path.parent / name for name in names)


def _is_beside(index: Path, name: object) -> bool:
    """Tell whether this is the name of a file in the index's own folder, as ``""`` and ``..`` are not."""
    return isinstance(name, str) and Path(name).name == name and (index.parent / name).is_file()


def check_whole(path: Path) -> None:
    """Raise ``LoadError`` INCOMPLETE_DOWNLOAD for a file of weights that is empty, another one, or cut off."""
    with path.open("rb") as file:
        head = file.read(len(_POINTER))
    if not head or head == _POINTER:
        what = "a git-lfs pointer instead of the weights" if head else "empty"
        raise _incomplete(path, f"is {what}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return
        except SafetensorError as error:
            raise _incomplete(path, f"is not a whole safetensors file ({error})") from error
    if not head.startswith(_PICKLED):
        raise _incomplete(path, f"holds no weights but perhaps a hub's page or message (it begins with {head[:9]!r})")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise _incomplete(path, "ends before its last part")


def _incomplete(path: Path, finding: str) -> LoadError:
    return LoadError(
        LoadReason.INCOMPLETE_DOWNLOAD,
        f"{path} {finding} ({path.stat().st_size} bytes): delete it and start again to download it once more",
    )
