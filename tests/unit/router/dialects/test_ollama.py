import orjson
import pytest

from router.dialects import ollama
from tests.support.made_up_models import dense_of
from tests.support.statuses import make_info, make_status


async def test_embed(ask, backend):
    answer = await ask("/api/embed", model="embed:latest", input=["a", "b"], keep_alive="5m", options={"num_ctx": 1})
    assert answer["embeddings"] == [pytest.approx(dense_of("a")), pytest.approx(dense_of("b"))]
    assert (answer["model"], answer["prompt_eval_count"], answer["load_duration"]) == ("embed", 2, 0)
    assert answer["total_duration"] > 0
    await ask("/api/embed", model="embed", input="a", truncate=False)
    assert [one.overlong for one in backend.seen] == ["truncate", "error"]


async def test_bad_inputs_of_a_partial_request_are_null_and_named_and_what_was_read_is_told(ask):
    answer = await ask("/api/embed", model="embed", input=["", "a", "BAD"], on_error="null", usage_details=True)
    assert [one is None for one in answer["embeddings"]] == [True, False, True]
    assert [(one["index"], one["code"]) for one in answer["errors"]] == [(0, None), (2, "bad_input")]
    assert [one["tokens"] for one in answer["usage_details"]] == [0, 1, 3]
    plain = await ask("/api/embed", model="m3", input="a")
    assert set(plain) == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}


async def test_the_older_route_has_one_vector(ask, backend):
    answer = await ask("/api/embeddings", model="embed", prompt="a", keep_alive=-1)
    assert answer == {"embedding": pytest.approx(dense_of("a")), "system_fingerprint": "f00d"}
    assert backend.seen[0].prompt is None


async def test_nothing_to_encode_as_clients_send_it_to_load_a_model_is_no_error(ask, refuse, backend):
    # ollama 0.6.3: embed("embed"), langchain-ollama 1.1.0: embed_documents([]), ollama 0.6.3: embeddings("embed");
    # Ollama's client for Go without an input: null, for JavaScript: nothing
    for body in ({}, {"input": None}, {"input": ""}, {"input": [], "options": {"mirostat": None}, "dimensions": 2}):
        answer = await ask("/api/embed", model="embed:latest", **body)
        assert (answer["model"], answer["embeddings"], answer["prompt_eval_count"]) == ("embed", [], 0)
    for body in ({}, {"prompt": ""}):
        assert await ask("/api/embeddings", model="embed", **body) == {"embedding": []}
    assert backend.seen == []
    assert (await refuse("/api/embed", model="nothing", input=""))[0] == 404


async def test_models_are_listed_and_shown(client, ask):
    listed = (await (await client.get("/api/tags")).json())["models"]
    assert {"name", "model", "modified_at", "size", "digest", "details"} <= set(listed[0])
    assert listed[0]["name"] == "embed"
    running = (await (await client.get("/api/ps")).json())["models"]
    assert running[0]["size_vram"] == 0
    assert "version" in await (await client.get("/api/version")).json()
    shown = await ask("/api/show", model="embed:latest")
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["plain.embedding_length"] == 4
    assert (await ask("/api/show", name="rerank"))["capabilities"] == ["rerank"]


async def test_errors_are_one_string(refuse, client):
    status, error = await refuse("/api/embed", model="nothing", input="a")
    assert status == 404
    assert error["error"].startswith("The model 'nothing' does not exist")
    assert (await refuse("/api/nothing"))[1]["error"] == "There is no POST /api/nothing here."
    assert (await refuse("/api/embed", model="embed", input=["a", ""]))[0] == 400
    assert (await refuse("/api/embed", model="embed", input=1))[0] == 400


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
async def test_a_text_that_is_sent_as_prompt_as_well_is_not_put_before_itself(ask, backend, path):
    # cognee 0.3.9 to 0.5.1, OllamaEmbeddingEngine: one body for both of Ollama's routes and for OpenAI's
    await ask(path, model="embed", prompt="aab", input="aab")
    assert (backend.seen[0].texts, backend.seen[0].prompt) == (("aab",), None)
    await ask(path, model="embed", prompt="b: ", input="aab")
    assert (backend.seen[1].texts, backend.seen[1].prompt) == (("aab",), "b: ")


@pytest.mark.parametrize(
    ("path", "name"),
    [("/api/embed", "input"), ("/api/embeddings", "prompt"), ("/v1/embeddings", "input"), ("/embed", "inputs")],
)
async def test_what_a_text_is_for_may_be_said_on_every_route(ask, backend, path, name):
    await ask(path, model="embed", **{name: "a"}, input_type="search_query")
    assert backend.seen[0].prompt_name == "query"


async def test_without_a_name_nothing_is_shown_or_pulled(refuse):
    for path in ("/api/show", "/api/pull"):
        wanted = "'model' is required: the id of a served model, as a string."
        assert await refuse(path) == (400, {"error": wanted})


async def test_a_model_that_is_served_counts_as_pulled(ask, refuse, backend):
    # mem0ai 2.2.1 pulls what it does not find among the ids before it embeds: full names, prompts behind a colon
    for body in ({"model": "owner/embed", "stream": False}, {"name": "embed:latest"}, {"model": "embed:query"}):
        assert await ask("/api/pull", **body) == {"status": "success"}
    assert backend.seen == []
    status, error = await refuse("/api/pull", model="nothing")
    assert (status, error["error"][:36]) == (404, "The model 'nothing' does not exist. ")


def test_a_model_that_has_never_loaded_is_listed_and_shown_with_what_is_known_and_a_failed_one_is_not_listed():
    loaded = make_info(weights_bytes=7, device="cuda:0", precision="int8", fingerprint="f00d")
    statuses = [
        make_status("there", info=loaded),
        make_status("comes", state="loading"),
        make_status("was", state="restarting", info=loaded),
        make_status("gone", state="failed", info=loaded),
    ]
    listed = orjson.loads(ollama._list(statuses))["models"]
    assert [(one["name"], one["size"], one["details"]["quantization_level"]) for one in listed] == [
        ("there", 7, "Q8_0"),
        ("comes", 0, ""),
        ("was", 7, "Q8_0"),
    ]
    assert listed[0]["digest"] == listed[2]["digest"] != listed[1]["digest"]
    assert listed[0]["modified_at"] == "2023-11-14T22:13:20Z"
    running = orjson.loads(ollama._running(statuses))["models"]
    assert [(one["name"], one["size_vram"]) for one in running] == [("there", 7)]
    shown = orjson.loads(ollama._show(statuses[1]))
    assert (shown["model_info"], shown["capabilities"]) == ({"general.basename": "owner/name"}, ["embedding"])


def test_a_row_holds_what_ollamas_clients_read_of_it():
    loaded = make_status("m", info=make_info(precision="bf16", weights_bytes=7))
    (row,) = orjson.loads(ollama._running([loaded]))["models"]
    digest = row.pop("digest")
    assert (len(digest), int(digest, 16) > 0) == (64, True)
    details = {
        "parent_model": "",
        "format": "safetensors",
        "family": "plain",
        "families": ["plain"],
        "parameter_size": "",
        "quantization_level": "BF16",
    }
    assert row == {
        "name": "m",
        "model": "m",
        "modified_at": "2023-11-14T22:13:20Z",
        "size": 7,
        "details": details,
        "expires_at": "9999-12-31T23:59:59Z",
        "size_vram": 0,
    }
    shown = orjson.loads(ollama._show(loaded))
    assert shown == {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "license": "",
        "modified_at": "2023-11-14T22:13:20Z",
        "details": details,
        "model_info": {
            "general.basename": "owner/name",
            "general.architecture": "plain",
            "plain.embedding_length": 4,
            "plain.context_length": 8,
            "plain.pooling_type": "cls",
            "tokenizer.ggml.tokens": None,
        },
        "capabilities": ["embedding"],
    }
    coming = orjson.loads(ollama._list([make_status("m", state="loading")]))["models"][0]["details"]
    assert (coming["family"], coming["families"], coming["quantization_level"]) == ("", [], "")


@pytest.mark.parametrize(("precision", "word"), [("fp32", "F32"), ("fp16", "F16"), ("int4", "Q4_0"), ("odd", "")])
def test_precisions_have_ollamas_names(precision, word):
    assert ollama._details(make_status("m", info=make_info(precision=precision)))["quantization_level"] == word


def test_a_model_has_another_digest_once_it_makes_other_vectors_and_one_of_its_own_before_it_has_loaded():
    def digest(**changes):
        return ollama._row(make_status("m", **changes))["digest"]

    loaded = digest(info=make_info(fingerprint="f00d"))
    assert loaded == digest(info=make_info(fingerprint="f00d"), name="other/name")
    assert len({loaded, digest(info=make_info(fingerprint="beef")), digest(), digest(name="other/name")}) == 4
