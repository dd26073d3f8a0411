"""Refuses model directories that would run code of their own. Called by ``loader`` before anything is loaded.

By the time we load, every hub's model is a *local* directory, whose code sentence-transformers ran unasked up to its
version 5: what ``trust_remote_code=False`` guards there and in transformers is decided here once more, from the files
alone, and said in one way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from shard.hubs.snapshot import Origin

log = EventLog("shard.model_files.trust")

_MODULE_NAMES: Final = (
    "Transformer",
    "Pooling",
    "Normalize",
    "Dense",
    "LayerNorm",
    "Dropout",
    "WeightedLayerPooling",
    "MLMTransformer",
    "SpladePooling",
    "MultiVectorMask",
    "LogitScore",
    "StaticEmbedding",
    "SparseStaticEmbedding",
    "Router",
    "Asym",
)
_MODULE_HOMES: Final = (
    "sentence_transformers.models",
    "sentence_transformers.base.modules",
    "sentence_transformers.base.modules.transformer",
    "sentence_transformers.base.modules.normalize",
    "sentence_transformers.base.modules.dense",
    "sentence_transformers.base.modules.router",
    "sentence_transformers.sentence_transformer.modules",
    "sentence_transformers.sentence_transformer.modules.pooling",
    "sentence_transformers.sentence_transformer.modules.layer_norm",
    "sentence_transformers.sentence_transformer.modules.dropout",
    "sentence_transformers.sentence_transformer.modules.static_embedding",
    "sentence_transformers.sentence_transformer.modules.weighted_layer_pooling",
    "sentence_transformers.sparse_encoder.models",
    "sentence_transformers.sparse_encoder.models.MLMTransformer",
    "sentence_transformers.sparse_encoder.models.SpladePooling",
    "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
    "sentence_transformers.sparse_encoder.modules",
    "sentence_transformers.sparse_encoder.modules.mlm_transformer",
    "sentence_transformers.sparse_encoder.modules.splade_pooling",
    "sentence_transformers.sparse_encoder.modules.sparse_static_embedding",
    "sentence_transformers.cross_encoder.modules",
    "sentence_transformers.cross_encoder.modules.logit_score",
    "sentence_transformers.multi_vector_encoder.modules",
    "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask",
    # PyLate's, of which sentence-transformers has the same.
    "pylate.models.Dense",
)
#: Files larger than this hold vocabularies or data, but for those that libraries read classes from.
_MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
_NAMING_CLASSES: Final = ("config.json", "modules.json", "configuration.json")
#: transformers takes either, and the second also where the first is there and null.
_ATTENTION_KEYS: Final = ("attn_implementation", "_attn_implementation")
_SETTINGS: Final = {
    "huggingface": "EMB_PROVIDER_HUGGINGFACE_TRUST_REMOTE_CODE=true, or ",
    "modelscope": "EMB_PROVIDER_MODELSCOPE_TRUST_REMOTE_CODE=true, or ",
}


@dataclass(frozen=True, slots=True)
class CodeRequest:
    """One file of a model that asks for code: ``file`` is relative, ``wish`` completes the sentence 'the file …'."""

    file: str
    wish: str


def own_module_name(class_path: str) -> str | None:
    """Return ``Pooling`` for any path sentence-transformers has known it by; ``None`` for what is not ours to run."""
    home, _, name = class_path.rpartition(".")
    # A router names the files of its modules' classes, which up to version 5 were called as these.
    is_home = home in _MODULE_HOMES or home == f"sentence_transformers.models.{name}"
    return name if name in _MODULE_NAMES and is_home else None


def refuse_code(directory: Path, origin: Origin, name: str) -> None:
    """Raise ``LoadError`` CODE_NOT_TRUSTED if loading ``directory`` would run code that is not installed here."""
    found = next(code_requests(directory), None)
    if found is None:
        return
    others = [f"the repository {repository}" for repository in sorted(named_elsewhere(directory))]
    own = ["its own"] if not others or any(directory.rglob("*.py")) else []
    pins = "its revision and its code_revision" if others else "its revision"
    raise LoadError(
        LoadReason.CODE_NOT_TRUSTED,
        f"{name} wants to run code of {' and of '.join(own + others)}: {found.file} {found.wish}. Read that code; if "
        f'you trust it, set {_SETTINGS.get(origin, "")}"trust_remote_code": true in this model\'s mapping entry, '
        f"and pin {pins}",
    )


def named_elsewhere(directory: Path) -> dict[str, tuple[str, ...]]:
    """Return the files that ``directory`` names of each other repository, as ``owner/name--module.Class`` does."""
    found: dict[str, set[str]] = {}
    for path in sorted(directory.rglob("*.json")):
        for name in _named_classes(path.name, _read(path)):
            repository, _, path_of_class = name.partition("--")
            if repository and path_of_class:
                found.setdefault(repository, set()).add(f"{path_of_class.partition('.')[0]}.py")
    return {repository: tuple(sorted(files)) for repository, files in found.items()}


def _named_classes(filename: str, document: object) -> Iterator[str]:
    names: list[object]
    if (modules := _module_types(filename, document)) is not None:
        names = modules
    else:
        wanted = document.get("auto_map") if isinstance(document, dict) else None
        names = list(wanted.values()) if isinstance(wanted, dict) else [wanted]  # an older form has a list alone
    for value in names:
        for name in value if isinstance(value, list) else [value]:  # tokenizers name two
            if isinstance(name, str):
                yield name


def own_code(directory: Path) -> list[Path]:
    """Return the Python files of a model that asks for code, none of one that does not."""
    asks = next(code_requests(directory), None) is not None
    return sorted(directory.rglob("*.py")) if asks else []


def code_requests(directory: Path) -> Iterator[CodeRequest]:
    """Yield every place of ``directory`` that asks for code which this project does not already contain."""
    documents = {path: _read(path) for path in sorted(directory.rglob("*.json"))}
    for path, document in documents.items():
        for wish in _wishes(path.name, document):
            yield CodeRequest(str(path.relative_to(directory)), wish)
    scripts = [str(path.relative_to(directory)) for path in sorted(directory.rglob("*.py"))]
    configuration = documents.get(directory / "configuration.json")
    if scripts and isinstance(configuration, dict) and configuration.get("allow_remote"):
        yield CodeRequest(scripts[0], 'is meant to be run: configuration.json says "allow_remote": true')
    elif scripts:
        # Hubs keep training scripts beside weights (all-MiniLM-L6-v2 has one); no loader runs what nothing names.
        log.info("python_files_ignored", files=scripts, reason="no configuration names them")


def _wishes(filename: str, document: object) -> Iterator[str]:
    if (modules := _module_types(filename, document)) is not None:
        for kind in modules:
            if not isinstance(kind, str) or (
                own_module_name(kind) is None and not kind.startswith("sentence_transformers.")
            ):
                yield f"names the module type {kind!r}"
        return
    if not isinstance(document, dict):
        return
    for key in ("auto_map", "plugins", "custom_pipelines"):
        if document.get(key):
            yield f'has an entry "{key}"'
    activation = document.get("activation_function")
    if isinstance(activation, str) and "in_features" in document and not _is_torch_activation(activation):
        yield f"names the activation function {activation!r}"
    for attention in _attentions(document):
        if "/" in attention:
            yield f"names the attention kernel {attention!r} of a hub"


def _module_types(filename: str, document: object) -> list[object] | None:
    """Return what a list of modules, or a router's table of them, names for classes; ``None`` for any other file."""
    if filename == "modules.json" and isinstance(document, list):
        return [entry.get("type") if isinstance(entry, dict) else None for entry in document]
    if isinstance(document, dict) and "structure" in document and isinstance(types := document.get("types"), dict):
        return list(types.values())
    return None


def _attentions(document: dict[str, object]) -> Iterator[str]:
    """Yield what a configuration, or one within it, names under either key: a name, or a table of names by part."""
    waiting = [document]
    while waiting:
        options = waiting.pop()
        waiting += [value for value in options.values() if isinstance(value, dict)]
        for key in _ATTENTION_KEYS:
            value = options.get(key)
            names = value.values() if isinstance(value, dict) else (value,)
            yield from (name for name in names if isinstance(name, str))


def _is_torch_activation(path: str) -> bool:
    return path.startswith("torch.nn.modules.activation.") or path == "torch.nn.modules.linear.Identity"


def _read(path: Path) -> object:
    """Parse a JSON file that may name classes; one that cannot be read asks for nothing here, its reader reports it."""
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES and not path.name.endswith(_NAMING_CLASSES):
            return None
        document: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document
