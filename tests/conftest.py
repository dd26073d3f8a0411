import os

import pytest
from hypothesis import settings

from tests.support.alone import turn

# A shared machine may stall for longer than hypothesis' default deadline; the time limit of each test still holds.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside pytest-timeout's: a wait for a turn is not the test's own time
def pytest_runtest_protocol(item):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(item.config.cache.mkdir("turns"), alone=item.get_closest_marker("alone") is not None):
        return (yield)
