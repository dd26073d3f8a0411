"""What stands around the API, on real servers: metrics, several routers, TLS, a Unix socket, prefix, CORS, logs."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.faulty_server import FaultyModel, FaultyServer
from tests.support.processes import command_line, private_bytes, wait_until

_ORIGIN = "https://app.example.com"


def metrics(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found, name, **labels):
    wanted = set(labels.items())
    return sum(value for (one, *has), value in found.items() if one == name and wanted <= set(has))


def routers(server):
    found = []
    for pid in server.family():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended in this moment
            found += [pid] if "router" in command_line(pid) else []
    return sorted(found)


def scrape(server, prefix=""):
    answer = server.get(prefix + "/metrics")
    assert answer.status == 200, answer.body
    return metrics(answer.body.decode())


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    path = tmp_path_factory.mktemp("several")
    env = {
        "EMB_PROVIDER_ROUTERS": "2",
        "EMB_PROVIDER_ACCESS_LOG": "json",
        "EMB_PROVIDER_CORS_ORIGINS": _ORIGIN,
        "EMB_PROVIDER_UNIX_SOCKET": str(path / "api.sock"),
        "EMB_PROVIDER_UNIX_SOCKET_MODE": "0660",
    }
    with FaultyServer(path / "server", {"en": FaultyModel(path / "en", max_tokens=16)}, env=env) as it:
        it.wait_ready()
        yield it
    assert not (path / "api.sock").exists()


class TestSeveralRouters:
    """Two routers, no key, an access log."""

    def test_both_take_connections_on_one_port_and_count_together(self, several):
        assert len(routers(several)) == 2
        before = scrape(several)
        for number in range(40):
            several.check("en", [f"text {number}", "你好" * 20])
        found = before

        def grown(name, **labels):
            return total(found, name, **labels) - total(before, name, **labels)

        def all_told():
            nonlocal found
            found = scrape(several)
            return grown("emb_requests_total", model="en") >= 40

        wait_until(all_told, 5, "each router has told what it has counted")

        assert grown("emb_requests_total", route="/v1/embeddings", dialect="openai", model="en", status="200") == 40
        assert grown("emb_request_seconds_count", model="en") == 40
        assert grown("emb_stage_seconds_count", model="en", stage="encode") == 40
        assert grown("emb_inputs_total", model="en") == 80
        assert grown("emb_truncated_inputs_total", model="en") == 40
        assert grown("emb_script_tokens_total", model="en", script="cjk") > 0
        assert grown("emb_script_tokens_total", model="en") == pytest.approx(grown("emb_tokens_total", model="en"))
        assert total(found, "emb_routers") == 2
        # Each has its own socket of the port, among which the kernel deals connections out.
        story = [json.loads(line) for line in several.stderr.splitlines() if '"event": "access"' in line]
        assert len(story) >= 40

    def test_what_a_shard_and_the_supervisor_know_is_told_too(self, several):
        several.check("en", ["anything"])
        wait_until(lambda: total(scrape(several), "emb_batch_texts_total", model="en") > 0, 10, "a report arrives")
        found = scrape(several)
        assert total(found, "emb_model_ready", model="en") == 1
        assert total(found, "emb_model_load_seconds", model="en") > 0
        assert total(found, "emb_batch_tokens_total", model="en") > 0
        assert total(found, "emb_batch_fill_ratio_count", model="en") > 0
        assert {dict(key[1:])["process"] for key in found if key[0] == "emb_process_memory_bytes"} == {
            "supervisor", "router-0", "router-1", "model-en",
        }  # fmt: skip

    def test_a_router_that_is_killed_comes_back_its_counts_stay_and_no_file_is_left(self, several):
        time.sleep(1.3)  # what the one that is killed has counted is written every second
        before = total(scrape(several), "emb_requests_total", model="en")
        victim = routers(several)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in routers(several) and len(routers(several)) == 2, 10, "a successor is started")
        for number in range(20):
            several.check("en", [f"after {number}"])

        def counted():
            return total(scrape(several), "emb_requests_total", model="en")

        wait_until(lambda: counted() >= before + 20, 5, "each router has told what it has counted")
        assert counted() == before + 20
        assert total(scrape(several), "emb_router_starts_total") == 3
        wait_until(lambda: len(list(several.run_directory.rglob("metrics-*.mp"))) == 2, 5, "one file for each router")

    def test_the_unix_socket_answers_with_its_mode_and_without_tcp(self, several):
        path = several.directory.parent / "api.sock"
        assert path.stat().st_mode & 0o777 == 0o660
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/v1/models")
        assert json.loads(connection.getresponse().read())["data"][0]["id"] == "en"
        connection.close()
        curl = ["curl", "-sS", "--unix-socket", str(path), "http://localhost/health"]
        assert json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)["status"] == "ok"

    def test_a_browser_may_ask_from_the_origin_that_is_allowed_and_from_no_other(self, several):
        asking = {
            "Origin": _ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        host, port = several.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port))
        connection.request("OPTIONS", "/v1/embeddings", headers=asking)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == _ORIGIN
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
        body = json.dumps({"model": "en", "input": "hi"})
        connection.request("POST", "/v1/embeddings", body, {"Origin": _ORIGIN})
        answer = connection.getresponse()
        answer.read()
        assert answer.headers["Access-Control-Allow-Origin"] == _ORIGIN
        assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
        connection.request("GET", "/nothing", headers={"Origin": _ORIGIN})  # errors can be read too
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (404, _ORIGIN)
        connection.request("OPTIONS", "/v1/embeddings", headers=asking | {"Origin": "https://evil.example"})
        answer = connection.getresponse()
        answer.read()
        assert answer.headers["Access-Control-Allow-Origin"] is None
        connection.close()

    def test_the_access_log_tells_who_asked_what_and_never_a_text(self, several):
        several.post("/v1/embeddings", {"model": "en", "input": "a secret text"}, {"x-request-id": "who-7"})
        wait_until(lambda: '"who-7"' in several.stderr, 5, "the line is written")
        (line,) = [json.loads(one) for one in several.stderr.splitlines() if '"request_id": "who-7"' in one]
        assert line["status"] == 200
        assert line["client"] == "127.0.0.1"
        assert (line["method"], line["path"], line["model"], line["inputs"]) == ("POST", "/v1/embeddings", "en", 1)
        assert line["tokens"] > 0
        assert line["took_ms"] > 0
        assert "secret" not in several.stderr

    def test_an_input_that_kills_is_known_to_the_other_router_at_once(self, several):
        assert several.post("/v1/embeddings", {"model": "en", "input": "!exit"}).status in (422, 500)
        pids = several.models["en"].start_pids
        wait_until(lambda: len(pids()) == 3, 20, "it has been started again after each of two deaths")
        several.wait_ready()
        statuses = {several.post("/v1/embeddings", {"model": "en", "input": "!exit"}).status for _ in range(12)}
        assert statuses == {422}
        assert len(pids()) == 3  # no router had to find out for itself


def ask(server, path, headers=None, body=None, version=None):
    context = ssl.create_default_context(cafile=str(server.directory.parent / "cert.pem"))
    if version is not None:
        context.minimum_version = context.maximum_version = version
    host, port = server.url.removeprefix("https://").split(":")
    connection = http.client.HTTPSConnection(host, int(port), context=context)
    connection.request("POST" if body else "GET", path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    make_certificate(path, "first")
    env = {
        "EMB_PROVIDER_TLS_CERT_FILE": str(path / "cert.pem"),
        "EMB_PROVIDER_TLS_KEY_FILE": str(path / "key.pem"),
        "EMB_PROVIDER_URL_PREFIX": "/embed/er",
        "EMB_PROVIDER_API_KEYS": "k3y",
        "EMB_PROVIDER_METRICS_NEED_KEY": "false",
        "EMB_PROVIDER_ACCESS_LOG": "combined",
    }
    with FaultyServer(path / "server", {"en": FaultyModel(path / "en")}, env=env) as it:
        deadline_s = time.monotonic() + 60
        while ask(it, "/embed/er/ready", {"Authorization": "Bearer k3y"})[0] != 200:
            assert time.monotonic() < deadline_s, it.story()
            time.sleep(0.05)
        yield it


class TestTlsAndPrefix:
    """HTTPS, everything below a path, a key."""

    def test_it_speaks_https_and_nothing_below_tls_1_2(self, secured):
        assert secured.url.startswith("https://")
        body = json.dumps({"model": "en", "input": "hello"})
        status, _ = ask(secured, "/embed/er/v1/embeddings", {"Authorization": "Bearer k3y"}, body)
        assert status == 200
        assert ask(secured, "/embed/er/health", version=ssl.TLSVersion.TLSv1_2)[0] == 200
        with pytest.warns(DeprecationWarning, match="TLSv1_1"), pytest.raises(ssl.SSLError):
            ask(secured, "/embed/er/health", version=ssl.TLSVersion.TLSv1_1)

    def test_everything_is_below_the_prefix_and_nothing_beside_it(self, secured):
        key = {"Authorization": "Bearer k3y"}
        assert ask(secured, "/embed/er/v1/models", key)[0] == 200
        assert ask(secured, "/embed/er/v1/models")[0] == 401
        assert ask(secured, "/embed/er/models/en/info", key)[0] == 200
        for outside in ("/v1/models", "/embed/erv1/models", "/embed", "/"):
            status, content = ask(secured, outside, key)
            assert status == 404
            assert b"EMB_PROVIDER_URL_PREFIX" in content

    @pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/ready", "/nothing"])
    def test_whatever_is_not_health_asks_for_the_key(self, secured, path):
        assert ask(secured, f"/embed/er{path}")[0] == 401
        assert ask(secured, f"/embed/er{path}", {"Authorization": "Bearer k3y"})[0] == (
            404 if path == "/nothing" else 200
        )
        assert ask(secured, "/embed/er/health")[0] == 200

    def test_metrics_ask_for_no_key_where_the_operator_says_so(self, secured):
        status, content = ask(secured, "/embed/er/metrics")
        assert status == 200
        assert total(metrics(content.decode()), "emb_model_ready") == 1

    def test_the_access_log_is_apaches(self, secured):
        ask(secured, "/embed/er/nothing", {"Authorization": "Bearer k3y", "User-Agent": 'a "b"'})
        pattern = re.compile(
            r"^127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
            r'"GET /embed/er/nothing HTTP/1\.1" 404 \d+ "-" '
            r'"a \\"b\\"" [\d.]+ms req-\w+ - -$',
            re.MULTILINE,
        )
        wait_until(lambda: pattern.search(secured.stderr) is not None, 5, "the line is written")
        assert "k3y" not in secured.stderr

    def test_a_new_certificate_counts_after_a_reload_and_a_broken_one_is_refused(self, secured):
        key = (secured.directory.parent / "key.pem").read_bytes()
        (secured.directory.parent / "key.pem").write_bytes(b"no key")
        secured.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload_refused" in secured.stderr, 10, "the reload is refused")
        (secured.directory.parent / "key.pem").write_bytes(key)
        assert ask(secured, "/embed/er/health")[0] == 200
        make_certificate(secured.directory.parent, "second")
        secured.process.send_signal(signal.SIGHUP)
        deadline_s = time.monotonic() + 20
        while True:
            try:
                if certificate_name(secured) == "second":
                    break
            except ssl.SSLError:  # the old one is not signed by the new
                pass
            assert time.monotonic() < deadline_s, secured.story()
            time.sleep(0.05)


def certificate_name(server):
    """Return whom the certificate that is shown names; raise ``SSLError`` where it is not the one in the file."""
    context = ssl.create_default_context(cafile=str(server.directory.parent / "cert.pem"))
    host, port = server.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as sock:
        return dict(pair[0] for pair in sock.getpeercert()["subject"])["commonName"]


def make_certificate(path, name):
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path / "key.pem"), "-out", str(path / "cert.pem"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def test_a_certificate_that_cannot_be_used_is_a_sentence_and_exit_code_78(tmp_path):
    (tmp_path / "cert.pem").write_text("nothing")
    server = FaultyServer(
        tmp_path / "s",
        {"en": FaultyModel(tmp_path / "en")},
        env={"EMB_PROVIDER_TLS_CERT_FILE": str(tmp_path / "cert.pem")},
    )
    done = subprocess.run(
        [sys.executable, "-m", "supervisor"], cwd=server.directory, env=server._env,
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert b"EMB_PROVIDER_TLS_CERT_FILE" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_unix_socket_that_somebody_uses_is_left_alone_and_one_of_a_dead_server_replaced(tmp_path):
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server = FaultyServer(
            tmp_path / "s", {"en": FaultyModel(tmp_path / "en")}, env={"EMB_PROVIDER_UNIX_SOCKET": str(path)}
        )
        done = subprocess.run(
            [sys.executable, "-m", "supervisor"], cwd=server.directory, env=server._env,
            capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert b"another server listens" in done.stderr
        assert path.exists()
    with FaultyServer(
        tmp_path / "t", {"en": FaultyModel(tmp_path / "en")}, env={"EMB_PROVIDER_UNIX_SOCKET": str(path)}
    ):
        assert path.is_socket()
    assert not path.exists()


def test_a_router_stays_small(tmp_path):
    with FaultyServer(tmp_path / "s", {"en": FaultyModel(tmp_path / "en")}) as server:
        server.wait_ready()
        server.check("en", ["hello"])
        scrape(server)
        (pid,) = routers(server)
        assert private_bytes(pid) < 70 * 2**20
