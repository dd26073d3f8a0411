import itertools
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.modelmap import BatchLimits
from shard.batching.costs import CostModel, Sample, SlicePlan, plan
from shard.batching.scheduler import Batch, Item, Scheduler
from tests.support.plans import make_plan

requests = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=20), min_size=1, max_size=10)
plans = st.builds(
    SlicePlan,
    st.builds(CostModel, st.floats(0, 5), st.floats(0, 1), st.floats(0.001, 1), st.floats(0, 0.01)),
    st.floats(1, 100),
    st.integers(1, 500),
)


def add(scheduler: Scheduler[Item], lengths: list[int], now_s: float = 0.0) -> list[Item]:
    items = [Item(length) for length in lengths]
    scheduler.add(items, now_s)
    return items


def drain(scheduler: Scheduler[Item]) -> list[list[Item]]:
    """Run one batch after the other until nothing waits."""
    batches = []
    while scheduler.waiting_texts:
        batches.append(take(scheduler))
    return batches


def take(scheduler: Scheduler[Item], now_s: float = 0.0) -> list[Item]:
    """Run the next batch and return what it holds."""
    batch = scheduler.take(now_s)
    scheduler.finished(batch)
    return batch.items


@given(requests, plans, st.integers(1, 16), st.booleans())
def test_every_text_is_handed_out_once_and_within_count_tokens_and_time(lengths, plan, max_size, dynamic):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=max_size, dynamic=dynamic), plan)
    owner = {item: key for key, one in enumerate(lengths) for item in add(scheduler, one)}
    batches = drain(scheduler)
    handed_out = [item for batch in batches for item in batch]
    assert len(handed_out) == len(owner)
    assert set(handed_out) == set(owner)
    for batch in batches:
        tokens, pairs = sum(item.length for item in batch), sum(item.length**2 for item in batch)
        assert len(batch) <= max_size
        assert len(batch) == 1 or tokens <= plan.max_tokens
        assert len(batch) == 1 or plan.costs.ms(len(batch), tokens, pairs) <= plan.slice_ms
        assert dynamic or len({owner[item] for item in batch}) == 1
    assert scheduler.waiting_texts == 0
    assert scheduler.due_in_s(0.0) is None


@given(requests, plans, st.data())
def test_a_dropped_text_is_never_handed_out_and_the_count_stays_true(lengths, plan, data):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=4), plan)
    items = [item for one in lengths for item in add(scheduler, one)]
    taken = take(scheduler)
    dropped = data.draw(st.sets(st.sampled_from(items)))
    for item in dropped:
        scheduler.drop(item)
    expected = set(items) - set(taken) - dropped
    assert scheduler.waiting_texts == len(expected)
    assert scheduler.waiting_tokens == sum(item.length for item in expected)
    assert (scheduler.due_in_s(0.0) is None) == (not expected)
    assert {item for batch in drain(scheduler) for item in batch} == expected


@given(requests, st.integers(1, 500))
def test_requests_of_one_class_are_served_in_order_of_arrival(lengths, max_tokens):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(max_tokens=max_tokens))
    small = [add(scheduler, one[:8]) for one in lengths]
    order = [item for batch in drain(scheduler) for item in batch]
    for earlier, later in itertools.pairwise(small):
        assert max(order.index(item) for item in earlier) < min(order.index(item) for item in later)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), plans, st.integers(1, 16))
def test_no_batch_is_smaller_than_it_must_be(lengths, plan, max_size):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=max_size), plan)
    add(scheduler, lengths)
    for batch, following in itertools.pairwise(drain(scheduler)):
        more = [item.length for item in (*batch, following[0])]
        ms = plan.costs.ms(len(more), sum(more), sum(length**2 for length in more))
        assert len(more) > max_size or sum(more) > plan.max_tokens or ms > plan.slice_ms


@pytest.mark.parametrize(
    ("costs", "length", "together"),
    [
        (CostModel(0, 0, 0, 0), 50, 2),  # 100 tokens
        (CostModel(0, 10, 0, 0), 1, 5),
        (CostModel(10, 0, 2, 0), 4, 5),
        (CostModel(0, 0, 0, 0.5), 5, 4),
        (CostModel(0, 0, 0, 0), 1, 16),  # texts
    ],
    ids=["tokens", "price of a text", "price of a token", "price of a pair", "texts"],
)
def test_a_batch_is_filled_up_to_the_first_of_its_limits(costs, length, together):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=16), SlicePlan(costs, 50, 100))
    add(scheduler, [length] * 40)
    batch = scheduler.take(0.0)
    assert len(batch.items) == together
    assert batch.planned_ms == costs.ms(together, together * length, together * length**2)


def test_a_request_is_served_among_those_of_the_priority_that_its_client_names():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=9), make_plan())
    small, many = [Item(5)], [Item(6) for _ in range(9)]
    scheduler.add(small, 0.0, "bulk")
    scheduler.add(many, 0.0, "interactive")
    assert take(scheduler) == many
    assert take(scheduler) == small


def test_a_small_request_overtakes_bulk_and_waits_for_no_more_than_the_slice_in_hand():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    add(scheduler, [10] * 64)
    assert len(take(scheduler)) == 5
    small = add(scheduler, [7])
    assert take(scheduler) == small
    assert len(take(scheduler)) == 5


def test_what_takes_longer_than_half_a_slice_is_bulk_however_few_texts_it_has():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=1), make_plan(slice_ms=50, ms_per_token=1))
    heavy = add(scheduler, [26])
    light = add(scheduler, [25])
    many = add(scheduler, [1] * 9)
    assert take(scheduler) == light
    assert take(scheduler) == heavy
    assert take(scheduler)[0] in many


@pytest.mark.parametrize("costs", [CostModel(160, 0, 4, 0), CostModel(0, 60, 0.2, 0)], ids=["pass", "text"])
def test_a_query_overtakes_bulk_also_where_the_price_of_a_pass_is_most_of_a_slice(costs):
    samples = [
        Sample(lengths, costs.ms(len(lengths), sum(lengths), 0)) for lengths in [(8,), (64,), (8,) * 4, (64, 64)]
    ]
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), plan(samples, 10_000))
    add(scheduler, [64] * 64)
    take(scheduler)
    query = add(scheduler, [45])
    assert take(scheduler) == query


@given(st.floats(0.5, 25), st.floats(0, 60))
def test_endless_small_requests_leave_bulk_its_share_which_grows_with_its_age(small_ms, waited_s):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=0.5))
    bulk = set(add(scheduler, [10] * 4000, now_s=0.0))
    spent = {True: 0.0, False: 0.0}
    for _ in range(2000):
        add(scheduler, [max(1, round(small_ms / 0.5))], now_s=waited_s)
        batch = take(scheduler, waited_s)
        spent[batch[0] in bulk] += 0.5 * sum(item.length for item in batch)
        if not scheduler.waiting_texts or spent[True] > 15_000:
            break
    share = spent[True] / (spent[True] + spent[False])
    promised = min(0.25 + 0.05 * waited_s, 0.75)
    assert share == pytest.approx(promised, abs=0.1)


@pytest.mark.parametrize("at_once", [1, 100], ids=["one after the other", "all at once"])
def test_texts_of_many_slices_have_bulks_share_and_no_more_while_small_requests_wait(at_once):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    spent = {True: 0.0, False: 0.0}
    left = 0
    while spent[True] < 20_000:
        for _ in range(3):
            add(scheduler, [5] * 5)
        batch = scheduler.take(0.0)
        scheduler.finished(batch)
        spent[batch.is_bulk] += batch.planned_ms
        if batch.is_bulk:
            left -= 1
        elif not left:  # a small one has been taken while no bulk waited
            add(scheduler, [1000] * at_once)
            left = at_once
    assert spent[True] / (spent[True] + spent[False]) == pytest.approx(0.25, abs=0.02)


def test_long_texts_whose_time_is_over_cost_bulk_nothing_of_its_share():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    add(scheduler, [1000] * 20)
    living = Item(10)
    scheduler.add([living], 0.0, "bulk")
    small_ms = 0.0
    while living.is_waiting:
        for _ in range(3):
            add(scheduler, [5] * 5)
        batch = scheduler.take(0.0)
        if batch.is_bulk and living not in batch.items:
            scheduler.replan(batch, [])
        scheduler.finished(batch)
        small_ms += 0.0 if batch.is_bulk else batch.planned_ms
    assert small_ms <= 200


@pytest.mark.parametrize("lanes", [2, 3, 4])
def test_small_requests_beyond_one_batch_go_first_in_every_lane_and_leave_bulk_its_share(lanes):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=lanes)
    add(scheduler, [10] * 4000)
    running: deque[Batch[Item]] = deque()
    spent = {True: 0.0, False: 0.0}
    for _ in range(400):
        for _ in range(10):
            add(scheduler, [5])
        if len(running) == lanes:
            scheduler.finished(running.popleft())
        running.append(scheduler.take(0.0))
        spent[running[-1].is_bulk] += running[-1].planned_ms
    assert spent[True] / sum(spent.values()) == pytest.approx(0.25, abs=0.05)


def kinds_of_next(scheduler: Scheduler[Item], count: int) -> str:
    """Run so many batches while more of both kinds waits, and return a letter for each: b for bulk."""
    letters = ""
    for _ in range(count):
        batch = scheduler.take(0.0)
        scheduler.finished(batch)
        letters += "b" if batch.is_bulk else "i"
    return letters


def test_what_small_requests_had_while_no_bulk_waited_is_not_owed_to_the_bulk_that_comes_later():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    for _ in range(200):
        add(scheduler, [25])
        take(scheduler)
    add(scheduler, [10] * 400)
    for _ in range(400):
        add(scheduler, [25])
    assert kinds_of_next(scheduler, 12) == "iiibiiibiiib"


def test_what_bulk_had_beside_small_requests_is_neither_owed_to_it_nor_held_against_it():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    add(scheduler, [10] * 4000)
    for _ in range(200):
        add(scheduler, [25])
        beside = [scheduler.take(0.0), scheduler.take(0.0)]
        assert [batch.is_bulk for batch in beside] == [False, True]
        for batch in beside:
            scheduler.finished(batch)
    for _ in range(400):
        add(scheduler, [25])
    assert kinds_of_next(scheduler, 12) == "iiibiiibiiib"


def test_what_bulk_had_while_nothing_else_waited_is_not_held_against_it():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    add(scheduler, [10] * 4000)
    assert kinds_of_next(scheduler, 200) == 200 * "b"
    for _ in range(400):
        add(scheduler, [25])
    assert kinds_of_next(scheduler, 12) == "iiibiiibiiib"


def test_a_long_text_whose_turn_came_as_small_requests_left_is_not_held_against_bulk():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    add(scheduler, [1000])
    small = [item for _ in range(8) for item in add(scheduler, [25])]
    assert kinds_of_next(scheduler, 3) == "iii"
    for item in small:
        scheduler.drop(item)
    assert kinds_of_next(scheduler, 1) == "b"
    add(scheduler, [10] * 400)
    for _ in range(400):
        add(scheduler, [25])
    assert kinds_of_next(scheduler, 12) == "iiibiiibiiib"


def test_what_a_long_text_took_of_small_requests_is_still_theirs_after_bulk_ran_by_itself():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    add(scheduler, [1000])
    while scheduler._bulk:  # until its turn comes, small requests wait beside it
        add(scheduler, [20])
        take(scheduler)
    drain(scheduler)
    add(scheduler, [40] * 10)
    assert [item.length for item in take(scheduler)] == [40]
    for _ in range(50):
        add(scheduler, [20])
        assert [item.length for item in take(scheduler)] == [20]


def test_by_default_an_idle_device_never_waits_for_company():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan())
    assert scheduler.due_in_s(0.0) is None
    add(scheduler, [5])
    assert scheduler.due_in_s(0.0) == 0.0


def test_a_minimum_is_waited_for_but_never_longer_than_asked():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(min_batch_size=4, max_wait_time_ms=50), make_plan())
    add(scheduler, [5], now_s=10.0)
    assert scheduler.due_in_s(10.0) == pytest.approx(0.050)
    assert scheduler.due_in_s(10.02) == pytest.approx(0.030)
    assert scheduler.due_in_s(10.06) == 0.0
    add(scheduler, [5, 5, 5], now_s=10.01)
    assert scheduler.due_in_s(10.02) == 0.0


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
def test_a_minimum_is_waited_for_from_the_oldest_request_that_is_not_dropped(priority):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(min_batch_size=4, max_wait_time_ms=50), make_plan())
    dropped, older = Item(5), Item(5)
    scheduler.add([dropped], 9.99, priority)
    scheduler.add([older], 10.0, priority)
    scheduler.add([Item(5)], 10.02, "bulk" if priority == "interactive" else "interactive")
    scheduler.drop(dropped)
    assert scheduler.due_in_s(10.02) == pytest.approx(0.030)


@pytest.mark.parametrize("dropped", [0, 1], ids=["served", "dropped"])
def test_what_a_batch_leaves_behind_waits_for_no_company_once_more_but_what_comes_to_an_empty_queue_does(dropped):
    limits = BatchLimits(max_batch_size=4, min_batch_size=4, max_wait_time_ms=50)
    scheduler: Scheduler[Item] = Scheduler(limits, make_plan())
    add(scheduler, [5] * 4, now_s=10.0)
    items = add(scheduler, [5] * 6, now_s=10.0)
    assert len(take(scheduler, 10.0)) == len(take(scheduler, 10.0)) == 4
    assert (scheduler.waiting_texts, scheduler.due_in_s(10.0)) == (2, 0.0)
    if dropped:
        for item in items:
            scheduler.drop(item)
    else:
        assert len(take(scheduler, 10.0)) == 2
    assert scheduler.due_in_s(10.0) is None
    add(scheduler, [5], now_s=10.0)
    assert scheduler.due_in_s(10.0) == pytest.approx(0.050)


def test_what_a_batch_leaves_behind_does_not_wait_because_something_else_comes():
    limits = BatchLimits(max_batch_size=4, min_batch_size=4, max_wait_time_ms=50)
    scheduler: Scheduler[Item] = Scheduler(limits, make_plan())
    add(scheduler, [5] * 5, now_s=10.0)
    take(scheduler, 10.0)
    add(scheduler, [5], now_s=10.0)
    assert (scheduler.waiting_texts, scheduler.due_in_s(10.0)) == (2, 0.0)


def test_of_an_odd_number_of_texts_the_first_of_two_lanes_has_one_more():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=2)
    scheduler.add([Item(5) for _ in range(3)], 0.0, "bulk")
    assert [len(scheduler.take(0.0).items) for _ in range(2)] == [2, 1]


def test_one_class_of_a_minimum_that_was_reached_waits_no_longer_than_the_other_takes():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(min_batch_size=4, max_wait_time_ms=50), make_plan())
    interactive, bulk = [Item(5), Item(5)], [Item(5), Item(5)]
    scheduler.add(bulk, 10.0, "bulk")
    scheduler.add(interactive, 10.0, "interactive")
    assert take(scheduler, 10.0) == interactive
    assert scheduler.due_in_s(10.0) == 0.0
    assert take(scheduler, 10.0) == bulk


def test_without_dynamic_batching_requests_neither_share_a_batch_nor_wait_for_each_other():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(min_batch_size=4, dynamic=False), make_plan())
    first, second = add(scheduler, [5]), add(scheduler, [6, 5])
    assert scheduler.due_in_s(0.0) == 0.0
    assert drain(scheduler) == [first, second]


@pytest.mark.parametrize("lengths", [[20] * 12, [5] * 12], ids=["bulk", "of one moment"])
def test_lanes_do_not_cut_what_waits_into_batches_below_the_minimum(lengths):
    limits = BatchLimits(min_batch_size=8, max_wait_time_ms=50)
    scheduler: Scheduler[Item] = Scheduler(limits, make_plan(slice_ms=1000, ms_per_token=1), lanes=2)
    add(scheduler, lengths)
    assert scheduler.due_in_s(0.0) == 0.0
    assert len(scheduler.take(0.0).items) == 12, "the rest would wait for company, with a lane idle beside it"
    add(scheduler, lengths + lengths)
    assert len(scheduler.take(0.0).items) == 18, "what is enough for both is cut"


def test_a_text_longer_than_the_whole_budget_gets_a_batch_of_its_own():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(max_tokens=100))
    items = add(scheduler, [500, 60, 50])
    assert drain(scheduler) == [[items[0]], [items[1]], [items[2]]]


def test_texts_of_like_length_fall_into_the_same_batch():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=10), make_plan())
    add(scheduler, [3, 200] * 10)
    assert [[item.length for item in batch] for batch in drain(scheduler)] == [[200] * 10, [3] * 10]


def test_a_text_that_two_requests_wait_for_is_handed_out_with_the_earlier_one():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=1), make_plan())
    (first,) = add(scheduler, [5])
    second = Item(6)
    scheduler.add([first, second], 0.0)
    assert scheduler.waiting_texts == 2
    assert drain(scheduler) == [[first], [second]]


def test_slices_shrink_when_batches_take_longer_than_predicted():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=1000), make_plan(slice_ms=50, ms_per_token=1))
    for _ in range(100):
        add(scheduler, [1] * 200)
        batch = scheduler.take(0.0)
        scheduler.finished(batch)
        scheduler.observe(batch, took_ms=2 * len(batch.items))
    assert len(take(scheduler)) == 25


def test_a_prediction_follows_what_batches_really_take_and_what_they_hold():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    for _ in range(100):
        add(scheduler, [10, 10])
        batch = scheduler.take(0.0)
        scheduler.finished(batch)
        scheduler.observe(batch, took_ms=40)
    assert scheduler.predicted_ms(batch) == pytest.approx(40, rel=0.01)
    scheduler.replan(batch, batch.items[1:])
    assert (len(batch.items), scheduler.predicted_ms(batch)) == (1, pytest.approx(20, rel=0.01))


def test_beside_an_interactive_batch_the_next_lane_is_bulks_until_more_waits_than_one_batch_should_take():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=3)
    add(scheduler, [5] * 90)
    add(scheduler, [5])
    assert not scheduler.take(0.0).is_bulk
    add(scheduler, [5])
    assert scheduler.take(0.0).is_bulk
    for _ in range(5):
        add(scheduler, [5])
    assert not scheduler.take(0.0).is_bulk


def test_beside_a_batch_of_bulk_the_next_lane_is_for_small_requests():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), 2)
    add(scheduler, [10] * 40)
    assert scheduler.take(0.0).is_bulk
    (small,) = add(scheduler, [20])
    assert scheduler.take(0.0).items == [small]


def test_small_requests_that_are_encoded_quicker_than_predicted_are_no_bulk():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    for _ in range(20):
        add(scheduler, [10])
        batch = scheduler.take(0.0)
        scheduler.observe(batch, 1)
        scheduler.finished(batch)
    for _ in range(20):
        add(scheduler, [10])
    batch = scheduler.take(0.0)
    assert batch.planned_ms > 50
    assert not batch.is_bulk


def test_no_lane_takes_more_bulk_than_its_part_of_what_runs_and_waits():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=2)
    add(scheduler, [5] * 16)
    first = scheduler.take(0.0)
    assert len(first.items) == 8
    assert len(scheduler.take(0.0).items) == 8
    add(scheduler, [5] * 10)
    scheduler.finished(first)
    assert len(scheduler.take(0.0).items) == 9


def test_interactive_batches_follow_one_another_and_nothing_runs_beside_a_wide_one():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=2)
    small = add(scheduler, [5])
    running = scheduler.take(0.0)
    assert (running.items, running.is_wide) == (small, True)
    later = add(scheduler, [5]) + add(scheduler, [6])
    bulk = add(scheduler, [7] * 9)
    assert scheduler.due_in_s(0.0) is None
    scheduler.finished(running)
    second = scheduler.take(0.0)
    assert (second.items, second.is_wide) == (later, False)
    assert scheduler.due_in_s(0.0) == 0.0
    assert set(scheduler.take(0.0).items) <= set(bulk)


def test_many_small_requests_are_shared_by_the_lanes_and_few_are_one_batch_on_all_cores():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    for _ in range(25):
        add(scheduler, [1])
    few = scheduler.take(0.0)
    assert (len(few.items), few.is_wide) == (25, True)
    for _ in range(26):
        add(scheduler, [1])
    assert scheduler.due_in_s(0.0) is None
    scheduler.finished(few)
    for _ in range(2):
        assert scheduler.due_in_s(0.0) == 0.0
        many = scheduler.take(0.0)
        assert (len(many.items), many.is_wide) == (13, False)


@pytest.mark.parametrize(
    "costs",
    [CostModel(0, 1, 0, 0), CostModel(0, 0, 0.5, 0), CostModel(0, 0, 0, 0.25)],
    ids=["texts", "tokens", "their squares"],
)
def test_what_is_too_much_for_one_batch_on_all_cores_is_known_by_all_that_it_costs(costs):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), SlicePlan(costs, 50, 10_000), lanes=2)
    for count, is_wide in [(25, True), (26, False)]:
        items = [item for _ in range(count) for item in add(scheduler, [2])]
        assert scheduler.take(0.0).is_wide is is_wide
        for item in items:
            scheduler.drop(item)
        for batch in list(scheduler._running):
            scheduler.finished(batch)
    items = [item for _ in range(26) for item in add(scheduler, [2])]
    scheduler.drop(items[13])  # its client has left
    assert scheduler.take(0.0).is_wide


def test_where_batches_take_longer_than_predicted_less_is_too_much_for_one_batch_on_all_cores():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    for took_ms, texts, is_wide in [(5, 2, True), (20, 1, False)]:
        for _ in range(40):
            add(scheduler, [5])
            batch = scheduler.take(0.0)
            scheduler.observe(batch, took_ms)
            scheduler.finished(batch)
        add(scheduler, [5])
        add(scheduler, [5])
        batch = scheduler.take(0.0)
        assert (len(batch.items), batch.is_wide) == (texts, is_wide)
        scheduler.finished(batch)
        drain(scheduler)


def test_a_text_that_many_requests_wait_for_is_one_text_of_what_waits():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    shared = add(scheduler, [20])
    scheduler.add([*shared, *(other := [Item(5)])], 0.0)
    scheduler.add(shared, 0.0)
    batch = scheduler.take(0.0)
    assert (batch.items, batch.is_wide) == ([*shared, *other], True)


def test_beside_interactive_work_a_lane_waits_for_a_quarter_of_it_and_never_for_nobody():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    for _ in range(52):
        add(scheduler, [1])
    first, second = scheduler.take(0.0), scheduler.take(0.0)
    assert (len(first.items), len(second.items)) == (26, 26)
    scheduler.finished(second)
    for _ in range(6):
        add(scheduler, [1])
    assert scheduler.due_in_s(0.0) is None
    add(scheduler, [1])
    assert scheduler.due_in_s(0.0) == 0.0
    beside = scheduler.take(0.0)
    assert (len(beside.items), beside.is_wide) == (7, False)
    add(scheduler, [1])
    scheduler.finished(beside)
    assert scheduler.due_in_s(0.0) is None
    scheduler.finished(first)
    assert scheduler.due_in_s(0.0) == 0.0


def test_a_quarter_to_the_token_is_enough_beside_interactive_work():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    for _ in range(56):
        add(scheduler, [1])
    first, second = scheduler.take(0.0), scheduler.take(0.0)
    scheduler.finished(second)
    for _ in range(len(first.items) // 4):
        add(scheduler, [1])
    assert (len(first.items), scheduler.due_in_s(0.0)) == (28, 0.0)


def test_a_long_text_that_its_client_calls_urgent_keeps_no_small_request_from_a_free_lane():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    scheduler.add([Item(1000)], 0.0, "interactive")
    long = scheduler.take(0.0)
    assert long.is_wide
    small = add(scheduler, [5])
    assert scheduler.due_in_s(0.0) == 0.0
    assert take(scheduler) == small


@pytest.mark.parametrize(
    "limits", [BatchLimits(dynamic=False), BatchLimits(max_batch_size=1)], ids=["not shared", "full"]
)
def test_a_lane_does_not_wait_for_company_that_its_batch_could_not_take(limits):
    scheduler: Scheduler[Item] = Scheduler(limits, make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    for length in (24, 24, 1):
        add(scheduler, [length])
    assert not scheduler.take(0.0).is_wide
    scheduler.finished(scheduler.take(0.0))
    assert scheduler.due_in_s(0.0) == 0.0


def test_beside_small_requests_bulk_takes_a_free_lane_however_little_of_it_waits():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    bulk = Item(1)
    scheduler.add([bulk], 0.0, "bulk")
    add(scheduler, [24])
    assert not scheduler.take(0.0).is_bulk
    assert scheduler.due_in_s(0.0) == 0.0
    assert take(scheduler) == [bulk]


def test_a_batch_of_which_some_came_too_late_is_still_what_bulk_had():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1))
    add(scheduler, [10] * 400)
    for _ in range(400):
        add(scheduler, [25])
    assert kinds_of_next(scheduler, 3) == "iii"
    bulk = scheduler.take(0.0)
    assert bulk.is_bulk
    scheduler.replan(bulk, bulk.items[:1])
    scheduler.finished(bulk)
    assert kinds_of_next(scheduler, 4) == "iiib"


def test_beside_bulk_a_lane_waits_for_nothing():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=2)
    add(scheduler, [5] * 9)
    assert scheduler.take(0.0).is_bulk
    scheduler.finished(scheduler.take(0.0))
    add(scheduler, [1])
    assert scheduler.due_in_s(0.0) == 0.0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(2, 4), st.data())
def test_whatever_the_lanes_do_every_request_is_served(lengths, lanes, data):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(slice_ms=50, ms_per_token=1), lanes=lanes)
    coming, running, served = list(lengths), [], 0
    while served < len(lengths):
        choices = [name for name, open_ in (("comes", coming), ("ends", running)) if open_]
        if scheduler.due_in_s(0.0) == 0.0 and len(running) < lanes:
            running.append(scheduler.take(0.0))
            continue
        assert choices, "something waits, nothing runs, and nothing is due"
        if data.draw(st.sampled_from(choices)) == "comes":
            add(scheduler, [coming.pop()])
        else:
            batch = running.pop(data.draw(st.integers(0, len(running) - 1)))
            scheduler.finished(batch)
            served += len(batch.items)


def test_a_batch_that_nothing_waits_behind_is_on_all_cores():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=2)
    add(scheduler, [5] * 9)
    assert [scheduler.take(0.0).is_wide for _ in range(2)] == [False, False]
    single: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=1)
    add(single, [5] * 9)
    assert single.take(0.0).is_wide


def test_what_may_kill_the_process_waits_for_every_lane_and_then_has_the_device_to_itself():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=1), make_plan(), lanes=4)
    add(scheduler, [5] * 20)
    running = [scheduler.take(0.0), scheduler.take(0.0)]
    suspects = [Item(3), Item(4)]
    scheduler.add_alone(suspects)
    assert scheduler.due_in_s(0.0) is None
    scheduler.finished(running[0])
    assert scheduler.due_in_s(0.0) is None
    scheduler.finished(running[1])
    for suspect in suspects:
        assert scheduler.due_in_s(0.0) == 0.0
        alone = scheduler.take(0.0)
        assert (alone.items, alone.is_alone, alone.is_wide, alone.is_bulk) == ([suspect], True, True, False)
        assert scheduler.due_in_s(0.0) is None
        scheduler.finished(alone)
        # Everybody else has one turn in each of the four lanes before the next suspect.
        shared = [scheduler.take(0.0) for _ in range(4)]
        assert not any(batch.is_alone for batch in shared)
        assert scheduler.due_in_s(0.0) == (0.0 if suspect is suspects[-1] else None)
        for batch in shared:
            scheduler.finished(batch)
    assert len(drain(scheduler)) == 18 - 8


def test_suspects_that_nobody_waits_beside_follow_one_another():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=2)
    suspects = [Item(3), Item(4)]
    scheduler.add_alone(suspects)
    for suspect in suspects:
        assert scheduler.due_in_s(0.0) == 0.0
        assert take(scheduler) == [suspect]
    assert scheduler.due_in_s(0.0) is None


def test_a_small_request_has_its_turn_between_two_suspects():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan(), lanes=2)
    first, second = Item(3), Item(4)
    scheduler.add_alone([first, second])
    small = add(scheduler, [5])
    assert [take(scheduler) for _ in range(3)] == [[first], small, [second]]


def test_a_dropped_suspect_holds_up_nobody():
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(), make_plan())
    suspect = Item(3)
    scheduler.add_alone([suspect])
    others = add(scheduler, [1, 1])
    scheduler.drop(suspect)
    assert scheduler.waiting_texts == 2
    assert scheduler.due_in_s(0.0) == 0.0
    assert take(scheduler) == others


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 50), min_size=1, max_size=9)), max_size=12))
def test_alone_or_not_every_text_is_handed_out_once_and_a_suspect_never_beside_another(requests):
    scheduler: Scheduler[Item] = Scheduler(BatchLimits(max_batch_size=4), make_plan(), lanes=3)
    expected, suspects, handed_out, running = set(), set(), [], []
    for alone, lengths in requests:
        items = [Item(length) for length in lengths]
        expected |= set(items)
        if alone:
            suspects |= set(items)
            scheduler.add_alone(items)
        else:
            scheduler.add(items, 0.0)
        if scheduler.due_in_s(0.0) == 0.0:
            running.append(scheduler.take(0.0))
    while scheduler.waiting_texts or running:
        if scheduler.due_in_s(0.0) == 0.0 and len(running) < 3:
            running.append(scheduler.take(0.0))
            assert len(running) == 1 or not any(batch.is_alone for batch in running)
        else:
            handed_out += running[0].items
            assert len(running[0].items) == 1 or not suspects & set(running[0].items)
            scheduler.finished(running.pop(0))
    assert len(handed_out) == len(expected)
    assert set(handed_out) == expected
