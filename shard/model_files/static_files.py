"""Models without a transformer: one row of a table for each token, of which a text has the mean.

sentence-transformers' ``StaticEmbedding``, which model2vec writes into its repositories, too. Called by ``layouts`` and
``loader``; ``encoders.static_embedding`` builds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from emb_model_provider.errors import unsupported
from emb_model_provider.modelmap import ModelSpec, Task
from shard.model_files.recipe import ModuleEntry
from shard.model_files.trust import own_module_name

STATIC: Final = "StaticEmbedding"
#: Those that take one vector per text.
_FOLLOWING: Final = ("Normalize", "Dense", "LayerNorm", "Dropout")
_NARROW: Final = ("int8", "int4")


def is_static(modules: Sequence[ModuleEntry]) -> bool:
    """Tell whether the first module looks its vectors up."""
    return bool(modules) and own_module_name(modules[0].type) == STATIC


def check_static(modules: Sequence[ModuleEntry], task: Task, spec: ModelSpec) -> None:
    """Raise ``LoadError`` for a static model that is asked to be what it is not; any other model is left alone."""
    names = [own_module_name(entry.type) or entry.type for entry in modules]
    if STATIC in names[1:]:
        raise unsupported(f"it has a {STATIC} behind another module ({', '.join(names)}), which is not supported")
    if not is_static(modules):
        return
    strange = [name for name in names[1:] if name not in _FOLLOWING]
    if strange:
        raise unsupported(f"behind its {STATIC} is {', '.join(strange)}; there may be {', '.join(_FOLLOWING)}")
    if task != "embed":
        raise unsupported(f'it averages one vector per token, and is no model for "{task}": leave out its "task"')
    if spec.pooling not in (None, "mean"):
        raise unsupported(f'it averages its tokens, and has no "pooling" {spec.pooling}: leave that out')
    if spec.precision in _NARROW:
        raise unsupported(
            f"it looks its vectors up and multiplies no matrices, which {spec.precision} would make smaller: set "
            '"precision" in its mapping entry to fp32, or to bf16 or fp16 for half the memory'
        )


def refuse_bare(config: Mapping[str, object]) -> None:
    """Raise ``LoadError`` for a model2vec directory without ``modules.json``, which says whether it normalises."""
    if config.get("model_type") == "model2vec":
        raise unsupported(
            "it is a model2vec model without modules.json, which sentence-transformers does not load either: load it "
            "with model2vec and save it anew (save_pretrained), which writes that file"
        )
