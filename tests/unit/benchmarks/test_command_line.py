import json

import pytest

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.figure import Figure
from benchmarks.figures import ALL, ON_CARD
from benchmarks.serving import serving
from benchmarks.setting import Setting
from benchmarks.worker import WorkerError


def options(*arguments):
    return command._options(arguments)


def test_a_cpu_computes_in_fp32_and_a_card_in_fp16_unless_told_otherwise():
    assert (options().device, options().precision) == ("cpu", "fp32")
    assert options("--device", "cuda:1").precision == "fp16"
    assert options("--device", "cuda:1", "--precision", "bf16").precision == "bf16"
    assert options("--device", "cuda").device == "cuda:0"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_other_devices_are_refused(device, capsys):
    with pytest.raises(SystemExit, match="2"):
        options("--device", device)
    assert "cuda:0" in capsys.readouterr().err


def test_a_row_that_says_nothing_of_a_card_is_refused_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        options("--device", "cuda:0", "--only", "bulk", "int8")
    assert "not measured on a CUDA device: int8" in capsys.readouterr().err
    assert options("--only", "bulk", "int8").only == ["bulk", "int8"]


def test_every_row_of_a_card_is_a_row():
    assert set(ON_CARD) < set(ALL)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Run the command with rows that only note their setting; return the settings and the file."""

    def run(*arguments):
        seen = []

        def measure(setting):
            seen.append(setting)
            return [Figure("speed", 1.0, None if setting.on_card else 2.0, "x", "at least")]

        card = {"name": "A card", "cuda": "13.0", "driver": "580"}
        monkeypatch.setattr(command, "ALL", dict.fromkeys(ALL, measure))
        monkeypatch.setattr(command, "end_what_was_started", lambda: None)
        monkeypatch.setattr(command, "take_cpus", lambda count: tuple(range(count)))
        monkeypatch.setattr(report, "describe_card", lambda device: {**card, "device": device})
        out = tmp_path / "out.json"
        assert command.main([*arguments, "--model", str(tmp_path), "--out", str(out)]) == 0
        return seen, json.loads(out.read_text("utf-8"))

    return run


def test_on_a_card_its_rows_are_measured_with_it_and_the_file_names_it(measured, capsys, tmp_path):
    seen, file = measured("--device", "cuda", "--cores", "16")
    assert [row["name"] for row in file["rows"]] == list(ON_CARD)
    assert set(seen) == {Setting(tmp_path.resolve(), tuple(range(16)), device="cuda:0", precision="fp16")}
    assert file["machine"]["card"] == {"name": "A card", "cuda": "13.0", "driver": "580", "device": "cuda:0"}
    printed = capsys.readouterr().out
    assert "A card in fp16, CUDA 13.0, driver 580" in printed
    assert "0 of 0 targets met." in printed


def test_without_a_device_all_rows_are_measured_on_the_cpu(measured, capsys, tmp_path):
    seen, file = measured()
    assert [row["name"] for row in file["rows"]] == list(ALL)
    assert set(seen) == {Setting(tmp_path.resolve(), (0, 1))}
    assert "card" not in file["machine"]
    assert f"0 of {len(ALL)} targets met; missed: speed" in capsys.readouterr().out


def test_a_missing_card_is_told_before_anything_is_measured(monkeypatch, capsys, tmp_path):
    def missing(device):
        raise WorkerError("no such card")

    monkeypatch.setattr(command, "take_cpus", lambda count: (0,))
    monkeypatch.setattr(command, "end_what_was_started", lambda: None)
    monkeypatch.setattr(command, "machine", missing)
    assert command.main(["--device", "cuda:7", "--model", str(tmp_path)]) == 2
    assert "no such card" in capsys.readouterr().err


def test_on_a_card_texts_are_used_more_often_and_all_of_them_warm_it_up(tmp_path):
    texts = [f"text {number}" for number in range(200)]
    cpu, card = Setting(tmp_path, (0,)), Setting(tmp_path, (0,), device="cuda:0")
    assert cpu.enough(texts) == texts
    assert len(cpu.warm_up(texts)) == 100
    assert len(set(card.enough(texts))) == 3200
    assert card.warm_up(texts) == texts


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda:1", "bf16")])
def test_the_server_has_the_settings_device_and_precision(monkeypatch, tmp_path, device, precision):
    started = {}

    class Process:
        def __init__(self, command, env, **_):
            started.update(env)

        def send_signal(self, number):
            pass

        def wait(self, timeout=None):
            return 0

    monkeypatch.setattr("benchmarks.serving.subprocess.Popen", Process)
    with serving(Setting(tmp_path, (0,), device=device, precision=precision), wait=False):
        pass
    assert started["EMB_PROVIDER_DEVICE"] == device
    mapping = json.loads(started["EMB_PROVIDER_MODEL_MAPPING"])
    assert mapping == {"minilm": {"name": str(tmp_path), "precision": precision}}
