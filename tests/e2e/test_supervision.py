"""Real processes are killed, stopped and pinned, and the others do not notice."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.processes import (
    alive,
    allowed_cpus,
    children_of,
    command_line,
    environment,
    is_zombie,
    wait_until,
)
from tests.support.server import KeyedServer, Server
from tests.support.tiny_models import make_plain, make_sentence_transformers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    make_sentence_transformers(root / "en", seed=1)
    make_sentence_transformers(root / "zh", seed=2)
    make_plain(root / "plain", seed=3)
    return root


def two_models(models, tmp_path, **env) -> Server:
    first, *_, last = sorted(os.sched_getaffinity(0))
    mapping = f"""EMB_PROVIDER_MODEL_MAPPING={{
      "en": {{"name": "{models}/en", "cpus": "{first}", "precision": "fp32"}},
      "zh": {{"name": "{models}/zh", "cpus": "{last}"}}
    }}
    EMB_PROVIDER_API_KEYS=first-secret-key,second-secret-key
    """
    return Server(tmp_path, dotenv=mapping, env=env)


class PairServer(KeyedServer):
    key = "second-secret-key"


@pytest.fixture(scope="module")
def pair(models, tmp_path_factory):
    server = two_models(models, tmp_path_factory.mktemp("pair"))
    server.__class__ = PairServer
    with server:
        server.wait_ready()
        yield server


class Load(threading.Thread):
    """Asks one model again and again and remembers every answer."""

    def __init__(self, server: Server, model: str) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self.vectors: list[list[float]] = []
        self._server, self._model, self._done = server, model, threading.Event()

    def run(self):
        while not self._done.is_set():
            answer = self._server.post("/v1/embeddings", {"model": self._model, "input": ["负载 load"] * 3})
            self.statuses.append(answer.status)
            if answer.status == 200:
                self.vectors += [item["embedding"] for item in answer.json["data"]]

    def finish(self):
        self._done.set()
        self.join(90)


def test_a_killed_shard_comes_back_while_the_other_models_clients_see_no_error(pair):
    before = pair.embed("en", ["负载 load"])[0]
    loads = [Load(pair, model) for model in ("en", "en", "zh", "zh")]
    for load in loads:
        load.start()
    time.sleep(0.5)
    victim, router = pair.shard_pid("en"), [p for p in pair.family() if "router" in command_line(p)]
    other = pair.shard_pid("zh")
    os.kill(victim, signal.SIGKILL)
    killed_s = time.monotonic()
    wait_until(lambda: pair.states()["en"] != "ready", 10, "the loss is noticed")
    pair.wait_for_states(en="ready")
    back_after_s = time.monotonic() - killed_s
    time.sleep(0.5)
    for load in loads:
        load.finish()
    assert pair.shard_pid("en") != victim
    assert pair.shard_pid("zh") == other
    assert router == [p for p in pair.family() if "router" in command_line(p)]
    zh = [load for load in loads if load._model == "zh"]
    assert all(set(load.statuses) == {200} for load in zh)
    assert min(len(load.statuses) for load in zh) > 20
    # The clients of the killed model waited for it: latency, no error, and the right vectors.
    assert all(set(load.statuses) == {200} for load in loads), [set(load.statuses) for load in loads]
    for load in loads[:2]:
        for vector in load.vectors:
            assert vector == pytest.approx(before, abs=1e-6)
    assert pair.get("/ready").json["models"]["en"]["restarts"] == 1
    assert back_after_s < 60


def test_two_models_run_on_the_two_cpus_they_were_given(pair):
    first, *_, last = sorted(os.sched_getaffinity(0))
    assert set(allowed_cpus(pair.shard_pid("en"))) == {str(first)}
    assert set(allowed_cpus(pair.shard_pid("zh"))) == {str(last)}
    for model in ("en", "zh"):
        env = environment(pair.shard_pid(model))
        assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "1"
        assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_no_secret_is_in_a_command_line_an_environment_or_the_log(pair):
    for pid in pair.family()[1:]:
        assert not [word for word in command_line(pid) if "secret-key" in word]
        assert not [value for value in environment(pid).values() if "secret-key" in value]
    log = (pair.directory / "logs" / "emb_model_provider.log").read_text()
    assert "model_state" in log
    assert "secret-key" not in log + pair.story()


def test_no_process_leaves_a_core_file_which_would_hold_keys_and_texts(pair):
    for pid in pair.family():
        assert re.search(r"^Max core file size +0 +0 ", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE), pid


def test_without_a_key_only_health_answers(pair):
    assert Server.get(pair, "/health").status == 200
    for path in ("/ready", "/v1/models"):
        assert Server.get(pair, path).status == 401


def test_a_killed_router_is_back_on_the_same_port_and_no_shard_has_changed(pair):
    shards = {model: pair.shard_pid(model) for model in ("en", "zh")}
    (router,) = [pid for pid in pair.family() if "router" in command_line(pid)]
    os.kill(router, signal.SIGKILL)
    # The connection is queued in the supervisor's socket until the next router takes it.
    wait_until(lambda: not alive(router), 5, "the router is gone")
    assert len(pair.embed("zh", ["回来了"])) == 1
    assert {model: pair.shard_pid(model) for model in shards} == shards
    assert not [pid for pid in children_of(pair.process.pid) if is_zombie(pid)]


def test_a_shard_that_lives_but_cannot_be_reached_is_replaced(pair):
    victim, other = pair.shard_pid("en"), pair.shard_pid("zh")
    for socket_file in pair.run_directory.rglob("s0-*.sock"):
        socket_file.unlink()
    (router,) = [pid for pid in pair.family() if "router" in command_line(pid)]
    os.kill(router, signal.SIGKILL)  # its open link would have worked on without the file
    wait_until(lambda: not alive(router), 5, "the router is gone")
    assert len(pair.embed("en", ["找不到门"])) == 1
    assert not alive(victim)
    assert pair.shard_pid("zh") == other


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(models, tmp_path):
    server = Server(tmp_path, env={"EMB_PROVIDER_MODEL_NAME": f"{models}/en", "EMB_PROVIDER_DEVICE": "cpu"}).start()
    server.wait_ready()
    family = server.family()
    answers = []
    # All different: equal texts would be encoded once.
    texts = [f"在途 in flight {index} " + "词 word " * 100 for index in range(2048)]
    asking = threading.Thread(
        target=lambda: answers.append(server.post("/v1/embeddings", {"model": "en", "input": texts}))
    )
    asking.start()
    time.sleep(0.4)
    assert not answers, "the request ended before the signal: make it longer"
    assert server.stop() == 0
    asking.join(10)
    assert [answer.status for answer in answers] == [200]
    assert len(answers[0].json["data"]) == 2048
    assert not [pid for pid in family if alive(pid)]
    assert list(server.run_directory.iterdir()) == []


def test_sigkill_of_the_supervisor_leaves_no_process_and_the_next_start_sweeps_its_directory(models, tmp_path):
    settings = {"EMB_PROVIDER_MODEL_NAME": f"{models}/en"}
    server = Server(tmp_path, env=settings).start()
    server.wait_ready()
    family = server.family()
    server.kill()
    wait_until(lambda: not any(alive(pid) for pid in family), 2, "every child is gone")
    assert len(list(server.run_directory.iterdir())) == 1
    with Server(
        tmp_path, env=settings | {"XDG_RUNTIME_DIR": str(server.run_directory)}
    ):  # its exit checks that the directory is empty again
        assert len(list(server.run_directory.iterdir())) == 1


def test_sigterm_while_models_load_is_a_clean_stop_and_a_second_signal_a_fast_one(models, tmp_path):
    with Server(tmp_path, env={"EMB_PROVIDER_MODEL_NAME": f"{models}/en"}) as server:
        wait_until(lambda: len(server.family()) == 3, 10, "router and shard are started")


@pytest.mark.alone
def test_the_port_answers_within_a_second_of_the_command_long_before_the_model(models, tmp_path):
    server = Server(tmp_path, env={"EMB_PROVIDER_MODEL_NAME": f"{models}/en", "EMB_PROVIDER_READY_WAIT_S": "0.1"})
    began_s = time.monotonic()
    with server:
        listening_s = time.monotonic() - began_s
        assert server.get("/health").status == 200
        answering_s = time.monotonic() - began_s
        assert server.states()["en"] in ("starting", "loading")
        answer = server.post("/v1/embeddings", {"model": "en", "input": "hi"})
        assert answer.status == 503
        assert answer.json["error"]["code"] == "model_not_ready"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        server.wait_ready()
        assert server.embed("en", ["hi"])
    assert listening_s < 1.0
    # Two interpreters start, one after the other: on a machine where that alone takes longer, it may.
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import aiohttp, uvloop, msgpack, orjson"], check=True)
    assert answering_s < max(1.5, 3 * (time.monotonic() - began_s))


def test_a_model_that_cannot_load_is_failed_with_a_reason_and_stops_nobody_else(models, tmp_path):
    (tmp_path / "empty").mkdir()
    mapping = f'{{"good": {{"name": "{models}/plain", "pooling": "cls"}}, "bad": {{"name": "{tmp_path}/empty"}}}}'
    with Server(tmp_path, env={"EMB_PROVIDER_MODEL_MAPPING": mapping}) as server:
        server.wait_for_states(good="ready", bad="failed")
        assert server.embed("good", ["好"])
        answer = server.post("/v1/embeddings", {"model": "bad", "input": "hi"})
        assert (answer.status, answer.json["error"]["code"]) == (503, "model_failed")
        (bad,) = [model for model in server.get("/v1/models").json["data"] if model["id"] == "bad"]
        assert bad["reason"]
        assert bad["detail"] in answer.json["error"]["message"]
        assert re.search(r"bad\s+FAILED", server.stdout)
        time.sleep(1.5)  # longer than the first restart delays: it must not be tried again
        assert len(children_of(server.process.pid)) == 2


def test_our_packages_are_found_before_a_folder_of_the_same_name_where_the_user_stands(models, tmp_path):
    (tmp_path / "shard").mkdir()
    (tmp_path / "shard" / "__init__.py").write_text("raise SystemExit('the wrong shard')")
    command = (str(Path(sys.executable).with_name("emb-provider")),)
    server = Server(tmp_path, env={"EMB_PROVIDER_MODEL_NAME": f"{models}/en"})
    server.start(command)
    try:
        server.wait_ready()
    finally:
        assert server.stop() == 0


def test_a_foreign_distribution_that_owns_our_folder_is_named(tmp_path):
    fake = tmp_path / "supervisor-4.3.0.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: supervisor\nVersion: 4.3.0\n")
    (fake / "top_level.txt").write_text("supervisor\n")
    (fake / "RECORD").write_text("supervisor/__init__.py,,\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", "--check"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 78
    assert "pip uninstall supervisor" in done.stderr
