"""What is here of one model before it is loaded: its files, the code of others it may run, whether any may run.

Called by ``main`` before torch is imported; ``loader`` starts from what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emb_model_provider.modelmap import Hubs, ModelSpec
from shard.foreign_ids import fetch_vocabulary
from shard.hubs import fetch, forbid_requests
from shard.hubs.download import OnProgress
from shard.hubs.snapshot import Origin


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete model in ``directory``, of the ``revision`` that was really used.

    ``is_trusted`` says whether code may run that comes with it or from the directories in ``foreign_code``, by the name
    of their repository.
    """

    directory: Path
    source: Origin = "local"
    revision: str | None = None
    is_trusted: bool = False
    foreign_code: Mapping[str, Path] = field(default_factory=dict)


def fetch_model(spec: ModelSpec, hubs: Hubs, on_progress: OnProgress) -> Fetched:
    """Fetch all that loading needs, so that no request is allowed afterwards; raise ``LoadError`` otherwise."""
    snapshot = fetch(spec, hubs, on_progress)
    is_trusted = _is_trusted(spec, snapshot.source, hubs)
    foreign_code: dict[str, Path] = {}
    if is_trusted:
        from shard.loading.foreign_code import fetch_foreign_code  # noqa: PLC0415 - few models need it

        foreign_code = fetch_foreign_code(spec, snapshot, hubs, on_progress)
    fetch_vocabulary(spec.token_ids, offline=hubs.offline)
    forbid_requests()
    return Fetched(snapshot.directory, snapshot.source, snapshot.revision, is_trusted, foreign_code)


def _is_trusted(spec: ModelSpec, source: Origin, hubs: Hubs) -> bool:
    if spec.trust_remote_code is not None:
        return spec.trust_remote_code
    if source == "huggingface":
        return hubs.huggingface.trust_remote_code
    return source == "modelscope" and hubs.modelscope.trust_remote_code
