import base64
import re
from typing import get_args

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Encoded
from emb_model_provider.messages.status import EncoderInfo
from emb_model_provider.modelmap import Task
from router.dialects.fields import read_object
from router.dialects.openai import Shape, render_embeddings, render_error
from router.dialects.openai import parse_embeddings as parse_fields
from router.dialects.openai_models import describe_model
from router.dialects.seam import EncodeCall
from router.dialects.vectors import VectorForm, is_small
from router.requests import EncodeRequest, EncodeResult
from tests.support.statuses import make_info, make_status
from tests.support.steps import finish


def parse_embeddings(data: bytes) -> EncodeCall:
    fields = finish(read_object(data))
    return finish(parse_fields(fields))


def shape_of(call: EncodeCall) -> Shape:
    return call.build.args[0]


FORMS = {"float": Shape(), "base64": Shape(VectorForm(base64=True))}


def body(**fields) -> bytes:
    return orjson.dumps({"model": "m", "input": "hi"} | fields)


def refused(data: bytes) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_embeddings(data)
    return caught.value


@pytest.mark.parametrize(
    ("given_input", "texts", "token_ids"),
    [
        ("你好", ("你好",), ()),
        (["a", "b"], ("a", "b"), ()),
        ([1, 2, 3], (), ((1, 2, 3),)),
        ([[1], [2, 3]], (), ((1,), (2, 3))),
        ([1.0, 2], (), ((1, 2),)),
        ([[1], [2, 3.0]], (), ((1,), (2, 3))),
    ],
)
def test_all_four_input_shapes_are_understood(given_input, texts, token_ids):
    call = parse_embeddings(body(input=given_input))
    assert (call.request.texts, call.request.token_ids) == (texts, token_ids)
    assert call.request.count == len(texts) + len(token_ids)


@pytest.mark.parametrize("wrong", [-1, 2**31, True, 1.5, "1", None])
def test_one_wrong_token_id_among_many_is_named(wrong):
    error = refused(body(input=[[1, 2], [*range(50), wrong]]))
    assert "'input[1][50]' must be a token id" in error.message


@pytest.mark.parametrize(("within", "where"), [(lambda ids: ids, "input"), (lambda ids: [ids], r"input\[0\]")])
def test_of_token_ids_an_input_may_have_a_million(within, where):
    ids = [7] * 1_000_000
    assert parse_embeddings(body(input=within(ids))).request.token_ids == (tuple(ids),)
    with pytest.raises(InvalidRequestError, match=f"'{where}' holds 1000001 items") as caught:
        parse_embeddings(body(input=within([*ids, 7])))
    assert caught.value.param == "input"


def test_options_are_read_and_unknown_fields_ignored():
    call = parse_embeddings(body(dimensions=8, encoding_format="base64", user="u", prompt_name="query", foo=[1]))
    assert call.request == EncodeRequest("m", ("hi",), (), 8, "query")
    assert shape_of(call) == Shape(VectorForm(base64=True))
    assert shape_of(parse_embeddings(body(encoding_format=None, dimensions=None))) == Shape()


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"input": []}, "input", "empty"),
        ({"input": ""}, "input", "empty string"),
        ({"input": ["a", ""]}, "input", r"input\[1\].*empty string"),
        ({"input": None}, "input", "required"),
        ({"input": True}, "input", "must be a string"),
        ({"input": 7}, "input", "must be a string"),
        ({"input": {"text": "a"}}, "input", "must be a string"),
        ({"input": [True]}, "input", "not true"),
        ({"input": [{"image": "http://host/a.png"}]}, "input", r"input\[0\].*not an object"),
        ({"input": ["a", 1]}, "input", r"input\[1\].*the number 1"),
        ({"input": [1, "a"]}, "input", r"input\[1\].*a string"),
        ({"input": [1, True]}, "input", r"input\[1\].*true"),
        ({"input": [[1], []]}, "input", r"input\[1\].*empty list"),
        ({"input": [[1], "a"]}, "input", r"input\[1\].*a list of token ids"),
        ({"input": [[1], [-1]]}, "input", r"input\[1\]\[0\].*-1"),
        ({"input": [[1.5]]}, "input", "a fraction"),
        ({"input": [1.5]}, "input", "a fraction"),
        ({"input": [1.0, -1.0]}, "input", r"input\[1\].*the number -1\."),
        ({"input": [2**40]}, "input", "token id"),
        ({"model": None}, "model", "'model' is required"),
        ({"model": ""}, "model", "'model' is required"),
        ({"model": 3}, "model", "'model' is required"),
        ({"dimensions": 0}, "dimensions", "whole number"),
        ({"dimensions": True}, "dimensions", "whole number"),
        ({"dimensions": 1.5}, "dimensions", "whole number from 1, not a fraction"),
        ({"dimensions": -1.0}, "dimensions", "whole number from 1, not the number -1"),
        ({"dimensions": "8"}, "dimensions", "whole number"),
        ({"encoding_format": "md5"}, "encoding_format", "Invalid value for 'encoding_format' = \"md5\""),
        ({"encoding_format": 1}, "encoding_format", "Supported values"),
        ({"user": 1}, "user", "'user' must be a string"),
        ({"user": 1.0}, "user", "'user' must be a string, not the number 1"),
        ({"prompt_name": []}, "prompt_name", "must be a string, not a list"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_wrong(fields, param, sentence):
    error = refused(body(**fields))
    assert error.param == param
    assert re.search(sentence, error.message)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"model":"m","input":NaN}',
        b'{"model":"m","input":"\\ud800"}',
        b'{"model":"m","input":"\xff"}',
        b"[" * 100_000,
        b'{"model":"m","input":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"model":"m","input":[' + b"9" * 5000 + b"]}",
    ],
)
def test_a_hostile_body_is_a_sentence_never_a_crash(data):
    assert refused(data).status == 400


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["model", "input", "dimensions", "encoding_format"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_any_json_is_either_understood_or_refused(value):
    try:
        data = orjson.dumps(value)
    except TypeError:  # a lone surrogate cannot be sent as JSON by orjson
        return
    try:
        call = parse_embeddings(data)
    except InvalidRequestError:
        return
    assert call.request.count >= 1


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_with_a_sentence(data):
    assert refused(data).message


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6))
def test_both_formats_carry_the_same_float32_bits_in_order_over_all_slices(counts, dimension):
    rng = np.random.default_rng(len(counts))
    blobs = [rng.standard_normal((count, dimension)).astype("<f4") for count in counts]
    parts = tuple(Encoded(blob.tobytes(), dimension, (3,) * len(blob)) for blob in blobs)
    result = EncodeResult("m", parts, 3 * sum(counts), ())
    floats = orjson.loads(b"".join(render_embeddings(result, Shape())))
    packed = orjson.loads(b"".join(render_embeddings(result, FORMS["base64"])))
    expected = np.concatenate(blobs)
    assert [item["index"] for item in floats["data"]] == list(range(sum(counts)))
    assert np.array_equal(np.array([item["embedding"] for item in floats["data"]], dtype="<f4"), expected)
    decoded = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in packed["data"]]
    assert np.array_equal(np.stack(decoded), expected)
    assert floats["usage"] == {"prompt_tokens": 3 * sum(counts), "total_tokens": 3 * sum(counts)}
    assert (floats["object"], floats["model"]) == ("list", "m")


async def test_an_answer_has_the_id_of_its_request_without_which_mistrals_client_reads_none(client, ask):
    # mistralai 3.7.0 wants id, object, model, data and usage; vLLM's answer has an id, too
    headers = {"x-request-id": "mine-1"}
    named = await client.post("/v1/embeddings", json={"model": "embed", "input": "a"}, headers=headers)
    assert (await named.json())["id"] == "mine-1"
    assert (await ask("/v1/embeddings", model="embed", input="a", encoding_format="base64"))["id"].startswith("req-")


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize("dimension", [64, 384, 4096, 70_000])
def test_a_large_answer_comes_in_pieces_of_bounded_size(encoding_format, dimension):
    count = 1 + 200_000 // dimension
    blob = np.arange(count * dimension, dtype="<f4") / 7
    parts = (Encoded(blob.tobytes(), dimension, (1,) * count),) * 2
    result = EncodeResult("m", parts, count, ())
    assert not is_small(result)
    pieces = list(render_embeddings(result, FORMS[encoding_format]))
    answer = orjson.loads(b"".join(pieces))
    assert [item["index"] for item in answer["data"]] == list(range(2 * count))
    rows = max(1, 32 * 1024 // dimension)  # as many as 128 KiB hold
    assert max(piece.count(b'"index"') for piece in pieces) == rows


def test_an_error_has_openais_four_fields_and_what_clients_of_jinas_embeddings_raise():
    error = InvalidRequestError("no", param="input", code="c")
    assert orjson.loads(render_error(error)) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "input", "code": "c"},
        "detail": "no",
    }


def test_a_model_that_is_loading_shows_its_progress_and_no_invented_facts():
    model = describe_model(make_status("a", state="downloading", done_bytes=1, total_bytes=4, expected_ready_s=7.2))
    assert model["download"] == {"done_bytes": 1, "total_bytes": 4}
    assert model["dimensions"] is None
    assert model["expected_ready_s"] == 8
    assert (model["object"], model["owned_by"], model["created"]) == ("model", "owner", 1_700_000_000)


def test_a_model_has_the_type_by_which_clients_of_xinference_know_what_to_ask_it_for():
    types = {kind: describe_model(make_status("a", info=make_info(task=kind)))["model_type"] for kind in get_args(Task)}
    assert types.pop("rerank") == "rerank"
    assert types.pop("classify") == "classify"
    assert set(types.values()) == {"embedding"}
    assert describe_model(make_status("a", state="loading"))["model_type"] is None


def test_a_ready_model_shows_what_was_measured_and_a_failed_one_its_reason():
    model = describe_model(make_status("a", info=make_info(dimension=768, precision="int8")))
    # mistralai's Models.list and retrieve: a union told apart by ``type``, and ``capabilities`` is required in it
    assert (model["type"], model["capabilities"]) == ("base", {})
    assert (model["dimensions"], model["precision"], model["state"]) == (768, "int8", "ready")
    assert "reason" not in model
    assert all(name in model for name in EncoderInfo.__struct_fields__ if name != "dimension")
    assert describe_model(make_status("a", state="failed", reason="no_network", detail="d"))["reason"] == "no_network"
