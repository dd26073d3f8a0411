"""How to build an encoder from a directory: the value that ``layouts`` reads off it and ``loader`` follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from emb_model_provider.modelmap import Pooling, Task
from shard.model_files.generative import GenerativeFiles
from shard.model_files.kinds import Activation
from shard.model_files.late_files import LateFiles

Layout = Literal["sentence-transformers", "modelscope", "transformers"]


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One line of ``modules.json``: a dotted class name and the subfolder with its files ('' is the root)."""

    type: str
    path: str


@dataclass(frozen=True, slots=True)
class Routes:
    """The ways that a routed model has for texts, each the modules that it leads through, of which none is the router.

    ``ways`` begin with the one that is computed as other models are. ``by_task`` says which way texts of a task take,
    queries or documents, and ``default`` which those take of which nobody says what they are.
    """

    ways: tuple[tuple[ModuleEntry, ...], ...]
    by_task: tuple[tuple[str, int], ...]
    default: int = 0

    @property
    def first_task(self) -> str | None:
        """A task whose texts take the first way; ``None`` where only those do of which nobody says what they are."""
        return next((task for task, way in self.by_task if way == 0), None)

    @property
    def beside_first(self) -> tuple[int, ...]:
        """Which other ways begin as the first one does, with the same transformer."""
        first = self.ways[0][0]
        return tuple(number for number, way in enumerate(self.ways) if number and way[0] == first)


def stays_inside(folder: str) -> bool:
    """Tell whether a folder that a file names is one of the model's own."""
    path = PurePosixPath(folder)
    return not path.is_absolute() and ".." not in path.parts


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build an encoder from a directory, settings already applied.

    ``pooling``, ``normalize`` and ``max_length`` are ``None`` where the modules of the directory say it themselves.
    ``pooling_assumed``: nobody named a pooling, it is a guess the operator must hear of. ``modules`` is empty for
    layouts without ``modules.json``. ``truncate_dimension`` is the model's own cut of its vectors, ``matryoshka`` the
    sizes that it says it may be cut to. ``num_labels`` is set where the files that transformers reads do not say it;
    ``activation`` is what the model's library applies to scores. ``has_token_linears``: BGE-M3's layers for sparse and
    token vectors lie beside its weights. ``max_active`` is how many weights a sparse vector keeps. ``late`` is
    what a multi-vector model has beside its modules, ``generative`` how a language model is asked for scores.
    ``routes`` are the ways of a model that has several, of which ``modules`` are the first.
    """

    layout: Layout
    modules: tuple[ModuleEntry, ...] = ()
    pooling: Pooling | None = None
    pooling_assumed: bool = False
    normalize: bool | None = None
    max_length: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt_name: str | None = None
    truncate_dimension: int | None = None
    task: Task = "embed"
    num_labels: int | None = None
    activation: Activation = "identity"
    matryoshka: tuple[int, ...] = ()
    has_token_linears: bool = False
    max_active: int | None = None
    late: LateFiles | None = None
    generative: GenerativeFiles | None = None
    routes: Routes | None = None

    @property
    def scores(self) -> bool:
        """Whether the model gives scores, in place of vectors."""
        return self.task in ("rerank", "classify")
