"""What becomes of questions to a tokenizer whose process dies: a backend with one that dies of certain texts."""

import asyncio

import pytest

from emb_model_provider.errors import EncodeError, QuarantinedError, UnavailableError
from emb_model_provider.messages.link import Detokenize, Texts, Token, Tokenize, Tokens
from emb_model_provider.messages.status import ShardTable
from router.link import ShardLostError
from router.quarantine import fingerprint
from router.registry import Registry
from router.service import EmbeddingService
from router.visit import VISIT, Visit
from tests.support.mortal import Mortal, make_service
from tests.support.statuses import make_info, make_status


class MortalSpeller(Mortal):
    async def tokenize(self, model_id: str, message: Tokenize) -> Tokens:
        return await self._ask(message)

    async def detokenize(self, model_id: str, message: Detokenize) -> Texts:
        return await self._ask(message)

    def inputs(self, message):
        return message.texts if isinstance(message, Tokenize) else message.token_ids

    def answer(self, message):
        return Tokens(tuple(map(spelled, message.texts))) if isinstance(message, Tokenize) else Texts(("a",))


def spelled(text: str) -> tuple[Token, ...]:
    return tuple(Token(ord(one), one, False, index, index + 1) for index, one in enumerate(text))


@pytest.mark.parametrize(
    ("ask", "deadly"),
    [
        (lambda service: service.tokenize("m", Tokenize(("fine", "poison"))), "poison"),
        (lambda service: service.detokenize("m", Detokenize(((1,), (2, 3)))), (2, 3)),
    ],
)
async def test_an_input_that_kills_twice_is_named_and_is_then_refused_without_touching_the_model(ask, deadly):
    backend = MortalSpeller(deadly)
    service = make_service(backend)
    with pytest.raises(EncodeError, match="on input 1,") as caught:
        await ask(service)
    assert (caught.value.status, caught.value.code) == (500, "request_crashed_model")
    assert [one.alone for one in backend.seen] == [False, True, True]
    with pytest.raises(QuarantinedError, match=r"Input 1 has ended .* for another \d+ s") as caught:
        await ask(service)
    assert (caught.value.status, caught.value.code) == (422, "input_quarantined")
    assert (len(backend.seen), backend.deaths) == (3, 2)


async def test_whoever_asks_beside_a_killer_is_answered_and_all_who_ask_for_it_cost_two_deaths():
    backend = MortalSpeller("poison")
    service = make_service(backend)
    texts = [("poison",) if index % 3 == 1 else (f"text {index}", "b") for index in range(30)]
    outcomes = await asyncio.gather(*(service.tokenize("m", Tokenize(one)) for one in texts), return_exceptions=True)
    for text, outcome in zip(texts, outcomes, strict=True):
        if text == ("poison",):
            assert isinstance(outcome, EncodeError | QuarantinedError)
        else:
            assert outcome == Tokens(tuple(map(spelled, text)))
    assert backend.deaths == 2


async def test_one_that_was_read_when_the_process_died_for_another_reason_is_read_again_once():
    backend = MortalSpeller("unlucky")
    service = make_service(backend)
    backend.on_death = backend.deadly.clear
    answer = await service.tokenize("m", Tokenize(("unlucky", "other")))
    assert backend.deaths == 1
    assert answer == Tokens((spelled("unlucky"), spelled("other")))
    assert not service.quarantine


async def test_equal_texts_of_a_question_are_tried_once_and_all_have_the_answer():
    backend = MortalSpeller("unlucky")
    backend.on_death = backend.deadly.clear
    answer = await make_service(backend).tokenize("m", Tokenize(("unlucky", "other", "unlucky")))
    assert answer == Tokens((spelled("unlucky"), spelled("other"), spelled("unlucky")))
    assert [one.texts for one in backend.seen if one.alone] == [("unlucky",), ("other",)]


async def test_one_text_that_two_clients_ask_for_is_tried_once():
    backend = MortalSpeller()
    service = make_service(backend)
    service.quarantine.found([fingerprint("m", Tokenize(("odd",)), 0)], alone=False)

    async def ask(request_id: str) -> Tokens:
        VISIT.set(Visit(request_id=request_id))
        return await service.tokenize("m", Tokenize(("odd",), request_id=request_id))

    assert await asyncio.gather(ask("a"), ask("b")) == [Tokens((spelled("odd"),))] * 2
    assert [one.texts for one in backend.seen] == [("odd",)]


async def test_a_text_that_a_process_died_of_after_its_client_had_left_is_asked_for_alone():
    backend = MortalSpeller()
    service = make_service(backend)
    service.quarantine.found([fingerprint("m", Tokenize(("odd",)), 0)], alone=False)
    assert await service.tokenize("m", Tokenize(("odd", "b"))) == Tokens((spelled("odd"), spelled("b")))
    assert [(one.texts, one.alone) for one in backend.seen] == [(("odd",), True), (("b",), True)]


async def test_one_that_kills_with_a_prompt_is_welcome_without_it():
    backend = MortalSpeller("poison")
    service = make_service(backend)
    with pytest.raises(EncodeError):
        await service.tokenize("m", Tokenize(("poison",), prompt="query: "))
    backend.deadly.clear()
    assert await service.tokenize("m", Tokenize(("poison",))) == Tokens((spelled("poison"),))


async def test_what_was_never_read_is_sent_again_as_it_was_until_there_is_no_hope():
    class Unlucky(MortalSpeller):
        async def _ask(self, message):
            self.seen.append(message)
            raise ShardLostError(started=False)

    backend = Unlucky()
    with pytest.raises(UnavailableError) as caught:
        await make_service(backend).tokenize("m", Tokenize(("a",)))
    assert caught.value.retry_after_s == 10
    assert len(backend.seen) == 10
    assert not any(message.alone for message in backend.seen)


async def test_what_another_router_finds_guilty_while_the_next_process_starts_is_not_read_again():
    registry = Registry(ready_wait_s=5)
    ready, starting = (
        ShardTable((make_status("m", state=state, info=make_info()),)) for state in ("ready", "starting")
    )
    registry.update(ready)

    class Dying(MortalSpeller):
        async def _ask(self, message):
            self.seen.append(message)
            registry.update(starting)
            raise ShardLostError(started=False)

    backend = Dying()
    service = EmbeddingService(registry, backend)
    asked = asyncio.create_task(service.tokenize("m", Tokenize(("fine", "poison"))))
    await asyncio.sleep(0.01)
    service.quarantine.learn(fingerprint("m", backend.seen[0], 1))
    registry.update(ready)
    with pytest.raises(QuarantinedError, match="Input 1"):
        await asked
    assert len(backend.seen) == 1
