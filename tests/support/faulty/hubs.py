"""Stands in for ``shard.hubs``: a local directory, or no such model. No hub client is imported."""

from emb_model_provider.errors import LoadError, LoadReason
from shard.hubs.snapshot import Progress, Snapshot

__all__ = ["Progress", "Snapshot", "fetch", "forbid_requests"]


def fetch(spec, hubs, on_progress):
    from pathlib import Path

    if not Path(spec.name).is_dir():
        raise LoadError(LoadReason.NO_SUCH_MODEL, f"{spec.name!r} is not an existing directory.")
    return Snapshot(Path(spec.name), "local", None)


def forbid_requests():
    """Nothing here asks a network."""
