"""The JSON files of a model directory, as they stand there. Used by whoever reads one as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from emb_model_provider.errors import LoadError, LoadReason

Document = Mapping[str, object]


def read_json(path: Path) -> object:
    """Return what a file holds; raise ``LoadError`` INCOMPLETE_DOWNLOAD for one that is not there or is no JSON."""
    try:
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD,
            f"{path} cannot be read ({error}): delete it and start again to download it once more",
        ) from error
    return document


def read_object(path: Path) -> Document:
    """Return the object in a file that a model may lack; empty where it does, or where the file holds anything else."""
    return as_object(read_json(path)) if path.exists() else {}


def as_object(value: object) -> Document:
    """Return an object as it is, and an empty one for all else."""
    return value if isinstance(value, dict) else {}
