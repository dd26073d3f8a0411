import pytest

from tests.support.leaks import nothing_left


@pytest.fixture(autouse=True)
def leaves_nothing(request):
    """No process, zombie or socket file outlives a test. A test that kills the supervisor itself cleans up."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    with nothing_left(request.getfixturevalue("tmp_path")):
        yield
