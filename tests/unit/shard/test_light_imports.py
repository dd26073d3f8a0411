import gc
import os
import subprocess
import sys

import pytest

from shard.loading.light_imports import without_collecting

PROGRAM = """
import sys
from shard.loading.light_imports import leave_out_evaluation
leave_out_evaluation()
from sklearn.metrics import pairwise_distances
import scipy.sparse
assert "numpy.linalg" not in sys.modules
import json, decimal
try:
    pairwise_distances([1])
except ImportError as error:
    print(error)
"""


def test_a_package_left_out_imports_as_nothing_and_says_so_when_it_is_used():
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "sklearn.metrics.pairwise_distances is left out of shards (shard/loading/light_imports.py)\n"


def test_no_garbage_is_looked_for_during_imports_nor_among_what_they_made():
    try:
        with without_collecting():
            assert not gc.isenabled()
            made: list[object] = []
        assert gc.isenabled()
        assert not any(one is made for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_after_an_import_that_fails_garbage_is_collected_again():
    try:
        with pytest.raises(ImportError), without_collecting():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


TWO_COPIES = """
import os
from shard.loading.light_imports import import_torch_placed
import_torch_placed()
import torch
torch.ones(1000, 1000).sum()
print(sorted(os.sched_getaffinity(0)))
import sentencepiece
"""


def test_openmp_is_told_where_to_run_once_and_no_second_copy_of_it_complains():
    cpus = sorted(os.sched_getaffinity(0))[:2]
    placing = {"OMP_PROC_BIND": "close", "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus)}
    done = subprocess.run(
        [sys.executable, "-c", TWO_COPIES],
        check=True, capture_output=True, text=True, timeout=60, env=os.environ | placing,
    )  # fmt: skip
    assert done.stdout == f"[{cpus[0]}]\n", "torch's own copy has placed the thread"
    assert done.stderr == ""
