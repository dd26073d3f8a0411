import pytest

from router.cors import EXPOSED, Cors

OURS, THEIRS = "https://ours.example", "https://theirs.example"
ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, x-request-id"}


def test_by_default_no_origin_is_answered_and_no_preflight_is_ours():
    assert Cors(()).headers({"Origin": OURS}) == {}
    assert Cors(()).preflight("OPTIONS", {"Origin": OURS, **ASKING}) is None


def test_a_named_origin_may_read_the_answer_and_no_cache_gives_it_to_another():
    cors = Cors((OURS, "https://more.example"))
    assert cors.headers({"Origin": OURS}) == {
        "Vary": "Origin",
        "Access-Control-Allow-Origin": OURS,
        "Access-Control-Expose-Headers": EXPOSED,
    }
    for others in ({"Origin": THEIRS}, {"Origin": "null"}, {}):
        assert cors.headers(others) == {"Vary": "Origin"}


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("HTTPS://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("https://app.example.com:8443", "https://app.example.com:8443"),
    ],
)
def test_an_origin_counts_however_an_operator_writes_it(written, sent):
    cors = Cors((written,))
    assert cors.headers({"Origin": sent})["Access-Control-Allow-Origin"] == sent
    assert "Access-Control-Allow-Origin" not in cors.headers({"Origin": sent + ":1"})


def test_where_any_origin_may_ask_the_answer_is_the_same_for_all():
    cors = Cors(("*",))
    allowed = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": EXPOSED}
    assert cors.headers({"Origin": THEIRS}) == allowed
    assert cors.headers({}) == {}


def test_a_preflight_hears_what_it_may_send_and_one_of_another_origin_nothing():
    cors = Cors((OURS,))
    headers = cors.preflight("OPTIONS", {"Origin": OURS, **ASKING})
    assert headers == cors.headers({"Origin": OURS}) | {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Max-Age": "600",
        "Access-Control-Allow-Headers": "authorization, x-request-id",
    }
    assert cors.preflight("OPTIONS", {"Origin": THEIRS, **ASKING}) == {"Vary": "Origin"}


@pytest.mark.parametrize("wanted", ["", "a\r\nSet-Cookie: x", "a;b", "x" * 1025])
def test_what_are_no_header_names_is_not_repeated(wanted):
    asking = {"Origin": OURS, **ASKING, "Access-Control-Request-Headers": wanted}
    headers = Cors((OURS,)).preflight("OPTIONS", asking)
    assert headers is not None
    assert headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Headers" not in headers


@pytest.mark.parametrize(
    ("method", "headers"), [("POST", {"Origin": OURS, **ASKING}), ("OPTIONS", {"Origin": OURS}), ("OPTIONS", {})]
)
def test_any_other_request_is_no_preflight(method, headers):
    assert Cors((OURS,)).preflight(method, headers) is None
