"""What a model's row says of the time that is left until it serves."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from emb_model_provider.messages.status import LoadProgress, Progress, Ready
from supervisor import shards
from supervisor.keeper import Death
from supervisor.shards import Shard
from tests.support.shard_settings import make_setting
from tests.support.statuses import make_info


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(shards.time, "monotonic", lambda: now.s)
    return now


@pytest.fixture
def shard(clock):
    made = Shard(make_setting(), lambda _shard: None, lambda: None)
    made.keeper = SimpleNamespace(report_every_s=1.0, boot_failures=0, crashes=0, breaker="closed", pid=1)
    made.launch(1)
    return made


def left_s(shard) -> float:
    return shard.current_status().expected_ready_s


def test_the_second_start_is_taken_to_last_as_long_as_the_first(shard, clock):
    clock.s += 8
    shard.on_message(Ready(make_info()))
    assert left_s(shard) == 0
    shard.launch(2)
    assert left_s(shard) == 8
    clock.s += 5
    assert left_s(shard) == 3


def test_a_start_that_is_overdue_is_taken_to_need_as_long_again(shard, clock):
    guess_s = left_s(shard)
    clock.s += guess_s
    assert left_s(shard) == 1
    clock.s += 50
    assert left_s(shard) == 50


def test_a_download_tells_by_its_rate(shard, clock):
    guess_s = left_s(shard)
    clock.s += 10
    shard.on_message(LoadProgress("downloading", 100, 400))
    assert left_s(shard) == pytest.approx(30 + guess_s)


def test_when_a_model_last_made_a_result_outlives_its_process(shard):
    shard.on_message(Progress(1, 0.0, 0, 0, 1, last_success=1_700_000_000.0))
    for generation in (2, 3):
        shard.launch(generation)
        assert shard.current_status().health.last_success == 1_700_000_000.0
        shard.on_message(Progress(0, 0.0, 0, 0, 1))
        assert shard.current_status().health.last_success == 1_700_000_000.0
    shard.on_message(Progress(1, 0.0, 0, 0, 1, last_success=1_700_000_009.0))
    assert shard.current_status().health.last_success == 1_700_000_009.0


def test_what_a_process_was_at_when_it_died_is_not_told_of_a_model_without_one(shard):
    shard.on_message(Ready(make_info()))
    shard.on_message(Progress(7, 2.5, 3, 90, 4096, last_success=1_700_000_000.0))
    shard.on_died(Death(1, was_ready=True, ended_because="", restart_in_s=60.0, breaker="open"))
    left = shard.current_status().health.progress
    assert (left.running_s, left.waiting_texts, left.waiting_tokens, left.rss_bytes) == (0, 0, 0, 0)
    assert (left.batches_done, left.last_success) == (7, 1_700_000_000.0), "what it has done stays done"


def test_a_start_that_a_person_asked_for_is_no_restart(shard):
    dead = Death(1, was_ready=False, ended_because="", restart_in_s=None, breaker="closed")
    shard.on_died(dead)
    shard.was_asked_for()
    shard.was_asked_for()
    shard.launch(2)
    assert (shard.status.generation, shard.status.restarts) == (2, 0)
    shard.on_died(dead)
    shard.launch(3)
    assert shard.status.restarts == 1, "that one followed a death"
    shard.was_asked_for()
    shard.on_died(dead)
    shard.launch(4)
    assert shard.status.restarts == 2, "who asked while it lived had nothing started"


@pytest.mark.parametrize(("cache", "parent"), [("/somewhere", "/somewhere"), ("", str(Path.home() / ".cache"))])
def test_converted_weights_lie_where_the_users_caches_lie(monkeypatch, cache, parent):
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert shards.own_cache() == Path(parent) / "emb-model-provider"
