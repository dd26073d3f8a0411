import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission import Budget, Rate, estimate_tokens

clients = st.sampled_from("abcdefgh")


@given(st.floats(10, 1000), st.lists(st.tuples(clients, st.integers(1, 500), st.booleans()), max_size=200))
def test_no_more_is_held_than_the_budget_but_for_one_that_came_when_nothing_was(limit, steps):
    budget, held = Budget(limit), []
    for client, amount, gives_back in steps:
        if gives_back and held:
            budget.give_back(*held.pop(0))
        if not budget.missing(client, amount):
            assert not held or budget.total + amount <= limit * (1 + 1e-9)
            budget.take(client, amount)
            held.append((client, amount))
    for client, amount in held:
        budget.give_back(client, amount)
    assert budget.total == 0
    assert budget.missing("z", 10**6) == 0


@given(st.lists(st.tuples(clients, st.integers(1, 500), st.booleans()), max_size=60))
def test_what_was_given_back_is_as_if_it_had_never_been_taken(steps):
    budget, held = Budget(1000), []
    for client, amount, gives_back in steps:
        budget.take(client, amount)
        held.append((client, amount))
        if gives_back:
            budget.give_back(*held.pop(amount % len(held)))
    fresh = Budget(1000)
    for client, amount in held:
        fresh.take(client, amount)
    assert (budget.total, budget._held) == (fresh.total, fresh._held)
    assert fresh.total == sum(fresh._held.values())


@given(st.lists(clients, min_size=1, max_size=8, unique=True))
def test_however_many_flood_somebody_new_finds_room(flooding):
    budget = Budget(1000)
    while any(not budget.missing(client, 1) for client in flooding):
        for client in flooding:
            if not budget.missing(client, 1):
                budget.take(client, 1)
    assert budget.total < 1000
    assert budget.missing("newcomer", 1) == 0
    shares = [budget._held[client] for client in flooding]
    assert max(shares) - min(shares) <= 2


def test_one_client_alone_gets_two_thirds():
    budget = Budget(900)
    while not budget.missing("a", 10):
        budget.take("a", 10)
    assert budget.total == 600
    assert budget.missing("a", 10) > 0


def test_a_request_larger_than_the_whole_budget_is_served_by_an_idle_server_and_counted():
    budget = Budget(100)
    assert budget.missing("a", 5000) == 0
    budget.take("a", 5000)
    assert budget.missing("b", 1) > 0
    budget.give_back("a", 5000)
    assert budget.missing("b", 1) == 0


def test_what_is_missing_shrinks_as_work_is_done():
    budget = Budget(100)
    budget.take("a", 90)
    first = budget.missing("a", 40)
    budget.give_back("a", 20)
    assert 0 < budget.missing("a", 40) < first


def test_a_rate_follows_what_is_answered_while_work_waits():
    rate = Rate(100)
    for tick in range(100):
        rate.answered(50, tick * 0.1, work_waits=True)
    assert rate.per_s == pytest.approx(500, rel=0.05)
    assert rate.is_measured


def test_few_answers_because_few_ask_say_nothing_of_the_rate():
    rate = Rate(100)
    for tick in range(1000):
        rate.answered(1, tick * 0.1, work_waits=False)
    assert rate.per_s == 100
    assert not rate.is_measured


def test_the_first_measured_rate_is_taken_as_it_is_and_later_ones_in_part():
    rate = Rate(100)
    for tokens, now_s, expected in [(1, 0.0, 100), (500, 0.5, 1000), (1000, 1.0, 1300)]:
        rate.answered(tokens, now_s, work_waits=True)
        assert rate.per_s == pytest.approx(expected)


def test_what_was_answered_before_work_ran_out_counts_for_nothing_after():
    rate = Rate(100)
    for tokens, now_s, work_waits in [(1, 0.0, True), (9999, 0.1, True), (1, 0.2, False), (1, 50.0, True)]:
        rate.answered(tokens, now_s, work_waits=work_waits)
    rate.answered(150, 50.5, work_waits=True)
    assert rate.per_s == pytest.approx(300)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("abcd" * 10, 10),
        ("汉" * 40, 40),
        ("汉" * 20 + "abcd" * 10, 30),
        ("привет" * 10, 30 + 7),
        ("🙂" * 10, 15),
        ("汉" * 384, 385),
        ("汉" * 128 + "abcd" * 32 + "汉" * 128, 241),
    ],
)
def test_tokens_are_estimated_by_script(text, tokens):
    assert estimate_tokens(text) == tokens + 2
