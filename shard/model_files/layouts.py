"""Which of three layouts a model directory has, and what its files say about pooling, length and prompts.

Pure reading of ``modules.json``, ``configuration.json`` and their companions; ``loader`` builds from the ``Recipe``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason, unsupported
from emb_model_provider.modelmap import ModelSpec, Pooling, Task
from shard.hubs.snapshot import COLBERT_LINEAR, COLBERT_METADATA, SPARSE_LINEAR
from shard.model_files.foreign_weights import refuse_foreign
from shard.model_files.generative import (
    QWEN3_MAX_TOKENS,
    is_language_model,
    read_generative_modules,
    read_plain_generative,
)
from shard.model_files.json_files import as_object, has_architecture, read_json, read_object
from shard.model_files.kinds import (
    check_labels,
    count_labels,
    find_activation,
    find_matryoshka,
    find_task,
    is_modelscope_embedding,
    is_modelscope_ranking,
    makes_scores,
    states_labels,
)
from shard.model_files.late_files import LateFiles, read_pylate, read_stanford
from shard.model_files.modelscope_files import modelscope_length, read_modelscope
from shard.model_files.prompt_families import complete_prompts, known_default
from shard.model_files.recipe import ModuleEntry, Recipe, stays_inside
from shard.model_files.routes import check_routes, prompts_of_routes, read_routes
from shard.model_files.static_files import check_static, refuse_bare

_LATE_MODULES: Final = ("Transformer", "Dense", "MultiVectorMask", "Normalize", "LayerNorm", "Dropout", "Pooling")


def read_recipe(directory: Path, spec: ModelSpec) -> Recipe:
    """Decide the layout of ``directory``; raise ``LoadError`` when its files are broken or of an unknown kind."""
    if (directory / "adapter_config.json").exists():
        raise unsupported("it is an adapter (adapter_config.json); merge it into its base model and serve that")
    if (directory / "modules.json").exists():
        return _read_sentence_transformers(directory, spec)
    if not (directory / "config.json").exists():
        refuse_foreign(directory)
        raise LoadError(
            LoadReason.INCOMPLETE_DOWNLOAD,
            f"{directory} has neither modules.json nor config.json: it is not a complete model directory",
        )
    config = read_object(directory / "config.json")
    refuse_bare(config)
    configuration = read_object(directory / "configuration.json")
    task = find_task(spec, config, configuration, None)
    if task in ("rerank", "classify"):
        return _read_classifier(directory, task, config, configuration, spec)
    prompts = _prompts(directory, spec, {})
    if task == "embed" and is_modelscope_embedding(configuration):
        return read_modelscope(config, configuration, spec, prompts)
    if task == "sparse":
        return _read_language_model(config, spec, prompts)
    if task == "multi_vector":
        return _read_stanford(directory, config, spec)
    # Without sentence-transformers' files, FlagEmbedding's definition says the rest: the first token, normalised.
    is_bge_m3 = _has_token_linears(directory)
    return Recipe(
        "transformers",
        pooling=spec.pooling or ("cls" if is_bge_m3 else _assumed_pooling(config)),
        pooling_assumed=spec.pooling is None and not is_bge_m3,
        normalize=is_bge_m3 if spec.normalize is None else spec.normalize,
        has_token_linears=is_bge_m3,
        max_length=spec.max_length,
        prompts=prompts,
        default_prompt_name=known_default(spec.default_prompt_name, dict(prompts)),
        matryoshka=find_matryoshka(directory, config, None),
    )


def _assumed_pooling(config: Mapping[str, object]) -> Pooling:
    """Return what sentence-transformers takes where nobody says: of a language model only the last token saw all."""
    return "lasttoken" if is_language_model(config) and config.get("is_causal", True) else "mean"


def _read_classifier(
    directory: Path, task: Task, config: Mapping[str, object], configuration: Mapping[str, object], spec: ModelSpec
) -> Recipe:
    """Read a transformers model with a classification head; ModelScope's ranking pipeline has rules of its own."""
    if task == "rerank" and is_language_model(config):
        return _read_plain_generative(config, configuration, spec)
    is_modelscope = is_modelscope_ranking(configuration)
    # Neither ModelScope nor sentence-transformers leaves a ranking model the two labels that transformers assumes.
    num_labels = 1 if task == "rerank" and not states_labels(config) else None
    labels = num_labels or count_labels(config)
    check_labels(task, labels)
    max_length = spec.max_length
    if is_modelscope and max_length is None:
        max_length = modelscope_length(configuration)
    prompts = _prompts(directory, spec, {})
    return Recipe(
        "modelscope" if is_modelscope else "transformers",
        max_length=max_length,
        prompts=prompts,
        default_prompt_name=known_default(spec.default_prompt_name, dict(prompts)),
        task=task,
        num_labels=num_labels,
        activation="sigmoid" if is_modelscope else find_activation(config, None, labels),
    )


def _read_plain_generative(
    config: Mapping[str, object], configuration: Mapping[str, object], spec: ModelSpec
) -> Recipe:
    """Read a language model that is asked for a yes or no, and has nothing of sentence-transformers' beside it."""
    generative = read_plain_generative(config)
    return Recipe(
        "modelscope" if is_modelscope_ranking(configuration) else "transformers",
        max_length=spec.max_length or (QWEN3_MAX_TOKENS if generative.is_qwen3 else None),
        prompts=spec.prompts,
        default_prompt_name=known_default(spec.default_prompt_name, dict(spec.prompts)),
        task="rerank",
        activation="sigmoid",
        generative=generative,
    )


def _read_language_model(config: Mapping[str, object], spec: ModelSpec, prompts: tuple[tuple[str, str], ...]) -> Recipe:
    """Read a plain masked language model, served as SPLADE because its mapping entry says so."""
    if not has_architecture(config, "ForMaskedLM"):
        named = config.get("architectures") or "nothing"
        raise unsupported(f"a sparse model needs a masked language model (…ForMaskedLM), and config.json names {named}")
    return Recipe(
        "transformers",
        max_length=spec.max_length,
        prompts=prompts,
        default_prompt_name=known_default(spec.default_prompt_name, dict(prompts)),
        task="sparse",
    )


def _has_token_linears(directory: Path) -> bool:
    """Tell whether this is BGE-M3 or one of its kin."""
    return (directory / SPARSE_LINEAR).exists() and (directory / COLBERT_LINEAR).exists()


def _read_sentence_transformers(directory: Path, spec: ModelSpec) -> Recipe:
    options = read_object(directory / "config_sentence_transformers.json")
    modules = _read_modules(directory / "modules.json")
    if (routes := read_routes(directory, modules)) is not None:
        modules = routes.ways[0]
    folder = directory / modules[0].path
    if makes_scores(folder):  # whatever has saved it, and where the first file is not there
        options = {**options, "model_type": "CrossEncoder"}
    kind = options.get("model_type", "SentenceTransformer")
    config = read_object(folder / "config.json")
    task = find_task(spec, config, read_object(directory / "configuration.json"), options)
    check_static(modules, task, spec)
    generative = None
    if task == "rerank" and is_language_model(config):
        named = [(entry.type.rpartition(".")[2], entry.path) for entry in modules]
        generative = read_generative_modules(directory, named)
    labels = 1 if generative else count_labels(config)
    if task == "rerank":
        check_labels(task, labels)
    if routes is not None:
        check_routes(routes, task)
    if task == "multi_vector":
        return _read_late_interaction(modules, options, spec)
    _check_kind(kind, task, [entry.type.rpartition(".")[2] for entry in modules])
    own = {name: str(text or "") for name, text in as_object(options.get("prompts")).items()}
    prompts = _prompts(directory, spec, own)
    if routes is not None:
        prompts = prompts_of_routes(routes, prompts)
    default_prompt = spec.default_prompt_name or options.get("default_prompt_name")
    return Recipe(
        "sentence-transformers",
        modules=modules,
        pooling=spec.pooling,
        normalize=spec.normalize,
        max_length=spec.max_length,
        prompts=prompts,
        default_prompt_name=known_default(default_prompt, dict(prompts)),
        truncate_dimension=_read_truncation(options),
        task=task,
        activation=find_activation(config, options, labels),
        matryoshka=find_matryoshka(directory, config, options),
        generative=generative,
        has_token_linears=task == "embed" and _has_token_linears(directory),
        max_active=active if isinstance(active := options.get("max_active_dims"), int) else None,
        routes=routes,
    )


def _read_truncation(options: Mapping[str, object]) -> int | None:
    given = options.get("truncate_dim")
    if given is None:
        return None
    # sentence-transformers would slice with it: no numbers at all, all but the last, or no slice.
    if type(given) is not int or given <= 0:
        raise unsupported(f"its config_sentence_transformers.json has truncate_dim {given!r}, which is no length")
    return given


def _read_late_interaction(modules: tuple[ModuleEntry, ...], options: Mapping[str, object], spec: ModelSpec) -> Recipe:
    names = [entry.type.rpartition(".")[2] for entry in modules]
    unknown = [name for name in names if name not in _LATE_MODULES]
    if unknown:
        raise unsupported(f"it is a multi-vector model with {', '.join(unknown)}, which is not supported")
    kind = options.get("model_type")
    return _late_recipe(read_pylate(options, is_bare=kind != "MultiVectorEncoder"), modules, spec)


def _read_stanford(directory: Path, config: Mapping[str, object], spec: ModelSpec) -> Recipe:
    if not has_architecture(config, "HF_ColBERT"):
        raise unsupported(
            'nothing in its files makes it a model for "multi_vector": it has no projection of its tokens, and a '
            "random one would give random vectors"
        )
    return _late_recipe(read_stanford(read_object(directory / COLBERT_METADATA)), (), spec)


def _late_recipe(late: LateFiles, modules: tuple[ModuleEntry, ...], spec: ModelSpec) -> Recipe:
    prompts = dict(late.prompts) | dict(spec.prompts)
    return Recipe(
        "sentence-transformers" if modules else "transformers",
        modules=modules,
        max_length=spec.max_length,
        prompts=tuple(prompts.items()),
        default_prompt_name=known_default(spec.default_prompt_name or "document", prompts),
        task="multi_vector",
        late=late,
    )


def _check_kind(kind: object, task: Task, names: Sequence[str]) -> None:
    """Raise ``LoadError`` for what sentence-transformers serves and we do not, or a task that its modules are not for.

    ``names`` are those of its modules.
    """
    modules = ", ".join(names)
    if ("SpladePooling" in names) != (task == "sparse"):
        if kind == "SparseEncoder" and task == "sparse":
            raise unsupported(
                f"it is a sparse model made of {modules}; of sparse models those with SpladePooling are served, not "
                "those without inference for documents, too (SparseStaticEmbedding), or with an autoencoder "
                "(SparseAutoEncoder)"
            )
        raise unsupported(f'its modules ({modules}) do not make a model for "{task}": leave out its "task"')
    if task == "sparse" and len(names) != len(("transformer", "SpladePooling")):
        raise unsupported(f"it is a sparse model made of {modules}, of which only the first two are supported")
    if kind not in ("SentenceTransformer", "CrossEncoder", "SparseEncoder"):
        raise unsupported(f"it is a {kind}, which is not supported")


def _read_modules(path: Path) -> tuple[ModuleEntry, ...]:
    document = read_json(path)
    entries = document if isinstance(document, list) else []
    modules = []
    for entry in entries:
        kind, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str) or not stays_inside(folder):
            raise LoadError(LoadReason.CORRUPT_DOWNLOAD, f"{path} is not a list of modules with type and path")
        modules.append(ModuleEntry(kind, folder))
    if not modules:
        raise LoadError(LoadReason.CORRUPT_DOWNLOAD, f"{path} lists no modules")
    return tuple(modules)


def _prompts(directory: Path, spec: ModelSpec, own: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    origin = read_object(directory / "config.json").get("_name_or_path")
    return complete_prompts(dict(spec.prompts), own, (spec.name, origin if isinstance(origin, str) else ""))
