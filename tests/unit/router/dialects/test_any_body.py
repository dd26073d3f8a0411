"""Whatever a body holds, a dialect understands it or refuses it with a sentence."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emb_model_provider.errors import RequestError
from router.dialects.fields import read_object
from router.dialects.seam import EncodeCall
from router.dialects.table import by_path
from router.large_json import LARGE_BYTES
from tests.support.steps import finish

ROUTES = [
    pytest.param(dialect, route, id=f"{dialect.name} {route.path}")
    for choices in by_path().values()
    for dialect, route in choices
    if route.method == "POST"
]
NAMES = st.sampled_from(
    [
        "model",
        "input",
        "inputs",
        "texts",
        "documents",
        "query",
        "prompt",
        "tokens",
        "ids",
        "text_1",
        "text_2",
        "queries",
        "source_sentence",
        "sentences",
        "parameters",
        "top_k",
        "top_n",
        "function_to_apply",
        "embedding_types",
        "embedding_type",
        "encoding_format",
        "output_dtype",
        "outputs",
        "dimensions",
        "output_dimension",
        "input_type",
        "task",
        "prompt_name",
        "normalize",
        "truncate",
        "truncation_direction",
        "max_tokens",
        "truncate_prompt_tokens",
        "priority",
        "timeout_ms",
        "on_error",
        "usage_details",
        "late_chunking",
        "return_documents",
        "return_text",
        "raw_scores",
        "use_activation",
        "add_special_tokens",
        "skip_special_tokens",
        "return_token_strs",
        "name",
        "messages",
        "images",
        "text",
    ]
)
WORDS = st.sampled_from(["", "a", "float", "int8", "null", "NONE", "left", "dense", "query", "bulk", "softmax", "m"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 2**33) | st.floats(allow_nan=False) | WORDS | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=10
)
LIKELY = {
    "model": st.just("m"),
    "input": st.lists(WORDS, max_size=3),
    "inputs": st.lists(WORDS, max_size=3) | st.lists(st.lists(WORDS, max_size=3), max_size=3),
    "texts": st.lists(WORDS, max_size=3),
    "documents": st.lists(WORDS | st.dictionaries(st.just("text"), WORDS), max_size=3),
    "query": WORDS,
    "prompt": WORDS,
    "on_error": st.sampled_from(["null", "fail"]),
    "tokens": st.lists(st.integers(-1, 9), max_size=3),
}


def understood(route, fields):
    try:
        return finish(route.parse(fields))
    except RequestError as error:
        return error


@pytest.mark.parametrize(("dialect", "route"), ROUTES)
@settings(max_examples=60)
@given(wild=st.dictionaries(NAMES, VALUES, max_size=6), likely=st.fixed_dictionaries({}, optional=LIKELY))
def test_any_object_is_understood_or_refused_with_a_sentence(dialect, route, wild, likely):
    fields = finish(read_object(orjson.dumps(likely | wild)))
    call = understood(route, fields)
    if isinstance(call, RequestError):
        assert 400 <= call.status < 500
        assert call.param
        assert orjson.loads(dialect.render_error(call))
    if isinstance(call, EncodeCall):
        assert call.request.count + len(call.holes) >= 1
        assert not (call.request.texts and call.request.token_ids)
        assert all(call.request.texts)
        assert len(call.request.seconds) in (0, call.request.count)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_json_in_another_encoding_is_called_that(encoding):
    with pytest.raises(RequestError, match=r"^The body is not valid JSON: it is not in UTF-8 .*GBK"):
        finish(read_object('{"model": "m", "input": "你好"}'.encode(encoding)))


@pytest.mark.parametrize("size", [1, LARGE_BYTES])
def test_the_byte_order_mark_of_a_file_that_windows_saved_is_no_part_of_its_json(size):
    body = b'{"model": "m", "input": ["%b"]}' % (b"a" * size)
    assert finish(read_object(b"\xef\xbb\xbf" + body)).values == orjson.loads(body)


@given(st.binary(max_size=100).map(lambda data: b"\x00" + data))  # no JSON begins so
def test_random_bytes_are_refused_with_a_sentence(data):
    with pytest.raises(RequestError, match=r"^The body is not valid JSON"):
        finish(read_object(data))


@pytest.mark.parametrize("name", ["encoding_format", "embedding_type", "outputs", "priority", "on_error", "dimensions"])
def test_an_option_that_is_nested_deeper_than_json_is_written_is_refused_with_a_short_sentence(name):
    deep = b"[" * 300 + b"]" * 300
    fields = finish(read_object(b'{"model":"m","input":"a","%b":%b}' % (name.encode(), deep)))
    (route,) = (route for _, route in by_path()["POST", "/v1/embeddings"])
    error = understood(route, fields)
    assert isinstance(error, RequestError)
    assert error.param == name
    assert len(error.message) < 300


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\ude00", rb"\ud83dA"])
def test_half_of_an_emoji_is_refused_in_words_that_say_how_it_came_about(half):
    with pytest.raises(RequestError, match=r"char 11\) \(half of a character is no text; an emoji was cut in two"):
        finish(read_object(b'{"input": "' + half + b'"}'))
