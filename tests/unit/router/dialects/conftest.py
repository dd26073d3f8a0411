import pytest

from tests.support.made_up_models import MadeUpBackend, make_app


@pytest.fixture
def backend():
    return MadeUpBackend()


@pytest.fixture
async def client(aiohttp_client, backend):
    """All kinds of models behind one port."""
    return await aiohttp_client(make_app(backend=backend))


@pytest.fixture
async def ask(client):
    """Post a body and return the answer's JSON, which must have been a success."""

    async def post(path: str, **body):
        response = await client.post(path, json=body)
        answer = await response.json()
        assert response.status == 200, answer
        return answer

    return post


@pytest.fixture
async def refuse(client):
    """Post a body and return the status and JSON of its refusal."""

    async def post(path: str, **body):
        response = await client.post(path, json=body)
        return response.status, await response.json()

    return post
