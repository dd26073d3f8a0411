import pytest

from emb_model_provider.errors import InvalidRequestError
from router.prompts import with_role
from router.requests import EncodeRequest
from tests.support.statuses import make_info


def prompted(role, prompts=(), *, routes=(), **fields):
    encoder = make_info(prompts=prompts, routes=routes).encoder
    request = with_role(EncodeRequest("m", ("a",), **fields), role, encoder)
    return request.prompt_name, request.prompt


@pytest.mark.parametrize(
    ("role", "prompts", "expected"),
    [
        ("query", ("query", "document"), "query"),
        ("search_query", ("query", "document"), "query"),
        ("SEARCH_QUERY", ("Query",), "Query"),
        ("retrieval.query", ("s2p_query",), "s2p_query"),
        ("retrieval.query", ("query", "retrieval.query"), "retrieval.query"),
        ("search_query", ("s2p_query", "query"), "query"),
        ("search_document", ("query", "passage"), "passage"),
        ("text-matching", ("STS",), "STS"),
        ("bitext", ("bitext",), "bitext"),
    ],
)
def test_a_role_finds_the_models_own_prompt(role, prompts, expected):
    assert prompted(role, prompts) == (expected, None)


def test_a_role_that_the_model_has_no_prompt_for_takes_none_not_even_the_default():
    assert prompted("document", ("query",)) == (None, "")
    assert prompted("search_query") == (None, "")


def test_what_the_client_names_itself_wins():
    assert prompted("query", ("query", "other"), prompt_name="other") == ("other", None)
    assert prompted("query", ("query",), prompt="say: ") == (None, "say: ")
    assert prompted("query", ("query",), prompt="") == (None, "")
    assert prompted(None, ("query",)) == (None, None)


def test_an_unknown_role_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidRequestError, match=r"'image' is not a kind of input: use one of sts, query, document"):
        prompted("image", ("sts",))
    with pytest.raises(InvalidRequestError, match=r"^'x{64}' is not") as caught:
        prompted("x" * 1000)
    assert caught.value.param == "input_type"


def test_where_texts_take_different_ways_the_clients_own_prompt_is_read_on_the_way_of_the_role():
    names = ("query", "document")
    assert prompted("search_query", names, routes=names, prompt="say: ") == ("query", "say: ")
    assert prompted("query", names, routes=names, prompt="") == ("query", "")
    assert prompted("classification", names, routes=names, prompt="say: ") == (None, "say: ")
    assert prompted("classification", names, routes=names) == (None, "")
    assert prompted(None, names, routes=names, prompt="say: ") == (None, "say: ")
