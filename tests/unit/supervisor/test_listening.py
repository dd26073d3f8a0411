"""What cannot be listened on is said with its name."""

import errno
import socket

import pytest

from emb_model_provider.errors import ConfigurationError
from supervisor.listening import Listening, bind_tcp, bind_unix, exposure, open_host


def test_a_unix_socket_of_another_user_is_named(tmp_path, monkeypatch):
    def refuse(_self, _address):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(OSError, match=r"The Unix socket .*api\.sock cannot be bound: it is another user's"):
            bind_unix(path, 0o600)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
@pytest.mark.parametrize("count", [1, 2])
def test_every_address_of_ipv6_is_every_address_of_ipv4_too(count):
    listening = Listening(bind_tcp("::", 0, count))
    port = int(listening.address(is_tls=False).rpartition(":")[2])
    try:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), 1).close()
        with pytest.raises(OSError, match="cannot be bound: Address already in use"):
            bind_tcp("127.0.0.1", port)
    finally:
        listening.close()


def test_of_two_servers_that_start_together_with_several_routers_one_is_refused(monkeypatch):
    bind, refused = socket.create_server, []

    def bind_and_let_the_other_try(address, **options):
        if options["reuse_port"]:  # the first socket has been bound: another server starts just now
            with pytest.raises(OSError, match="cannot be bound: Address already in use"):
                bind_tcp(*address)
            refused.append(address)
        return bind(address, **options)

    monkeypatch.setattr(socket, "create_server", bind_and_let_the_other_try)
    listening = Listening(bind_tcp("127.0.0.1", 0, 3))
    listening.close()
    assert len(refused) == 2
    assert len({one.fileno() for one in listening.tcp}) == 1, "all are closed"


def test_sockets_of_several_routers_all_get_connections():
    listening = Listening(bind_tcp("127.0.0.1", 0, 2))
    clients = [socket.create_connection(listening.tcp[0].getsockname(), 5) for _ in range(64)]
    try:
        for one in listening.tcp:
            one.settimeout(5)  # of 64, one in 10^19 times none comes here
            one.accept()[0].close()
    finally:
        for client in clients:
            client.close()
        listening.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_one_address_of_ipv6_is_no_other():
    listening = Listening(bind_tcp("::1", 0))
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(listening.address(is_tls=False).rpartition(":")[2])), 1)
    finally:
        listening.close()


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("127.0.0.9", ""),
        ("::1", ""),
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:127.0.0.1", ""),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ],
)
def test_an_address_that_other_machines_reach_calls_for_a_key(host, address):
    assert open_host(host) == address
    assert bool(exposure(open_host(host), needs_key=False)) == bool(address)
    assert exposure(open_host(host), needs_key=True) == ""


def test_a_name_of_nobody_is_no_reason_to_warn(monkeypatch):
    def nobody(*_arguments, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert open_host("nobody.invalid") == ""


def test_a_unix_socket_that_cannot_be_is_said_with_the_setting_to_change(tmp_path):
    taken = tmp_path / "a"
    taken.touch()
    wrong = (
        (taken, "a file of that name"),
        (taken / "a", "Not a directory"),
        (tmp_path / "none" / "a", "No such file or directory"),
    )
    for path, why in wrong:
        with pytest.raises(OSError, match=rf"cannot be bound: .*{why}.*\. Set EMB_PROVIDER_UNIX_SOCKET"):
            bind_unix(path, 0o600)
    with pytest.raises(ConfigurationError, match=r"EMB_PROVIDER_UNIX_SOCKET=.*: set it to a shorter one"):
        bind_unix(tmp_path / ("a" * 108), 0o600)


def test_a_port_for_which_no_file_may_be_opened_is_said_with_the_limit(monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(OSError, match=r"Too many open files\. Raise the limit of open files \(ulimit -n"):
        bind_tcp("127.0.0.1", 0, 64)
