import base64

import numpy as np
import orjson
import pytest

from emb_model_provider.messages.link import Token, Tokens
from router.dialects import cohere
from tests.support.made_up_models import dense_of


async def test_v2_embed_answers_by_type(ask):
    answer = await ask(
        "/v2/embed",
        model="embed",
        texts=["aab", "c"],
        input_type="search_document",
        embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"],
    )
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["texts"] == ["aab", "c"]
    assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 4}}
    made = answer["embeddings"]
    assert list(made) == ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    assert made["float"] == [pytest.approx(dense_of("aab")), pytest.approx(dense_of("c"))]
    assert made["int8"][0] == [round(127 * number) for number in dense_of("aab")]  # 4 dimensions: the range is 1
    assert made["uint8"][0] == [number + 128 for number in made["int8"][0]]
    assert made["ubinary"] == [[0b1101_0000], [0b0011_0000]]
    assert made["binary"] == [[0b1101_0000 - 128], [0b0011_0000 - 128]]
    assert np.frombuffer(base64.b64decode(made["base64"][1]), "<f4").tolist() == pytest.approx(made["float"][1])


async def test_v2_embed_without_types_is_float_and_v1_a_plain_list(ask):
    assert list((await ask("/v2/embed", model="embed", texts=["a"]))["embeddings"]) == ["float"]
    answer = await ask("/v1/embed", model="embed", texts=["a"])
    assert answer["response_type"] == "embeddings_floats"
    assert answer["embeddings"] == [pytest.approx(dense_of("a"))]
    assert answer["id"]
    by_type = await ask("/v1/embed", model="embed", texts=["a"], embedding_types=["int8"])
    assert by_type["response_type"] == "embeddings_by_type"
    assert list(by_type["embeddings"]) == ["int8"]


@pytest.mark.parametrize(("truncate", "overlong"), [("NONE", "error"), ("START", "start"), ("END", "end")])
async def test_truncate_reaches_the_model(ask, backend, truncate, overlong):
    await ask("/v2/embed", model="embed", texts=["a"], truncate=truncate)
    assert backend.seen[0].overlong == overlong


@pytest.mark.parametrize(
    ("input_type", "prompt_name", "prompt"),
    [("search_query", "query", None), ("search_document", "passage", None), ("clustering", None, "")],
)
async def test_input_type_becomes_the_models_own_prompt_or_none(ask, backend, input_type, prompt_name, prompt):
    await ask("/v2/embed", model="embed", texts=["a"], input_type=input_type)
    assert (backend.seen[0].prompt_name, backend.seen[0].prompt) == (prompt_name, prompt)


async def test_output_dimension_is_the_dimensions_of_others(ask, backend):
    answer = await ask("/v2/embed", model="embed", texts=["a"], output_dimension=2)
    assert backend.seen[0].dimensions == 2
    assert len(answer["embeddings"]["float"][0]) == 2


async def test_texts_may_each_be_the_one_part_of_an_input(ask, backend):
    """langchain4j, ``CohereEmbeddingModel.java``: ``buildV2Request``, and ``EmbedV2Response.java`` for the answer."""
    body = {"model": "embed", "input_type": "search_query", "embedding_types": ["float"]}
    inputs = [{"content": [{"type": "text", "text": text}]} for text in ("aa", "b")]
    answer = await ask("/v2/embed", **body, inputs=inputs)
    assert answer["embeddings"]["float"] == [pytest.approx(dense_of("aa")), pytest.approx(dense_of("b"))]
    assert (backend.seen[0].texts, answer["texts"]) == (("aa", "b"), ["aa", "b"])
    assert answer["meta"]["billed_units"]["input_tokens"] == 3


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image_url", "image_url": {"url": "data:…"}}],
        [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:…"}}],
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        ["a"],
        [],
        "a",
    ],
)
async def test_an_input_that_is_more_or_other_than_a_text_is_refused(refuse, content):
    inputs = [{"content": [{"type": "text", "text": "a"}]}, {"content": content}]
    status, error = await refuse("/v2/embed", model="embed", inputs=inputs)
    assert (status, error["param"]) == (400, "inputs")
    assert error["message"] == "'inputs[1]' must be a string, not an object."


async def test_v2_rerank_has_the_best_first_and_no_documents(ask):
    answer = await ask(
        "/v2/rerank", model="rerank", query="abc", documents=["x", "abc", {"text": "ab"}, "abc"], top_n=3
    )
    assert [one["index"] for one in answer["results"]] == [1, 3, 2]
    assert [one["relevance_score"] for one in answer["results"]] == [0.0, 0.0, -1.0]
    assert set(answer["results"][0]) == {"index", "relevance_score"}
    assert answer["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}


async def test_v1_rerank_may_return_documents(ask):
    answer = await ask("/v1/rerank", model="rerank", query="a", documents=["a"], return_documents=True)
    assert answer["results"] == [{"index": 0, "relevance_score": -2.0, "document": {"text": "a"}}]


async def test_bad_texts_of_a_partial_request_are_null_with_their_errors_beside(ask):
    answer = await ask("/v2/embed", model="embed", texts=["", "a", "BAD", "b"], on_error="null")
    rows = answer["embeddings"]["float"]
    assert [row is None for row in rows] == [True, False, True, False]
    assert rows[3] == pytest.approx(dense_of("b"))
    assert [error["index"] for error in answer["errors"]] == [0, 2]
    assert answer["errors"][1]["code"] == "bad_input"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v2/embed", {"model": "embed"}, 400, "'texts' is required"),
        ("/v2/embed", {"model": "embed", "texts": ["a"], "embedding_types": ["float32"]}, 400, "Supported values"),
        ("/v2/embed", {"model": "embed", "texts": ["a"], "images": ["x"]}, 400, "'images' is not supported"),
        ("/v2/embed", {"model": "none", "texts": ["a"]}, 404, "does not exist"),
        ("/v2/embed", {"model": "embed", "texts": ["a"], "input_type": "image"}, 400, "not a kind of input"),
        ("/v2/rerank", {"model": "rerank", "query": "a"}, 400, "'documents' is required"),
        ("/v2/rerank", {"model": "classify", "query": "a", "documents": ["b"]}, 400, "tells 3 classes apart"),
        ("/v2/nothing", {}, 404, "There is no POST"),
    ],
)
async def test_errors_have_coheres_shape(refuse, path, body, status, words):
    got, error = await refuse(path, **body)
    assert got == status
    assert words in error["message"]
    assert "error" not in error


async def test_tokenize_answers_ids_without_special_ones_and_each_ones_part_of_the_text(ask, backend):
    answer = await ask("/v1/tokenize", model="embed", text="ab")
    assert answer == {"tokens": [97, 98], "token_strings": ["a", "b"], "meta": {"api_version": {"version": "1"}}}
    assert (backend.asked[0].texts, backend.asked[0].add_special_tokens) == (("ab",), False)


@pytest.mark.parametrize(
    ("places", "strings"),
    [
        ([("tok", 1, 4), ("##en", 4, 6), ("!", 8, 9)], [" tok", "en", "  !\n"]),  # WordPiece: blanks are nobody's
        ([("▁tok", 0, 4), ("en", 4, 6), ("▁▁!", 6, 9)], [" tok", "en", "  !\n"]),
        ([("Ġtoken", 0, 6), ("â", 6, 9), ("Ģ", 6, 9)], [" token", "  !", "\n"]),  # bytes of one character
        ([("<s>", None, None), ("token", 1, 6)], ["", " token  !\n"]),
        ([], []),
    ],
)
def test_strings_of_tokens_are_the_text_again_when_joined_as_dify_does_it(places, strings):
    text = " token  !\n"
    row = tuple(Token(1, one, special=False, start=start, stop=stop) for one, start, stop in places)
    answer = orjson.loads(b"".join(cohere.build_tokenize(text, Tokens((row,)), None)))
    assert answer["token_strings"] == strings
    assert "".join(strings) == (text if places else "")
    assert len(answer["tokens"]) == len(strings)


async def test_tokenize_refuses_in_coheres_words(refuse):
    status, error = await refuse("/v1/tokenize", model="embed", text="")
    assert (status, error["param"], set(error)) == (400, "text", {"message", "code", "param"})
    assert (await refuse("/v1/tokenize", model="not-here", text="a"))[0] == 404
