"""The card that is measured on. torch is asked in a worker process; the main process does not import it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping

from benchmarks.bare_engine import worker_environment
from benchmarks.worker import Worker

_DRIVER_TIMEOUT_S = 30.0


def describe_card(device: str) -> dict[str, object]:
    """Return the card's name and size, and the versions of CUDA and driver; raise ``WorkerError`` for no card."""
    with Worker("benchmarks.card:Card", device, environment=worker_environment(1)) as worker:
        seen: dict[str, object] = worker.call("describe")
    return seen | {"driver": driver_version()}


class Card:
    """Lives in the worker process."""

    def __init__(self, device: str) -> None:
        self._device = device

    def describe(self) -> Mapping[str, object]:
        """Return what torch sees."""
        import torch  # noqa: PLC0415

        properties = torch.cuda.get_device_properties(torch.device(self._device))
        return {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }


def driver_version() -> str:
    """Return what ``nvidia-smi`` says, "" where it is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DRIVER_TIMEOUT_S)
        return (answer.stdout.splitlines() or [""])[0].strip()
    return ""
