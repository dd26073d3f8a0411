"""A model's name → a complete, verified local directory. Called by ``shard.main`` before torch is imported."""

from shard.hubs.huggingface import forbid_requests
from shard.hubs.resolve import fetch, fetch_code
from shard.hubs.snapshot import Origin, Progress, Snapshot

__all__ = ["Origin", "Progress", "Snapshot", "fetch", "fetch_code", "forbid_requests"]
