"""Makes what a shard imports cheaper: packages left out that it never uses, no garbage looked for. Called by ``main``.

sentence-transformers imports scikit-learn, and with it SciPy, to evaluate models. Without them a shard starts a second
sooner and is 50 MB smaller (measured with sentence-transformers 6.2).
"""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Final, NoReturn

from emb_model_provider.lifecycle import THREAD_PLACING

_LEFT_OUT: Final = ("sklearn", "scipy")


def leave_out_evaluation() -> None:
    """Let every import of these packages succeed from now on and load nothing; a use of them raises ``ImportError``.

    For code that is known: a model's own code may do real work with these packages.
    """
    sys.meta_path.insert(0, _Hollow())


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Import within it: nothing is collected meanwhile, nor is what the modules have made ever looked through again.

    None of it is garbage, and with torch and transformers each look through everything takes a tenth of a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_torch_placed() -> None:
    """Import torch, and let no other copy of OpenMP place threads as it does.

    Its own has then placed this very thread. Another's (that of sentencepiece, which transformers imports) would find
    one CPU of all that are named, and warn of it; its threads would stand where ours compute.
    """
    import torch  # noqa: F401, PLC0415

    for name in THREAD_PLACING:
        os.environ.pop(name, None)


class _Hollow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages left out before the real ones are found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] not in _LEFT_OUT:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _HollowModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


class _HollowModule(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


class _Absent:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_arguments: object, **_options: object) -> NoReturn:
        raise ImportError(f"{self._name} is left out of shards (shard/loading/light_imports.py)")
