from dataclasses import replace

import pytest

from emb_model_provider.messages.status import Progress, ShardHealth
from supervisor.report import ModelReport, RouterReport, ServerReport, from_json, model_report, render, span, to_json
from tests.support.statuses import make_status

REPORT = ServerReport(
    version="1.2.3",
    pid=10,
    address="http://127.0.0.1:9000",
    run_dir="/run/emb-provider",
    state="serving",
    uptime_s=93784.0,
    settings_read=1000.0,
    problems=("EMB_PROVIDER_PORT='x' cannot be used.\x1b[31m",),
    pending_restart=("EMB_PROVIDER_HOST",),
    router=RouterReport(11, 2, 50 * 1024 * 1024),
    models=(
        ModelReport("en", "ready", 12, 3, 61.0, waiting_texts=5, running_s=1.25, last_success=1090.0),
        ModelReport("zh", "failed", reason="no_such_model", detail="'x' is nowhere", breaker="open"),
        ModelReport("fr", "loading", pid=13, expected_ready_s=12.0),
    ),
)  # fmt: skip


def test_a_report_comes_back_from_json_as_it_was():
    assert from_json(to_json(REPORT)) == REPORT


def test_a_report_of_another_version_is_read_as_far_as_it_goes():
    value = to_json(REPORT)
    value["news"] = 1
    value["models"] = [{"model": "en", "state": "ready", "more": True}]
    del value["router"]
    assert from_json(value) == replace(REPORT, models=(ModelReport("en", "ready"),), router=RouterReport())


def test_the_table_says_what_an_operator_looks_for():
    text = render(REPORT, now=1100.0)
    lines = text.splitlines()
    assert "serving on http://127.0.0.1:9000, process 10, up 1d 2h" in lines[0]
    assert "settings read 1m 40s ago" in text
    assert "SETTINGS NOT IN USE: EMB_PROVIDER_PORT='x'" in text
    assert "\x1b" not in text, "what comes from outside cannot move the cursor"
    assert "counts only after a restart of the server: EMB_PROVIDER_HOST" in text
    (en,) = [line for line in lines if line.startswith("en ")]
    assert all(cell in en for cell in ("ready", "12", "1m 1s", "5 texts", "1.2 s", "10s ago", "closed"))
    (zh,) = [line for line in lines if line.startswith("zh ")]
    assert "open" in zh
    assert "  zh: no_such_model: 'x' is nowhere" in lines
    assert "loading (~12s)" in text
    heads = next(line for line in lines if line.startswith("MODEL"))
    assert en.index("5 texts") == heads.index("QUEUE"), "columns stand below one another"


def test_on_a_narrow_terminal_columns_that_tell_nothing_are_left_out_so_that_no_row_wraps():
    models = tuple(
        ModelReport(name, "ready", 12, 1, 61.0, last_success=1090.0, rss_bytes=2**29)
        for name in ("0", "all-MiniLM-L6-v2")
    )
    narrow = render(replace(REPORT, models=models), now=1100.0, columns=80).splitlines()[-3:]
    assert narrow[0].split() == ["MODEL", "STATE", "PID", "GEN", "AGE", "LAST", "SUCCESS", "RSS"]
    assert narrow[1].split() == ["0", "ready", "12", "1", "1m", "1s", "10s", "ago", "512", "MiB"]
    assert max(map(len, narrow)) <= 80
    models = (*models, ModelReport("zh", "ready", crashes=1))
    heads, *_, zh = render(replace(REPORT, models=models), now=1100.0, columns=80).splitlines()[-4:]
    assert zh[heads.index("CRASHES")] == "1", "what one row tells is shown"
    for columns in (0, 200):
        assert "BREAKER" in render(replace(REPORT, models=models), now=1100.0, columns=columns)


def test_the_table_tells_a_failed_model_that_is_tried_again_from_one_that_waits_for_a_person():
    models = (ModelReport("zh", "failed", expected_ready_s=25.0), ModelReport("fr", "failed"))
    zh, fr = render(replace(REPORT, models=models), now=1100.0).splitlines()[-2:]
    assert "failed (~25s)" in zh
    assert "~" not in fr


def test_the_table_says_that_inputs_are_in_quarantine_only_where_there_are_any():
    assert "quarantine" not in render(REPORT, now=1100.0)
    lines = render(replace(REPORT, router=RouterReport(11, quarantined=2)), now=1100.0).splitlines()
    assert lines[2].endswith(", inputs in quarantine: 2")


def test_the_table_says_how_far_a_download_is():
    status = make_status("en", state="downloading", expected_ready_s=75.0).replace(
        done_bytes=300 * 1024 * 1024, total_bytes=1200 * 1024 * 1024
    )
    model = model_report(status, age_s=5.0, rss_bytes=2048)
    assert "downloading 25 % of 1200 MiB (~1m 15s)" in render(replace(REPORT, models=(model,)), now=1100.0)
    without = replace(model, total_bytes=0)
    assert "downloading (~1m 15s)" in render(replace(REPORT, models=(without,)), now=1100.0)


def test_the_table_says_that_a_router_is_about_to_be_replaced():
    lines = render(replace(REPORT, router=RouterReport(11, renewing=True)), now=1100.0).splitlines()
    assert lines[2] == "router: process 11, restarted 0 times, -, to be replaced"


def test_a_row_of_the_shard_table_becomes_a_report():
    progress = Progress(7, 0.5, 3, 40, 1024, 99.0)
    status = make_status("en").replace(health=ShardHealth(progress, 1, 2, "half-open"))
    report = model_report(status, age_s=5.0, rss_bytes=2048)
    assert (report.boot_failures, report.crashes, report.breaker) == (1, 2, "half-open")
    assert (report.waiting_texts, report.waiting_tokens, report.running_s, report.last_success) == (3, 40, 0.5, 99.0)
    assert report.rss_bytes == 2048


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3661, "1h 1m"), (93784, "1d 2h"), (-5, "0s")]
)
def test_a_span_has_its_two_largest_units(seconds, text):
    assert span(seconds) == text
