import asyncio

import pytest

from emb_model_provider.errors import OverloadedError
from router import body as body_module
from router.admission import Budget
from router.body import HeldBytes
from tests.unit.router.test_app import LIMIT, make_app


def test_what_a_body_holds_grows_with_it_and_is_given_back_once():
    budget = Budget(100)
    held = HeldBytes(budget, "a")
    for size, total in [(0, 0), (40, 40), (10, 40), (40, 40), (60, 60)]:
        held.grow_to(size)
        assert budget.total == total
    with pytest.raises(OverloadedError):
        held.grow_to(90)
    assert budget.total == 60
    held.release()
    held.release()
    assert budget.total == 0


async def in_pieces(body: bytes, pause_s: float = 0.0):
    for at in range(0, len(body), 512):
        yield body[at : at + 512]
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("make", [bytes, in_pieces], ids=["at once", "in pieces"])
async def test_a_body_may_be_as_large_as_the_limit(aiohttp_client, over, status, make):
    client = await aiohttp_client(make_app())
    empty = b'{"model": "m", "input": ""}'
    body = empty.replace(b'""', b'"%b"' % (b"x" * (LIMIT + over - len(empty))))
    assert len(body) == LIMIT + over
    assert (await client.post("/v1/embeddings", data=make(body))).status == status


async def test_a_body_that_takes_too_long_is_not_waited_for(aiohttp_client, monkeypatch):
    monkeypatch.setattr(body_module, "_BODY_TIMEOUT_S", 0.05)
    client = await aiohttp_client(make_app())
    response = await client.post("/v1/embeddings", data=in_pieces(b'{"model": "m"}' * 100, pause_s=1))
    assert response.status == 408
    assert "did not arrive within" in (await response.json())["error"]["message"]
