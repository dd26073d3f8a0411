"""Builds sentence-transformers' modules from a directory and a ``Recipe``. Called by ``loader``.

sentence-transformers' own loading would import whatever class a file names; here classes come from a fixed list.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.base.modules.module import Module
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling, WeightedLayerPooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.util import import_module_class
from torch import nn

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from shard.encoders.bge_m3 import read_token_linears
from shard.encoders.checked_transformer import CheckedTransformer, LoadOptions
from shard.encoders.heads import measure_dimension
from shard.encoders.late_modules import complete_modules
from shard.encoders.logit_score import split_answers
from shard.encoders.score_head import SCORES
from shard.encoders.static_embedding import TokenTable, load_table
from shard.encoders.text_options import check_text_options
from shard.model_files.generative import DEFAULT_ANSWERS, GenerativeFiles
from shard.model_files.json_files import read_object
from shard.model_files.kinds import check_scores
from shard.model_files.late_files import LateFiles
from shard.model_files.recipe import ModuleEntry, Recipe
from shard.model_files.static_files import STATIC
from shard.model_files.trust import own_module_name
from shard.model_files.weights import find_checkpoint

_HEADS: Final[dict[str, type[Module]]] = {
    "Pooling": Pooling,
    "Normalize": Normalize,
    "Dense": Dense,
    "LayerNorm": LayerNorm,
    "Dropout": Dropout,
    "WeightedLayerPooling": WeightedLayerPooling,
    "SpladePooling": SpladePooling,
    "MultiVectorMask": MultiVectorMask,
}
#: Those that cannot be made without what their folder says, and of these the ones that have weights there.
_CONFIGURED: Final = ("Pooling", "Dense", "LayerNorm", "WeightedLayerPooling")
_WEIGHTED: Final = ("Dense", "LayerNorm", "WeightedLayerPooling")
#: What Python says of a key that a module's class has no parameter for.
_UNKNOWN_KEY: Final = re.compile(r"got an unexpected keyword argument '(\w+)'")
_CONFIGURATIONS: Final = ("sentence_bert_config.json", "config.json")
_TEXT_SCORES: Final[dict[str, Any]] = {"text": {"method": "forward", "method_output_name": "logits"}}
_HIDDEN_STATES: Final[dict[str, Any]] = {
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def build_modules(directory: Path, recipe: Recipe, options: LoadOptions) -> list[nn.Module]:
    """Return the transformer and what follows it, settings applied, everything still on the CPU or where bnb put it."""
    if recipe.late is not None:
        return _build_late_modules(directory, recipe.late, recipe, options)
    if recipe.generative is not None:
        return _build_asked_model(directory, recipe.generative, recipe, options)
    if recipe.layout == "sentence-transformers":
        check_scores(directory / recipe.modules[0].path, recipe.task, len(recipe.modules))
        modules: list[nn.Module] = [_load_module(directory, entry, recipe, options) for entry in recipe.modules]
        if not isinstance(modules[0], (Transformer, TokenTable)) and not options.trust_remote_code:
            raise unsupported(f"its first module is a {recipe.modules[0].type}, not a Transformer")
        modules = _apply_settings(modules, recipe)
    elif recipe.task == "sparse":
        modules = [_load_language_model(directory, "", options), SpladePooling("max")]
    elif recipe.scores:
        modules = [_load_classifier(directory, recipe, options)]
    else:
        transformer = _load_bare_transformer(directory, options)
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), recipe.pooling)]
        if recipe.normalize:
            modules.append(Normalize())
    _check_text_only(modules[0], takes_pairs=recipe.scores)
    if recipe.has_token_linears:
        modules.append(read_token_linears(directory, measure_dimension(modules[0]) or 0))
    return modules


def build_beside(
    directory: Path, recipe: Recipe, options: LoadOptions, transformer: nn.Module
) -> dict[int, list[nn.Module]]:
    """Return the modules of a routed model's other ways through ``transformer``, by the ways' numbers."""
    if recipe.routes is None:
        return {}
    found: dict[int, list[nn.Module]] = {}
    for number in recipe.routes.beside_first:
        following = [_load_module(directory, entry, recipe, options) for entry in recipe.routes.ways[number][1:]]
        found[number] = _apply_settings([transformer, *following], recipe)
    return found


def _build_late_modules(directory: Path, late: LateFiles, recipe: Recipe, options: LoadOptions) -> list[nn.Module]:
    if late.is_stanford:
        modules: list[nn.Module] = [_load_bare_transformer(directory, options)]
    else:
        modules = [_load_module(directory, entry, recipe, options) for entry in recipe.modules]
    if not isinstance(modules[0], Transformer):
        raise unsupported(f"its first module is a {type(modules[0]).__name__}, not a Transformer")
    _check_text_only(modules[0])
    folder = recipe.modules[0].path if recipe.modules else ""
    said = CheckedTransformer.load_config(str(directory), subfolder=folder, local_files_only=True)
    return complete_modules(modules, late, directory, set(said))


def _build_asked_model(
    directory: Path, generative: GenerativeFiles, recipe: Recipe, options: LoadOptions
) -> list[nn.Module]:
    """Return a language model's transformer, and of its head what the two answers need."""
    folder = recipe.modules[0].path if recipe.modules else ""
    if recipe.modules:
        arguments: dict[str, Any] = CheckedTransformer._load_init_kwargs(  # noqa: SLF001 - what `load` begins with
            str(directory), subfolder=folder, **options.local
        )
    else:
        arguments = {"model_kwargs": options.local, "processor_kwargs": options.local, "config_kwargs": options.local}
    arguments["model_kwargs"] |= options.for_model(needs_pooler=True)
    arguments |= {"transformer_task": "text-generation", **_HIDDEN_STATES}
    with _reasons(directory / folder):
        transformer: Transformer = CheckedTransformer(str(directory), **arguments)
    check_text_options(transformer, takes_pairs=not generative.uses_template, is_asked=True)
    true_id, false_id = generative.true_id, generative.false_id
    if true_id is None:
        known = transformer.tokenizer.get_vocab() if transformer.tokenizer is not None else {}
        if any(word not in known for word in DEFAULT_ANSWERS):
            raise unsupported(f"its tokenizer has no tokens for {' and '.join(DEFAULT_ANSWERS)}")
        true_id, false_id = (known[word] for word in DEFAULT_ANSWERS)
    transformer.model, rows = split_answers(transformer.model, true_id, false_id)
    return [transformer, rows]


def _load_bare_transformer(directory: Path, options: LoadOptions) -> Transformer:
    transformer: Transformer = CheckedTransformer(
        str(directory),
        model_kwargs=options.local | options.for_model(needs_pooler=False),
        processor_kwargs=options.local,
        config_kwargs=options.local,
        **_HIDDEN_STATES,
    )
    return transformer


def _load_classifier(directory: Path, recipe: Recipe, options: LoadOptions) -> Transformer:
    labels = {} if recipe.num_labels is None else {"num_labels": recipe.num_labels}
    transformer: Transformer = CheckedTransformer(
        str(directory),
        transformer_task="sequence-classification",
        model_kwargs=options.local | options.for_model(needs_pooler=True),
        processor_kwargs=options.local,
        config_kwargs=options.local | labels,
        modality_config=_TEXT_SCORES,
        module_output_name=SCORES,
    )
    return transformer


def _load_module(directory: Path, entry: ModuleEntry, recipe: Recipe, options: LoadOptions) -> nn.Module:
    with _reasons(directory / entry.path, own_module_name(entry.type)):
        return _make_module(directory, entry, recipe, options)


@contextmanager
def _reasons(folder: Path, name: str | None = None) -> Iterator[None]:
    """Raise ``LoadError`` for a key that this version's class does not know: it may well change the vectors.

    And for values that one of ``_CONFIGURED`` cannot take and, before anything is made of it, for a file that is no
    JSON.
    """
    said = {folder / file: read_object(folder / file) for file in _CONFIGURATIONS}
    try:
        yield
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        found = _UNKNOWN_KEY.search(str(error))
        file = next((file for file, keys in said.items() if found is not None and found[1] in keys), None)
        if found is not None and file is not None:
            raise unsupported(
                f"{file} has the key {found[1]!r}, which sentence-transformers {version('sentence-transformers')} does "
                "not know: the model was saved by a newer one. Install that, or take a revision of the model without "
                "this key"
            ) from error
        if name not in _CONFIGURED:  # may be a mistake of ours
            raise
        raise unsupported(f"{folder / 'config.json'} does not make a {name} ({error})") from error


def _make_module(directory: Path, entry: ModuleEntry, recipe: Recipe, options: LoadOptions) -> nn.Module:
    name = own_module_name(entry.type)
    common = {"subfolder": entry.path, **options.local}
    if name == STATIC:
        return load_table(directory / entry.path)
    if name == "MLMTransformer":
        return _load_language_model(directory, entry.path, options)
    if name == "Transformer":
        said = CheckedTransformer.load_config(str(directory), subfolder=entry.path, local_files_only=True)
        if said.get("transformer_task") == "fill-mask":
            return _load_language_model(directory, entry.path, options)
        needs_pooler = recipe.scores or "pooler_output" in str(said.get("modality_config"))
        own = options.for_model(needs_pooler=needs_pooler)
        transformer: Module = CheckedTransformer.load(str(directory), **common, model_kwargs=own)
        return transformer
    if name is not None and name in _HEADS:
        if name in _CONFIGURED and not (directory / entry.path / "config.json").exists():
            raise LoadError(
                LoadReason.INCOMPLETE_DOWNLOAD,
                f"{directory / entry.path / 'config.json'} is missing, whose folder modules.json names: the copy of "
                "the model is not complete",
            )
        if name in _WEIGHTED:
            find_checkpoint(directory / entry.path)
        return _HEADS[name].load(str(directory), **common)
    if entry.type.startswith("sentence_transformers."):
        served = ", ".join(_HEADS)
        raise unsupported(
            f"it has a module of type {entry.type}, which is not supported. Take a model that is a Transformer, behind "
            f"which there may be {served}"
        )
    return _load_foreign_module(directory, entry, options)


def _load_language_model(directory: Path, folder: str, options: LoadOptions) -> Transformer:
    """Load a masked language model; what its files say of inputs and outputs is that of the whole of it."""
    arguments = CheckedTransformer._load_init_kwargs(  # noqa: SLF001 - what `load` itself begins with
        str(directory), subfolder=folder, **options.local, model_kwargs=options.for_model(needs_pooler=True)
    )
    arguments |= {"transformer_task": "fill-mask", **_HIDDEN_STATES}
    transformer: Transformer = CheckedTransformer(str(directory), **arguments)
    return transformer


def _load_foreign_module(directory: Path, entry: ModuleEntry, options: LoadOptions) -> Module:
    """Load a module whose code comes with the model; ``trust`` has refused it unless the operator wants that."""
    trusted = options.local
    kind: Any = import_module_class(entry.type, model_name_or_path=str(directory), **trusted)
    if len(inspect.signature(kind.load).parameters) == 1:  # the interface before sentence-transformers 3
        module: Module = kind.load(str(directory / entry.path))
    else:
        arguments = {"dtype": getattr(torch, options.plan.compute), **trusted}
        module = kind.load(str(directory), subfolder=entry.path, model_kwargs=arguments, **trusted)
    return module


def _apply_settings(modules: list[nn.Module], recipe: Recipe) -> list[nn.Module]:
    if recipe.pooling is not None:
        modules = [_repooled(module, recipe.pooling) if isinstance(module, Pooling) else module for module in modules]
    if recipe.scores:
        return modules
    if recipe.normalize is False:
        modules = [module for module in modules if not isinstance(module, Normalize)]
    if recipe.normalize and not isinstance(modules[-1], Normalize):
        modules = [*modules, Normalize()]
    return modules


def _repooled(module: Pooling, mode: str) -> Pooling:
    pooling: Pooling = Pooling(module.embedding_dimension, mode, include_prompt=module.include_prompt)
    return pooling


def _check_text_only(module: nn.Module, *, takes_pairs: bool = False) -> None:
    if not isinstance(module, Transformer):
        return
    if "message" in module.modality_config:
        raise unsupported("it wraps texts in a chat template, which is not supported")
    if "text" not in module.modality_config:
        raise unsupported("it takes no texts")
    check_text_options(module, takes_pairs=takes_pairs)
