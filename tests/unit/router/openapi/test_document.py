"""Code and description together: neither may know a route, a field, a status or an answer that the other does not."""

import re

import jsonschema_rs
import orjson
import pytest
from aiohttp import web

from emb_model_provider.errors import RequestError
from router.dialects import options
from router.dialects.fields import Fields
from router.dialects.table import DIALECTS, by_path
from router.openapi import answers, document, properties
from router.openapi.document import make_document
from router.openapi.endpoints import describing_routes
from router.openapi.routes import ROUTES
from tests.support.made_up_models import make_app

DOCUMENT = make_document("")
DESCRIBED = [
    pytest.param(dialect, route, ROUTES.get((dialect.name, path)), id=f"{dialect.name} {method} {path}")
    for (method, path), choices in by_path().items()
    for dialect, route in choices
]
WITH_BODY = [one for one in DESCRIBED if one.values[1].method == "POST"]
#: Which made-up model serves the examples of a route.
KIND = {
    "/embed_sparse": "splade", "/embed_all": "colbert", "/classify": "classify", "/predict": "classify",
    "/v1/rerank": "rerank", "/v2/rerank": "rerank", "/rerank": "rerank", "/score": "rerank", "/v1/score": "rerank",
    "/v1/ranking": "rerank", "/v1/retrieval/nvidia/reranking": "rerank",
    "/v1/retrieval/{model:.+}/reranking": "rerank",
}  # fmt: skip


def plain(path):
    return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", path)


class Read(dict):
    """Remembers which names were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.names = set()

    def __or__(self, other):
        joined = Read({**self, **other})
        joined.names = self.names
        return joined

    def get(self, key, default=None):
        self.names.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.names.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.names.add(key)
        return super().__contains__(key)


def names_read(route, body):
    values = Read(body)
    steps = route.parse(Fields(values))
    try:
        while True:
            next(steps)
    except StopIteration:
        pass
    except RequestError:  # a sample for which the others are wrong
        pass
    return values.names


def samples(route, described):
    """Bodies that between them make a parser look at every name it knows."""
    bare = [
        {name: example[name] for name in example if name not in properties.OPTIONS} for example in described.examples
    ]
    for example in [*described.examples, *bare]:
        yield example
        yield {**example, "usage_details": True}
        for name in described.properties():
            yield {**example, "usage_details": False, name: None, **sample_of(name)}


def sample_of(name):
    if name in ("normalize", "normalized", "raw_scores", "use_activation", "activation", "return_text"):
        return {name: False}
    if name in ("input_type", "task", "prompt_name"):
        return {name: "query"}
    return {}


def test_every_route_is_described_and_nothing_else():
    served = {(dialect.name, path) for (_, path), choices in by_path().items() for dialect, _ in choices}
    assert served == set(ROUTES)


def test_the_document_has_every_route_of_the_application_and_no_other():
    app = web.Application()
    app.add_routes(describing_routes(""))
    served = {("GET", "/metrics")}
    for one in [*app.router.routes(), *make_app().router.routes()]:
        if one.method not in ("HEAD", "OPTIONS"):
            served.add((one.method, plain(one.resource.canonical)))
    told = {(method.upper(), path) for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert told == served


@pytest.mark.parametrize(("dialect", "route", "described"), WITH_BODY)
def test_a_parser_reads_what_is_described_and_nothing_else(dialect, route, described):
    read = set().union(*(names_read(route, body) for body in samples(route, described)))
    # Where dialects share a path, a look at another's field only tells whose body it is.
    assert read - set(described.properties()) == set()
    assert set(described.properties()) - read == set()


def test_the_options_are_those_that_dialects_look_for():
    assert set(properties.OPTIONS) == options._NAMES - {"embd_normalize"}


@pytest.mark.parametrize(("dialect", "route", "described"), WITH_BODY)
def test_examples_are_what_the_description_allows_and_are_answered_as_it_says(dialect, route, described):
    body = DOCUMENT["paths"][plain(route.path)]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for example in described.examples:
        jsonschema_rs.validator_for(body).validate(example)
        assert route.takes(Fields(dict(example)))


@pytest.mark.parametrize(("dialect", "route", "described"), DESCRIBED)
async def test_answers_are_as_described(dialect, route, described, aiohttp_client):
    kind = KIND.get(route.path, "m3")
    validator = jsonschema_rs.validator_for(described.answer)
    client = await aiohttp_client(make_app(kind))
    path = plain(route.path).replace("{model}", kind)
    for example in described.examples or ({},):
        data = orjson.dumps(example).replace(b'"MODEL"', orjson.dumps(kind))
        if "query" in example and route.path == "/":
            client = await aiohttp_client(make_app("rerank"))
        response = await client.request(route.method, path, data=data if route.method == "POST" else None)
        assert response.status == 200, await response.text()
        validator.validate(orjson.loads(await response.read()))


@pytest.mark.parametrize("dialect", [pytest.param(one, id=one.name) for one in DIALECTS])
def test_every_error_has_its_dialects_shape_and_a_status_that_is_described(dialect):
    validator = jsonschema_rs.validator_for(answers.ERRORS[dialect.name])
    paths = [path for (name, path) in ROUTES if name == dialect.name]
    posts = [DOCUMENT["paths"][plain(path)]["post"] for path in paths if "post" in DOCUMENT["paths"][plain(path)]]
    for kind in document._KINDS:
        error = kind("a sentence", param="input")
        validator.validate(orjson.loads(dialect.render_error(error)))
        for operation in posts:
            assert str(dialect.status_of(error)) in operation["responses"] or error.status == 405


async def test_what_is_asked_of_the_only_model_is_described_for_several_too(aiohttp_client):
    client = await aiohttp_client(make_app())
    for path in (plain(path) for (method, path), _ in by_path().items() if method == "GET"):
        status = (await client.get(path.replace("{model}", "embed"))).status
        assert str(status) in DOCUMENT["paths"][path]["get"]["responses"], path


async def test_description_and_page_are_served_and_the_page_loads_nothing_from_elsewhere(aiohttp_client):
    app = web.Application()
    app.add_routes(describing_routes("/below"))
    client = await aiohttp_client(app)
    told = await (await client.get("/openapi.json")).json()
    assert told["openapi"] == "3.1.0"
    assert told["servers"] == [{"url": "/below"}]
    response = await client.get("/docs")
    page = await response.text()
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)\s*=|https?://|@import|url\(", page.replace('{ href: "#"', ""))
