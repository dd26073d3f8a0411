"""What HuggingFace's client keeps of a file whose connection is reset, as firewalls do it."""

import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from huggingface_hub import constants, file_download

from emb_model_provider.modelmap import HubAccess
from shard.hubs import broken_lines
from shard.hubs.client import Listing
from shard.hubs.huggingface import HuggingFaceClient
from shard.hubs.snapshot import RemoteFile

COMMIT = "0" * 40
CONTENT = bytes(range(250)) * 40
RESET_AFTER, PIECE = 3500, 1000


class _Resets(BaseHTTPRequestHandler):
    """A mirror with one file, behind something that resets each connection which has brought so many bytes."""

    def do_HEAD(self):
        self.head(200, {"X-Repo-Commit": COMMIT, "ETag": '"e"'}, CONTENT)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        end = f"{len(CONTENT) - 1}/{len(CONTENT)}"
        self.head(206 if asked else 200, {"Content-Range": f"bytes {start}-{end}"} if asked else {}, CONTENT[start:])
        self.wfile.write(CONTENT[start : start + RESET_AFTER])
        if start + RESET_AFTER < len(CONTENT):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def head(self, status, headers, body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        """Nothing on stderr."""


def test_a_reset_costs_no_more_than_the_piece_that_was_under_way(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", constants.DOWNLOAD_CHUNK_SIZE)  # to have it back
    monkeypatch.setattr(broken_lines, "_PIECE_BYTES", PIECE)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))  # its second between two tries
    arrived = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Resets) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            access = HubAccess(cache_dir=str(tmp_path), endpoint=f"http://127.0.0.1:{server.server_port}")
            listing = Listing(COMMIT, (RemoteFile("model.safetensors", len(CONTENT)),))
            directory = HuggingFaceClient(access).download("a/b", listing, arrived.append)
        finally:
            server.shutdown()
            thread.join()
    assert (directory / "model.safetensors").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]
    assert sum(arrived) == len(CONTENT)
