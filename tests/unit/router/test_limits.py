import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import InvalidRequestError
from router.admission import estimate_tokens
from router.limits import RequestLimits, measure
from router.requests import EncodeRequest

NONE = RequestLimits(0, 0, 0)


def refusal(request: EncodeRequest, limits: RequestLimits, longest_tokens: int | None = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        measure(request, limits, longest_tokens)
    assert caught.value.param == "input"
    return caught.value


def of(*texts: str, **fields) -> EncodeRequest:
    return EncodeRequest("m", texts, **fields)


def test_as_many_inputs_as_the_limit_are_taken_and_one_more_is_not():
    limits = RequestLimits(2, 0, 0)
    assert len(measure(of("a", "b"), limits, None)) == 2
    assert "has 3 inputs; at most 2" in refusal(of("a", "b", "c"), limits).message
    assert "has 3 inputs; at most 2" in refusal(EncodeRequest("m", token_ids=((1,), (2,), (3,))), limits).message
    assert "has 3 inputs; at most 2" in refusal(of("a", sent=3), limits).message


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": ("x" * 12,)},
        {"texts": ("x", "x" * 12)},
        {"texts": ("x" * 7,), "prompt": "p" * 5},
        {"texts": ("x", "x" * 7), "seconds": ("y", "y" * 5)},
        {"texts": ("x", "x" * 2), "seconds": ("y", "y" * 5), "prompt": "p" * 5},
    ],
)
def test_an_input_may_be_as_long_as_the_limit_its_prompt_and_pair_included(fields):
    request = EncodeRequest("m", **fields)
    assert len(measure(request, RequestLimits(0, 12, 0), None)) == request.count
    error = refusal(request, RequestLimits(0, 11, 0))
    assert f"Input {request.count - 1} has 12 characters; at most 11 are taken" in error.message


def test_of_several_that_are_too_long_the_longest_is_named_as_its_client_calls_it():
    error = refusal(of("x" * 20, "x" * 30, "x", labels=("query", "document 0", "document 1")), RequestLimits(0, 10, 0))
    assert "Document 0 has 30 characters" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"texts": ("x" * 400,)},
        {"texts": ("x" * 192, "y" * 200)},
        {"texts": ("x" * 376,), "prompt": "p" * 8},
        {"texts": ("x" * 192,), "seconds": ("y" * 192,)},
        {"token_ids": ((1,) * 100, (2,) * 2)},
    ],
)
def test_the_tokens_of_a_request_are_those_of_all_its_inputs_prompts_and_pairs(fields):
    request = EncodeRequest("m", **fields)
    total = sum(measure(request, NONE, None))
    assert total == 102
    assert sum(measure(request, RequestLimits(0, 0, total), None)) == total
    error = refusal(request, RequestLimits(0, 0, total - 1))
    assert f"about {total} tokens, max {total - 1} tokens per request" in error.message
    assert error.code == "max_tokens_per_request"


@pytest.mark.parametrize("texts", [("x" * 400,), ("x" * 400, "y" * 400, "z")])
def test_what_the_model_cuts_costs_no_more_than_it_reads(texts):
    read = [min(estimate_tokens(text), 50) for text in texts]
    assert measure(of(*texts), RequestLimits(0, 0, sum(read)), 50) == read
    refusal(of(*texts), RequestLimits(0, 0, sum(read)))


def test_without_limits_everything_is_taken():
    texts = ("好" * 2_000_000, *["x"] * 3000)
    assert measure(of(*texts), NONE, None) == [estimate_tokens(text) for text in texts]


@given(st.text(max_size=40), st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(1, 20))
def test_one_text_by_itself_costs_and_may_be_what_it_may_among_others(text, max_chars, max_tokens, longest_tokens):
    def outcome(limits: RequestLimits, *texts: str) -> list[int] | str:
        try:
            return measure(of(*texts), limits, longest_tokens)[:1]
        except InvalidRequestError as error:
            return error.message

    assert outcome(RequestLimits(0, max_chars, 0), text) == outcome(RequestLimits(0, max_chars, 0), text, "")
    twice = 2 * max_tokens
    assert outcome(NONE, text) == outcome(NONE, text, text)
    one, two = (outcome(RequestLimits(0, 0, n), *texts) for n, texts in [(max_tokens, (text,)), (twice, (text, text))])
    assert isinstance(one, str) == isinstance(two, str)
