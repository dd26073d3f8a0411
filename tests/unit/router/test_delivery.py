"""What becomes of requests when their shard dies: a backend with a shard that dies of certain texts."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import EncodeError, QuarantinedError, UnavailableError
from emb_model_provider.frames import FrameDecoder
from emb_model_provider.messages.framing import pack, unpack
from emb_model_provider.messages.link import Encode, Encoded, InputError, SparseRows, TokenVectors
from emb_model_provider.messages.status import ShardTable
from router.delivery import Call
from router.gate import Gate, Turn, Work
from router.link import ShardLostError
from router.quarantine import fingerprint
from router.registry import Registry
from router.requests import EncodeRequest, Queries
from router.service import EmbeddingService, Policy
from router.visit import VISIT, Visit
from tests.support.mortal import Mortal, make_service
from tests.support.statuses import make_info, make_status


def vector(text: str) -> list[float]:
    return [float(len(text)), float(ord(text[-1])), 0.0, 1.0]


class MortalBackend(Mortal):
    at_once = 2

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        return await self._ask(message)

    def answer(self, message: Encode) -> Encoded:
        rows = np.array([vector(text) for text in message.texts], dtype="<f4")
        return Encoded(rows.tobytes(), 4, tuple(len(text) for text in message.texts))


def rows(result) -> list[list[float]]:
    return np.concatenate([np.frombuffer(part.vectors, "<f4").reshape(-1, 4) for part in result.parts]).tolist()


class OnceMortalBackend(MortalBackend):
    """Its shard dies once, of ``deadly``, and never again."""

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        if self.deaths:
            self.deadly.clear()
        return await super().encode(model_id, message)


@pytest.mark.parametrize(("others", "trials"), [(None, 2), (2, 4)])
async def test_what_several_ask_for_is_tried_once_and_all_get_its_result(others, trials):
    backend = OnceMortalBackend("unlucky")
    service = make_service(backend)
    texts = ("unlucky", "neighbour")
    asked = [EncodeRequest("m", texts, dimensions=dimensions) for dimensions in (None, others)]
    results = await asyncio.gather(*map(service.embed, asked))
    assert [rows(result) for result in results] == [[vector(text) for text in texts]] * 2
    assert backend.deaths == 1
    alone = [(message.texts[0], message.dimensions) for message in backend.seen if message.alone]
    assert len(alone) == trials
    assert set(alone) == {(text, dimensions) for text in texts for dimensions in (None, others)}


async def test_the_killer_gets_its_own_error_after_two_deaths_and_its_neighbours_their_vectors():
    backend = MortalBackend("poison")
    service = make_service(backend)
    asked = [service.embed(EncodeRequest("m", (f"text {index}",))) for index in range(20)]
    outcomes = await asyncio.gather(
        *asked[:10], service.embed(EncodeRequest("m", ("poison",))), *asked[10:], return_exceptions=True
    )
    guilty = outcomes.pop(10)
    assert isinstance(guilty, EncodeError)
    assert (guilty.status, guilty.code, guilty.param) == (500, "request_crashed_model", "input")
    assert [rows(one) for one in outcomes] == [[vector(f"text {index}")] for index in range(20)]
    assert backend.deaths == 2


async def test_the_same_input_again_is_refused_without_touching_the_model():
    backend = MortalBackend("poison")
    service = make_service(backend)
    with pytest.raises(EncodeError):
        await service.embed(EncodeRequest("m", ("poison",)))
    seen = len(backend.seen)
    with pytest.raises(QuarantinedError, match=r"Input 1 has ended .* for another \d+ s") as caught:
        await service.embed(EncodeRequest("m", ("fine", "poison")))
    assert (caught.value.status, caught.value.code) == (422, "input_quarantined")
    assert len(backend.seen) == seen
    assert rows(await service.embed(EncodeRequest("m", ("fine",)))) == [vector("fine")]


async def test_twenty_clients_with_the_same_poison_kill_no_more_often_than_one():
    backend = MortalBackend("poison")
    service = make_service(backend)
    asked = [service.embed(EncodeRequest("m", ("poison",))) for _ in range(20)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, EncodeError | QuarantinedError) for one in outcomes)
    assert backend.deaths == 2


async def test_a_request_with_one_killer_fails_naming_it_or_answers_the_others_where_that_was_asked_for():
    texts = (*(f"t{index}" for index in range(70)), "poison", "last")
    with pytest.raises(EncodeError, match="input 70"):
        await make_service(MortalBackend("poison")).embed(EncodeRequest("m", texts))
    service = make_service(MortalBackend("poison"))
    for code in ("request_crashed_model", "input_quarantined"):
        result = await service.embed(EncodeRequest("m", texts, partial=True))
        expected = [[0.0] * 4 if text == "poison" else vector(text) for text in texts]
        assert rows(result) == expected
        errors, offset = [], 0
        for part in result.parts:
            errors += [(offset + error.index, error.code) for error in part.errors]
            offset += len(part.tokens)
        assert errors == [(70, code)]


async def test_suspects_are_tried_one_by_one_and_alone():
    backend = MortalBackend("poison")
    await make_service(backend).embed(EncodeRequest("m", ("a", "b", "poison"), partial=True))
    first, *retries = backend.seen
    assert (first.texts, first.alone) == (("a", "b", "poison"), False)
    assert [(one.texts, one.alone, one.first_index) for one in retries] == [
        (("a",), True, 0),
        (("b",), True, 1),
        (("poison",), True, 2),
    ]


async def test_an_input_that_a_process_died_of_after_its_client_had_left_is_tried_alone():
    backend = MortalBackend()
    service = make_service(backend)
    service.quarantine.found([fingerprint("m", Encode(("odd",)), 0)], alone=False)
    assert rows(await service.embed(EncodeRequest("m", ("odd", "b")))) == [vector("odd"), vector("b")]
    assert [(one.texts, one.alone) for one in backend.seen] == [(("odd",), True), (("b",), True)]
    await service.embed(EncodeRequest("m", ("odd", "b")))
    assert [one.texts for one in backend.seen[2:]] == [("odd", "b")], "a process has lived through it"


async def test_what_is_being_tried_is_not_sent_beside_it_by_whoever_asks_for_it_meanwhile():
    class Slow(MortalBackend):
        async def encode(self, model_id, message):
            self.seen.append(message)
            if len(self.seen) == 1:
                raise ShardLostError(started=True)
            await may_answer.wait()
            return Encoded(np.array(vector("a"), dtype="<f4").tobytes(), 4, (1,))

    backend, may_answer = Slow(), asyncio.Event()
    service = make_service(backend)
    first = asyncio.create_task(service.embed(EncodeRequest("m", ("a",))))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(service.embed(EncodeRequest("m", ("a",))))
    await asyncio.sleep(0.01)
    assert [message.alone for message in backend.seen] == [False, True]
    may_answer.set()
    assert [rows(one) for one in await asyncio.gather(first, second)] == [[vector("a")]] * 2


def test_a_result_that_names_an_input_as_one_client_does_is_nobody_elses():
    call = Call(EncodeRequest("m", ("a",), partial=True), make_status("m"), Gate("m", 0), "", [1], True, None)
    assert call.is_anyones(Encoded(bytes(16), 4, (1,)))
    assert not call.is_anyones(Encoded(bytes(16), 4, (0,), errors=(InputError(0, 400, "kind", None, "document 7"),)))


async def test_the_gate_hears_which_slices_were_answered(monkeypatch):
    heard = []
    monkeypatch.setattr(Gate, "turn_over", lambda _gate, _turn, *, is_answered: heard.append(is_answered))
    backend = MortalBackend("poison")
    await make_service(backend).embed(EncodeRequest("m", ("fine",)))
    with pytest.raises(EncodeError):
        await make_service(backend).embed(EncodeRequest("m", ("poison",)))
    assert heard == [True, False]


async def test_what_the_gate_does_not_let_through_is_not_sent_until_its_turn_comes():
    backend = MortalBackend()
    service = make_service(backend)
    gate, before = service.gate("m"), Turn("other", 10**9, True, Work("something else"))
    assert gate.is_open(before)
    asked = asyncio.create_task(service.embed(EncodeRequest("m", ("a",))))
    await asyncio.sleep(0.01)
    assert (backend.seen, gate.waiting_slices) == ([], 1)
    gate.turn_over(before, is_answered=False)
    assert rows(await asked) == [vector("a")]


async def test_a_slice_belongs_to_the_trace_of_its_request_or_else_of_the_visit():
    def traceparent(of_request: str) -> str:
        request = EncodeRequest("m", ("a",), traceparent=of_request)
        return Call(request, make_status("m"), Gate("m", 0), "", [1], True, None).message(0, 1).traceparent

    assert traceparent("") == ""
    token = VISIT.set(Visit(traceparent="00-1-2-01"))
    try:
        assert (traceparent(""), traceparent("00-3-4-01")) == ("00-1-2-01", "00-3-4-01")
    finally:
        VISIT.reset(token)


async def test_what_another_router_finds_guilty_while_the_next_process_starts_is_not_tried_again():
    registry = Registry(ready_wait_s=5)
    ready, starting = (
        ShardTable((make_status("m", state=state, info=make_info()),)) for state in ("ready", "starting")
    )
    registry.update(ready)

    class Dying(MortalBackend):
        async def encode(self, model_id, message):
            self.seen.append(message)
            registry.update(starting)
            raise ShardLostError(started=True)

    backend = Dying()
    service = EmbeddingService(registry, backend)
    asked = asyncio.create_task(service.embed(EncodeRequest("m", ("poison",))))
    await asyncio.sleep(0.01)
    service.quarantine.learn(fingerprint("m", backend.seen[0], 0))
    registry.update(ready)
    with pytest.raises(QuarantinedError):
        await asked
    assert len(backend.seen) == 1


async def test_what_has_never_been_on_the_device_is_sent_again_as_it_was_until_there_is_no_hope():
    class Unlucky(MortalBackend):
        async def encode(self, model_id, message):
            self.seen.append(message)
            raise ShardLostError(started=False)

    backend = Unlucky()
    with pytest.raises(UnavailableError) as caught:
        await make_service(backend).embed(EncodeRequest("m", ("a",)))
    assert caught.value.retry_after_s == 10
    assert len(backend.seen) == 10
    assert not any(message.alone for message in backend.seen)


async def test_without_a_quarantine_a_killer_is_tried_again_each_time():
    backend = MortalBackend("poison")
    service = make_service(backend, Policy(quarantine_s=0))
    for deaths in (2, 4):
        with pytest.raises(EncodeError):
            await service.embed(EncodeRequest("m", ("poison",)))
        assert backend.deaths == deaths


@pytest.mark.parametrize(
    ("outputs", "dimensions", "dimension"),
    [
        (("dense",), None, 4),
        (("dense",), 2, 2),
        (("scores",), None, 3),
        (("sparse",), None, 0),
        (("multi_vector",), None, 0),
        (("dense", "sparse", "multi_vector"), None, 4),
    ],
)
async def test_a_killer_among_partial_inputs_has_an_empty_row_of_each_output_that_was_asked_for(
    outputs, dimensions, dimension
):
    registry = Registry(ready_wait_s=0.05)
    info = make_info(labels=("a", "b", "c"), token_dimension=5)
    registry.update(ShardTable((make_status("m", info=info),)))
    service = EmbeddingService(registry, MortalBackend("poison"))
    request = EncodeRequest("m", ("poison",), outputs=outputs, dimensions=dimensions, partial=True)
    for code in ("request_crashed_model", "input_quarantined"):
        (part,) = (await service.embed(request)).parts
        assert [(error.index, error.code) for error in part.errors] == [(0, code)]
        assert (part.dimension, part.vectors, part.tokens) == (dimension, bytes(4 * dimension), (0,))
        assert part.sparse == (SparseRows(bytes(8), b"", b"") if "sparse" in outputs else None)
        assert part.token_vectors == (TokenVectors(b"", 5, (0,)) if "multi_vector" in outputs else None)


async def test_a_killer_among_pairs_has_one_score_where_the_model_names_none():
    registry = Registry(ready_wait_s=0.05)
    registry.update(ShardTable((make_status("m", info=make_info(labels=())),)))
    request = EncodeRequest("m", ("poison",), outputs=("scores",), partial=True)
    (part,) = (await EmbeddingService(registry, MortalBackend("poison")).embed(request)).parts
    assert (part.dimension, part.vectors) == (1, bytes(4))


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "bb", "ccc", "poison", "venom"]), min_size=1, max_size=5),
        min_size=1,
        max_size=12,
    )
)
def test_whoever_asks_for_what_nobody_gets_a_wrong_vector_and_the_number_of_deaths_is_bounded(requests):
    async def run() -> None:
        backend = MortalBackend("poison", "venom")
        service = make_service(backend)
        asked = [service.embed(EncodeRequest("m", tuple(texts))) for texts in requests]
        outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
        for texts, outcome in zip(requests, outcomes, strict=True):
            if backend.deadly & set(texts):
                assert isinstance(outcome, EncodeError | QuarantinedError)
            else:
                assert rows(outcome) == [vector(text) for text in texts]
        kinds = backend.deadly & {text for texts in requests for text in texts}
        # Beside its own two, a poison may have a part in the first death of another one.
        assert backend.deaths <= 3 * len(kinds)

    asyncio.run(run())


def test_a_slice_takes_all_that_was_asked_to_the_model_and_no_inputs_but_its_own():
    def message(request: EncodeRequest) -> Encode:
        return Call(request, make_status("m", overlong="error"), Gate("m", 0), "", [1] * 3, True, None).message(1, 3)

    asked = {
        "dimensions": 2, "prompt_name": "query", "outputs": ("sparse",), "prompt": "query: ", "normalize": False,
        "overlong": "truncate", "max_tokens": 8, "priority": "bulk", "partial": True, "traceparent": "00-1-2-01",
    }  # fmt: skip
    texts = EncodeRequest("m", ("a", "b", "c"), seconds=("x", "y", "z"), labels=("A", "B", "C"), **asked)
    assert message(texts) == Encode(("b", "c"), seconds=("y", "z"), labels=("B", "C"), first_index=1, **asked)
    ids = EncodeRequest("m", token_ids=((1,), (2, 3), (4,)))
    assert message(ids) == Encode((), ((2, 3), (4,)), first_index=1, overlong="error")


def test_an_input_is_told_by_what_the_model_sees_of_it_and_a_text_is_another_one_as_a_query():
    request = EncodeRequest("m", ("a", "a"), prompt_name="passage", queries=Queries(1, "query"))
    call = Call(request, make_status("m"), Gate("m", 0), "", [1] * 2, True, None)
    marks = [call.mark(index) for index in range(2)]
    assert marks == [fingerprint("m", call.message(index, index + 1, alone=True), 0) for index in range(2)]
    assert marks[0] != marks[1]


def test_a_turn_costs_the_tokens_of_its_own_inputs():
    request = EncodeRequest("m", ("a", "b", "c", "d"), client="c")
    call = Call(request, make_status("m"), Gate("m", 0), "c", [1, 20, 300, 4000], False, None)
    for begin, end, tokens in [(0, 1, 1), (1, 2, 20), (0, 2, 21), (1, 3, 320), (0, 4, 4321)]:
        turn = call.turn(begin, end)
        assert (turn.tokens, turn.client, turn.is_small) == (tokens, "c", False)


@pytest.mark.parametrize("deadline_s", [None, 7.5])
def test_a_turn_is_of_use_as_long_as_its_request(deadline_s):
    call = Call(EncodeRequest("m", ("a", "b")), make_status("m"), Gate("m", 0), "", [1, 1], True, deadline_s)
    assert call.turn(1, 2).deadline_s == deadline_s


#: What says nothing of the tokens that the model reads, nor of what is wanted of them before it is cut.
_OF_NO_CONSEQUENCE = {
    "model", "dimensions", "priority", "partial", "timeout_s", "client", "traceparent", "labels", "sent",
}  # fmt: skip
_OTHER_VALUES = {
    "texts": ("other",), "token_ids": ((1, 2),), "seconds": ("second",), "prompt_name": "query", "prompt": "query: ",
    "outputs": ("sparse",), "normalize": False, "overlong": "error", "max_tokens": 8,
    "queries": Queries(1, "query"),
}  # fmt: skip


def test_whatever_changes_what_the_model_does_makes_other_work():
    def work(request: EncodeRequest):
        return Call(request, make_status("m"), Gate("m", 0), "", [1], True, None).work(0, 1)

    plain = EncodeRequest("m", ("text",))
    assert set(plain.__struct_fields__) == _OF_NO_CONSEQUENCE | set(_OTHER_VALUES)
    assert work(plain) == work(plain.replace(dimensions=2, priority="bulk", client="c", timeout_s=1.0))
    for name, value in _OTHER_VALUES.items():
        assert work(plain.replace(**{name: value})) != work(plain), name


def test_what_is_overlong_by_the_models_settings_is_the_same_work_as_by_the_requests():
    def work(of_request: str | None, of_model: str):
        request, status = EncodeRequest("m", ("text",), overlong=of_request), make_status("m", overlong=of_model)
        return Call(request, status, Gate("m", 0), "", [1], True, None).work(0, 1)

    for one, other in (("error", "truncate"), ("truncate", "error")):
        assert work(None, one) == work(one, one) == work(one, other) != work(None, other)


async def test_a_slice_says_how_long_its_client_still_waits_and_one_that_is_late_is_not_without_end():
    now_s = asyncio.get_running_loop().time()
    for deadline_s, least_ms, most_ms in [(None, 0, 0), (now_s + 60, 50_000, 60_000), (now_s - 1, 1, 1)]:
        call = Call(EncodeRequest("m", ("a",)), make_status("m"), Gate("m", 0), "", [1], True, deadline_s)
        assert least_ms <= call.message(0, 1).timeout_ms <= most_ms


async def test_a_client_may_wait_for_longer_than_a_message_can_say():
    call = Call(EncodeRequest("m", ("a",)), make_status("m"), Gate("m", 0), "", [1], True, 1e300)
    (frame,) = FrameDecoder().feed(pack(call.message(0, 1)))
    message = unpack(frame)
    assert isinstance(message, Encode)
    assert message.timeout_ms > 30 * 86_400_000
