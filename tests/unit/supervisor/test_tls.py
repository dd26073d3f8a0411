"""A certificate and its key: read once, handed down in memory, shown by every router that is started with them."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from emb_model_provider.certificate import Certificate
from emb_model_provider.errors import ConfigurationError
from emb_model_provider.frames import FrameDecoder
from emb_model_provider.messages.configs import LogConfig, RouterConfig, Surroundings
from emb_model_provider.messages.framing import pack, unpack
from router.main import _tls
from supervisor.tls import read_certificate


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=here", "-addext", "subjectAltName=DNS:here",
            "-keyout", str(path / "key.pem"), "-out", str(path / "cert.pem"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return (path / "cert.pem").read_bytes(), (path / "key.pem").read_bytes()


@pytest.fixture
def files(tmp_path, pems):
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, content in zip(paths, pems, strict=True):
        path.write_bytes(content)
    return paths


def shakes_hands(server: ssl.SSLContext, trusted: bytes) -> bool:
    client = ssl.create_default_context(cadata=trusted.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="here"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0].getpeercert()["subject"] == ((("commonName", "here"),),)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def config(certificate: Certificate) -> RouterConfig:
    return RouterConfig(LogConfig("INFO", "plain"), (), 1.0, 1, 1.0, around=Surroundings(certificate=certificate))


@pytest.mark.parametrize("together", [False, True])
def test_a_router_that_is_started_later_shows_what_was_read_whatever_has_become_of_the_files(files, pems, together):
    if together:
        files[0].write_bytes(b"".join(pems))
    told = config(read_certificate(str(files[0]), str(files[not together])))
    for path in files:
        path.write_bytes(b"broken")
    before = descriptors()
    (frame,) = FrameDecoder().feed(pack(told))
    heard = unpack(frame)
    assert heard == told
    assert shakes_hands(_tls(heard), pems[0])
    assert descriptors() == before


def test_the_key_is_shown_by_nothing(files):
    assert "KEY" not in repr(config(read_certificate(*map(str, files))))


def test_files_that_cannot_be_used_or_read_are_named(files, tmp_path):
    files[1].write_bytes(b"no key")
    with pytest.raises(ConfigurationError, match=r"cert\.pem and .*key\.pem cannot be used"):
        read_certificate(*map(str, files))
    with pytest.raises(ConfigurationError, match=r"gone\.pem cannot be read: No such file"):
        read_certificate(str(files[0]), str(tmp_path / "gone.pem"))


def test_a_file_that_lacks_what_it_is_read_for_is_named_with_what_it_lacks(files):
    certificate, key = map(str, files)
    with pytest.raises(ConfigurationError, match=r"cert\.pem holds no private key\. Set EMB_PROVIDER_TLS_KEY_FILE"):
        read_certificate(certificate, certificate)
    with pytest.raises(ConfigurationError, match=r"cannot be used: \S+key\.pem holds no certificate\. Both"):
        read_certificate(key, certificate)
    with pytest.raises(ConfigurationError, match=r"cannot be used: \S+cert\.pem holds no private key\. Both"):
        read_certificate(certificate, shutil.copy(certificate, files[0].with_name("again-cert.pem")))
