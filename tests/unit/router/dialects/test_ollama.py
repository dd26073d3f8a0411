import pytest

from tests.support.made_up_models import dense_of


async def test_embed(ask, backend):
    answer = await ask("/api/embed", model="embed:latest", input=["a", "b"], keep_alive="5m", options={"num_ctx": 1})
    assert answer["embeddings"] == [pytest.approx(dense_of("a")), pytest.approx(dense_of("b"))]
    assert (answer["model"], answer["prompt_eval_count"], answer["load_duration"]) == ("embed", 2, 0)
    assert answer["total_duration"] > 0
    await ask("/api/embed", model="embed", input="a", truncate=False)
    assert [one.overlong for one in backend.seen] == ["truncate", "error"]


async def test_the_older_route_has_one_vector(ask, backend):
    answer = await ask("/api/embeddings", model="embed", prompt="a", keep_alive=-1)
    assert answer == {"embedding": pytest.approx(dense_of("a"))}
    assert backend.seen[0].prompt is None


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
    assert (await refuse("/api/embed", model="embed", input=[]))[0] == 400
