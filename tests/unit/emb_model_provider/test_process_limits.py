"""Limits of memory are named as the shell names them, wherever too little of it may be the cause."""

import resource

import pytest

from emb_model_provider.process_limits import advice_without_threads, memory_limits

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("address_space", "data", "said"),
    [
        (UNLIMITED, UNLIMITED, ""),
        (300 * 1024, UNLIMITED, "ulimit -v 300"),
        (UNLIMITED, 7 * 1024 + 1, "ulimit -d 7"),
        (300 * 1024, 7 * 1024, "ulimit -v 300, ulimit -d 7"),
    ],
)
def test_those_that_are_set_are_told_and_no_others(monkeypatch, address_space, data, said):
    soft = {resource.RLIMIT_AS: address_space, resource.RLIMIT_DATA: data}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft[which], UNLIMITED))
    assert memory_limits() == said
    advice = advice_without_threads()
    assert "ulimit -u" in advice
    assert advice.endswith(f" or of memory ({said})" if said else "a container's pids limit)")
