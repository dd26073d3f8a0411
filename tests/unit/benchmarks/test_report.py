import json
from pathlib import Path

from benchmarks.disturbance import Usage, busy_seconds, others_share
from benchmarks.figure import Figure
from benchmarks.report import Row, document, lines, machine
from benchmarks.setting import Setting

MISSED = Figure("speed", 0.5, 0.9, "x", "at least", {"ours": [1.0, 2.0]}, "a note")


def test_a_missed_target_is_shown_with_its_parts():
    text = "\n".join(lines(Row("row", 1.0, [MISSED])))
    assert text.startswith("MISSED  speed")
    assert "a note" in text
    assert "ours: [1.0, 2.0]" in text


def test_a_figure_without_a_target_is_shown_without_a_verdict():
    (line, *_) = lines(Row("row", 1.0, [Figure("speed", 0.5, None, "x", "at least")]))
    assert line.split() == ["speed", "0.500", "x"]


def test_a_figure_that_failed_is_shown_with_its_reason():
    assert "FAILED  row: no such file" in next(lines(Row("row", 1.0, error="no such file")))


def test_a_row_that_was_disturbed_says_so():
    assert "DISTURBED: others used 40%" in "\n".join(lines(Row("row", 1.0, [MISSED], others_share=0.4)))
    assert "DISTURBED" not in "\n".join(lines(Row("row", 1.0, [MISSED], others_share=0.01)))


def test_the_file_holds_machine_versions_and_every_part():
    rows = [Row("row", 1.26, [MISSED]), Row("bad", 0.1, error="why")]
    setting = Setting(Path("/some/model"), (0, 1), quick=True, device="cuda:0", precision="fp16")
    content = json.loads(document(rows, setting, machine()))
    assert content["machine"]["processor"]
    assert content["versions"]["python"]
    assert content["quick"] is True
    assert content["cpus"] == [0, 1]
    assert (content["device"], content["precision"], content["model"]) == ("cuda:0", "fp16", "/some/model")
    good, bad = content["rows"]
    assert good["figures"][0] | {"parts": 0} == {
        "name": "speed", "value": 0.5, "target": 0.9, "unit": "x", "bound": "at least",
        "parts": 0, "note": "a note", "met": False,
    }  # fmt: skip
    assert good["figures"][0]["parts"] == {"ours": [1.0, 2.0]}
    assert bad["error"] == "why"


def test_busy_time_is_counted_on_the_cpus_in_use_and_without_idle_time():
    stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 10 50 900 40 5 5 30 0 0\ncpu1 1000 0 0 0 0 0 0 0 0 0\nintr 5\n"
    assert busy_seconds(stat, (0,), 100) == 2.0
    assert busy_seconds(stat, (0, 1), 100) == 12.0


def test_what_is_busy_and_not_ours_is_somebody_elses():
    assert others_share(Usage(0, 0, 0), Usage(10, 15, 5), cpus=2) == 0.5
    assert others_share(Usage(0, 0, 0), Usage(10, 5, 5.5), cpus=2) == 0.0
