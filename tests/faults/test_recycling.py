"""Case 46: processes that are too old or too large are replaced one after another, and no client notices."""

import re

from tests.support import operator
from tests.support.asking import SteadyLoad
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import alive, wait_until


def assert_one_at_a_time(server):
    steps = re.findall(r" (replacing|taken_over) model=(\w+)", server.stderr)
    assert steps
    for (begun, model), (done, same) in zip(steps[::2], steps[1::2], strict=False):
        assert (begun, done) == ("replacing", "taken_over"), steps
        assert model == same


def test_case_46_processes_that_are_too_old_are_replaced_in_turn_without_an_error(tmp_path):
    models = {name: FaultyModel(tmp_path / name, load_s=0.3) for name in ("en", "zh")}
    env = {"EMB_PROVIDER_RECYCLE_AGE_S": "4"}
    with FaultyServer(tmp_path / "server", models, env=env) as server:
        server.wait_ready()
        first = {name: server.shard_pid(name) for name in models}
        with SteadyLoad(server, "en", "a") as one, SteadyLoad(server, "zh", "b") as other:
            for name, model in models.items():
                wait_until(lambda model=model: len(model.start_pids()) >= 3, 60, f"{name} is replaced twice")
            wait_until(lambda: not any(alive(pid) for pid in first.values()), 10, "the first ones have left")
        assert one.statuses() | other.statuses() == {200}
        assert_one_at_a_time(server)
        assert "it has run for" in server.stderr
        assert operator.model(server, "en").restarts == 0, "a replacement is no failure"


def test_case_46_a_process_that_leaks_is_replaced_before_it_takes_everything(tmp_path):
    models = {"en": FaultyModel(tmp_path / "en", leak_mb=5), "zh": FaultyModel(tmp_path / "zh")}
    env = {"EMB_PROVIDER_RECYCLE_RSS_MB": "150"}
    with FaultyServer(tmp_path / "server", models, env=env) as server:
        server.wait_ready()
        leaky, sound = server.shard_pid("en"), server.shard_pid("zh")
        with SteadyLoad(server, "en", "a") as load:
            wait_until(lambda: len(models["en"].start_pids()) >= 2, 60, "it is replaced")
            wait_until(lambda: not alive(leaky), 20, "it leaves")
        assert load.statuses() == {200}
        assert_one_at_a_time(server)
        assert re.search(r"replacing model=en why=\"it holds \d+ MiB\"", server.stderr)
        assert server.shard_pid("zh") == sound


def test_a_limit_below_what_a_model_needs_is_said_once_and_replaces_nobody(tmp_path):
    models = {"en": FaultyModel(tmp_path / "en")}
    with FaultyServer(tmp_path / "server", models, env={"EMB_PROVIDER_RECYCLE_RSS_MB": "5"}) as server:
        server.wait_ready()
        wait_until(lambda: operator.model(server, "en").age_s > 3, 20, "it has been looked at")
        assert server.stderr.count("EMB_PROVIDER_RECYCLE_RSS_MB is less than this model needs") == 1
        assert len(models["en"].start_pids()) == 1


def test_a_replacement_that_cannot_load_is_given_up_and_the_old_process_serves_on(tmp_path):
    models = {"en": FaultyModel(tmp_path / "en")}
    with FaultyServer(tmp_path / "server", models, env={"EMB_PROVIDER_RECYCLE_AGE_S": "3"}) as server:
        server.wait_ready()
        before = server.shard_pid("en")
        models["en"].behave(crashes=-1)
        with SteadyLoad(server, "en", "a") as load:
            wait_until(lambda: operator.model(server, "en").reason == "not_replaced", 20, "it is said")
            starts = len(models["en"].start_pids())
            seen = len(load.done)
            load.wait_for(lambda: len(load.done) > seen + 5, 10, "it goes on")
        assert load.statuses() == {200}
        assert server.shard_pid("en") == before
        assert len(models["en"].start_pids()) <= starts + 1, "it is not tried again and again"
