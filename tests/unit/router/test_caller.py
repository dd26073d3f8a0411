import pytest

from router.caller import client_of


def test_a_client_elsewhere_is_its_address_whatever_its_connections():
    assert client_of("10.0.0.7", object()) == client_of("10.0.0.7", object()) == "10.0.0.7"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "", None])
def test_a_client_on_this_machine_is_its_connection(address):
    first, second = object(), object()
    assert client_of(address, first) == client_of(address, first)
    assert client_of(address, first) != client_of(address, second)
