"""A limit of open files under which nothing can be started is told before anything is."""

import errno
import os
import resource
from pathlib import Path

import pytest

from emb_model_provider.errors import ConfigurationError
from supervisor.descriptors import require_descriptors


def open_descriptors() -> set[int]:
    listed = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return {number for number in listed if Path(f"/proc/self/fd/{number}").exists()}  # not the one that listed them


@pytest.fixture
def leave_room():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(room: int) -> int:
        taken, limit = open_descriptors(), 0
        while room > 0:
            room -= limit not in taken
            limit += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        return limit

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("children", "needed"), [(2, 15), (10, 39)])
def test_a_start_that_could_make_no_process_is_refused_with_the_limits_name(leave_room, children, needed):
    before = open_descriptors()
    leave_room(needed)
    require_descriptors(children)
    limit = leave_room(needed - 1)
    with pytest.raises(ConfigurationError, match=rf"ulimit -n.* is {limit}, .* needs 1 more"):
        require_descriptors(children)
    assert open_descriptors() == before, "nothing stays open"


def test_what_has_nothing_to_do_with_the_limit_is_not_laid_to_it(monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError):
        require_descriptors(1)
