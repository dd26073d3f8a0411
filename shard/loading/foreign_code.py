"""Fetches the code that a trusted model's files name in other repositories. Called by ``main`` after the model.

Jina's, Nomic's and GTE's models share one implementation each (``"auto_map": "owner/name--module.Class"``).
``encoders.foreign_classes`` lets transformers take it from where it is put here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from emb_model_provider.modelmap import Hubs, ModelSpec
from shard.hubs import Snapshot, fetch_code
from shard.hubs.download import OnProgress
from shard.hubs.resolve import hub_order
from shard.hubs.snapshot import HubName, Origin
from shard.model_files.trust import named_elsewhere

log = EventLog("shard.loading.foreign_code")


def fetch_foreign_code(spec: ModelSpec, model: Snapshot, hubs: Hubs, on_progress: OnProgress) -> dict[str, Path]:
    """Return a directory of Python files for each repository that ``model`` names; raise ``LoadError`` otherwise."""
    found: dict[str, Path] = {}
    for repository, files in sorted(named_elsewhere(model.directory).items()):
        code = _is_its_own(repository, files, spec, model) or _fetch(repository, files, spec, model, hubs, on_progress)
        log.info(
            "foreign_code",
            model=spec.id,
            repository=repository,
            source=code.source,
            revision=code.revision,
            directory=code.directory,
        )
        found[repository] = code.directory
    return found


def _is_its_own(repository: str, files: tuple[str, ...], spec: ModelSpec, model: Snapshot) -> Snapshot | None:
    """Return the model itself where its files name it in full: its revision is that of its code."""
    is_here = repository == spec.name and all((model.directory / file).is_file() for file in files)
    return model if is_here and spec.code_revision is None else None


def _fetch(
    repository: str,
    files: tuple[str, ...],
    spec: ModelSpec,
    model: Snapshot,
    hubs: Hubs,
    on_progress: OnProgress,
) -> Snapshot:
    sources = code_sources(repository, spec, model.source, hubs)
    try:
        return fetch_code(repository, files, spec, sources, hubs, on_progress)
    except LoadError as error:
        said = f"its files name code of the repository {repository!r}, without which it cannot be loaded: {error}"
        raise LoadError(error.reason, said + _advice(error.reason, sources, hubs)) from error


def code_sources(repository: str, spec: ModelSpec, origin: Origin, hubs: Hubs) -> tuple[HubName, ...]:
    """Return the hubs to ask for code: those the source allows and whose code is trusted, the model's own first."""
    allowed = hub_order(replace(spec, name=repository))
    if spec.trust_remote_code is None:
        trusted = {"huggingface": hubs.huggingface.trust_remote_code, "modelscope": hubs.modelscope.trust_remote_code}
        allowed = tuple(source for source in allowed if trusted[source])
    return tuple(sorted(allowed, key=lambda source: source != origin))


def _advice(reason: LoadReason, sources: tuple[HubName, ...], hubs: Hubs) -> str:
    """Return how the other hub, which may have it, comes to be asked."""
    if len(sources) != 1 or hubs.offline or reason not in (LoadReason.NO_SUCH_MODEL, LoadReason.NO_NETWORK):
        return ""
    other = "modelscope" if sources[0] == "huggingface" else "huggingface"
    way = '"source": "auto" and "trust_remote_code": true in its mapping entry'
    return f" With {way}, {other} is asked for that code, too."
