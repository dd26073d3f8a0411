"""Who waits for whose trial: a process that answers and dies when the test says so."""

import asyncio
import time

import pytest

from emb_model_provider.errors import EncodeError, QuarantinedError, UnavailableError
from emb_model_provider.messages.link import Encode, Encoded, InputError
from emb_model_provider.messages.status import ShardTable
from router.link import Left, ShardLostError
from router.quarantine import fingerprint
from router.registry import Registry
from router.requests import EncodeRequest
from router.service import EmbeddingService, Policy
from tests.support.statuses import make_info, make_status

READY, STARTING = (
    ShardTable((make_status("m", state=state, info=make_info(max_tokens=8192)),)) for state in ("ready", "starting")
)


class Scene:
    """A service, whose clients are tasks, before a process that is told what becomes of the messages it has."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.registry = Registry(ready_wait_s=5)
        self.registry.update(READY)
        self.service = EmbeddingService(self.registry, self, policy)
        self.resent: list[str] = []
        self.service.on_resent = self.resent.append
        self._here: list[tuple[Encode, asyncio.Future[Encoded]]] = []

    async def encode(self, model_id: str, message: Encode) -> Encoded:
        future = asyncio.get_running_loop().create_future()
        self._here.append((message, future))
        return await future

    async def ask(self, *texts: str, partial: bool = False) -> asyncio.Task:
        task = asyncio.create_task(self.service.embed(EncodeRequest("m", texts, partial=partial)))
        await turns()
        return task

    @property
    def here(self) -> list[tuple[tuple[str, ...], bool]]:
        """What the process has: the texts, and whether they are alone."""
        return [(message.texts, message.alone) for message, future in self._here if not future.done()]

    async def die(self, *started: str) -> None:
        """End the process, which was at the messages that have one of these texts."""
        here, self._here = self._here, []
        for message, future in here:
            if not future.done():
                future.set_exception(ShardLostError(started=bool(set(started) & set(message.texts))))
        await turns()

    async def answer(self, *errors: InputError) -> None:
        here, self._here = self._here, []
        for message, future in here:
            if not future.done():
                future.set_result(Encoded(bytes(16 * message.count), 4, (1,) * message.count, errors=errors))
        await turns()

    def suspect(self, text: str) -> None:
        """Hear that a process was at this text when it died, whose client had left."""
        self.service.quarantine.found([fingerprint("m", Encode((text,)), 0)], alone=False)

    def learn(self, text: str) -> None:
        """Hear from another router that this text has killed."""
        self.service.quarantine.learn(fingerprint("m", Encode((text,)), 0))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def scene():
    return Scene()


@pytest.mark.parametrize(("suspect", "other"), [("a", "b"), ("b", "a")])
async def test_an_innocent_request_for_what_is_tried_waits_for_the_verdict_whoever_hears_of_the_death_first(
    scene, suspect, other
):
    asked = [await scene.ask("unlucky", "a"), await scene.ask("unlucky", "b")]
    await scene.die(suspect)
    assert scene.here == [(("unlucky",), True), ((suspect,), True)]
    await scene.answer()
    assert scene.here == [(("unlucky", other), False)]
    await scene.answer()
    assert all(task.done() and task.result().prompt_tokens == 2 for task in asked)
    assert scene.resent == ["m", "m"]


async def test_a_trial_whose_client_leaves_is_another_suspects_who_waited_for_it(scene):
    first, second = [await scene.ask("unlucky", "a"), await scene.ask("unlucky", "b")]
    await scene.die("unlucky")
    assert scene.here == [(("unlucky",), True), (("a",), True), (("b",), True)]
    first.cancel()
    await turns()
    assert scene.here == [(("b",), True), (("unlucky",), True)]
    await scene.answer()
    assert second.result().prompt_tokens == 2
    assert first.cancelled()


async def test_an_error_that_a_trial_brought_is_its_own_clients_alone_and_who_waited_has_another(scene):
    partial, whole = await scene.ask("odd", partial=True), await scene.ask("odd")
    await scene.die("odd")
    assert scene.here == [(("odd",), True)]
    await scene.answer(InputError(0, 400, "invalid_request_error", None, "Input 0 is nothing."))
    assert [error.message for part in partial.result().parts for error in part.errors] == ["Input 0 is nothing."]
    assert scene.here == [(("odd",), True)]
    await scene.answer()
    assert whole.result().prompt_tokens == 1


async def test_what_is_learnt_while_a_request_that_is_sent_again_waits_for_a_process_counts(scene):
    asked = await scene.ask("poison")
    scene.registry.update(STARTING)
    await scene.die()
    scene.learn("poison")
    scene.registry.update(READY)
    await turns()
    assert scene.here == []
    assert isinstance(asked.exception(), QuarantinedError)


async def test_after_a_trial_that_brought_no_verdict_the_wait_is_for_a_process_and_what_is_learnt_meanwhile_counts(
    scene,
):
    trying, waiting = [await scene.ask("poison", "a"), await scene.ask("poison", "b")]
    await scene.die("a")
    scene.registry.update(STARTING)
    trying.cancel()
    await turns()
    assert not waiting.done()
    scene.learn("poison")
    scene.registry.update(READY)
    await turns()
    assert isinstance(waiting.exception(), QuarantinedError)
    assert scene.here == []


async def test_a_suspect_whose_process_dies_before_it_is_begun_is_tried_again_until_there_is_no_hope(scene):
    asked = await scene.ask("unlucky")
    await scene.die("unlucky")
    for _ in range(10):
        assert scene.here == [(("unlucky",), True)]
        await scene.die()
    assert scene.here == []
    assert isinstance(asked.exception(), UnavailableError)
    assert not scene.service.quarantine


async def test_in_its_last_second_too_a_quarantine_is_one():
    scene = Scene(Policy(quarantine_s=0.9))
    scene.learn("poison")
    assert isinstance((await scene.ask("poison")).exception(), QuarantinedError)


async def test_a_slice_is_out_of_the_gate_once_it_is_answered_or_its_process_has_died(scene, monkeypatch):
    over: list[bool] = []
    gate = scene.service.gate("m")
    turn_over = gate.turn_over

    def note(turn, *, is_answered: bool) -> None:
        over.append(is_answered)
        turn_over(turn, is_answered=is_answered)

    monkeypatch.setattr(gate, "turn_over", note)
    long, next_one, last = (letter * 20_000 for letter in "abc")
    asked = [await scene.ask(long), await scene.ask(next_one), await scene.ask(last)]
    assert scene.here == [((long,), False)]
    await scene.answer()
    assert scene.here == [((next_one,), False)]
    await scene.die()
    assert scene.here == [((last,), False)]
    await scene.answer()
    await scene.answer()
    assert all(task.done() for task in asked)
    assert over == [True, False, True, True]
    assert gate.waiting_slices == gate.tokens == 0


async def test_who_asks_for_what_a_process_died_of_after_its_client_had_left_has_it_tried_alone(scene):
    scene.suspect("odd")
    asked, other = await scene.ask("odd", "even"), await scene.ask("other")
    assert scene.here == [(("odd",), True), (("even",), True), (("other",), False)]
    await scene.die("odd")
    assert asked.exception().code == "request_crashed_model"
    await scene.answer()
    assert other.result()
    assert isinstance((await scene.ask("odd")).exception(), QuarantinedError)


async def test_a_suspect_that_a_process_has_lived_through_is_none_any_more(scene):
    scene.suspect("odd")
    asked = await scene.ask("odd")
    assert scene.here == [(("odd",), True)]
    await scene.answer()
    assert asked.result()
    await scene.ask("odd")
    assert scene.here == [(("odd",), False)]


@pytest.mark.parametrize(
    ("answers_others", "quarantine_s", "told"), [(True, 600.0, ["m"]), (False, 600.0, []), (True, 0.0, [])]
)
async def test_a_model_that_answers_others_is_acquitted_of_what_an_input_did_that_is_refused_from_now_on(
    answers_others, quarantine_s, told
):
    scene = Scene(Policy(quarantine_s=quarantine_s))
    acquitted: list[str] = []
    scene.service.on_acquitted = acquitted.append
    if answers_others:
        innocent = await scene.ask("innocent")
        await scene.answer()
        await innocent
    guilty = await scene.ask("guilty")
    await scene.die("guilty")
    assert acquitted == [], "nobody knows yet what it was"
    await scene.die("guilty")
    with pytest.raises(EncodeError):
        await guilty
    assert acquitted == told


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
async def test_a_clock_that_is_set_meanwhile_changes_nothing_of_when_a_model_has_answered(scene, monkeypatch, set_by_s):
    acquitted: list[str] = []
    scene.service.on_acquitted = acquitted.append
    innocent = await scene.ask("innocent")
    await scene.answer()
    await innocent
    unix_time, monotonic = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: unix_time() + set_by_s)
    scene.service.left_behind(Left("m", (b"b",), alone=True))
    assert acquitted == ["m"]
    monkeypatch.setattr(time, "time", lambda: unix_time() - 3600.0)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 120.0)
    scene.service.left_behind(Left("m", (b"b",), alone=True))
    assert acquitted == ["m"], "it has answered nobody for two minutes"


async def test_a_model_is_acquitted_too_where_the_guilty_ones_client_had_left(scene):
    acquitted: list[str] = []
    scene.service.on_acquitted = acquitted.append
    innocent = await scene.ask("innocent")
    await scene.answer()
    await innocent
    scene.service.left_behind(Left("m", (b"a", b"b"), alone=False))
    assert acquitted == []
    scene.service.left_behind(Left("m", (b"b",), alone=True))
    assert acquitted == ["m"]


async def test_innocents_are_sent_again_for_as_long_as_it_is_found_out_what_the_process_dies_of(scene):
    innocent = await scene.ask("innocent")
    for number in range(12):
        killer = await scene.ask(f"killer {number}")
        await scene.die(f"killer {number}")
        await scene.die(f"killer {number}")
        assert isinstance(killer.exception(), EncodeError)
    await scene.answer()
    assert innocent.exception() is None


async def test_innocents_whose_process_goes_away_again_and_again_hear_so_in_the_end(scene):
    innocent = await scene.ask("innocent")
    for _ in range(9):
        await scene.die()
    assert not innocent.done()
    await scene.die()
    assert isinstance(innocent.exception(), UnavailableError)
