"""Loads a model from a directory as a shard does, for tests that hold its encoder against a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emb_model_provider.modelmap import ModelSpec
from shard.encoder import Encoder
from shard.loading.fetched import Fetched
from shard.loading.loader import load


def opener(cache_directory: Path, *, name: str = "some/model") -> Callable[..., Encoder]:
    """Return what loads a directory on the CPU, in fp32 unless told otherwise; other settings are those of a mapping.

    ``trust``: code of the model's own may run.
    """

    def open_model(directory: Path, *, trust: bool = False, **settings: Any) -> Encoder:
        spec: dict[str, Any] = {"name": name, "precision": "fp32"} | settings
        return load(
            Fetched(directory, is_trusted=trust),
            ModelSpec(id="m", device="cpu", **spec),
            threads=2,
            cache_directory=cache_directory,
        )

    return open_model
