import asyncio

import pytest

from emb_model_provider.errors import OverloadedError
from router.gate import Gate


async def test_what_is_over_the_budget_of_time_is_refused_with_the_time_until_there_is_room():
    gate = Gate("m", max_queue_s=10, tokens_per_s=100)
    key = gate.let_in("a", 600, is_small=False)
    with pytest.raises(OverloadedError) as caught:
        gate.let_in("a", 400, is_small=False)
    assert 1 <= caught.value.retry_after_s <= 10
    gate.let_in("b", 300, is_small=False)
    assert (gate.requests, gate.tokens, gate.refused) == (2, 900, 1)
    gate.let_out(key, "a", 600, is_small=False)
    gate.let_in("a", 400, is_small=False)


async def test_a_big_request_beyond_all_that_may_wait_does_not_keep_small_ones_out():
    gate = Gate("m", max_queue_s=10, tokens_per_s=100)
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
    gate = Gate("m", max_queue_s=0, tokens_per_s=1)
    for _ in range(100):
        gate.let_in("a", 10**9, is_small=False)
    assert gate.requests == 100


async def start_all(gate: Gate, order: list[str], wanted: list[tuple[str, int]], *, is_small: bool = True):
    async def one(client: str, tokens: int) -> None:
        if not gate.is_open(tokens, is_small=is_small):
            await gate.turn(client, tokens, is_small=is_small)
        order.append(client)

    tasks = [asyncio.create_task(one(*what)) for what in wanted]
    await asyncio.sleep(0)
    return tasks


async def test_a_flood_waits_at_the_gate_and_another_clients_request_goes_next():
    gate, order = Gate("m", 0, tokens_per_s=8192), []
    tasks = await start_all(gate, order, [("flood", 1024)] * 50)
    assert order == ["flood"] * 2
    tasks += await start_all(gate, order, [("other", 10)])
    gate.turn_over(1024, is_small=True, is_answered=True)
    await asyncio.sleep(0)
    assert "other" not in order[:2]
    gate.turn_over(1024, is_small=True, is_answered=True)
    await asyncio.sleep(0)
    assert "other" in order[2:5]
    for task in tasks:
        task.cancel()


async def test_big_requests_in_hand_do_not_hold_up_small_ones():
    gate, order = Gate("m", 0, tokens_per_s=1), []
    tasks = await start_all(gate, order, [("bulk", 100_000)] * 3, is_small=False)
    tasks += await start_all(gate, order, [("query", 5)])
    assert order == ["bulk", "query"]
    for task in tasks:
        task.cancel()


async def test_a_client_that_leaves_gives_its_turn_to_the_next():
    gate, order = Gate("m", 0, tokens_per_s=1), []
    tasks = await start_all(gate, order, [("a", 5000), ("b", 5000), ("c", 5000)])
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    gate.turn_over(5000, is_small=True, is_answered=True)
    await asyncio.sleep(0)
    assert order == ["a", "c"]
    gate.turn_over(5000, is_small=True, is_answered=True)
    assert gate.waiting_slices == 0


async def test_a_client_that_leaves_in_the_moment_of_its_turn_takes_nothing_with_it():
    gate, order = Gate("m", 0, tokens_per_s=1), []
    tasks = await start_all(gate, order, [("a", 5000), ("b", 5000), ("c", 5000)])
    gate.turn_over(5000, is_small=True, is_answered=True)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    await asyncio.sleep(0)
    assert order == ["a", "c"]


async def test_the_shards_own_figure_counts_until_there_is_a_measured_one():
    gate = Gate("m", 0)
    gate.expect(300)
    assert gate.tokens_per_s == 300
    gate.expect(0)
    assert gate.tokens_per_s == 300
