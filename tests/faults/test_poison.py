"""Cases 2 to 5 of the list of faults: what is asked when a shard dies is answered, and what kills it is kept away.

Every answer's vectors are compared with their true values by ``Asking`` itself.
"""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.asking import Asked, Asking, SteadyLoad
from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import wait_until


@contextmanager
def serving(directory, **env):
    models = {name: FaultyModel(directory / name, entry={"max_batch_size": 32}) for name in ("en", "zh")}
    with FaultyServer(directory / "server", models, env=env) as it:
        it.wait_ready()
        yield it


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as it:
        yield it


def deaths(server, model_id="en"):
    return len(server.models[model_id].start_pids()) - 1


def test_case_2_fifty_requests_that_wait_behind_a_batch_survive_a_kill(server):
    # ``max_batch_size`` is 32 and the first request fills it, so that none of the fifty is on the device.
    model = server.models["en"]
    first = Asking(server, [Asked("en", ["!sleep=2", *(f"first {n}" for n in range(31))])])
    wait_until(lambda: any("first" in text for text in model.encoded()), 20, "the first batch has begun")
    waiting = Asking(server, [Asked("en", [f"waiting {n}"]) for n in range(50)])
    time.sleep(0.3)
    assert not [text for text in model.encoded() if "waiting" in text]
    os.kill(server.shard_pid("en"), signal.SIGKILL)
    assert {one.status for one in waiting.finish()} == {200}
    assert [one.status for one in first.finish()] == [200]
    texts = model.encoded()
    assert all(texts.count(f"waiting {n}") == 1 for n in range(50)), "an innocent was encoded twice"
    assert deaths(server) == 1


def test_case_3_what_was_on_the_device_is_tried_again_alone_and_the_rest_as_it_was(server):
    model = server.models["en"]
    started = Asking(server, [Asked("en", [f"!sleep=1 started {n}"]) for n in range(8)])
    wait_until(lambda: any("started" in text for text in model.encoded()), 20, "a batch has begun")
    queued = Asking(server, [Asked("en", [f"queued {n}"]) for n in range(42)])
    time.sleep(0.2)
    before = [text for text in model.encoded() if "started" in text]
    assert before
    os.kill(server.shard_pid("en"), signal.SIGKILL)
    assert {one.status for one in queued.finish()} == {200}
    assert {one.status for one in started.finish()} == {200}
    pid = server.shard_pid("en")
    again = [batch for owner, batch in model.batches() if owner == pid]
    for text in before:
        assert [text] in again, "a suspect was not alone"
    assert deaths(server) == 1


def test_case_4_a_text_that_kills_has_its_own_error_after_two_deaths_and_is_then_refused_at_once(server):
    with SteadyLoad(server, "en", "same model") as same, SteadyLoad(server, "zh", "other model") as other:
        (guilty,) = Asking(server, [Asked("en", ["!segfault now"])]).finish()
        assert (guilty.status, guilty.error["code"]) == (500, "request_crashed_model")
        assert guilty.answer.headers["x-should-retry"] == "false"
        wait_until(lambda: deaths(server) == 2, 20, "a third process is started")
        server.wait_for_states(en="ready")
        touched = len(server.models["en"].encoded())
        again = server.post("/v1/embeddings", {"model": "en", "input": ["fine", "!segfault now"]})
        assert (again.status, again.json["error"]["code"]) == (422, "input_quarantined")
        assert "Input 1" in again.json["error"]["message"]
        answered = len(same.done)
        same.wait_for(lambda: len(same.done) > answered, 20, "the model serves on")
    assert same.statuses() == other.statuses() == {200}
    assert "!segfault now" not in server.models["en"].encoded()[touched:]
    assert deaths(server) == 2
    assert deaths(server, "zh") == 0
    server.check("en", ["!segfault"[1:], "now"])


@pytest.mark.parametrize("order", ["!exit", "!kill"])
def test_case_4_however_it_kills_and_however_many_ask_it_does_so_twice(server, order):
    ask_many_at_once(server, order)
    assert deaths(server) == 2


def test_case_4_where_several_routers_are_asked_each_may_cost_one_death_more_and_all_know_it_then(tmp_path):
    with serving(tmp_path, EMB_PROVIDER_ROUTERS="3") as server:
        ask_many_at_once(server, "!exit")
        known = deaths(server)
        assert 2 <= known <= 2 + 2
        again = Asking(server, [Asked("en", ["!exit the same"]) for _ in range(12)]).finish()
        assert {one.status for one in again} == {422}
        assert deaths(server) == known


def test_case_4_a_killer_whose_clients_never_wait_for_its_deaths_is_found_out_all_the_same(server):
    killer = "!sleep=1 !exit and nobody waits"
    for count in (1, 2):
        (left,) = Asking(server, [Asked("en", [killer], {"x-request-timeout": "0.3"})]).finish()
        assert left.status == 504
        wait_until(lambda count=count: deaths(server) == count, 20, "it has killed the process")
        server.wait_for_states(en="ready")
    (refused,) = Asking(server, [Asked("en", [killer])]).finish()
    assert (refused.status, refused.error["code"]) == (422, "input_quarantined")
    server.check("en", ["after it"])
    assert deaths(server) == 2


def test_case_4_texts_that_kill_do_not_take_the_model_from_everybody_else_however_many_they_are(tmp_path):
    limits = {"EMB_PROVIDER_RESTART_LIMIT": "3", "EMB_PROVIDER_RESTART_DELAY_S": "0.05"}
    with serving(tmp_path, **limits) as server, SteadyLoad(server, "en", "innocent") as load:
        load.wait_for(lambda: len(load.done) > 0, 20, "the model has answered")
        for number in range(2):
            (guilty,) = Asking(server, [Asked("en", [f"!exit number {number}"])]).finish()
            assert guilty.error["code"] == "request_crashed_model"
        answered = len(load.done)
        load.wait_for(lambda: len(load.done) > answered + 1, 20, "the model serves on")
        assert deaths(server) == 4
    assert load.statuses() == {200}


def ask_many_at_once(server, order):
    poison = [Asked("en", [f"{order} the same"]) for _ in range(6)]
    innocent = [Asked("en", [f"innocent {n}", "你好"]) for n in range(20)]
    Asking(server, poison + innocent).finish()
    assert {one.status for one in innocent} == {200}
    assert {one.status for one in poison} <= {500, 422}
    assert {one.error["code"] for one in poison} <= {"request_crashed_model", "input_quarantined"}
    server.check("en", ["after it"])


def test_case_4_a_request_with_one_killer_among_many_texts_is_told_which_one(server):
    texts = [f"text {n}" for n in range(40)]
    texts[17] = "!exit here"
    (asked,) = Asking(server, [Asked("en", texts)]).finish()
    assert (asked.status, asked.error["code"]) == (500, "request_crashed_model")
    assert "input 17" in asked.error["message"]
    del texts[17]
    server.check("en", texts)
    assert deaths(server) == 2


def test_case_4_a_text_that_is_read_while_another_kills_is_not_taken_for_guilty(server):
    texts = ["!exit now", *(f"!slow-token=0.2 text {n}" for n in range(3))]
    (asked,) = Asking(server, [Asked("en", texts)]).finish()
    assert (asked.status, asked.error["code"]) == (500, "request_crashed_model")
    assert "input 0" in asked.error["message"]
    server.check("en", texts[1:])
    assert deaths(server) == 2


def test_case_4_a_text_that_kills_when_its_tokens_are_asked_for_is_kept_away_as_any_other(server):
    def tokens(texts):
        return server.post("/tokenize", {"model": "en", "inputs": texts})

    pool = ThreadPoolExecutor(4)
    poison = [pool.submit(tokens, ["fine", "!spell-exit"]) for _ in range(2)]
    innocent = [pool.submit(tokens, [f"text {n}", "!slow-spell=0.1"]) for n in range(2)]
    assert [[len(row) for row in one.result().json] for one in innocent] == [[6, 15]] * 2
    told = [one.result() for one in poison]
    assert {one.status for one in told} <= {500, 422}
    assert all(b"nput 1" in one.body for one in told)
    again = tokens(["!spell-exit"])
    assert again.status == 422
    assert b"has ended the model's process" in again.body
    server.wait_for_states(en="ready")
    server.check("en", ["!spell-exit"])
    assert deaths(server) == 2


def test_case_5_one_text_that_fails_leaves_its_neighbours_and_the_process_alone(server):
    pid = server.shard_pid("en")
    block = Asking(server, [Asked("en", ["!sleep=0.5 first"])])
    wait_until(lambda: "!sleep=0.5 first" in server.models["en"].encoded(), 20, "the device is busy")
    requests = [Asked("en", ["!raise me" if n == 13 else f"text {n}"]) for n in range(32)]
    requests[13].headers["x-request-id"] = "unlucky-13"
    asked = Asking(server, requests).finish()
    block.finish()
    assert [one.status for one in asked] == [500 if n == 13 else 200 for n in range(32)]
    assert asked[13].error["code"] == "encode_failed"
    assert re.search(r"encode_failed request_id=unlucky-13 ", server.story())
    assert server.shard_pid("en") == pid
    assert deaths(server) == 0
