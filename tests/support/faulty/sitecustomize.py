"""Put on PYTHONPATH by ``FaultyServer``: shards then load models that misbehave to order, without torch.

Only in ``-m shard`` processes, ``loading.loader``, ``hubs`` and torch are found here and not in their own room; all
else of a shard, and the whole of supervisor and router, is the real thing. Production code knows nothing of it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_REPLACED = {
    "shard.loading.loader": _HERE / "loader.py",
    "shard.hubs": _HERE / "hubs.py",
    "torch": _HERE / "no_torch.py",
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        replacement = _REPLACED.get(fullname)
        if replacement is None:
            return None
        # The real package's submodules (shard.hubs.snapshot) stay importable.
        real = [str(Path(folder) / "hubs") for folder in path] if fullname == "shard.hubs" else None
        return importlib.util.spec_from_file_location(fullname, replacement, submodule_search_locations=real)


if sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == ["shard"] if "-m" in sys.orig_argv else False:
    sys.meta_path.insert(0, _Finder())
