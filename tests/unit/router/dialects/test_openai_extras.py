import base64
import hashlib

import numpy as np
import pytest

from tests.support.made_up_models import dense_of, make_app


async def embed(ask, **fields):
    return await ask("/v1/embeddings", **({"model": "embed", "input": ["aab", "c"]} | fields))


async def test_azures_path_names_the_model_and_azures_header_the_key(aiohttp_client):
    # openai 3.57.0, AzureOpenAI: the deployment stands in the path as it is
    client = await aiohttp_client(make_app(keys=(hashlib.sha256(b"key").digest(),)))
    path, body = "/openai/deployments/owner/embed/embeddings?api-version=2024-10-21", {"input": ["a"]}
    response = await client.post(path, json=body, headers={"api-key": "key"})
    answer = await response.json()
    assert (response.status, answer["model"]) == (200, "embed"), answer
    assert (await client.post(path, json=body)).status == 401


async def test_azures_path_without_a_date_has_the_model_in_the_body(aiohttp_client):
    # LiteLLM 1.110.2, azure/ID with api_version v1 or preview
    client = await aiohttp_client(make_app(keys=(hashlib.sha256(b"key").digest(),)))
    path, body = "/openai/v1/embeddings?api-version=preview", {"model": "embed", "input": ["a"]}
    response = await client.post(path, json=body, headers={"api-key": "key"})
    answer = await response.json()
    assert (response.status, answer["model"]) == (200, "embed"), answer
    assert (await client.post(path, json=body)).status == 401


async def test_infinitys_client_gets_whole_vectors_of_texts_and_no_vectors_of_addresses(ask, refuse, backend):
    # infinity_client 0.0.78, OpenAIEmbeddingInputText: what is not set is sent with its default
    body = {"model": "embed", "input": ["a"], "dimensions": 0, "modality": "text"}
    answer = await ask("/embeddings", **body)
    assert len(answer["data"][0]["embedding"]) == 4
    assert backend.seen[0].dimensions is None
    status, error = await refuse("/embeddings", **body | {"modality": "image", "input": ["http://host/a.png"]})
    assert (status, error["error"]["param"]) == (400, "modality")


async def test_several_outputs_of_one_pass_stand_side_by_side(ask, backend):
    answer = await embed(ask, model="m3", outputs=["dense", "sparse", "colbert"])
    first = answer["data"][0]
    assert first["embedding"] == pytest.approx(dense_of("aab"))
    assert first["sparse_embedding"] == {"indices": [97, 98], "values": [2.0, 1.0]}
    assert first["multi_vector"] == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert backend.seen[0].outputs == ("dense", "sparse", "multi_vector")
    assert len(backend.seen) == 1


async def test_token_vectors_are_called_embeddings_where_they_are_asked_for_in_jinas_words(ask, refuse, backend):
    # RAGFlow's JinaMultiVecEmbed
    body = {"input": [{"text": "aab"}], "task": "retrieval.passage", "truncate": True, "return_multivector": True}
    (item,) = (await embed(ask, model="m3", **body))["data"]
    assert item["embeddings"] == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert item.keys() == {"object", "index", "embeddings"}
    assert backend.seen[0].outputs == ("multi_vector",)
    status, error = await refuse("/v1/embeddings", model="embed", **body)
    assert (status, error["error"]["param"]) == (400, "outputs"), "it has none, which is said"
    assert "embedding" in (await embed(ask, model="embed", **body | {"return_multivector": False}))["data"][0]


async def test_token_vectors_in_base64_are_a_string_each(ask):
    answer = await embed(ask, model="colbert", outputs="multi_vector", encoding_format="base64")
    rows = [np.frombuffer(base64.b64decode(one), "<f4").tolist() for one in answer["data"][1]["multi_vector"]]
    assert rows == [[0.0, 0.0, 1.0]]
    assert "embedding" not in answer["data"][1]


@pytest.mark.parametrize(
    ("fields", "dtype", "scale"),
    [
        ({"output_dtype": "int8"}, "<i1", 127),
        ({"embedding_type": "float16"}, "<f2", 1),
        ({"embed_dtype": "float32"}, "<f4", 1),
    ],
)
async def test_every_type_comes_as_numbers_or_as_base64_of_the_same(ask, fields, dtype, scale):
    numbers = (await embed(ask, **fields))["data"][0]["embedding"]
    packed = (await embed(ask, **fields, encoding_format="base64"))["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), dtype).tolist() == pytest.approx(numbers)
    assert numbers == pytest.approx([scale * number for number in dense_of("aab")], abs=scale / 200)


@pytest.mark.parametrize(
    ("name", "word"), [("embedding_type", "base64"), ("output_dtype", "BASE64"), ("embed_dtype", "Base64")]
)
async def test_base64_is_a_type_too(ask, name, word):
    (first, _) = (await embed(ask, **{name: word}))["data"]
    assert np.frombuffer(base64.b64decode(first["embedding"]), "<f4").tolist() == pytest.approx(dense_of("aab"))


async def test_an_order_of_bytes_that_is_not_made_is_refused(ask, refuse):
    assert (await embed(ask, endianness="little"))["data"] == (await embed(ask, endianness="native"))["data"]
    status, error = await refuse("/v1/embeddings", model="embed", input="a", endianness="big")
    assert (status, error["error"]["param"]) == (400, "endianness")


@pytest.mark.parametrize(
    ("fields", "normalize"),
    [({}, None), ({"use_activation": False}, False), ({"use_activation": False, "normalize": True}, True)],
)
async def test_vllm_s_word_for_normalize_is_heard(ask, backend, fields, normalize):
    await embed(ask, add_special_tokens=True, **fields)
    assert backend.seen.pop().normalize is normalize


async def test_texts_without_special_tokens_are_refused(refuse):
    status, error = await refuse("/v1/embeddings", model="embed", input="a", add_special_tokens=False)
    assert (status, error["error"]["param"]) == (400, "add_special_tokens")


@pytest.mark.parametrize("types", ["int8", ["float", "INT8"]])
async def test_a_type_goes_with_other_outputs_and_with_a_report(ask, types):
    answer = await embed(ask, model="m3", outputs=["dense", "sparse"], embedding_type=types, usage_details=True)
    first = answer["data"][0]
    assert first["object"] == "embedding"
    assert first["sparse_embedding"]["indices"] == [97, 98]
    made = first["embedding"] if types == "int8" else first["embeddings"]["int8"]
    assert made == [round(127 * number) for number in dense_of("aab")]
    assert len(answer["usage"]["details"]) == 2


async def test_an_error_stands_in_an_item_like_the_others(ask):
    (_, failed) = (await embed(ask, input=["a", "BAD"], on_error="null"))["data"]
    assert (failed["object"], failed["index"]) == ("embedding", 1)


async def test_int8_is_of_vectors_of_length_1(ask, backend, refuse):
    for types in ("int8", ["float", "uint8"]):
        await embed(ask, output_dtype=types)
        assert backend.seen.pop().normalize is True
    status, error = await refuse("/v1/embeddings", model="embed", input="a", output_dtype="uint8", normalize=False)
    assert (status, error["error"]["param"]) == (400, "normalize")


@pytest.mark.parametrize("types", ["float16", "binary", "ubinary", ["float", "binary"]])
@pytest.mark.parametrize("normalize", [None, False, True])
async def test_other_types_are_of_vectors_as_the_model_or_the_client_has_them(ask, backend, types, normalize):
    await embed(ask, output_dtype=types, normalize=normalize)
    assert backend.seen[0].normalize is normalize


async def test_a_single_text_may_be_asked_for_with_on_error(ask, refuse):
    assert len((await embed(ask, input="a", on_error="null"))["data"]) == 1
    assert (await refuse("/v1/embeddings", model="embed", input="", on_error="null"))[0] == 400


async def test_a_model_whose_vectors_have_no_mark_yet_tells_none(ask):
    assert set(await embed(ask, model="m3")) == {"id", "object", "data", "model", "usage"}


async def test_what_was_read_of_each_input_is_told_on_request(ask, client):
    answer = await embed(ask, input=["a", "a" * 9], usage_details=True)
    assert answer["usage"]["details"] == [
        {"tokens": 1, "original_tokens": 1, "truncated": False},
        {"tokens": 8, "original_tokens": 9, "truncated": True},
    ]
    response = await client.post("/v1/embeddings", json={"model": "embed", "input": ["a", "a" * 9]})
    assert response.headers["x-truncated-inputs"] == "1"
    assert "details" not in (await response.json())["usage"]


async def test_bad_inputs_of_a_partial_request_carry_their_errors_at_their_places(ask, backend):
    answer = await embed(ask, input=["", "BAD", "b", 7, "c"], on_error="null", usage_details=True)
    assert [one["index"] for one in answer["data"]] == list(range(5))
    assert [one["embedding"] is None for one in answer["data"]] == [True, True, False, True, False]
    assert answer["data"][4]["embedding"] == pytest.approx(dense_of("c"))
    errors = [one.get("error", {}).get("message") for one in answer["data"]]
    assert errors[0] == "'input[0]' is an empty string: leave it out or give it some text."
    assert errors[1] == "no vector for this"
    assert errors[3] == "'input[3]' must be a string, not the number 7."
    assert len(answer["usage"]["details"]) == 5
    assert backend.seen[0].texts == ("BAD", "b", "c")
    assert backend.seen[0].partial


@pytest.mark.parametrize("outputs", [["dense"], ["dense", "sparse"], ["multi_vector"]])
async def test_items_are_numbered_through_all_slices_those_with_errors_too(ask, outputs):
    texts = ["BAD" if index % 70 == 69 else "" if index % 50 == 49 else "a" for index in range(300)]
    data = (await embed(ask, model="m3", input=texts, outputs=outputs, on_error="null"))["data"]
    assert [one["index"] for one in data] == list(range(300))
    assert [index for index, one in enumerate(data) if "error" in one] == [
        index for index, text in enumerate(texts) if text != "a"
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/embeddings", "input"), ("/v2/embed", "texts"), ("/embed", "inputs"), ("/api/embed", "input")],
)
async def test_whatever_the_dialect_good_inputs_keep_the_names_that_their_client_knows(ask, backend, path, name):
    await ask(path, model="embed", **{name: ["", "a", "", "b"]}, on_error="null")
    assert (backend.seen[0].texts, backend.seen[0].labels) == (("a", "b"), ("input 1", "input 3"))


async def test_without_on_error_one_bad_input_fails_the_request(refuse):
    status, error = await refuse("/v1/embeddings", model="embed", input=["", "b"])
    assert (status, error["error"]["param"]) == (400, "input")


async def test_a_request_of_only_bad_inputs_is_refused(refuse):
    assert (await refuse("/v1/embeddings", model="embed", input=["", 1.5], on_error="null"))[0] == 400


async def test_the_model_may_be_named_with_its_prompt(ask, backend):
    answer = await embed(ask, model="embed:query")
    await embed(ask, model="owner/embed:document")
    await embed(ask, model="embed", input_type="query", prompt="say: ")
    assert answer["model"] == "embed"
    assert [(one.prompt_name, one.prompt) for one in backend.seen] == [
        ("query", None), ("passage", None), (None, "say: "),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"priority": "bulk"}, {"priority": "bulk"}),
        ({"priority": -1}, {"priority": "interactive"}),
        ({"priority": 0}, {"priority": "auto"}),
        ({"priority": 1}, {"priority": "bulk"}),
        ({"timeout_ms": 60_000}, {"timeout_ms": 60_000}),
        ({"truncate": False}, {"overlong": "error"}),
        ({"truncate": "START"}, {"overlong": "start"}),
        ({"truncation_side": "left", "truncate_prompt_tokens": 3}, {"overlong": "start", "max_tokens": 3}),
        ({"normalized": False}, {"normalize": False}),
    ],
)
async def test_options_reach_the_model(ask, backend, fields, expected):
    await embed(ask, **fields)
    seen = {name: getattr(backend.seen[0], name) for name in expected}
    if "timeout_ms" in expected:
        assert 50_000 < seen.pop("timeout_ms") <= expected.pop("timeout_ms")
    assert seen == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"priority": "high"}, "priority"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"truncate": 1}, "truncate"),
        ({"truncate": "MIDDLE"}, "truncate"),
        ({"normalize": "yes"}, "normalize"),
        ({"on_error": "ignore"}, "on_error"),
        ({"outputs": []}, "outputs"),
        ({"outputs": ["vectors"]}, "outputs"),
        ({"outputs": ["sparse"]}, "outputs"),
        ({"embedding_type": ["int4"]}, "embedding_type"),
        ({"embedding_type": []}, "embedding_type"),
        ({"embedding_type": ["float", {}]}, "embedding_type"),
        ({"output_dtype": "int4"}, "output_dtype"),
        ({"input_type": 1}, "input_type"),
        ({"task": "dance"}, "input_type"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
async def test_a_wrong_option_is_named(refuse, fields, param):
    status, error = await refuse("/v1/embeddings", **({"model": "embed", "input": "a"} | fields))
    assert (status, error["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["outputs", "embedding_type"])
async def test_an_empty_list_of_words_is_called_empty(refuse, name):
    _, error = await refuse("/v1/embeddings", model="embed", input="a", **{name: []})
    assert error["error"]["message"].startswith(f"'{name}' is empty: name at least one of [")


async def test_every_answer_has_its_request_and_fingerprint(client):
    for path, body in (
        ("/v1/embeddings", {"model": "embed", "input": "a"}),
        ("/v2/embed", {"model": "embed", "texts": ["a"]}),
        ("/embed", {"model": "embed", "inputs": "a"}),
        ("/api/embed", {"model": "embed", "input": "a"}),
        ("/api/embeddings", {"model": "embed", "prompt": "a"}),
        ("/score", {"model": "embed", "text_1": "a", "text_2": "b"}),
    ):
        response = await client.post(path, json=body, headers={"x-request-id": "mine"})
        assert response.status == 200
        assert (response.headers["x-request-id"], response.headers["x-model-fingerprint"]) == ("mine", "f00d")
        answer = await response.json()
        assert isinstance(answer, list) or answer["system_fingerprint"] == "f00d"
