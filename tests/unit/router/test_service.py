import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import (
    DeadlineError,
    EncodeError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
)
from emb_model_provider.messages.link import Encode, Encoded, Tokenize, Tokens
from emb_model_provider.messages.status import ShardTable
from router.caller import CALLER, Caller
from router.limits import RequestLimits
from router.link import ShardLostError
from router.registry import Registry
from router.requests import EncodeRequest, Queries
from router.service import EmbeddingService, ModelChangedError, Policy, slice_bounds
from tests.support.statuses import make_info, make_status


class LengthBackend:
    """A text's vector is its length; every call is remembered."""

    def __init__(self) -> None:
        self.seen: list[Encode] = []
        self.running = 0
        self.most_running = 0

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        self.seen.append(message)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        lengths = [len(one) for one in message.texts or message.token_ids]
        cut = tuple(index for index, length in enumerate(lengths) if length > 8)
        return Encoded(np.array(lengths, dtype="<f4").tobytes(), 1, tuple(lengths), cut)


class DyingBackend(LengthBackend):
    """Loses the shard a few times before it answers."""

    def __init__(self, losses: list[bool]) -> None:
        super().__init__()
        self.losses = losses

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        if self.losses:
            raise ShardLostError(started=self.losses.pop(0))
        return await super().encode(model_id, message)


def make_service(backend, timeout_s: float = 0.0, **status) -> EmbeddingService:
    registry = Registry(ready_wait_s=0.05)
    registry.update(ShardTable((make_status("m", info=make_info(), **status),)))
    return EmbeddingService(registry, backend, Policy(timeout_s))


@given(st.lists(st.text(min_size=1, max_size=4000), min_size=1, max_size=200))
def test_slices_hold_every_input_once_and_in_order(texts):
    bounds = slice_bounds(texts)
    assert [index for begin, end in bounds for index in range(begin, end)] == list(range(len(texts)))
    assert all(1 <= end - begin <= 64 for begin, end in bounds)


@given(st.lists(st.text(min_size=1, max_size=4000), min_size=2, max_size=200), st.data())
def test_queries_are_in_slices_of_their_own(texts, data):
    queries = data.draw(st.integers(1, len(texts) - 1))
    bounds = slice_bounds(texts, queries)
    assert [index for begin, end in bounds for index in range(begin, end)] == list(range(len(texts)))
    assert queries in [end for _, end in bounds]


async def test_queries_have_a_prompt_of_their_own_and_documents_theirs():
    backend = LengthBackend()
    texts = tuple("x" * (1 + index % 10) for index in range(70))
    request = EncodeRequest("owner/name", texts, prompt_name="document", queries=Queries(2, "query"))
    result = await make_service(backend).embed(request)
    sent = [(message.first_index, message.count, message.prompt_name) for message in backend.seen]
    assert sorted(sent) == [(0, 2, "query"), (2, 64, "document"), (66, 4, "document")]
    assert sum(len(part.tokens) for part in result.parts) == 70


def test_a_few_giant_texts_do_not_share_a_slice():
    assert slice_bounds(["x" * 100_000, "y" * 100_000, "z"]) == [(0, 1), (1, 3)]


async def test_a_few_giant_documents_beside_a_short_query_do_not_share_a_slice_either():
    backend = LengthBackend()
    documents = ("x" * 100_000, "y" * 100_000, "z")
    await make_service(backend).embed(EncodeRequest("owner/name", ("query",) * 3, seconds=documents))
    assert sorted((message.first_index, message.seconds) for message in backend.seen) == [
        (0, documents[:1]),
        (1, documents[1:]),
    ]


async def test_a_big_request_is_answered_in_order_with_at_most_two_slices_under_way():
    backend = LengthBackend()
    texts = tuple("x" * (1 + index % 10) for index in range(300))
    result = await make_service(backend).embed(EncodeRequest("owner/name", texts))
    values = np.concatenate([np.frombuffer(part.vectors, "<f4") for part in result.parts])
    assert values.tolist() == [len(text) for text in texts]
    assert result.truncated == tuple(index for index, text in enumerate(texts) if len(text) > 8)
    assert result.prompt_tokens == sum(map(len, texts))
    assert result.model_id == "m"
    assert backend.most_running == 2
    assert all(one.texts == texts[one.first_index : one.first_index + len(one.texts)] for one in backend.seen)


class SlowBackend(LengthBackend):
    """Answers after a while, and remembers who took their request back."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s
        self.cancelled = 0

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().encode(model_id, message)


async def test_a_request_that_takes_too_long_is_taken_back_and_answered_with_the_setting_to_raise():
    backend = SlowBackend(30)
    with pytest.raises(DeadlineError, match=r"within 0.05 s.*EMB_PROVIDER_REQUEST_TIMEOUT_S") as caught:
        await make_service(backend, timeout_s=0.05).embed(EncodeRequest("m", ("a",) * 300))
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert backend.cancelled == 2


@pytest.mark.parametrize(
    ("allowed_s", "ours_s", "client_s"), [(60.0, 0.0, 0.05), (0.05, 60.0, 0.0), (60.0, 0.05, 60.0)]
)
async def test_the_shortest_of_all_times_that_are_allowed_counts(allowed_s, ours_s, client_s):
    token = CALLER.set(Caller("c", client_s or None))
    try:
        with pytest.raises(DeadlineError, match=r"within 0.05 s"):
            await make_service(SlowBackend(30), ours_s).embed(EncodeRequest("m", ("a",), timeout_s=allowed_s))
    finally:
        CALLER.reset(token)


async def test_each_slice_tells_the_shard_how_long_the_client_still_waits():
    backend = SlowBackend(0.05)
    await make_service(backend, timeout_s=60.0).embed(EncodeRequest("m", ("a",) * 256))
    left = [one.timeout_ms for one in backend.seen]
    assert left == sorted(left, reverse=True)
    assert 55_000 < left[-1] <= left[0] - 50 < 60_000


async def test_a_request_without_a_time_limit_says_so():
    backend = LengthBackend()
    await make_service(backend).embed(EncodeRequest("m", ("a",)))
    assert backend.seen[0].timeout_ms == 0


async def test_an_answer_names_what_made_its_vectors():
    registry = Registry(ready_wait_s=0.05)
    registry.update(ShardTable((make_status("m", info=make_info(fingerprint="f00d")),)))
    result = await EmbeddingService(registry, LengthBackend()).embed(EncodeRequest("m", ("a",)))
    assert result.fingerprint == "f00d"


async def test_a_shard_that_dies_before_it_started_costs_time_and_no_error():
    backend = DyingBackend([False, False, False])
    result = await make_service(backend).embed(EncodeRequest("m", ("hello",)))
    assert result.prompt_tokens == 5


async def test_a_request_that_was_on_the_device_is_tried_once_more_and_no_more():
    assert (await make_service(DyingBackend([True])).embed(EncodeRequest("m", ("a",)))).prompt_tokens == 1
    with pytest.raises(EncodeError) as caught:
        await make_service(DyingBackend([True, True])).embed(EncodeRequest("m", ("a",)))
    assert caught.value.code == "request_crashed_model"


async def test_more_dimensions_than_the_model_has_are_refused_without_asking_it():
    backend = LengthBackend()
    with pytest.raises(InvalidRequestError, match="has 4 dimensions"):
        await make_service(backend).embed(EncodeRequest("m", ("a",), dimensions=5))
    assert backend.seen == []


async def test_an_unknown_model_is_named_with_those_that_are_served():
    with pytest.raises(
        ModelNotFoundError, match=r"'owner/nam' does not exist\. Models served here: m\. Did you mean 'owner/name'"
    ):
        await make_service(LengthBackend()).embed(EncodeRequest("owner/nam", ("a",)))


async def test_a_failed_model_answers_at_once_with_its_reason():
    service = make_service(LengthBackend(), state="failed", detail="no such model")
    with pytest.raises(UnavailableError, match="no such model") as caught:
        await service.embed(EncodeRequest("m", ("a",)))
    assert (caught.value.code, caught.value.param, caught.value.retry_after_s) == ("model_failed", "model", 60)


async def test_a_loading_model_is_waited_for_and_then_refused_with_the_measured_time():
    service = make_service(LengthBackend(), state="downloading", done_bytes=43, total_bytes=100, expected_ready_s=12.4)
    with pytest.raises(UnavailableError, match=r"downloading \(43 %\)\. Try again in 13 s") as caught:
        await service.embed(EncodeRequest("m", ("a",)))
    assert (caught.value.param, caught.value.retry_after_s) == ("model", 12.4)


async def test_a_model_that_becomes_ready_while_a_request_waits_answers_it():
    registry = Registry(ready_wait_s=5)
    registry.update(ShardTable((make_status("m", state="loading"),)))
    waiting = asyncio.create_task(EmbeddingService(registry, LengthBackend()).embed(EncodeRequest("m", ("abc",))))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    registry.update(ShardTable((make_status("m", info=make_info()),)))
    assert (await waiting).prompt_tokens == 3


async def test_a_lost_generation_is_not_ready_until_the_next_one_is():
    registry = Registry(ready_wait_s=0.01)
    registry.update(ShardTable((make_status("m", info=make_info(), generation=3),)))
    registry.mark_lost("m", 3)
    with pytest.raises(UnavailableError):
        await registry.ready("m")
    registry.update(ShardTable((make_status("m", info=make_info(), generation=4),)))
    assert (await registry.ready("m")).generation == 4


def make_loading(max_queue_s: float, timeout_s: float = 0.0) -> tuple[EmbeddingService, Registry]:
    registry = Registry(ready_wait_s=5)
    registry.update(ShardTable((make_status("m", state="loading"),)))
    return EmbeddingService(registry, LengthBackend(), Policy(timeout_s, max_queue_s)), registry


async def test_what_waits_for_a_model_that_has_never_loaded_is_counted_and_bounded():
    service, registry = make_loading(max_queue_s=1)
    request = EncodeRequest("owner/name", ("word " * 500,), client="a")
    waiting = [asyncio.create_task(service.facts(request)) for _ in range(40)]
    await asyncio.sleep(0)
    refused = [task for task in waiting if task.done()]
    assert 0 < len(refused) < 40
    assert all(isinstance(task.exception(), OverloadedError) for task in refused)
    gate = service.gate("m")
    assert gate.requests == 40 - len(refused)
    assert gate.refused == len(refused)
    registry.update(ShardTable((make_status("m", info=make_info()),)))
    assert {task.result().dimension for task in waiting if await asyncio.wait([task]) and task not in refused} == {4}
    assert (gate.requests, gate.tokens) == (0, 0)


async def test_texts_for_the_tokenizer_of_a_loading_model_are_counted_as_they_wait():
    service, _ = make_loading(max_queue_s=1)
    message = Tokenize(("word " * 500,) * 20)
    tasks = [asyncio.create_task(service.tokenize("m", message)) for _ in range(2)]
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [False, True]
    assert isinstance(tasks[1].exception(), OverloadedError)
    tasks[0].cancel()
    await asyncio.wait(tasks)
    assert service.gate("m").tokens == 0


async def test_a_text_for_the_tokenizer_may_be_as_long_as_any_input_and_there_may_be_more_of_them():
    service, _ = make_loading(max_queue_s=0, timeout_s=0.02)
    service.set_policy(Policy(0.02, limits=RequestLimits(max_inputs=1, max_input_chars=12, max_tokens=5)))
    with pytest.raises(InvalidRequestError, match="Input 1 has 13 characters"):
        await service.tokenize("m", Tokenize(("short", "x" * 13)))
    with pytest.raises(InvalidRequestError, match="Input 0 has 13 characters"):
        await service.tokenize("m", Tokenize(("short",), prompt="prompt: "))
    with pytest.raises(DeadlineError):
        await service.tokenize("m", Tokenize(("好好好好好好",) * 5))


async def test_who_waits_for_a_model_waits_no_longer_than_the_client_allows():
    service, _ = make_loading(max_queue_s=0)
    with pytest.raises(DeadlineError, match=r"within 0.02 s"):
        await service.facts(EncodeRequest("m", ("a",), timeout_s=0.02))
    assert service.gate("m").requests == 0


class ChangingBackend(LengthBackend):
    """Its model is another one, by its fingerprint, after each answer for which there is one in ``fingerprints``."""

    def __init__(self, registry: Registry, *fingerprints: str) -> None:
        super().__init__()
        self.registry = registry
        self.fingerprints = iter(fingerprints)

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        encoded = await super().encode(model_id, message)
        if fingerprint := next(self.fingerprints, None):
            self.registry.update(fingerprinted(fingerprint))
        return encoded


def fingerprinted(fingerprint: str) -> ShardTable:
    return ShardTable((make_status("m", info=make_info(fingerprint=fingerprint)),))


@pytest.mark.parametrize("fingerprints", [("after",), ("between", "before")], ids=["changed", "and changed back"])
async def test_there_is_no_answer_of_two_models_where_settings_change_meanwhile(fingerprints):
    registry = Registry(ready_wait_s=0.05)
    registry.update(fingerprinted("before"))
    backend = ChangingBackend(registry, *fingerprints)
    service = EmbeddingService(registry, backend)
    texts = tuple("a" for _ in range(4 * 64))
    with pytest.raises(ModelChangedError):
        await service.embed(EncodeRequest("m", texts), planned_for="before")
    assert (len(backend.seen), service.gate("m").failed, service.gate("m").requests) == (4, 0, 0)
    result = await service.embed(EncodeRequest("m", texts), planned_for=fingerprints[-1])
    assert (result.fingerprint, len(backend.seen)) == (fingerprints[-1], 8)


async def test_a_model_is_not_asked_what_was_planned_for_another():
    registry, backend = Registry(ready_wait_s=0.05), LengthBackend()
    registry.update(fingerprinted("after"))
    with pytest.raises(ModelChangedError):
        await EmbeddingService(registry, backend).embed(EncodeRequest("m", ("a",)), planned_for="before")
    assert backend.seen == []


class Speller(LengthBackend):
    """A tokenizer that takes ``delay_s`` for each text."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.delay_s = delay_s

    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens:
        await asyncio.sleep(self.delay_s)
        return Tokens(((),) * len(message.texts))


async def test_a_tokenizer_that_takes_too_long_is_not_waited_for():
    with pytest.raises(DeadlineError, match=r"within 0.02 s"):
        await make_service(Speller(delay_s=5), timeout_s=0.02).tokenize("m", Tokenize(("a",)))


@pytest.mark.parametrize(("routers", "tokens_per_s"), [(1, 1000), (4, 250)])
async def test_the_gate_counts_with_what_the_shard_has_measured_shared_among_routers(routers, tokens_per_s):
    registry = Registry(ready_wait_s=0.05)
    registry.update(ShardTable((make_status("m", info=make_info(tokens_per_s=1000.0)),)))
    service = EmbeddingService(registry, LengthBackend(), Policy(routers=routers))
    await service.embed(EncodeRequest("m", ("a",)))
    assert service.gate("m").tokens_per_s == tokens_per_s


async def test_a_models_failures_are_counted_and_its_clients_mistakes_are_not():
    service = make_service(DyingBackend([True] * 2), timeout_s=0)
    with pytest.raises(EncodeError):
        await service.embed(EncodeRequest("m", ("a",)))
    with pytest.raises(InvalidRequestError):
        await service.embed(EncodeRequest("m", ("a",), dimensions=5))
    await service.embed(EncodeRequest("m", ("b",)))
    gate = service.gate("m")
    assert (gate.answered, gate.failed, gate.requests, gate.tokens) == (1, 1, 0, 0)
    assert gate.last_success > 0
    slow = make_service(SlowBackend(5), timeout_s=0.01)
    with pytest.raises(DeadlineError):
        await slow.embed(EncodeRequest("m", ("a",)))
    assert (slow.gate("m").failed, slow.gate("m").requests) == (1, 0)
    loading, _ = make_loading(max_queue_s=0)
    with pytest.raises(DeadlineError):
        await loading.facts(EncodeRequest("m", ("a",), timeout_s=0.01))
    assert loading.gate("m").failed == 1
