"""A virtual environment for each peer: none of them shares a package with us or with another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

_REQUIREMENTS: Final = Path(__file__).parent / "requirements"
_INSTALL_TIMEOUT_S: Final = 1200.0
_DONE: Final = ".requirements"


class InstallError(RuntimeError):
    """A peer could not be installed; the message ends with what pip said last."""


def python_of(peer: str, root: Path) -> Path:
    """Return the interpreter of the peer's environment below ``root``, which is made where it is missing or old."""
    directory = root / peer
    python = directory / "bin" / "python"
    wanted = (_REQUIREMENTS / f"{peer}.txt").read_text("utf-8")
    done = directory / _DONE
    if not python.exists() or not done.exists() or done.read_text("utf-8") != wanted:
        _run([sys.executable, "-m", "venv", str(directory)])
        _run([str(python), "-m", "pip", "install", "-q", "-r", str(_REQUIREMENTS / f"{peer}.txt")])
        # Some bring it in a build for GPUs; beside torch for CPUs it cannot be imported, nor can what looks for it.
        _run([str(python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"])
        done.write_text(wanted, "utf-8")
    return python


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise InstallError(f"{command[3:]} took longer than {_INSTALL_TIMEOUT_S:g} s") from None
    if result.returncode:
        raise InstallError("\n".join(result.stderr.strip().splitlines()[-3:]))
