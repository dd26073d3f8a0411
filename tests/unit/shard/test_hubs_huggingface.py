"""What is asked of HuggingFace's client so that mirrors and silent hubs do not hold up a start."""

import os
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess
from shard.hubs import huggingface
from shard.hubs.client import Listing
from shard.hubs.huggingface import HuggingFaceClient, prepare_environment
from shard.hubs.snapshot import RemoteFile


@pytest.mark.parametrize(
    ("access", "env", "off"),
    [
        (HubAccess(endpoint="https://mirror.example"), {}, True),
        (HubAccess(), {"HF_ENDPOINT": "https://mirror.example"}, True),
        (HubAccess(), {}, False),
    ],
)
def test_the_chunk_store_is_not_looked_for_behind_a_mirror_however_that_was_set(monkeypatch, access, env, off):
    monkeypatch.setattr(os, "environ", dict(env))
    prepare_environment(access)
    assert ("HF_HUB_DISABLE_XET" in os.environ) is off


def test_a_hub_that_takes_a_connection_and_says_nothing_is_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = HuggingFaceClient(HubAccess(cache_dir=str(tmp_path), endpoint=endpoint))
        with pytest.raises(LoadError, match="cannot be reached") as caught:
            client.list_files("a/b", None)
    assert caught.value.reason == LoadReason.NO_NETWORK


class _Answers(BaseHTTPRequestHandler):
    """A server that is no hub, or one that answers the first question alone."""

    def do_GET(self):
        body, status = self.server.body, self.server.status
        if "/tree/" in self.path:
            self.server.released.wait(10)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        status, headers = self.server.head
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        """Nothing on stderr."""


@contextmanager
def answering(status, body, head=(200, {}), handler=_Answers):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.status, server.body, server.head, server.released = status, body, head, threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://me:hush@127.0.0.1:{server.server_port}"
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


def refused(endpoint, cache) -> LoadError:
    client = HuggingFaceClient(HubAccess(cache_dir=str(cache), endpoint=endpoint))
    with pytest.raises(LoadError) as caught:
        client.list_files("a/b", None)
    return caught.value


def test_a_hub_that_falls_silent_after_its_first_answer_is_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface, "_ANSWER_S", 0.5)
    with answering(200, b'{"id": "a/b", "sha": "00", "siblings": [], "tags": []}') as endpoint:
        error = refused(endpoint, tmp_path)
    assert (error.reason, "says nothing" in str(error)) == (LoadReason.NO_NETWORK, True)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"not here", "answers 404 Not Found: it is out of order"),
        (429, b"slow down", "answers 429 Too Many Requests: it has had too many requests from this network"),
        (200, b"<html>sign in</html>", "answers with something else than a model's files"),
        (200, b'{"sha": "00"}', "answers with something else than a model's files"),
    ],
)
def test_a_server_that_is_no_hub_is_called_so_and_no_mistake_of_ours_and_no_password_is_shown(
    tmp_path, status, body, words
):
    with answering(status, body) as endpoint:
        error = refused(endpoint, tmp_path)
    assert error.reason == LoadReason.NO_NETWORK
    assert f"huggingface (http://***@127.0.0.1:{endpoint.rpartition(':')[2]}) {words}" in str(error)
    assert "hush" not in str(error)


COMMIT = "0" * 40


@pytest.mark.parametrize(
    ("head", "reason", "words"),
    [
        # A page to sign in at in place of the file's bytes alone.
        ((200, {"X-Repo-Commit": COMMIT, "ETag": '"e"', "Content-Length": "99"}), "corrupt_download", "has size 20"),
        ((200, {"ETag": '"e"', "Content-Length": "99"}), "no_network", "answers as no hub does (Response"),
        ((403, {}), "no_permission", "does not let us have 'a/b'"),
        ((405, {}), "no_network", "answers 405 Method Not Allowed"),
    ],
)
def test_what_is_no_file_of_a_hub_is_said_as_it_is_and_not_as_a_cache_that_cannot_be_written(
    tmp_path, head, reason, words
):
    listing = Listing(COMMIT, (RemoteFile("config.json", 99),))
    with answering(200, b"<html>sign in</html>", head) as endpoint:
        client = HuggingFaceClient(HubAccess(cache_dir=str(tmp_path), endpoint=endpoint))
        with pytest.raises(LoadError) as caught:
            client.download("a/b", listing, lambda _: None)
    assert (caught.value.reason, words in str(caught.value)) == (reason, True), str(caught.value)
    assert "hush" not in str(caught.value)


class _InPieces(_Answers):
    """A hub that keeps its files in a chunk store, whose own host cannot be reached."""

    def send_header(self, keyword, value):
        super().send_header(keyword, value)
        if keyword == "Server":  # which every answer has
            for name, text in {
                "X-Repo-Commit": COMMIT,
                "ETag": '"e"',
                "X-Xet-Hash": "a" * 64,
                "X-Xet-Refresh-Route": f"http://{self.headers['Host']}/token",
                "X-Xet-Cas-Url": "http://127.0.0.1:9",
                "X-Xet-Access-Token": "t",
                "X-Xet-Token-Expiration": "9999999999",
            }.items():
                super().send_header(name, text)


def test_where_the_chunk_store_cannot_be_reached_whole_files_are_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "0")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    body = b'{"model_type": "bert"}'
    names = ["config.json", "modules.json", "tokenizer.json", "vocab.txt"]  # fetched at once, of which each finds out
    listing = Listing(COMMIT, tuple(RemoteFile(name, len(body)) for name in names))
    with answering(200, body, (200, {"Content-Length": str(len(body))}), _InPieces) as endpoint:
        client = HuggingFaceClient(HubAccess(cache_dir=str(tmp_path), endpoint=endpoint))
        directory = client.download("a/b", listing, lambda _: None)
    assert [(directory / name).read_bytes() for name in names] == [body] * 4
    assert constants.HF_HUB_DISABLE_XET, "the next file would wait as long"


class _WantsPeace(_Answers):
    """A hub that has had too many requests and says when to come back."""

    def do_GET(self):
        self.do_HEAD()


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (
            429,
            {"Retry-After": "3600"},
            "answers 429 Too Many Requests and asks to be left alone for 3600 s: it has",
        ),
        (429, {"RateLimit": '"resolvers";r=0;t=290'}, "Requests and asks to be left alone for 290 s: it has had too"),
        (503, {"Retry-After": "3600"}, "answers 503 Service Unavailable and asks to be left alone for 3600 s"),
    ],
)
def test_a_hub_that_wants_to_be_left_alone_for_long_is_not_waited_for_in_silence(tmp_path, status, headers, words):
    listing = Listing(COMMIT, (RemoteFile("config.json", 99),))
    with answering(200, b"", (status, {"Content-Length": "0"} | headers), _WantsPeace) as endpoint:
        client = HuggingFaceClient(HubAccess(cache_dir=str(tmp_path), endpoint=endpoint))
        for ask in (lambda: client.list_files("a/b", None), lambda: client.download("a/b", listing, lambda _: None)):
            with pytest.raises(LoadError) as caught:
                ask()
            assert (caught.value.reason, words in str(caught.value)) == ("no_network", True), str(caught.value)
            assert "hush" not in str(caught.value)


def test_a_hub_that_wants_a_moment_is_waited_for(monkeypatch, tmp_path):
    naps = []

    class _OnceTooMany(_Answers):
        def do_HEAD(self):
            if naps:
                self.server.head = (200, {"X-Repo-Commit": COMMIT, "ETag": '"e"', "Content-Length": "4"})
            super().do_HEAD()

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", naps.append)
    head = (429, {"Retry-After": "29", "Content-Length": "0"})
    with answering(200, b"done", head, _OnceTooMany) as endpoint:
        client = HuggingFaceClient(HubAccess(cache_dir=str(tmp_path), endpoint=endpoint))
        directory = client.download("a/b", Listing(COMMIT, (RemoteFile("config.json", 4),)), lambda _: None)
    assert (directory / "config.json").read_bytes() == b"done"
    assert naps == [30]
