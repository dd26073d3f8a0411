"""What is counted and told of each request, whatever becomes of it."""

import asyncio

import aiohttp
import pytest

from emb_model_provider.messages.status import ShardTable
from router.app import build_app
from router.auth import Authenticator
from router.cors import Cors
from router.entrance import make_entrance
from router.handlers import Handlers
from router.metrics import catalogue
from router.metrics.meter import Meter
from router.registry import Registry
from router.service import EmbeddingService, Policy
from tests.support.statuses import make_info, make_status
from tests.unit.router.test_service import LengthBackend, SlowBackend

ORIGIN = "https://page.example"


@pytest.fixture
def meter():
    return Meter()


@pytest.fixture
def told():
    return []


@pytest.fixture
async def client_of(aiohttp_client, meter, told):
    async def make(backend):
        registry = Registry(ready_wait_s=0.05)
        registry.update(ShardTable((make_status("m", info=make_info()),)))
        handlers = Handlers(EmbeddingService(registry, backend, Policy()), registry, 4096)
        entrance = make_entrance(meter, Cors((ORIGIN,)), handlers, told.append)
        app = build_app(handlers, Authenticator(()), 4096, 0, (entrance,))
        return await aiohttp_client(app)  # it cancels the handlers of clients that left, as ours

    return make


def counted(meter: Meter) -> dict[tuple[str, ...], float]:
    return {
        series[1:]: number for series, number in meter.tallies.counters.items() if series[0] == catalogue.REQUESTS.name
    }


async def test_an_answer_is_counted_and_told_with_its_model_and_amounts(client_of, meter, told):
    client = await client_of(LengthBackend())
    body = {"model": "owner/name", "input": ["abc", "de"]}
    response = await client.post("/v1/embeddings", json=body, headers={"User-Agent": "me", "Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    (one,) = told
    assert (one.method, one.path, one.http_version, one.status) == ("POST", "/v1/embeddings", "1.1", 200)
    assert (one.model, one.tokens, one.inputs, one.user_agent, one.error) == ("m", 5, 2, "me", "")
    assert (one.client, one.request_id) == ("127.0.0.1", response.headers["x-request-id"])
    assert one.size_bytes == len(await response.read())
    assert 0 < one.took_ms < 60_000
    assert counted(meter) == {("/v1/embeddings", "openai", "m", "200"): 1}
    assert meter.in_flight == 0


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": ["", "abc", 7, "de"]}),
        ("/api/embed", {"input": ["", "abc", 7, "de"]}),
        ("/rerank", {"query": "abc", "documents": ["", "de", 7]}),
    ],
)
async def test_inputs_that_are_errors_already_in_the_body_are_counted_as_answered_and_as_failed(
    client_of, meter, told, path, fields
):
    client = await client_of(LengthBackend())
    response = await client.post(path, json=fields | {"model": "m", "on_error": "null"})
    assert response.status == 200
    (one,) = told
    assert (one.inputs, one.tokens) == (4, 5)
    totals = meter.tallies.counters
    assert totals[catalogue.INPUTS.name, "m"] == 4
    assert totals[catalogue.FAILED_INPUTS.name, "m"] == 2


async def test_a_refusal_is_too_with_its_code_and_a_path_that_is_none_has_no_series_of_its_own(client_of, meter, told):
    client = await client_of(LengthBackend())
    response = await client.post("/v1/embeddings", json={"model": "x", "input": "a"}, headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    await client.get("/nothing/here")
    await client.get("/nothing/there")
    await client.get("/health")
    assert [(one.status, one.error, one.model, one.tokens) for one in told] == [
        (404, "model_not_found", "", None),
        (404, "not_found", "", None),
        (404, "not_found", "", None),
        (200, "", "", None),
    ]
    assert counted(meter) == {
        ("/v1/embeddings", "openai", "", "404"): 1,
        ("unmatched", "server", "", "404"): 2,
        ("/health", "server", "", "200"): 1,
    }


async def test_a_client_that_leaves_is_counted_as_gone_and_no_more_as_in_flight(client_of, meter, told):
    client = await client_of(SlowBackend(30))
    with pytest.raises(asyncio.TimeoutError):
        await client.post("/v1/embeddings", json={"model": "m", "input": "a"}, timeout=aiohttp.ClientTimeout(total=0.1))
    async with asyncio.timeout(5):
        while not told:  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.01)
    assert [(one.status, one.model, one.size_bytes) for one in told] == [(499, "m", None)]
    assert meter.in_flight == 0


async def test_while_a_request_is_answered_it_is_in_flight(client_of, meter):
    client = await client_of(SlowBackend(0.2))
    asked = asyncio.create_task(client.post("/v1/embeddings", json={"model": "m", "input": "a"}))
    async with asyncio.timeout(5):
        while not meter.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not asked.done()
    await asked
    assert meter.in_flight == 0


async def test_a_browsers_question_before_a_request_is_answered_and_is_none_itself(client_of, meter, told):
    client = await client_of(LengthBackend())
    asking = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    response = await client.options("/v1/embeddings", headers=asking)
    assert response.status == 204
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert told == []
    assert counted(meter) == {}
