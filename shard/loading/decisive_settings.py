"""What vectors depend on beside a model's files and their revision: a part of its fingerprint. Called by ``loader``."""

from __future__ import annotations

from emb_model_provider.messages.status import EncoderInfo
from shard.device import ComputePlan
from shard.encoders.graph.int8 import GROUP, LARGEST, largest_in_products
from shard.model_files.recipe import Recipe


def decisive_settings(info: EncoderInfo, recipe: Recipe, plan: ComputePlan) -> dict[str, object]:
    """Return the settings and choices with which other vectors would come of the same files, in JSON's types."""
    decisive: dict[str, object] = {
        "pooling": info.pooling,
        "prompts": sorted(recipe.prompts, reverse=True),  # families have ``query`` before ``document``
        "default_prompt": recipe.default_prompt_name,
        "precision": info.precision,
        "int8_method": info.kernel if info.precision == "int8" else None,
        "normalize": info.normalized,
        "dimension": info.dimension,
        "max_tokens": info.max_tokens,
        "max_active": recipe.max_active,
        "late": repr(recipe.late) if recipe.late else None,
        "generative": repr(recipe.generative) if recipe.generative else None,
    }
    if recipe.routes is not None:
        decisive["routes"] = repr(recipe.routes), recipe.max_length  # the first way may be cut to less
    if recipe.scores:
        decisive["activation"] = recipe.activation
    if info.kernel == "int8-weight-only":
        decisive["int8_group"] = GROUP
    if info.kernel == "int8-dynamic" and (largest := largest_in_products()) != LARGEST:
        decisive["int8_largest"] = largest
    if plan.widens_weights:  # processors that compute in 16 bit make other vectors of the same weights
        decisive["compute"] = info.compute_dtype
    return decisive
