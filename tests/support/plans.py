"""Slice plans for engines around encoders that have no model."""

from shard.batching.costs import CostModel, SlicePlan


def make_plan(*, slice_ms: float = 50.0, max_tokens: int = 10_000, ms_per_token: float = 0.0) -> SlicePlan:
    """Return a plan whose batches cost nothing but ``ms_per_token``."""
    return SlicePlan(CostModel(0.0, 0.0, ms_per_token, 0.0), slice_ms, max_tokens)
