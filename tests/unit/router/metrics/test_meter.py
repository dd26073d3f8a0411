import asyncio
import os
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from emb_model_provider.messages.link import Encoded, InputError, Timing
from emb_model_provider.messages.status import BatchTotals, Progress, ShardHealth
from router.metrics import catalogue
from router.metrics.meter import Meter
from router.metrics.scripts import script_shares
from router.metrics.store import Gauges, Store, _birth
from router.metrics.tallies import Tallies, unpack
from router.requests import EncodeResult
from router.visit import Visit
from shard.batching.batch_totals import FILL_BOUNDS, RATIO_BOUNDS
from tests.support.statuses import make_info, make_status


def values(meter, models=()):
    text, content_type = meter.render(models, "")
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def get(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


def visit(**changes):
    part = Encoded(b"", 0, (3, 4), truncated=(1,), timing=Timing(tokenize_ms=1, queue_ms=20, encode_ms=300))
    result = EncodeResult("m", (part,), 7, (1,))
    return Visit(
        **{"route": "/v1/embeddings", "dialect": "openai", "model": "m", "result": result, "shares": (("cjk", 1.0),)}
        | changes
    )


def test_an_answer_counts_by_route_dialect_model_and_status_with_its_tokens_and_the_stages_of_its_time():
    meter = Meter()
    meter.answered(visit(), 200, 0.4)
    found = values(meter)
    labels = {"route": "/v1/embeddings", "dialect": "openai", "model": "m"}
    assert get(found, "emb_requests_total", **labels, status="200") == 1
    assert get(found, "emb_request_seconds_sum", **labels) == pytest.approx(0.4)
    assert get(found, "emb_request_seconds_bucket", **labels, le="0.5") == 1
    assert get(found, "emb_request_seconds_bucket", **labels, le="0.25") == 0
    assert get(found, "emb_tokens_total", model="m") == 7
    assert get(found, "emb_inputs_total", model="m") == 2
    assert get(found, "emb_truncated_inputs_total", model="m") == 1
    assert get(found, "emb_script_tokens_total", model="m", script="cjk") == 7
    stages = {
        stage: get(found, "emb_stage_seconds_sum", model="m", stage=stage)
        for stage in ("tokenize", "queue", "encode", "router")
    }
    assert stages == pytest.approx({"tokenize": 0.001, "queue": 0.02, "encode": 0.3, "router": 0.079})


def test_errors_count_by_code_refusals_by_reason_and_bad_inputs_of_good_requests_by_themselves():
    meter = Meter()
    meter.answered(visit(error="overloaded", result=None), 429, 0.001)
    meter.answered(visit(error="context_length_exceeded", result=None), 400, 0.001)
    errors = tuple(InputError(index, 400, "invalid_request_error", None, "bad") for index in range(2))
    part = Encoded(b"", 0, (0, 0), errors=errors)
    meter.answered(visit(result=EncodeResult("m", (part,), 0, ())), 200, 0.001)
    found = values(meter)
    assert get(found, "emb_errors_total", kind="overloaded", dialect="openai", model="m") == 1
    assert get(found, "emb_errors_total", kind="context_length_exceeded", dialect="openai", model="m") == 1
    assert get(found, "emb_refused_total", reason="overloaded") == 1
    assert get(found, "emb_failed_inputs_total", model="m") == 2


def test_several_routers_are_summed_whichever_is_asked(tmp_path, monkeypatch):
    first = Meter(Store(str(tmp_path), 0))
    first.answered(visit(), 200, 0.4)
    first.write()
    # This process writes for two routers: the second takes another process's number, one that lives.
    monkeypatch.setattr(os, "getpid", os.getppid)
    second = Meter(Store(str(tmp_path), 1))
    second.answered(visit(), 200, 0.1)
    found = values(second)
    assert get(found, "emb_tokens_total", model="m") == 14
    assert get(found, "emb_request_seconds_count", route="/v1/embeddings", dialect="openai", model="m") == 2
    assert get(found, "emb_routers") == 2
    assert get(found, "emb_router_starts_total") == 2


def test_what_routers_have_in_hand_is_summed_over_those_that_live(tmp_path, monkeypatch):
    first = Meter(Store(str(tmp_path), 0))
    first.in_flight = 2
    first.watch(lambda: Gauges(connections=3, quarantined=2, by_model={"m": (10, 1), "n": (5, 4)}))
    first.write()
    with monkeypatch.context() as dying:
        dying.setattr(os, "getpid", lambda: 2**22 + 1)
        dead = Meter(Store(str(tmp_path), 2))
        dead.watch(lambda: Gauges(connections=99, by_model={"m": (99, 99)}))
        dead.write()
    monkeypatch.setattr(os, "getpid", os.getppid)
    second = Meter(Store(str(tmp_path), 1))
    second.in_flight = 4
    second.watch(lambda: Gauges(connections=7, quarantined=1, by_model={"m": (20, 3)}))
    found = values(second)
    assert get(found, "emb_requests_in_flight") == 6
    assert get(found, "emb_connections") == 10
    assert get(found, "emb_quarantined_inputs") == 2
    admitted, waiting = catalogue.ADMITTED.name, catalogue.WAITING.name
    assert {model: (get(found, admitted, model=model), get(found, waiting, model=model)) for model in "mn"} == {
        "m": (30, 4),
        "n": (5, 4),
    }
    processes = {dict(labels)["process"] for name, labels in found if name == catalogue.MEMORY.name}
    assert {process for process in processes if process.startswith("router")} == {"router-0", "router-1"}


def test_counters_outlive_a_router_and_its_file_does_not(tmp_path, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(os, "getpid", lambda: 2**22 + 1)  # above the largest number a process can have
        before = Meter(Store(str(tmp_path), 0))
        before.in_flight = 5
        before.answered(visit(), 200, 0.4)
        before.write()
    other = Meter(Store(str(tmp_path), 1))
    found = values(other)
    assert get(found, "emb_tokens_total", model="m") == 7  # also while nobody has taken them over
    assert get(found, "emb_requests_in_flight") == 0  # but what a dead router had in hand is gone
    after = Meter(Store(str(tmp_path), 0))
    after.write()
    assert get(values(after), "emb_tokens_total", model="m") == 7
    assert {path.name for path in tmp_path.iterdir()} == {f"metrics-{index}-{os.getpid()}.mp" for index in (0, 1)}


def test_counts_of_one_that_still_finishes_in_this_place_are_not_taken_over_and_those_of_all_dead_ones_are(
    tmp_path, monkeypatch
):
    counted = Meter()
    counted.answered(visit(), 200, 0.4)
    for number in (os.getppid(), 2**22 + 1, 2**22 + 2):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "getpid", lambda number=number: number)
            Store(str(tmp_path), 0).write(counted.tallies, Gauges())
    (tmp_path / "metrics-0-77.mp").write_bytes(b"broken")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: 2**22 + 3)
        other = Meter(Store(str(tmp_path), 1))
    assert get(values(other), "emb_tokens_total", model="m") == 21
    after = Meter(Store(str(tmp_path), 0))
    assert after.tallies.counters["emb_tokens_total", "m"] == 14
    assert get(values(other), "emb_tokens_total", model="m") == 21
    assert get(values(after), "emb_tokens_total", model="m") == 21


def test_a_process_is_known_by_its_number_and_its_birth(tmp_path, monkeypatch):
    own = Store(str(tmp_path), 0)
    for number, later, is_alive in ((os.getppid(), 0, True), (os.getppid(), 1, False), (2**22 + 1, 0, False)):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "getpid", lambda number=number: number)
            other = Store(str(tmp_path), 1)
        other._born += later
        other.write(Tallies(), Gauges())
        (found,) = (one for one in own.others() if one.pid == number)
        assert found.is_alive is is_alive
    before = _birth(os.getpid())
    held = bytearray(2**22)  # the size of a process stands beside its birth, and changes
    assert 0 < before == _birth(os.getpid()), len(held)


def test_a_process_that_has_ended_and_is_not_waited_for_is_dead():
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert _birth(child.pid) == 0


def test_counters_do_not_fall_while_a_new_router_has_yet_to_write_what_it_took_over(tmp_path, monkeypatch):
    with monkeypatch.context() as dying:
        dying.setattr(os, "getpid", lambda: 2**22 + 1)
        before = Meter(Store(str(tmp_path), 0))
        before.answered(visit(), 200, 0.4)
        before.write()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", os.getppid)
        other = Meter(Store(str(tmp_path), 1))
    assert get(values(other), "emb_tokens_total", model="m") == 7
    after = Meter(Store(str(tmp_path), 0))
    assert get(values(other), "emb_tokens_total", model="m") == 7
    after.write()
    assert get(values(other), "emb_tokens_total", model="m") == 7


def test_a_file_that_is_not_whole_counts_for_nothing(tmp_path):
    (tmp_path / "metrics-3-77.mp").write_bytes(b"\x81\xa1")
    (tmp_path / "metrics-4-78.mp").write_bytes(b"\x80")
    assert get(values(Meter(Store(str(tmp_path), 0))), "emb_routers") == 1


def test_a_directory_that_is_gone_does_not_stop_the_router(tmp_path):
    meter = Meter(Store(str(tmp_path / "gone"), 0))
    meter.answered(visit(), 200, 0.1)
    assert get(values(meter), "emb_tokens_total", model="m") == 7


def test_a_model_tells_its_state_its_deaths_its_queue_and_its_batches():
    batches = BatchTotals(
        texts=9, tokens=90, computed_tokens=100, predicted_ms=2000, took_ms=3000,
        fill=(0, 0, 0, 1, 0, 0, 0, 0, 0.4), time_ratio=(0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1.5),
    )  # fmt: skip
    progress = Progress(3, 0.5, 11, 120, 2**20, 1_700_000_000.0, batches)
    health = ShardHealth(progress, boot_failures=2, crashes=1, breaker="open")
    status = make_status("m", info=make_info(fingerprint="f00d"), health=health, restarts=3, load_s=4.5)
    found = values(Meter(), [status])
    assert get(found, "emb_model_state", model="m", state="ready") == 1
    assert get(found, "emb_model_state", model="m", state="failed") == 0
    assert get(found, "emb_model_restarts_total", model="m") == 3
    assert get(found, "emb_model_crashes_total", model="m") == 1
    assert get(found, "emb_model_boot_failures_total", model="m") == 2
    assert get(found, "emb_model_breaker", model="m", state="open") == 1
    assert get(found, "emb_model_load_seconds", model="m") == 4.5
    assert get(found, "emb_model_ready", model="m") == 1
    facts = {"name": "owner/name", "device": "cpu", "precision": "fp32", "batching": "padded", "fingerprint": "f00d"}
    assert [dict(labels) for name, labels in found if name == "emb_model_info"] == [{"model": "m", **facts}]
    assert get(found, "emb_queue_texts", model="m") == 11
    assert get(found, "emb_queue_tokens", model="m") == 120
    assert get(found, "emb_running_batch_seconds", model="m") == 0.5
    assert get(found, "emb_last_success_timestamp_seconds", model="m") == 1_700_000_000
    assert get(found, "emb_batches_total", model="m") == 3
    assert get(found, "emb_batch_texts_total", model="m") == 9
    assert get(found, "emb_batch_tokens_total", model="m") == 90
    assert get(found, "emb_batch_predicted_seconds_total", model="m") == 2
    assert get(found, "emb_process_memory_bytes", process="model-m") == 2**20
    assert get(found, "emb_batch_computed_tokens_total", model="m") == 100
    assert get(found, "emb_batch_seconds_total", model="m") == 3
    assert get(found, "emb_batch_fill_ratio_bucket", model="m", le="0.5") == 1
    assert get(found, "emb_batch_time_ratio_sum", model="m") == 1.5
    assert get(found, "emb_batch_time_ratio_bucket", model="m", le="+Inf") == 1
    assert get(found, "emb_batch_time_ratio_count", model="m") == 1


def test_of_a_model_that_has_not_loaded_or_says_nothing_only_its_state_is_told():
    batches = BatchTotals(0, 0, 0, 0, 0, fill=(1.0,), time_ratio=())
    coming = make_status("m", state="loading", health=ShardHealth(Progress(0, 0.0, 0, 0, 1, 0.0, batches)))
    found = values(Meter(), [coming, make_status("n", state="failed")])
    assert get(found, "emb_model_ready", model="m") == get(found, "emb_model_ready", model="n") == 0
    told = {name for name, labels in found if ("model", "m") in labels}
    assert not told & {"emb_model_info", "emb_model_load_seconds", "emb_last_success_timestamp_seconds"}
    assert not [name for name in told if "ratio" in name], "rows of another version's buckets"
    assert not [name for name, labels in found if ("model", "n") in labels and "batch" in name]


def test_when_a_model_last_made_a_result_is_told_while_it_starts_again_too():
    """Or an alarm on its age would have nothing to look at just when a model keeps dying."""
    dead = make_status("m", state="restarting", health=ShardHealth(succeeded_before=1_700_000_000.0))
    assert get(values(Meter(), [dead]), "emb_last_success_timestamp_seconds", model="m") == 1_700_000_000


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_every_metric_stands_there_with_its_kind(accept):
    text, _ = Meter().render([], accept)
    is_open = bool(accept)
    kinds = dict(line.split()[2:] for line in text.decode().splitlines() if line.startswith("# TYPE"))
    assert kinds == {
        one.name.removesuffix("_total") if is_open and one.kind == "counter" else one.name: one.kind
        for one in catalogue.METRICS
    }


def test_a_label_may_hold_whatever_a_path_or_a_models_name_may():
    odd = 'a"b\\c\nd,{}=é'
    meter = Meter()
    meter.answered(visit(model=odd, result=None), 200, 0.1)
    labels = {"route": "/v1/embeddings", "dialect": "openai", "model": odd}
    assert get(values(meter), "emb_requests_total", **labels, status="200") == 1


def test_of_several_routers_the_loop_that_is_latest_and_the_memory_of_each_and_of_the_supervisor_are_told(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", os.getppid)
        other = Store(str(tmp_path), 1)
        other.write(Meter().tallies, Gauges(loop_lag_s=7.5, memory_bytes=77))
    found = values(Meter(Store(str(tmp_path), 0)))
    assert get(found, "emb_router_loop_lag_seconds") == 7.5
    assert get(found, "emb_process_memory_bytes", process="router-1") == 77
    for process in ("router-0", "supervisor"):
        assert get(found, "emb_process_memory_bytes", process=process) > 1_000_000


def test_the_longest_of_each_stage_and_the_inputs_of_all_slices_count():
    parts = (
        Encoded(b"", 0, (3, 4), truncated=(0, 1), timing=Timing(tokenize_ms=1, queue_ms=20, encode_ms=300)),
        Encoded(b"", 0, (5,), timing=Timing(tokenize_ms=2, queue_ms=10, encode_ms=100)),
    )
    meter = Meter()
    meter.answered(visit(result=EncodeResult("m", parts, 12, (0, 1)), shares=(("cjk", 0.25), ("latin", 0.75))), 200, 1)
    found = values(meter)
    for stage, longest_s in (("tokenize", 0.002), ("queue", 0.02), ("encode", 0.3), ("router", 0.678)):
        assert get(found, "emb_stage_seconds_sum", model="m", stage=stage) == pytest.approx(longest_s)
    assert get(found, "emb_inputs_total", model="m") == get(found, "emb_request_inputs_sum", model="m") == 3
    assert get(found, "emb_request_tokens_sum", model="m") == 12
    assert get(found, "emb_request_tokens_bucket", model="m", le="8.0") == 0
    assert get(found, "emb_truncated_inputs_total", model="m") == 2
    assert [get(found, "emb_script_tokens_total", model="m", script=one) for one in ("cjk", "latin")] == [3, 9]


def test_what_a_series_has_counted_before_is_kept_by_the_next_one():
    meter = Meter()
    for _ in range(3):
        meter.answered(visit(), 200, 0.4)
    found = values(meter)
    assert get(found, "emb_request_seconds_count", route="/v1/embeddings", dialect="openai", model="m") == 3
    assert get(found, "emb_stage_seconds_count", model="m", stage="encode") == 3
    assert not [name for name, _ in found if name in ("emb_errors_total", "emb_failed_inputs_total")]


def test_an_answer_that_is_no_refusal_is_none_and_connections_and_resent_slices_count():
    meter = Meter()
    meter.answered(visit(error="encode_failed", result=None), 500, 0.1)
    meter.answered(visit(error="model_not_found", result=None), 404, 0.1)
    assert not [name for name, _ in values(meter) if name == "emb_refused_total"]
    for status in (401, 403, 408, 413, 415, 429, 503):
        meter.answered(visit(error=f"e{status}", result=None), status, 0.1)
    meter.refused("too_many_connections")
    meter.resent("m")
    found = values(meter)
    refused = {dict(labels)["reason"] for name, labels in found if name == "emb_refused_total"}
    assert refused == {"e401", "e403", "e408", "e413", "e415", "e429", "e503", "too_many_connections"}
    assert get(found, "emb_resends_total", model="m") == 1


def test_what_the_device_had_no_memory_for_was_work_and_what_is_in_quarantine_is_none():
    meter = Meter()
    meter.answered(visit(error="input_too_large", result=None), 413, 0.1)
    assert not [name for name, _ in values(meter) if name == "emb_refused_total"]
    meter.answered(visit(error="input_quarantined", result=None), 422, 0.1)
    assert get(values(meter), "emb_refused_total", reason="input_quarantined") == 1


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"c": [["emb_gone_total", 1.0]], "h": []},
        {"c": [[1.0]], "h": []},
        {"c": None, "h": []},
        {"c": [], "h": None},
        {"c": [], "h": [[["emb_gone_seconds", "m"], [1.0, 1.0]], [["emb_request_seconds", "a", "b", "m"], [1.0, 2.0]]]},
    ],
)
def test_what_another_version_has_left_and_this_one_does_not_know_is_left_out(stored):
    assert unpack(stored) == Tallies()


async def test_a_loop_that_is_held_up_shows_at_once_and_for_some_seconds():
    meter = Meter()
    assert meter.loop_lag_s() == 0
    measuring = asyncio.create_task(meter.write_again_and_again())
    await asyncio.sleep(0.01)
    time.sleep(0.75)  # noqa: ASYNC251 - the loop is held up
    assert meter.loop_lag_s() > 0.4, "before the loop has found it out by itself"
    await asyncio.sleep(0.3)
    assert get(values(meter), "emb_router_loop_lag_seconds") > 0.4
    measuring.cancel()


async def test_a_router_writes_at_once_and_again_and_again_and_forgets_how_late_it_was(monkeypatch):
    monkeypatch.setattr("router.metrics.meter._LAG_EVERY_S", 0.0005)
    monkeypatch.setattr("router.metrics.meter._WRITE_EVERY_S", 0.001)
    written, enough = [], asyncio.Event()

    class Remembering(Store):
        def write(self, tallies, gauges):
            written.append(gauges.loop_lag_s)
            if len(written) > 16:
                enough.set()

    meter = Meter(Remembering("", 0))
    meter._lags_s = [9.0] * 15
    writing = asyncio.create_task(meter.write_again_and_again())
    await asyncio.sleep(0)
    assert written == [9.0]
    await enough.wait()
    writing.cancel()
    assert written[:15] == [9.0] * 15
    assert written[16] < 9


def test_who_accepts_openmetrics_gets_it():
    text, content_type = Meter().render([], "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_shard_and_router_mean_the_same_buckets():
    assert catalogue.BATCH_FILL.bounds == FILL_BOUNDS
    assert catalogue.TIME_RATIO.bounds == RATIO_BOUNDS


@pytest.mark.parametrize(
    ("texts", "shares"),
    [
        ([], {"ids": 1.0}),
        (["plain ASCII, 123"], {"latin": 1.0}),
        (["中文字符"], {"cjk": 1.0}),
        (["Grüße"], {"latin": 1.0}),
        (["中文中文", "four" * 4], {"cjk": 0.5, "latin": 0.5}),
        (["привет"], {"other": 1.0}),
        (["приветпривет", "a" * 24], {"other": 0.5, "latin": 0.5}),
        (["中" * 200 + "a" * 999], {"cjk": 1.0}),
        (["中", *["a" * 4] * 16], {"cjk": 1 / 9, "latin": 8 / 9}),
        ([""], {"latin": 1.0}),
    ],
)
def test_tokens_are_shared_out_by_script(texts, shares):
    assert dict(script_shares(texts)) == pytest.approx(shares)


def test_scripts_of_thousands_of_long_texts_cost_next_to_nothing():
    import time

    texts = ["中文与 English " * 500] * 2048
    began_s = time.thread_time()
    shares = script_shares(texts)
    assert time.thread_time() - began_s < 0.005
    assert sum(share for _, share in shares) == pytest.approx(1)
