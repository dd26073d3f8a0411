import gc
import weakref
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.fair_queue import Entry, FairQueue

entries = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), min_size=1, max_size=100)


@given(entries, st.data())
def test_every_entry_leaves_once_unless_discarded_and_each_clients_own_in_order(pushed, data):
    queue: FairQueue[int] = FairQueue()
    held = [queue.push(client, cost, number) for number, (client, cost) in enumerate(pushed)]
    dropped = data.draw(st.sets(st.sampled_from(range(len(held)))))
    for number in dropped:
        queue.discard(held[number])
    left = [queue.pop() for _ in range(len(queue))]
    assert len(queue) == 0
    assert {entry.item for entry in left} == set(range(len(pushed))) - dropped
    for client in "abc":
        own = [entry.item for entry in left if entry.client == client]
        assert own == sorted(own)


@given(entries, st.integers(1, 100), st.data())
def test_a_newcomer_waits_for_at_most_one_entry_of_each_client(pushed, cost, data):
    queue: FairQueue[str] = FairQueue()
    for client, one in pushed:
        queue.push(client, one, client)
    for _ in range(data.draw(st.integers(1, len(pushed)))):
        queue.pop()
    queue.push("newcomer", cost, "newcomer")
    before = []
    while (entry := queue.pop()).client != "newcomer":
        before.append(entry.client)
    assert all(before.count(client) <= 1 for client in "abc")


@given(st.integers(2, 20))
def test_clients_that_always_have_something_get_equal_shares_whatever_the_size_of_their_entries(ratio):
    queue: FairQueue[None] = FairQueue()
    for _ in range(400):
        queue.push("large", ratio, None)
    for _ in range(400 * ratio):
        queue.push("small", 1, None)
    had = {"large": 0, "small": 0}
    while sum(had.values()) < 200 * ratio:
        entry = queue.pop()
        had[entry.client] += entry.cost
    assert abs(had["large"] - had["small"]) <= 2 * ratio


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), min_size=1, max_size=40), st.data())
def test_the_first_is_the_one_whose_turn_is_next_and_to_look_changes_nothing(pushed, data):
    queue, seen, unseen = FairQueue(), [], FairQueue()
    for client, cost in pushed:
        queue.push(client, cost, None)
        unseen.push(client, cost, None)
        if data.draw(st.booleans()):
            first = queue.first()
            assert queue.pop() is first
            seen.append((first.number, unseen.pop().number))
    assert all(one == other for one, other in seen)


def test_discarding_twice_or_after_the_turn_changes_nothing():
    queue: FairQueue[int] = FairQueue()
    first, second = queue.push("a", 1, 1), queue.push("a", 1, 2)
    assert queue.pop() is first
    queue.discard(first)
    queue.discard(second)
    queue.discard(second)
    assert len(queue) == 0


@given(st.integers(1, 15), st.integers(10, 30), st.integers(1, 100))
def test_a_client_who_comes_back_is_not_passed_for_ever_by_others_who_come_once(waiting, cost, own_cost):
    queue: FairQueue[str] = FairQueue()
    for number in range(waiting):
        queue.push(f"once {number}", cost, "once")
    queue.push("regular", own_cost, "regular")
    turns = 0
    for number in range(10 * (2 + waiting * max(cost, own_cost) // cost)):
        entry = queue.pop()
        if entry.client == "regular":
            turns += 1
            queue.push("regular", own_cost, "regular")
        else:
            queue.push(f"later {number}", cost, "once")
    assert turns >= 4


class _Item:
    pass


class _Name(str):
    __slots__ = ("__weakref__",)


def test_what_clients_take_back_is_not_kept_while_others_wait():
    queue: FairQueue[_Item] = FairQueue()
    queue.push("patient", 1, _Item())
    items: weakref.WeakSet[_Item] = weakref.WeakSet()
    names: weakref.WeakSet[_Name] = weakref.WeakSet()
    for number in range(2_000):
        item, name = _Item(), _Name(number)
        items.add(item)
        names.add(name)
        queue.discard(queue.push(name, 1, item))
        del item, name
    gc.collect()
    assert len(items) < 200
    assert len(names) < 200


def test_who_was_served_is_forgotten_in_time_though_the_queue_is_never_empty():
    queue: FairQueue[None] = FairQueue()
    names: weakref.WeakSet[_Name] = weakref.WeakSet()
    queue.push("first", 3, None)
    for number in range(2_000):
        name = _Name(number)
        names.add(name)
        queue.push(name, 3, None)
        del name
        queue.pop()
    gc.collect()
    assert len(names) < 200


def test_what_a_client_took_back_is_not_counted_against_it():
    queue: FairQueue[str] = FairQueue()
    queue.push("other", 1, "other's first")
    for _ in range(100):
        queue.discard(queue.push("impatient", 1, "given up"))
    for _ in range(10):
        queue.push("other", 1, "other's")
    queue.push("impatient", 1, "wanted")
    before = 0
    while queue.pop().item != "wanted":
        before += 1
    assert before <= 1


@given(entries, st.lists(st.integers(1, 100)), st.lists(st.integers(1, 100)))
def test_what_a_client_took_back_while_more_of_it_waits_is_not_counted_either(pushed, before, after):
    queue: FairQueue[str] = FairQueue()
    queue.push("impatient", 1, "patient all the same")
    for client, cost in pushed:
        queue.push(client, cost, client)
    given_up = [queue.push("impatient", cost, "given up") for cost in before]
    queue.push("impatient", 1, "wanted")
    given_up += [queue.push("impatient", cost, "given up") for cost in after]
    for entry in given_up:
        queue.discard(entry)
    for client in "abc":
        queue.push(client, 1, client)
    passed: list[str] = []
    while (entry := queue.pop()).item != "wanted":
        passed.append(entry.client)
    assert all(passed.count(client) <= 2 for client in "abc")


@pytest.mark.parametrize("patience", [5, 50, 500])
def test_a_client_that_gives_up_what_waits_too_long_gets_its_share_all_the_same(patience):
    queue: FairQueue[int] = FairQueue()
    waiting: deque[Entry[int]] = deque()
    had = {"patient": 0, "impatient": 0}
    queue.push("patient", 1, 0)
    for now in range(2_000):
        queue.push("patient", 1, now)
        waiting += [queue.push("impatient", 1, now) for _ in range(2)]
        while waiting and waiting[0].item < now - patience:
            queue.discard(waiting.popleft())
        had[queue.pop().client] += 1
    assert had["impatient"] == pytest.approx(had["patient"], abs=2)


def order(queue: FairQueue[str]) -> list[str]:
    return [queue.pop().item for _ in range(len(queue))]


def test_who_is_new_goes_before_the_second_entry_of_one_that_has_had_more_than_its_share():
    queue: FairQueue[str] = FairQueue()
    for client, cost, item in (("a", 10, "a1"), ("a", 100, "a2"), ("b", 100, "b1")):
        queue.push(client, cost, item)
    assert queue.pop().item == "a1"
    queue.push("new", 1, "new")  # of what was done, half would have been its own
    assert order(queue) == ["b1", "new", "a2"]


def test_who_is_new_after_much_work_for_one_client_still_goes_before_the_second_entry_of_another():
    queue: FairQueue[str] = FairQueue()
    for number in range(1, 5):
        queue.push("regular", 10, f"regular {number}")
    for number in range(1, 3):
        queue.push("big", 1000, f"big {number}")
    assert [queue.pop().item for _ in range(3)] == ["regular 1", "big 1", "regular 2"]
    queue.push("new", 1, "new")
    assert order(queue) == ["regular 3", "new", "regular 4", "big 2"]


def test_what_a_client_has_had_counts_when_it_asks_again_only_after_its_turn():
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 10, "a1")
    for number in range(20):
        queue.push("b", 1, f"b{number}")
    assert queue.pop().item == "a1"
    queue.push("a", 10, "a2")
    assert order(queue).index("a2") in (10, 11)


def test_who_is_new_when_others_have_given_up_is_not_owed_what_it_did_not_wait_for():
    queue: FairQueue[str] = FairQueue()
    for cost, item in ((10, "a1"), (1, "a2"), (1, "a3")):
        queue.push("a", cost, item)
    given_up = queue.push("b", 10, "b1")
    assert queue.pop().item == "a1"
    queue.discard(given_up)
    assert queue.pop().item == "a2"
    for item in ("new 1", "new 2"):
        queue.push("new", 2, item)
    assert order(queue) == ["new 1", "a3", "new 2"]


def test_to_forget_what_is_over_takes_no_longer_than_to_let_it_wait(monkeypatch):
    looked_at = 0
    is_first = FairQueue._is_first

    def count(queue, stamp):
        nonlocal looked_at
        looked_at += 1
        return is_first(queue, stamp)

    monkeypatch.setattr(FairQueue, "_is_first", count)
    queue: FairQueue[None] = FairQueue()
    for number in range(1_000):
        queue.push(f"client {number}", 1, None)
    for _ in range(len(queue)):
        queue.pop()
    assert looked_at < 10_000


def test_what_a_client_had_before_the_queue_was_empty_is_not_counted_against_it():
    queue: FairQueue[str] = FairQueue()
    queue.push("a", 1000, "long ago")
    queue.pop()
    queue.push("a", 1, "a")
    for number in range(3):
        queue.push("b", 1, f"b {number}")
    assert order(queue) == ["a", "b 0", "b 1", "b 2"]


class _Hoarder(FairQueue[int]):
    def _tidy(self) -> None:
        pass


class _Tidier(FairQueue[int]):
    def _leave(self, entry: Entry[int]) -> None:
        self._room = 0
        super()._leave(entry)


_STEPS = st.tuples(st.sampled_from(["push", "push", "push", "pop", "discard"]), st.integers(0, 20), st.integers(1, 99))


@settings(max_examples=50)
@given(st.lists(_STEPS, min_size=30, max_size=60))
def test_to_forget_what_is_over_and_to_look_who_is_first_change_nobodys_turn(steps):
    queues = _Hoarder(), _Tidier()
    waiting: list[list[Entry[int]]] = [[], []]
    for number, (step, place, cost) in enumerate(steps):
        for queue, own in zip(queues, waiting, strict=True):
            if step == "push":
                own.append(queue.push(f"client {place}", cost, number))
            elif step == "pop" and own:
                own.remove(queue.pop())
            elif own:
                queue.discard(own.pop(place % len(own)))
        assert [one.number for one in waiting[0]] == [one.number for one in waiting[1]]
        assert all(not own or queue.first() in own for queue, own in zip(queues, waiting, strict=True))
    assert [queues[0].pop().number for _ in waiting[0]] == [queues[1].pop().number for _ in waiting[1]]
