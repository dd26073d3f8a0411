"""What a hub that cannot be asked is said to be, and what the environment's proxies may do to that."""

import os
import ssl

import pytest
from huggingface_hub import close_session

from emb_model_provider.errors import LoadError, LoadReason
from emb_model_provider.modelmap import HubAccess
from shard.hubs.client import no_network, proxy_of, settle_proxies
from shard.hubs.huggingface import HuggingFaceClient
from shard.hubs.modelscope import ModelScopeClient

PROXY = "http://127.0.0.1:7890"
SOCKS = "socks://me:hush@127.0.0.1:7891/"


@pytest.fixture
def environment(monkeypatch):
    """Return the environment without any proxy; what is set here is gone afterwards."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    monkeypatch.setattr(os, "environ", kept)
    close_session()
    yield kept
    close_session()


def wrapped() -> Exception:
    """Return an error as HTTP libraries make it: what the system said, within pages of their own."""
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise RuntimeError("Pool(host='h', port=443): Max retries exceeded") from error
    except RuntimeError as error:
        outer = ConnectionError(f"Connection failed: {error} {'x' * 400}")
        outer.__context__ = error
        return outer


def test_a_hub_that_cannot_be_reached_is_told_by_what_the_system_said(environment) -> None:
    said = str(no_network("modelscope", "https://modelscope.cn", wrapped()))
    assert "modelscope (https://modelscope.cn) cannot be reached: [Errno 111] Connection refused. Check" in said


def test_the_proxy_that_was_used_is_named_without_its_password(environment) -> None:
    environment["HTTPS_PROXY"] = "http://me:hush@127.0.0.1:7890"
    said = str(no_network("huggingface", "https://huggingface.co", OSError(111, "Connection refused")))
    assert "cannot be reached through the proxy http://***@127.0.0.1:7890: [Errno 111]" in said
    environment["no_proxy"] = ".co"
    assert "through" not in str(no_network("huggingface", "https://huggingface.co", OSError(111, "refused")))


@pytest.mark.parametrize(("source", "client"), [("huggingface", HuggingFaceClient), ("modelscope", ModelScopeClient)])
def test_a_proxy_that_a_client_cannot_use_is_named_with_what_to_do(environment, tmp_path, source, client) -> None:
    environment["ALL_PROXY"] = SOCKS
    with pytest.raises(LoadError, match=f"the client of {source} cannot use the proxy") as caught:
        client(HubAccess(cache_dir=str(tmp_path))).list_files("iic/gte", None)
    assert caught.value.reason == LoadReason.NO_NETWORK
    assert "(socks://***@127.0.0.1:7891/)" in str(caught.value)
    assert "Set HTTP_PROXY and HTTPS_PROXY" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "variable"), [("huggingface", "SSL_CERT_FILE"), ("modelscope", "REQUESTS_CA_BUNDLE")]
)
def test_a_certificate_nobody_knows_is_told_with_the_variable_that_this_client_reads(
    environment, source, variable
) -> None:
    said = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain"
    assert f"set {variable} in the environment" in str(
        no_network(source, "https://h", ssl.SSLCertVerificationError(1, said))
    )
    assert variable not in str(no_network(source, "https://h", OSError(111, "Connection refused")))


@pytest.mark.parametrize(
    "fault",
    [
        "Basic Constraints of CA cert not marked critical",
        "CA cert does not include key usage extension",
        "Missing Authority Key Identifier",
        "Missing Subject Key Identifier",
        "Path length given without key usage keyCertSign",
        "Empty Subject Alternative Name extension",
    ],
)
def test_a_certificate_that_only_python_3_13_refuses_is_told_so_and_not_to_set_what_is_set(fault) -> None:
    said = f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {fault} (_ssl.c:1020)"
    told = str(no_network("huggingface", "https://h", ssl.SSLCertVerificationError(1, said)))
    assert f"{fault} (_ssl.c:1020). From Python 3.13 on, certificates have to keep to RFC 5280" in told
    assert "SSL_CERT_FILE" not in told


def test_certificates_that_are_not_there_are_named_and_no_mistake_of_ours(environment, tmp_path) -> None:
    environment["SSL_CERT_FILE"] = str(tmp_path / "gone.pem")
    with pytest.raises(LoadError, match=r"SSL_CERT_FILE names in the environment \(.*gone.pem\)") as caught:
        HuggingFaceClient(HubAccess(cache_dir=str(tmp_path))).list_files("iic/gte", None)
    assert caught.value.reason == LoadReason.NO_NETWORK


def test_a_socks_proxy_beside_both_others_is_not_used_and_stops_no_client(environment, tmp_path) -> None:
    environment |= {"http_proxy": PROXY, "https_proxy": PROXY, "all_proxy": SOCKS}
    settle_proxies("https://huggingface.co")
    assert {name for name in environment if name.endswith("_proxy")} == {"http_proxy", "https_proxy"}


def test_a_socks_proxy_that_may_be_used_stays(environment) -> None:
    environment |= {"https_proxy": PROXY, "ALL_PROXY": SOCKS}
    settle_proxies("https://huggingface.co")
    assert environment["ALL_PROXY"] == SOCKS


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost"])
def test_no_proxy_is_asked_for_a_mirror_on_this_machine_and_the_exceptions_stay(environment, host) -> None:
    environment |= {"http_proxy": PROXY, "NO_PROXY": "hub.example"}
    endpoint = f"http://{host}:8080"
    assert proxy_of(endpoint) == PROXY
    settle_proxies(endpoint)
    assert proxy_of(endpoint) == proxy_of("http://localhost:8081") == ""
    assert environment["no_proxy"] == environment["NO_PROXY"]
    assert proxy_of("http://hub.example") == ""
    assert proxy_of("http://mirror.example") == PROXY
