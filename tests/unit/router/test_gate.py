import asyncio
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import DeadlineError, OverloadedError
from router.gate import Gate, Turn, Work


def gate_of(tokens_per_s, max_queue_s=0):
    """Return the gate of a model whose shard has measured so much."""
    gate = Gate("m", max_queue_s)
    gate.expect(tokens_per_s)
    return gate


async def test_what_is_over_the_budget_of_time_is_refused_with_the_time_until_there_is_room():
    gate = gate_of(100, max_queue_s=10)
    key = gate.let_in("a", 600, is_small=False)
    with pytest.raises(OverloadedError) as caught:
        gate.let_in("a", 400, is_small=False)
    assert 1 <= caught.value.retry_after_s <= 10
    gate.let_in("b", 300, is_small=False)
    assert (gate.requests, gate.tokens, gate.refused) == (2, 900, 1)
    gate.let_out(key, "a", 600, is_small=False)
    gate.let_in("a", 400, is_small=False)


@pytest.mark.parametrize(("tokens", "after_s", "said_s"), [(1, 1, 1), (125, 2.5, 3), (5000, 60, 60)])
def test_whoever_is_refused_may_come_back_when_there_is_room_but_in_a_second_at_least_and_a_minute_at_most(
    tokens, after_s, said_s
):
    gate = gate_of(50, max_queue_s=10)
    gate.let_in("a", 500, is_small=False)
    with pytest.raises(OverloadedError, match=f"Try again in {said_s} s") as caught:
        gate.let_in("b", tokens, is_small=False)
    assert caught.value.retry_after_s == after_s


async def test_a_big_request_beyond_all_that_may_wait_does_not_keep_small_ones_out():
    gate = gate_of(100, max_queue_s=10)
    gate.let_in("a", 100_000, is_small=False)
    with pytest.raises(OverloadedError):
        gate.let_in("b", 1, is_small=False)
    key = gate.let_in("b", 600, is_small=True)
    assert gate.tokens == 100_600
    with pytest.raises(OverloadedError):
        gate.let_in("b", 400, is_small=True)
    gate.let_out(key, "b", 600, is_small=True)
    assert gate.tokens == 100_000


async def test_without_a_limit_everything_is_let_in():
    gate = gate_of(1)
    for _ in range(100):
        gate.let_in("a", 10**9, is_small=False)
    assert gate.requests == 100


def test_the_oldest_request_is_the_first_of_those_that_are_not_answered(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate = Gate("m", max_queue_s=0)
    assert gate.oldest_s() == 0
    first = gate.let_in("a", 1, is_small=True)
    now_s = 103.0
    second = gate.let_in("b", 1, is_small=False)
    now_s = 107.0
    assert gate.oldest_s() == 7
    gate.let_out(first, "a", 1, is_small=True)
    assert gate.oldest_s() == 4
    gate.let_out(second, "b", 1, is_small=False)
    assert gate.oldest_s() == 0


def test_nobody_has_had_an_answer_on_a_machine_that_has_just_been_started(monkeypatch):
    now_s = 5.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate = Gate("m", max_queue_s=0)
    assert not gate.has_succeeded_within(60)
    gate.succeeded()
    now_s = 64.0
    assert gate.has_succeeded_within(60)
    now_s = 65.0
    assert not gate.has_succeeded_within(60)


_NUMBERS = itertools.count()


def turn_of(client: str, tokens: int, text: str = "", *, is_small: bool = True) -> Turn:
    """Return the turn of a slice of one text, by default one that nobody else sends."""
    return Turn(client, tokens, is_small, Work((text or f"text {next(_NUMBERS)}",)))


async def start_all(gate: Gate, order: list[str], wanted: list[Turn]):
    async def one(turn: Turn) -> None:
        if not gate.is_open(turn):
            await gate.wait(turn)
        order.append(turn.client)

    tasks = [asyncio.create_task(one(turn)) for turn in wanted]
    await asyncio.sleep(0)
    return tasks


async def test_a_flood_waits_at_the_gate_and_another_clients_request_goes_next():
    gate, order = gate_of(8192), []
    flood = [turn_of("flood", 1024) for _ in range(50)]
    tasks = await start_all(gate, order, flood)
    assert order == ["flood"] * 2
    tasks += await start_all(gate, order, [turn_of("other", 10)])
    gate.turn_over(flood[0], is_answered=True)
    await asyncio.sleep(0)
    assert "other" not in order[:2]
    gate.turn_over(flood[1], is_answered=True)
    await asyncio.sleep(0)
    assert "other" in order[2:5]
    for task in tasks:
        task.cancel()


async def test_big_requests_in_hand_do_not_hold_up_small_ones():
    gate, order = gate_of(1), []
    tasks = await start_all(gate, order, [turn_of("bulk", 100_000, is_small=False) for _ in range(3)])
    tasks += await start_all(gate, order, [turn_of("query", 5)])
    assert order == ["bulk", "query"]
    tasks += await start_all(gate, order, [turn_of("query", 100), turn_of("query", 5)])
    assert order == ["bulk", "query", "query"]
    assert gate.waiting_slices == 3
    for task in tasks:
        task.cancel()


async def test_a_client_that_leaves_gives_its_turn_to_the_next():
    gate, order = gate_of(1), []
    a, b, c = turns = [turn_of(client, 5000) for client in "abc"]
    tasks = await start_all(gate, order, turns)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    gate.turn_over(a, is_answered=True)
    await asyncio.sleep(0)
    assert order == ["a", "c"]
    gate.turn_over(c, is_answered=True)
    assert (gate.waiting_slices, b.is_charged) == (0, False)


async def test_a_client_that_leaves_in_the_moment_of_its_turn_takes_nothing_with_it():
    gate, order = gate_of(1), []
    turns = [turn_of(client, 5000) for client in "abc"]
    tasks = await start_all(gate, order, turns)
    gate.turn_over(turns[0], is_answered=True)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    await asyncio.sleep(0)
    assert order == ["a", "c"]


async def test_a_client_that_has_left_as_its_turn_comes_leaves_the_shard_no_more_than_it_had():
    gate, order = gate_of(1), []
    turns = [turn_of(client, 5000) for client in "abcd"]
    tasks = await start_all(gate, order, turns)
    tasks[1].cancel()  # it has not heard of that yet
    gate.turn_over(turns[0], is_answered=True)
    await asyncio.gather(tasks[1], return_exceptions=True)
    await asyncio.sleep(0)
    assert order == ["a", "c"]
    tasks[3].cancel()


async def test_what_could_not_be_in_time_any_more_has_no_turn_and_the_next_one_goes():
    gate = gate_of(1000)
    now_s = asyncio.get_running_loop().time()
    first, late, soon, later = (turn_of(client, 250) for client in ("first", "late", "soon", "later"))
    # In hand is nothing by then, and a quarter of a second is what each takes.
    late.deadline_s, soon.deadline_s, later.deadline_s = now_s + 0.2, now_s + 60, None
    order: list[str] = []
    tasks = await start_all(gate, order, [first, late, soon, later])
    gate.turn_over(first, is_answered=True)
    await asyncio.sleep(0)
    assert isinstance(tasks[1].exception(), DeadlineError)
    assert order == ["first", "soon"]
    assert gate.waiting_slices == 1
    gate.turn_over(soon, is_answered=True)
    await asyncio.gather(tasks[0], *tasks[2:])
    assert order == ["first", "soon", "later"]


async def test_what_takes_less_than_the_time_that_is_left_has_its_turn():
    gate, order = gate_of(1000), []
    first, urgent = turn_of("first", 250), turn_of("urgent", 250)
    urgent.deadline_s = asyncio.get_running_loop().time() + 2
    tasks = await start_all(gate, order, [first, urgent])
    gate.turn_over(first, is_answered=True)
    await asyncio.gather(*tasks)
    assert order == ["first", "urgent"]


async def test_what_the_shard_has_in_hand_counts_against_a_deadline():
    gate = gate_of(1000)
    now_s = asyncio.get_running_loop().time()
    first, second, third = turn_of("a", 200), turn_of("a", 100), turn_of("b", 100)
    third.deadline_s = now_s + 0.15
    order: list[str] = []
    tasks = await start_all(gate, order, [first, second, third])
    assert order == ["a", "a"]
    gate.turn_over(first, is_answered=True)
    await asyncio.sleep(0)
    assert isinstance(tasks[2].exception(), DeadlineError)
    await asyncio.gather(*tasks[:2])


async def test_a_query_is_in_time_however_much_the_shard_has_of_large_requests():
    gate, order = gate_of(1000), []
    first, query = turn_of("a", 250), turn_of("b", 250)
    query.deadline_s = asyncio.get_running_loop().time() + 5
    tasks = await start_all(gate, order, [turn_of("bulk", 100_000, is_small=False), first, query])
    gate.turn_over(first, is_answered=True)
    await asyncio.gather(*tasks)
    assert order == ["bulk", "a", "b"]


async def test_what_came_too_late_costs_its_client_nothing_and_is_forgotten():
    gate, order = gate_of(1000), []
    first, late, soon, other = (turn_of(client, 250) for client in ("first", "late", "late", "other"))
    late.tokens = 100_000  # of which none is encoded
    late.deadline_s = asyncio.get_running_loop().time()
    tasks = await start_all(gate, order, [first, late, soon, other])
    gate.turn_over(first, is_answered=True)
    await asyncio.sleep(0)
    assert isinstance(tasks[1].exception(), DeadlineError)
    assert order == ["first", "late"], "its next slice goes before that of one who came later"
    assert list(gate._waiting) == [other.work]
    tasks[3].cancel()


@pytest.mark.parametrize("is_refused_first", [True, False])
async def test_who_is_refused_in_the_moment_of_leaving_takes_nothing_with_it(is_refused_first):
    gate = gate_of(1000)
    first, late = turn_of("a", 250), turn_of("b", 250)
    late.deadline_s = asyncio.get_running_loop().time()
    tasks = await start_all(gate, [], [first, late])
    if is_refused_first:
        gate.turn_over(first, is_answered=True)
    tasks[1].cancel()
    if not is_refused_first:  # it has not heard of that yet
        gate.turn_over(first, is_answered=True)
    await asyncio.wait(tasks)
    assert tasks[1].cancelled()
    assert gate.waiting_slices == 0
    assert gate.is_open(turn_of("c", 250))


async def test_equal_slices_go_together_and_count_once():
    gate, order = gate_of(1), []
    first, other = turn_of("a", 5000, "same"), turn_of("b", 5000)
    waiting = [turn_of(client, 5000, "wanted by all") for client in "cdef"]
    tasks = await start_all(gate, order, [first, other, *waiting, turn_of("z", 5000)])
    assert order == ["a"]
    tasks += await start_all(gate, order, [turn_of("again", 5000, "same")])
    assert order == ["a", "again"]
    gate.turn_over(first, is_answered=True)
    await asyncio.sleep(0)
    assert order == ["a", "again", "b"]
    gate.turn_over(other, is_answered=True)
    await asyncio.sleep(0)
    assert order == ["a", "again", "b", *"cdef"]
    # Those that went along give nothing back: the shard has what it had until the one that was charged is answered.
    for one in waiting[1:]:
        gate.turn_over(one, is_answered=True)
    await asyncio.sleep(0)
    assert "z" not in order
    gate.turn_over(waiting[0], is_answered=True)
    await asyncio.sleep(0)
    assert order[-1] == "z"
    assert gate.waiting_slices == 0
    await asyncio.gather(*tasks)


async def test_where_one_of_equal_slices_leaves_the_others_still_go_together():
    gate, order = gate_of(1), []
    first, *waiting = turns = [turn_of("a", 5000), *(turn_of(client, 5000, "same") for client in "bcd")]
    tasks = await start_all(gate, order, turns)
    tasks[2].cancel()
    await asyncio.wait(tasks[2:3])
    gate.turn_over(first, is_answered=True)
    await asyncio.sleep(0)
    assert order == ["a", "b", "d"]
    assert [turn.is_charged for turn in waiting] == [True, False, False]
    assert gate.waiting_slices == 0


async def test_a_query_that_bulk_has_brought_to_the_shard_goes_along():
    gate, order = gate_of(1), []
    held, query = turn_of("a", 5000), turn_of("b", 5000, "same")
    tasks = await start_all(gate, order, [held, query, turn_of("bulk", 5000, "same", is_small=False)])
    await asyncio.gather(*tasks)
    assert order == ["a", "bulk", "b"]


async def test_slices_of_which_something_else_is_asked_are_not_equal():
    assert Work(("text",), "query: ") == Work(("text",), "query: ")
    assert Work(("text",), "query: ") != Work(("text",), None)
    assert Work(("text",), None) != (("text",), None)
    assert hash((-1,)) == hash((-2,)), "two that a look at their hashes alone would take for one"
    assert Work(-1) != Work(-2)


class Crowd:
    """Slices that come to a gate, leave while they wait, and are answered or lost by the shard."""

    def __init__(self) -> None:
        self.gate = gate_of(1)
        self.here: dict[asyncio.Task[None], Turn] = {}

    async def come(self, number: int, text: str) -> None:
        turn = turn_of(text, 1 + number * 40, text if number % 2 else "", is_small=number % 3 > 0)
        (task,) = await start_all(self.gate, [], [turn])
        self.here[task] = turn

    async def leave(self, number: int, text: str) -> None:
        waiting = [task for task in self.here if not task.done()]
        if waiting:
            waiting[number % len(waiting)].cancel()
        if text == "a":
            await asyncio.sleep(0)

    async def answer(self, number: int, text: str) -> None:
        if at_work := self.at_work():
            task = at_work[number % len(at_work)]
            self.gate.turn_over(self.here.pop(task), is_answered=text != "a")

    def at_work(self) -> list[asyncio.Task[None]]:
        return [task for task in self.here if task.done() and not task.cancelled()]

    async def settle(self) -> None:
        """Let everybody hear of what has happened, and forget those that have left."""
        for _ in range(3):
            await asyncio.sleep(0)
        for task in [task for task in self.here if task.cancelled()]:
            assert not self.here.pop(task).is_charged


STEPS = st.tuples(st.sampled_from([Crowd.come, Crowd.leave, Crowd.answer]), st.integers(0, 9), st.sampled_from("abc"))


@given(steps=st.lists(STEPS, max_size=60))
async def test_whoever_comes_and_goes_each_has_a_turn_and_the_gate_forgets_nothing(steps):
    crowd = Crowd()
    for step, number, text in steps:
        await step(crowd, number, text)
    await crowd.settle()
    while crowd.here:
        assert crowd.at_work(), "something waits, and the shard has nothing"
        charged = [crowd.here[task].work for task in crowd.at_work() if crowd.here[task].is_charged]
        assert len(charged) == len(set(charged))
        await crowd.answer(0, "")
        await crowd.settle()
    assert crowd.gate.waiting_slices == 0
    assert not crowd.gate._waiting
    fresh = [turn_of("z", 1, text) for text in "abc"]
    assert all(crowd.gate.is_open(turn) and turn.is_charged for turn in fresh)
    assert crowd.gate.is_open(turn_of("z", 10**6))
    assert not crowd.gate.is_open(turn_of("z", 1))


async def test_the_shards_own_figure_counts_until_there_is_a_measured_one():
    gate = Gate("m", 0)
    gate.expect(300)
    assert gate.tokens_per_s == 300
    gate.expect(0)
    assert gate.tokens_per_s == 300


async def test_a_rate_is_told_as_soon_as_anybody_has_measured_it_and_no_guess(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate = Gate("m", 0)
    gate.expect(0)
    turns = [turn_of("a", 10_000) for _ in range(3)]
    tasks = await start_all(gate, [], turns)
    for turn in turns[:2]:
        assert gate.tokens_per_s is None
        gate.turn_over(turn, is_answered=True)
        now_s += 10
    assert gate.tokens_per_s == 1000
    await asyncio.gather(*tasks)


async def test_who_comes_once_a_model_has_turned_out_faster_goes_before_nobody_that_waits():
    gate, order = Gate("m", 0), []
    gate.expect(1)
    first = turn_of("a", 64)
    tasks = await start_all(gate, order, [first, turn_of("a", 64)])
    gate.expect(10_000)
    tasks += await start_all(gate, order, [turn_of("late", 1)])
    assert order == ["a"]
    gate.turn_over(first, is_answered=True)
    await asyncio.gather(*tasks)
    assert sorted(order) == ["a", "a", "late"]


@pytest.mark.parametrize("is_small", [True, False])
async def test_what_was_lost_or_taken_back_is_no_work_that_the_model_has_done(monkeypatch, is_small):
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate = gate_of(400)
    turns = [turn_of("a", 1000, is_small=is_small) for _ in range(5)]
    tasks = await start_all(gate, [], turns)
    gate.turn_over(turns[0], is_answered=True)
    tasks[1].cancel()  # in the moment of its turn
    await asyncio.wait(tasks[1:2])
    gate.turn_over(turns[2], is_answered=False)
    now_s = 1.0
    gate.turn_over(turns[3], is_answered=True)
    assert gate.tokens_per_s == 1000
    await asyncio.gather(*tasks[2:])


async def test_a_model_that_is_found_faster_is_given_more_at_a_time(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate, order = gate_of(400), []
    turns = [turn_of("a", 100) for _ in range(40)]
    tasks = await start_all(gate, order, turns)
    assert len(order) == 1, "a quarter of a second's work"
    for turn in turns[:20]:
        now_s += 0.1
        gate.turn_over(turn, is_answered=True)
    assert gate.tokens_per_s == pytest.approx(1000)
    assert sum(turn.is_charged for turn in turns) == 3
    gate.expect(5)
    assert gate.tokens_per_s == pytest.approx(1000), "what was measured here counts more"
    for task in tasks:
        task.cancel()


async def test_the_time_in_which_nothing_waits_does_not_make_a_model_slow(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate = gate_of(400)
    for began_s in (0.0, 1000.0):
        turns = [turn_of("a", 100) for _ in range(3)]
        await asyncio.gather(*await start_all(gate, [], turns[:1]))
        waiting = await start_all(gate, [], turns[1:])
        for number, turn in enumerate(turns):
            now_s = began_s + number * 0.5
            gate.turn_over(turn, is_answered=True)
        await asyncio.gather(*waiting)
        assert gate.tokens_per_s == pytest.approx(200)


async def test_what_waits_of_large_requests_lets_small_answers_tell_how_fast_a_model_is(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    gate = gate_of(400)
    waiting = await start_all(gate, [], [turn_of("bulk", 100_000, is_small=False) for _ in range(2)])
    for _ in range(6):
        query = turn_of("a", 100)
        assert gate.is_open(query)
        gate.turn_over(query, is_answered=True)
        now_s += 0.1
    assert gate.tokens_per_s == pytest.approx(1000)
    waiting[1].cancel()


@pytest.mark.parametrize(("tokens_per_s", "tokens", "given"), [(300, 50, 2), (4000, 100, 10), (1, 10, 7)])
async def test_by_the_shards_own_figure_it_is_given_a_quarter_of_a_second_and_never_next_to_nothing(
    tokens_per_s, tokens, given
):
    gate, order = Gate("m", 0), []
    gate.expect(tokens_per_s)
    tasks = await start_all(gate, order, [turn_of("a", tokens) for _ in range(20)])
    assert len(order) == given
    for task in tasks:
        task.cancel()
