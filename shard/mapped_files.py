"""Files that this process computes from: weights in fp32 are mapped, so that who writes into the file changes them.

``cp`` over a file and ``rsync --inplace`` do so; a new file under the same name leaves the mapped one as it is.
Found by ``main`` after loading, looked at by ``engine`` after each batch, at a system call for each file.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.logs import EventLog
from shard.encoder import FatalDeviceError

log = EventLog("shard")

#: The path of a mapped file in proc(5), maps.
_MAPPED: Final = re.compile(r" (/.*)$", re.MULTILINE)

#: When a file was last written to, in nanoseconds, its bytes, and which one it is.
State = tuple[int, int, int]


def states_below(directory: Path) -> dict[Path, State]:
    """Return the state of each file below ``directory``, by its real path; to be taken before they are read."""
    found: dict[Path, State] = {}
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # gone already, or not ours to look at: then nor to load
            if path.is_file():
                found[path.resolve()] = _state(path.stat())
    return found


def have_changed(directory: Path, before: dict[Path, State]) -> bool:
    """Tell whether one of the files below ``directory`` is gone, written to or another one than ``before``."""
    now = states_below(directory)
    return any(now.get(path) != state for path, state in before.items())


class MappedFiles:
    """The checkpoints that are mapped, held open: what stands under their names later may be other files."""

    def __init__(self, before: dict[Path, State]) -> None:
        """Look among ``before``, and for converted weights; raise ``LoadError`` where one has changed since."""
        self._files: list[tuple[Path, int, State]] = []
        for path in _mapped():
            if path not in before and path.suffix != ".safetensors":
                continue
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # it is gone: nobody can write to it by its name
                continue
            now = _state(os.fstat(descriptor))
            self._files.append((path, descriptor, now))
            if before.get(path, now) != now:
                self.close()
                sentence = f"{path} has changed while it was being loaded; it is loaded once more"
                raise LoadError(LoadReason.CORRUPT_DOWNLOAD, sentence)

    def check(self) -> None:
        """Raise ``FatalDeviceError`` where one has been written to: what was computed since may be of a mix."""
        for path, descriptor, before in self._files:
            if _state(os.fstat(descriptor)) != before:
                log.error(
                    "weights_changed",
                    file=path,
                    why="it was written to while it was in use: nothing computed from it can be trusted, and the model "
                    "is loaded anew; put new files in the place of old ones (mv)",
                )
                raise FatalDeviceError(f"{path} was written to")

    def close(self) -> None:
        for _, descriptor, _ in self._files:
            os.close(descriptor)
        self._files.clear()


def _mapped() -> list[Path]:
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return list(map(Path, dict.fromkeys(_MAPPED.findall(maps))))


def _state(found: os.stat_result) -> State:
    return found.st_mtime_ns, found.st_size, found.st_ino
