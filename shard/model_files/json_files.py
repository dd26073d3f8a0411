"""The JSON files of a model directory. Used by whoever reads one as a whole.

JSON can write half of a surrogate pair, which is no character and can be sent to nobody: texts are read without such.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from emb_model_provider.errors import LoadError, LoadReason

Document = Mapping[str, object]


def read_json(path: Path) -> object:
    """Return what a file holds; raise ``LoadError`` INCOMPLETE_DOWNLOAD for one that is not there or is no JSON."""
    try:
        written: object = json.loads(path.read_bytes())
        document: object = json.loads(whole(json.dumps(written, ensure_ascii=False)))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD,
            f"{path} cannot be read ({error}): delete it and start again to download it once more",
        ) from error
    return document


def read_object(path: Path) -> Document:
    """Return the object in a file that a model may lack; empty where it does, or where the file holds anything else."""
    return as_object(read_json(path)) if path.exists() else {}


def whole(text: str) -> str:
    """Return a text with ``?`` in place of each half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def as_object(value: object) -> Document:
    """Return an object as it is, and an empty one for all else."""
    return value if isinstance(value, dict) else {}


def has_architecture(config: Document, ending: str) -> bool:
    """Tell whether ``config.json`` names a class of transformers' whose name ends so."""
    names = config.get("architectures")
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(ending) for name in names)
