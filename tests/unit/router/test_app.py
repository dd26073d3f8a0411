import asyncio
import gc
import hashlib
import io
import logging
import time

import aiohttp
import numpy as np
import orjson
import pytest
from aiohttp import web
from yarl import URL

from emb_model_provider.messages.link import Encoded, Tokens
from emb_model_provider.messages.status import ShardTable
from router.app import build_app
from router.auth import Authenticator
from router.connection import Runner
from router.handlers import Handlers
from router.openapi.answers import ERRORS
from router.registry import Registry
from router.service import EmbeddingService, Policy
from router.visit import VISIT, Visit
from tests.support.statuses import make_info, make_status
from tests.unit.router.test_service import LengthBackend, SlowBackend

LIMIT = 4096


def make_app(
    backend=None, keys: tuple[str, ...] = (), timeout_s: float = 0.0, limit: int = LIMIT, held: int = 0, outer=()
):
    registry = Registry(ready_wait_s=0.05)
    registry.update(
        ShardTable(
            (
                make_status("m", info=make_info(fingerprint="f00d")),
                make_status("BAAI/bge-m3", name="BAAI/bge-m3", state="failed", reason="no_network", detail="no route"),
            )
        )
    )
    handlers = Handlers(EmbeddingService(registry, backend or LengthBackend(), Policy(timeout_s)), registry, limit)
    digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
    return build_app(handlers, Authenticator(digests), limit, held, outer)


async def test_an_embedding_is_answered_with_id_usage_and_the_count_of_truncated_inputs(aiohttp_client):
    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", json={"model": "m", "input": ["abc", "x" * 9]})
    assert response.status == 200
    assert response.headers["x-truncated-inputs"] == "1"
    assert response.headers["x-request-id"].startswith("req-")
    assert response.headers["x-model-fingerprint"] == "f00d"
    answer = await response.json()
    assert [item["embedding"] for item in answer["data"]] == [[3.0], [9.0]]


async def test_a_given_request_id_comes_back_and_an_unsafe_one_is_replaced(aiohttp_client):
    client = await aiohttp_client(make_app())
    assert (await client.get("/health", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    assert (await client.get("/health", headers={"x-request-id": 'a"b'})).headers["x-request-id"].startswith("req-")


async def test_what_is_sent_to_a_model_has_the_requests_id_and_what_is_refused_its_model(aiohttp_client):
    visits, backend = [], LengthBackend()

    @web.middleware
    async def remember(request, handler):
        visits.append(Visit())
        VISIT.set(visits[-1])
        return await handler(request)

    client = await aiohttp_client(make_app(backend, outer=[remember]))
    headers = {"x-request-id": "mine-1"}
    await client.post("/v1/embeddings", json={"model": "m", "input": "abc"}, headers=headers)
    assert backend.seen[0].request_id == "mine-1"
    response = await client.post("/v1/embeddings", json={"model": "BAAI/bge-m3", "input": "abc"})
    assert response.status == 503
    assert (visits[1].model, visits[1].error) == ("BAAI/bge-m3", "model_failed")


async def test_clients_whose_address_ends_without_v1_find_the_models_beside_the_embeddings(aiohttp_client):
    client = await aiohttp_client(make_app())
    listed = await client.get("/models")
    assert (listed.status, await listed.json()) == (200, await (await client.get("/v1/models")).json())


@pytest.mark.parametrize("path", ["/v1/models/BAAI/bge-m3", "/v1/models/BAAI%2Fbge-m3", "/v1/models/owner/name"])
async def test_a_model_is_found_by_id_or_name_with_its_slash_raw_or_escaped(aiohttp_client, path):
    client = await aiohttp_client(make_app())
    response = await client.get(path)
    assert response.status == 200
    assert (await response.json())["object"] == "model"


@pytest.mark.parametrize(("path", "body"), [("/api/embed", {"input": ""}), ("/api/embeddings", {})])
async def test_who_loads_a_model_in_ollamas_way_is_not_told_that_it_is_loaded_before_it_is(aiohttp_client, path, body):
    client = await aiohttp_client(make_app())
    response = await client.post(path, json={"model": "BAAI/bge-m3"} | body)
    assert response.status == 503
    assert "no route" in (await response.json())["error"]
    assert (await client.post("/api/show", json={"model": "BAAI/bge-m3"})).status == 200


async def test_the_list_of_models_shows_every_state(aiohttp_client):
    client = await aiohttp_client(make_app())
    listed = await (await client.get("/v1/models")).json()
    assert [(one["id"], one["state"]) for one in listed["data"]] == [("m", "ready"), ("BAAI/bge-m3", "failed")]


async def test_health_is_about_the_process_and_ready_about_every_model(aiohttp_client):
    client = await aiohttp_client(make_app())
    health = await client.get("/health")
    assert (health.status, await health.json()) == (200, {"status": "ok", "loop_lag_s": 0.0})
    response = await client.get("/ready")
    assert response.status == 503
    body = await response.json()
    assert body["models"]["m"]["ready"] is True
    assert body["models"]["BAAI/bge-m3"]["detail"] == "no route"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_says_that_somebody_is_there_as_ollamas_clients_ask_without_their_key(aiohttp_client, method):
    assert (await (await aiohttp_client(make_app())).request(method, "/")).status == 200
    guarded = await aiohttp_client(make_app(keys=("key",)))
    for path, known in (("/", "/health"), ("/?x=1", "/health")):
        response = await guarded.request(method, path)
        assert response.status == 200
        assert await response.read() == await (await guarded.request(method, known)).read()
    assert (await guarded.request(method, "/v1/models")).status == 401


async def test_what_is_posted_to_the_root_needs_a_key(aiohttp_client):
    guarded = await aiohttp_client(make_app(keys=("key",)))
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert (await guarded.request(method, "/", data=b'{"inputs": "a"}')).status == 401
    assert (await guarded.post("/", json={"inputs": "a"}, headers={"Authorization": "Bearer key"})).status == 200


async def test_readiness_is_told_without_a_warning_which_is_for_errors_alone(aiohttp_client, caplog):
    client = await aiohttp_client(make_app())
    with caplog.at_level(logging.INFO, "router"):
        assert (await client.get("/ready")).status == 503
        assert (await client.get("/ready", params={"model": "BAAI/bge-m3"})).status == 503
        response = await client.post("/v1/embeddings", json={"model": "BAAI/bge-m3", "input": "abc"})
    assert response.status == 503
    told = [record for record in caplog.records if record.name == "router"]
    assert [(record.levelname, record.values["path"]) for record in told] == [("WARNING", "/v1/embeddings")]


async def test_who_asks_too_early_whether_all_is_ready_hears_when_the_last_of_them_may_be(aiohttp_client):
    registry = Registry(ready_wait_s=0.05)
    loading = [
        make_status(name, state="loading", expected_ready_s=wait_s) for name, wait_s in (("a", 12.4), ("b", 3.0))
    ]
    registry.update(ShardTable((make_status("m"), *loading)))
    handlers = Handlers(EmbeddingService(registry, LengthBackend()), registry, LIMIT)
    client = await aiohttp_client(build_app(handlers, Authenticator(()), LIMIT))
    assert (await client.get("/ready")).headers["Retry-After"] == "13"
    assert (await client.get("/ready", params={"model": "b"})).headers["Retry-After"] == "3"
    assert "Retry-After" not in (await client.get("/ready", params={"model": "m"})).headers


async def test_one_model_can_be_asked_for_whatever_the_others_do(aiohttp_client):
    client = await aiohttp_client(make_app())
    assert (await client.get("/ready", params={"model": "m"})).status == 200
    assert (await client.get("/ready", params={"model": "BAAI/bge-m3"})).status == 503
    assert (await client.get("/ready", params={"model": "none"})).status == 404
    assert (await client.get("/ready", params={"model": "m:latest"})).status == 200


async def test_ready_has_the_rate_that_was_measured_at_the_start_before_anybody_has_asked(aiohttp_client):
    registry = Registry(ready_wait_s=0.05)
    failed = make_status("never", state="failed", info=None)
    registry.update(ShardTable((make_status("m", info=make_info(tokens_per_s=1234.0)), failed)))
    handlers = Handlers(EmbeddingService(registry, LengthBackend(), Policy()), registry, LIMIT)
    client = await aiohttp_client(build_app(handlers, Authenticator(()), LIMIT, 0, ()))
    models = (await (await client.get("/ready")).json())["models"]
    assert models["m"]["tokens_per_s"] == 1234
    assert models["never"]["tokens_per_s"] is None, "what it is taken for is no news"


async def test_ready_counts_what_a_model_has_done_and_what_waits_for_it(aiohttp_client):
    backend = SlowBackend(0.2)
    client = await aiohttp_client(make_app(backend))
    before = time.time()
    asked = asyncio.create_task(client.post("/v1/embeddings", json={"model": "m", "input": "abc"}))
    while not backend.seen and not asked.done():
        await asyncio.sleep(0.01)
        facts = (await (await client.get("/ready")).json())["models"]["m"]
        if facts["requests_in_flight"]:
            break
    assert (facts["requests_in_flight"], facts["last_success"]) == (1, None)
    assert facts["tokens_in_flight"] > 0
    assert (await asked).status == 200
    facts = (await (await client.get("/ready")).json())["models"]["m"]
    assert (facts["requests_in_flight"], facts["tokens_in_flight"], facts["answered"]) == (0, 0, 1)
    assert facts["last_success"] >= before


@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_clients_of_xinference_hear_without_a_key_whether_one_is_asked_for(aiohttp_client, keys):
    client = await aiohttp_client(make_app(keys=keys))
    response = await client.get("/v1/cluster/auth")
    assert (response.status, await response.json()) == (200, {"auth": bool(keys)})


@pytest.mark.parametrize("path", ["/health", "/healthz", "/live"])
async def test_life_is_told_to_whoever_asks_and_readiness_to_holders_of_a_key(aiohttp_client, path):
    client = await aiohttp_client(make_app(keys=("key",)))
    assert (await client.get(path)).status == 200
    refused = await client.get("/ready")
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    for headers in ({"Authorization": "Bearer key"}, {"x-api-key": "key"}, {"api-key": "key"}):
        assert (await client.get("/v1/models", headers=headers)).status == 200
    for headers in ({"Authorization": "Bearer kez"}, {"x-api-key": "ke"}, {"Authorization": "", "x-api-key": "key"}):
        assert (await client.get("/v1/models", headers=headers)).status == 401


@pytest.mark.parametrize("headers", [{"x-request-timeout": "0.05"}, {"x-request-timeout-ms": "50"}])
async def test_a_client_may_say_how_long_it_waits(aiohttp_client, headers):
    client = await aiohttp_client(make_app(SlowBackend(30)))
    response = await client.post("/v1/embeddings", json={"model": "m", "input": "abc"}, headers=headers)
    assert response.status == 504
    assert (await response.json())["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", "", "1_000", "１２", "1e3"])
async def test_a_time_that_is_none_is_refused(aiohttp_client, value):
    client = await aiohttp_client(make_app())
    response = await client.post(
        "/v1/embeddings", json={"model": "m", "input": "abc"}, headers={"x-request-timeout": value}
    )
    assert response.status == 400
    assert "x-request-timeout" in (await response.json())["error"]["message"]


async def test_bodies_that_would_not_fit_together_are_refused_before_they_are_read(aiohttp_client):
    backend = SlowBackend(0.5)
    client = await aiohttp_client(make_app(backend, held=1000))
    text = "x" * 600
    first = asyncio.create_task(client.post("/v1/embeddings", json={"model": "m", "input": text}))
    await asyncio.sleep(0.1)
    second = await client.post("/v1/embeddings", json={"model": "m", "input": text})
    assert (second.status, second.headers["Retry-After"]) == (429, "1")
    assert (await first).status == 200
    assert (await client.post("/v1/embeddings", json={"model": "m", "input": text})).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fetc/passwd", 404, "model_not_found"),
    ],
)
async def test_every_refusal_has_openais_shape_and_a_request_id(aiohttp_client, method, path, status, code):
    client = await aiohttp_client(make_app())
    response = await client.request(method, path)
    assert response.status == status
    assert (await response.json())["error"]["code"] == code
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "dialect"),
    [
        ("GET", "/v1/embed", 405, "cohere"),
        ("PUT", "/v2/rerank", 405, "cohere"),
        ("POST", "/v1/embed/", 404, "cohere"),
        ("GET", "/embed", 405, "tei"),
        ("GET", "/models/m/embed", 405, "tei"),
        ("POST", "/info", 405, "tei"),
        ("POST", "/embed/", 404, "tei"),
        ("GET", "/v1/rerank", 405, "jina"),
        ("POST", "/v1/v1/rerank", 404, "jina"),
        ("GET", "/models/m/v1/rerank", 405, "jina"),
        ("GET", "/v1/ranking", 405, "nvidia"),
        ("POST", "/v1/v1/ranking", 404, "nvidia"),
        ("POST", "/v1/api/embed", 404, "ollama"),
        ("GET", "/models/m/v1/embeddings", 405, "openai"),
        ("GET", "/embeddings", 405, "openai"),
        ("DELETE", "/models/m", 405, "openai"),
        ("DELETE", "/v1/models/rerank", 405, "openai"),
        ("POST", "/v1/nothing", 404, "openai"),
    ],
)
async def test_a_wrong_method_or_path_is_told_in_the_words_of_whose_path_it_is(
    aiohttp_client, method, path, status, dialect
):
    client = await aiohttp_client(make_app())
    response = await client.request(method, path, data=b"{}")
    assert response.status == status
    told = await response.json()
    assert told.keys() == set(ERRORS[dialect]["required"])


@pytest.mark.parametrize("path", ["/v1/embeddings/", "/v1/v1/embeddings", "/v1%2Fembeddings"])
async def test_a_base_url_with_a_part_too_many_is_told_the_path_that_is_served(aiohttp_client, path):
    client = await aiohttp_client(make_app())
    response = await client.post(URL(path, encoded=True), json={"model": "m", "input": "a"})
    assert response.status == 404
    told = (await response.json())["error"]["message"]
    assert told.startswith(f"There is no POST {path} here. Did you mean /v1/embeddings?")


async def test_a_body_over_the_limit_is_refused_before_it_is_read(aiohttp_client):
    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", data=b"x" * (LIMIT + 1))
    assert response.status == 413
    assert "EMB_PROVIDER_MAX_REQUEST_MB" in (await response.json())["error"]["message"]


async def test_a_body_of_unknown_length_over_the_limit_is_refused(aiohttp_client):
    async def endless():
        for _ in range(10):
            yield b"x" * 1024

    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", data=endless())
    assert response.status == 413


async def test_a_compressed_body_is_refused(aiohttp_client):
    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", data=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status == 415


async def test_an_empty_body_is_refused_with_a_sentence(aiohttp_client):
    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", data=b"")
    assert response.status == 400


async def test_a_body_is_read_as_json_whatever_type_curl_gives_it(aiohttp_client):
    client = await aiohttp_client(make_app())
    body = orjson.dumps({"model": "m", "input": "hi"})
    response = await client.post(
        "/v1/embeddings", data=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert response.status == 200


async def test_any_of_several_keys_opens_every_route_and_only_health_is_open(aiohttp_client):
    client = await aiohttp_client(make_app(keys=("first", "第二")))
    for path in ("/v1/models", "/ready", "/v1/models/m", "/nothing"):
        refused = await client.get(path)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert (await refused.json())["error"]["code"] == "invalid_api_key"
    assert (await client.get("/health")).status == 200
    assert (await client.get("/v1/models", headers={"Authorization": "Bearer first"})).status == 200
    assert (await client.get("/v1/models", headers={"Authorization": "bearer 第二"})).status == 200
    assert (await client.get("/v1/models", headers={"Authorization": "Bearer firs"})).status == 401


async def test_a_bug_of_ours_is_a_500_in_shape_that_clients_do_not_retry(aiohttp_client):
    class BrokenBackend:
        async def encode(self, model_id, message):
            raise KeyError("secret detail")

    client = await aiohttp_client(make_app(BrokenBackend()))
    response = await client.post("/v1/embeddings", json={"model": "m", "input": "hi"})
    assert response.status == 500
    assert response.headers["x-should-retry"] == "false"
    assert "secret" not in await response.text()


async def test_a_client_that_leaves_takes_its_request_back(aiohttp_client):
    cancelled = asyncio.Event()

    class SlowBackend:
        async def encode(self, model_id, message):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    client = await aiohttp_client(
        make_app(SlowBackend())
    )  # the test server turns handler_cancellation on, as ours does
    asking = asyncio.create_task(client.post("/v1/embeddings", json={"model": "m", "input": "hi"}))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.wait_for(cancelled.wait(), timeout=2)


class LongLoad(Registry):
    """Its model has never loaded; whoever waits until it has, finds an hour gone."""

    def __init__(self, monkeypatch) -> None:
        super().__init__(ready_wait_s=0.05)
        self.monkeypatch = monkeypatch
        self.update(ShardTable((make_status("m", state="loading"),)))

    async def ready(self, model_id):
        loop = asyncio.get_running_loop()
        now = loop.time
        if self.find(model_id).state == "loading":
            self.update(ShardTable((make_status("m", info=make_info()),)))
            self.monkeypatch.setattr(loop, "time", lambda: now() + 3600)
        return await super().ready(model_id)


class TokenBackend(SlowBackend):
    async def tokenize(self, model_id, message):
        await asyncio.sleep(self.delay_s)
        return Tokens(((),))


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/embeddings", {"model": "m", "input": "abc"}), ("/tokenize", {"model": "m", "prompt": "abc"})],
)
async def test_the_wait_for_a_models_first_load_counts_in_the_time_of_a_request(
    monkeypatch, aiohttp_client, path, body
):
    registry = LongLoad(monkeypatch)
    service = EmbeddingService(registry, TokenBackend(0), Policy(timeout_s=600))
    client = await aiohttp_client(build_app(Handlers(service, registry, LIMIT), Authenticator(()), LIMIT))
    response = await client.post(path, json=body, timeout=aiohttp.ClientTimeout(None))
    assert response.status == 504
    assert b"No answer within 600 s" in await response.read()


async def test_an_answer_that_takes_too_long_is_a_504_in_shape_that_clients_do_not_repeat(aiohttp_client):
    client = await aiohttp_client(make_app(SlowBackend(30), timeout_s=0.05))
    response = await client.post("/v1/embeddings", json={"model": "m", "input": "hi"})
    assert response.status == 504
    assert response.headers["x-should-retry"] == "false"
    assert (await response.json())["error"]["code"] == "deadline_exceeded"


class WideBackend:
    """Makes vectors of 384 numbers as fast as it can."""

    async def encode(self, model_id, message):
        await asyncio.sleep(0)
        return Encoded(np.full((message.count, 384), 1 / 3, dtype="<f4").tobytes(), 384, (1,) * message.count)


TEXT, IDS = "中文字符测试一下" * 250, list(range(1000, 1256))


@pytest.mark.parametrize(
    ("path", "name", "one", "fields"),
    [
        ("/v1/embeddings", "input", TEXT, {"encoding_format": "float"}),
        ("/v1/embeddings", "input", TEXT, {"encoding_format": "base64"}),
        ("/v1/embeddings", "input", IDS, {"encoding_format": "float"}),
        ("/v1/embeddings", "input", IDS, {"encoding_format": "base64"}),
        ("/v2/embed", "texts", TEXT, {"embedding_types": ["float", "int8", "ubinary", "base64"]}),
        ("/embed", "inputs", TEXT, {}),
        ("/api/embed", "input", TEXT, {}),
        ("/v1/rerank", "documents", TEXT, {"query": "a"}),
        ("/rerank", "texts", TEXT, {"query": "a", "return_text": True}),
    ],
)
@pytest.mark.alone
async def test_2000_inputs_at_once_never_hold_the_loop_for_long(aiohttp_client, path, name, one, fields):
    client = await aiohttp_client(make_app(WideBackend(), limit=64 * 2**20))
    data = orjson.dumps({"model": "m", **fields, name: [one] * 2000})
    worst_s = 0.0

    async def watch():
        nonlocal worst_s
        while True:
            began_s = time.thread_time()  # not that of the clock, in which other processes have their share
            await asyncio.sleep(0)
            worst_s = max(worst_s, time.thread_time() - began_s)

    async def measure() -> float:
        nonlocal worst_s
        worst_s = 0.0
        watching = asyncio.create_task(watch())
        response = await client.post(path, data=io.BytesIO(data))
        answer = [piece async for piece in response.content.iter_any()]
        watching.cancel()
        assert response.status == 200, answer[0][:200]
        assert orjson.loads(b"".join(answer))
        return worst_s

    gc.collect()
    gc.freeze()  # as the router does: a whole suite's objects are not looked through in the middle of a request
    try:
        # The calmest of five at most: processor time, too, stretches while others use the same caches.
        measured_s = [await measure()]
        while min(measured_s) >= 0.012 and len(measured_s) < 5:
            measured_s.append(await measure())
        assert min(measured_s) < 0.012  # read and written in one go, these take 25 ms and more
    finally:
        gc.unfreeze()


async def test_a_runner_counts_its_connections_and_none_once_it_is_cleaned_up():
    runner = Runner(make_app())
    await runner.setup()
    runner.opens(1)
    assert runner.connections() == 1
    runner.opens(-1)
    await runner.cleanup()
    assert runner.connections() == 0
