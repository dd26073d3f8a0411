"""A model's name → a complete, verified local directory. Called by ``shard.main`` before torch is imported."""

from shard.hubs.huggingface import forbid_requests
from shard.hubs.resolve import fetch
from shard.hubs.snapshot import Origin, Progress, Snapshot

__all__ = ["Origin", "Progress", "Snapshot", "fetch", "forbid_requests"]
