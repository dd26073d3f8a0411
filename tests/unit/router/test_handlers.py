"""What an answer says of its model is of the model that made it."""

from emb_model_provider.messages.status import ShardTable
from router.app import build_app
from router.auth import Authenticator
from router.handlers import Handlers
from router.registry import Registry
from router.service import EmbeddingService
from tests.support.made_up_models import KINDS, LIMIT, MadeUpBackend
from tests.support.statuses import make_info, make_status


def classifier(fingerprint, labels):
    info = make_info(**KINDS["classify"] | {"labels": labels, "fingerprint": fingerprint})
    return ShardTable((make_status("classify", info=info),))


async def test_scores_have_the_labels_of_the_model_that_gave_them_though_it_was_changed_meanwhile(aiohttp_client):
    registry, backend = Registry(ready_wait_s=0.05), MadeUpBackend()
    registry.update(classifier("before", ("old", "older", "oldest")))
    backend.on_encode = lambda: registry.update(classifier("after", ("new", "newer", "newest")))
    handlers = Handlers(EmbeddingService(registry, backend), registry, LIMIT)
    client = await aiohttp_client(build_app(handlers, Authenticator(()), LIMIT))
    response = await client.post("/classify", json={"model": "classify", "input": "abcde"})
    (one,) = (await response.json())["data"]
    assert (one["label"], response.headers["x-model-fingerprint"], len(backend.seen)) == ("new", "after", 2)


async def test_a_model_that_is_another_one_after_each_try_is_told_of_and_not_asked_for_ever(aiohttp_client):
    registry, backend = Registry(ready_wait_s=0.05), MadeUpBackend()
    registry.update(classifier("0", ("a", "b", "c")))
    backend.on_encode = lambda: registry.update(classifier(f"{len(backend.seen) + 1}", ("a", "b", "c")))
    handlers = Handlers(EmbeddingService(registry, backend), registry, LIMIT)
    client = await aiohttp_client(build_app(handlers, Authenticator(()), LIMIT))
    response = await client.post("/classify", json={"model": "classify", "input": "abcde"})
    assert (response.status, "keep changing" in await response.text(), len(backend.seen)) == (503, True, 3)
