"""The command refuses what cannot work before it starts anything, and warns about what looks like a mistake."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "python -m supervisor": (sys.executable, "-m", "supervisor"),
    "python -m emb_model_provider.main": (sys.executable, "-m", "emb_model_provider.main"),
    "emb-provider": (str(Path(sys.executable).with_name("emb-provider")),),
}


def run(
    directory, *arguments, command="python -m supervisor", dotenv=None, **settings
) -> subprocess.CompletedProcess[str]:
    if dotenv is not None:
        (directory / ".env").write_text(dotenv, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("EMB_PROVIDER_")}
    env |= {"XDG_RUNTIME_DIR": str(directory)} | {f"EMB_PROVIDER_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [*COMMANDS[command], *arguments],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_value_is_named_with_what_is_allowed_and_nothing_is_started(tmp_path, command):
    done = run(tmp_path, command=command, MODEL_PRECISION="fp8")
    assert done.returncode == 78
    assert "EMB_PROVIDER_MODEL_PRECISION" in done.stderr
    assert "fp8" in done.stderr
    assert "auto, fp32, fp16, bf16, int8, int4" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_mistake_is_reported_at_once(tmp_path):
    done = run(tmp_path, PORT="99999", MAX_BATCH_SIZE="0", DEVICE="tpu")
    assert done.returncode == 78
    for name in ("EMB_PROVIDER_PORT", "EMB_PROVIDER_MAX_BATCH_SIZE", "EMB_PROVIDER_DEVICE"):
        assert name in done.stderr


def test_a_mistake_in_the_mapping_is_shown_with_file_line_and_column(tmp_path):
    done = run(
        tmp_path, dotenv='# models\nEMB_PROVIDER_MODEL_MAPPING={\n  "a": {"name": "o/a"},\n  "b": {"name" "o/b"}\n}\n'
    )
    assert done.returncode == 78
    assert ".env:4:16" in done.stderr
    assert '"b": {"name" "o/b"}' in done.stderr


def test_a_contradiction_says_which_line_to_change(tmp_path):
    done = run(tmp_path, dotenv="EMB_PROVIDER_MODEL_PRECISION=int8\nEMB_PROVIDER_ENABLE_QUANTIZATION=false\n")
    assert done.returncode == 78
    assert "EMB_PROVIDER_ENABLE_QUANTIZATION" in done.stderr
    assert "EMB_PROVIDER_MODEL_PRECISION" in done.stderr


def test_cpus_this_machine_lacks_are_refused(tmp_path):
    done = run(tmp_path, MODEL_MAPPING='{"a": {"name": "o/a", "cpus": "4000-4001"}}')
    assert done.returncode == 78
    assert "'a' asks for cpus [4000, 4001]" in done.stderr


def test_check_validates_and_starts_nothing(tmp_path):
    (tmp_path / "other.env").write_text(
        'EMB_PROVIDER_MODEL_MAPPING={\n "a": {"name": "o/a"},\n "b": {"name": "o/b"}\n}\n'
    )
    done = run(tmp_path, "--check", "--env-file", "other.env")
    assert (done.returncode, done.stdout) == (0, "The settings are valid: 2 model(s).\n")


def test_an_env_file_that_does_not_exist_is_an_error_when_it_was_named(tmp_path):
    done = run(tmp_path, "--env-file", "nowhere.env")
    assert done.returncode == 78
    assert "nowhere.env" in done.stderr


def test_a_port_that_is_taken_is_a_sentence_that_says_what_to_do(short_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(short_path, PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "EMB_PROVIDER_PORT" in done.stderr
    assert list(short_path.iterdir()) == []


def test_json_logs_are_one_object_a_line_and_nothing_else(short_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("EMB_PROVIDER_")}
    env |= {
        "XDG_RUNTIME_DIR": str(short_path),
        "HF_HOME": str(short_path / "hf"),
        "EMB_PROVIDER_PORT": "0",
        "EMB_PROVIDER_OFFLINE": "true",
        "EMB_PROVIDER_MODEL_NAME": "nobody/nothing",
        "EMB_PROVIDER_LOG_FORMAT": "json",
        "EMB_PROVIDER_LOG_FILE": "",
    }
    process = subprocess.Popen(
        COMMANDS["python -m supervisor"],
        cwd=short_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    events = []
    while not events or events[-1].get("state") != "failed":
        events.append(json.loads(process.stderr.readline()))
    process.send_signal(signal.SIGINT)
    rest, stdout = process.stderr.read(), process.stdout.read()
    process.stderr.close()
    process.stdout.close()
    assert process.wait(10) == 0
    events += [json.loads(line) for line in rest.splitlines()]
    assert stdout == ""
    assert {"time", "level", "process", "event"} <= set.intersection(*(set(event) for event in events))
    assert "EMB_PROVIDER_OFFLINE is on" in next(event["detail"] for event in events if event.get("state") == "failed")
    assert not (short_path / "logs").exists()
