"""``.bin`` weights turned into safetensors once, kept in the cache: mapped files are shared between processes.

Called by ``checked_transformer``. Replicas may convert the same weights at the same time, and be ended while at it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from emb_model_provider.errors import LoadError
from emb_model_provider.logs import EventLog
from shard.model_files.weights import Checkpoint, find_checkpoint, read_pickled

log = EventLog("shard.model_files.converted_weights")

_FORMAT: Final = "1"  # part of a converted file's name: raise it when the conversion changes


def convert_once(checkpoint: Checkpoint, cache_directory: Path) -> Path | None:
    """Return a folder with the ``.bin`` weights as fp32 safetensors, made once; ``None`` if none can be kept.

    Mapped files cost no private memory and are shared between replicas. A changed ``.bin`` is converted anew, and
    what was made of the old one is deleted, as is what a process has left that was ended while it was at it, and what
    is no longer whole.
    """
    origin, version = _fingerprint(checkpoint.files)
    target = cache_directory / "converted" / f"{origin}-{version}"
    if _is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _staging(target.parent, origin) as staging:
            _convert(checkpoint, staging)
            (staging / "complete").touch()
            _publish(staging, target)
    except (OSError, SafetensorError) as error:  # most likely a full disk: serving from the .bin still works
        log.warning("weights_not_converted", folder=checkpoint.folder, cache=cache_directory, error=error)
        return None
    for outdated in target.parent.glob(f"{origin}-*"):
        if outdated != target:
            shutil.rmtree(outdated, ignore_errors=True)
    log.info("weights_converted", folder=checkpoint.folder, into=target)
    return target


def _fingerprint(files: Iterable[Path]) -> tuple[str, str]:
    where, what = hashlib.sha256(), hashlib.sha256(_FORMAT.encode())
    for file in files:
        real = file.resolve()  # a hub's snapshot is links to blobs that are named by their content
        status = real.stat()
        where.update(f"{file.absolute()}\0".encode())
        what.update(f"{real}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return where.hexdigest()[:24], what.hexdigest()[:24]


def _convert(checkpoint: Checkpoint, folder: Path) -> None:
    weight_map: dict[str, str] = {}
    for number, file in enumerate(checkpoint.files, 1):
        tensors = {
            # A copy each: safetensors refuses tensors that share memory, as tied weights do.
            name: (tensor.float() if tensor.is_floating_point() else tensor).clone(
                memory_format=torch.contiguous_format
            )
            for name, tensor in read_pickled(file).items()
        }
        name = f"model-{number:05}-of-{len(checkpoint.files):05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        _flush(folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    if len(checkpoint.files) == 1:
        (folder / name).rename(folder / "model.safetensors")
    else:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _is_whole(target: Path) -> bool:
    """Tell whether a conversion was finished and is still all there: half of one may have been tidied away."""
    with contextlib.suppress(OSError, LoadError):
        return (target / "complete").exists() and bool(find_checkpoint(target).files)
    return False


@contextlib.contextmanager
def _staging(parent: Path, origin: str) -> Iterator[Path]:
    """Make a folder to convert in, which is deleted in the end, as those are now that nobody is at any more."""
    with contextlib.ExitStack() as stack:
        with _claimed(parent, wait=True):  # or another replica could find ours before it is claimed
            for unfinished in parent.glob(f".{origin}-*"):
                with contextlib.suppress(OSError), _claimed(unfinished) as is_ours:
                    if is_ours:
                        shutil.rmtree(unfinished, ignore_errors=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{origin}-", dir=parent))
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            stack.enter_context(_claimed(staging))
        yield staging


@contextlib.contextmanager
def _claimed(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a folder for as long as this process is at it; tell whether it could be: some file systems have no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        is_locked = True
    except OSError:
        is_locked = False
    try:
        yield is_locked
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Bring a file to the disk: after a power cut, a folder that says complete must be."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _publish(staging: Path, target: Path) -> None:
    # mkdtemp made it 0700, which would keep a second service account out of a shared cache.
    staging.chmod(0o777 & ~_umask())
    with _claimed(target.parent, wait=True):  # or what another replica publishes now could be taken for the broken one
        try:
            staging.rename(target)
        except OSError:
            if not _is_whole(target):  # otherwise another replica was quicker, with the same content
                shutil.rmtree(target)
                staging.rename(target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
