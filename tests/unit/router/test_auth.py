import hashlib

import pytest
from multidict import CIMultiDict

from emb_model_provider.errors import AuthenticationError
from router.auth import Authenticator

ASKS = Authenticator((hashlib.sha256(b"geheim").digest(),))


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer geheim"},
        {"authorization": "BEARER  geheim "},
        {"Authorization": "Bearer\tgeheim"},
        {"Authorization": "geheim"},
        {"api-key": "geheim"},
        {"X-API-Key": " geheim"},
    ],
)
def test_a_key_may_stand_where_clients_put_it(headers):
    assert ASKS.identify(CIMultiDict(headers)) == hashlib.sha256(b"geheim").hexdigest()


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "bearer "}, {"api-key": " "}]
)
def test_a_client_whose_key_is_empty_hears_that_it_sent_none(headers):
    with pytest.raises(AuthenticationError, match="You didn't provide an API key"):
        ASKS.identify(CIMultiDict(headers))


@pytest.mark.parametrize("value", ["Bearer wrong", "Bearer geheim, Bearer x", "Basic Z2VoZWlt", "Bearer geheim\udcff"])
def test_any_other_is_incorrect_and_no_second_header_is_looked_at(value):
    with pytest.raises(AuthenticationError, match="Incorrect API key"):
        ASKS.identify(CIMultiDict({"Authorization": value, "api-key": "geheim"}))
