import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.alone import turn
from tests.support.server import WAIT_POLICY

# Read when torch comes in. The suite has as many processes as a small machine has CPUs, and a thread of OpenMP that
# waits in a loop keeps the CPU from the very thread that it waits for.
os.environ.setdefault(WAIT_POLICY, "passive")

# A shared machine may stall for longer than hypothesis' default deadline; the time limit of each test still holds.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


#: Their tests mostly wait for processes; those of the others mostly compute.
_WAITING = ("chaos", "faults")


def pytest_collection_modifyitems(items):
    """Let files that wait and files that compute take turns, so that two processes rarely do the same at a time."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [group for path, group in files.items() if path.parent.name in _WAITING]
    computing = [group for path, group in files.items() if path.parent.name not in _WAITING]
    taking_turns = itertools.chain.from_iterable(itertools.zip_longest(waiting, computing, fillvalue=[]))
    items[:] = itertools.chain.from_iterable(taking_turns)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside pytest-timeout's: a wait for a turn is not the test's own time
def pytest_runtest_protocol(item):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(item.config.cache.mkdir("turns"), alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture
def short_path():
    """A directory with room for sockets in it: ``tmp_path`` may be too deep for the 107 bytes that Unix allows."""
    with tempfile.TemporaryDirectory(prefix="emb-") as path:
        yield Path(path)
