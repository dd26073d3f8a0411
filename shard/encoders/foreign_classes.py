"""Where transformers takes classes from that a model names in other repositories. Called by ``main``.

It would look into HuggingFace's cache, whatever hub they came from, and take what the main branch was when somebody
looked last. sentence-transformers asks by the same way for modules that are no transformers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from transformers import dynamic_module_utils
from transformers.utils.hub import HF_MODULES_CACHE

from emb_model_provider.errors import LoadError, LoadReason
from shard.mapped_files import have_changed, states_below

_LOCK: Final = ".emb-provider.lock"


def take_classes_from(places: Mapping[str, Path]) -> None:
    """Have the files of these repositories taken from these directories from now on, as a model's own from its own.

    transformers keeps a copy of a directory's code, under a hash of it, that all processes share. It writes that in
    place: another process that imports it meanwhile would have half a file, so that one at a time may look and write.
    """
    find = dynamic_module_utils.get_cached_module_file
    before = {directory: states_below(directory) for directory in places.values()}

    def find_here(repository: str | os.PathLike[str], *arguments: Any, **options: Any) -> str:  # noqa: ANN401 - as they are
        place = places.get(str(repository), Path(repository))
        if not place.is_dir():  # a model's code has asked by itself for a repository's
            return find(repository, *arguments, **options)
        with _alone():
            file = find(place, *arguments, **options)
        if have_changed(place, before.get(place, {})):
            raise LoadError(LoadReason.CORRUPT_DOWNLOAD, f"{place} has changed since: restart the model")
        return file

    dynamic_module_utils.get_cached_module_file = find_here  # type: ignore[assignment]  # it hands all others on


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let one process at a time in, wherever that can be had: who cannot write here has only what is whole."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            Path(HF_MODULES_CACHE).mkdir(parents=True, exist_ok=True)
            lock = os.open(Path(HF_MODULES_CACHE, _LOCK), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
