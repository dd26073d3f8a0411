from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.messages.link import Detokenize, Encode, Tokenize
from router.quarantine import Quarantine, fingerprint


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_input_is_refused_until_its_time_is_over():
    clock = Clock()
    quarantine = Quarantine(600, clock=clock)
    quarantine.add(b"guilty")
    clock.now_s = 599
    assert quarantine.left_s(b"guilty") == 1
    assert quarantine.left_s(b"innocent") == 0
    clock.now_s = 600
    assert quarantine.left_s(b"guilty") == 0
    assert len(quarantine) == 0


def test_one_whose_time_is_over_for_long_is_welcome_and_takes_nobodys_place():
    clock = Clock()
    quarantine = Quarantine(600, max_inputs=2, clock=clock)
    quarantine.add(b"first")
    clock.now_s = 300
    quarantine.add(b"second")
    clock.now_s = 700
    assert quarantine.left_s(b"first") == 0
    quarantine.add(b"third")
    assert (quarantine.left_s(b"second"), quarantine.left_s(b"third")) == (200, 600)


def test_one_whose_time_is_over_counts_no_more_though_nobody_asks_for_it_again():
    clock = Clock()
    quarantine = Quarantine(600, clock=clock)
    assert not quarantine
    quarantine.add(b"first")
    clock.now_s = 300
    quarantine.add(b"second")
    assert quarantine
    assert len(quarantine) == 2
    clock.now_s = 600
    assert quarantine
    assert len(quarantine) == 1
    clock.now_s = 900
    assert not quarantine
    assert len(quarantine) == 0


def test_others_hear_of_what_is_found_guilty_here_and_not_of_what_they_have_found():
    told: list[bytes] = []
    quarantine = Quarantine(100)
    quarantine.on_added = told.append
    quarantine.add(b"ours")
    quarantine.learn(b"theirs")
    assert told == [b"ours"]


def test_with_no_time_nothing_is_kept():
    quarantine = Quarantine(0)
    quarantine.add(b"guilty")
    assert len(quarantine) == 0


def test_what_a_process_died_of_without_anybody_waiting_is_guilty_if_it_was_alone_and_else_suspect():
    told: list[bytes] = []
    quarantine = Quarantine(100)
    quarantine.on_added = told.append
    quarantine.found([b"a", b"b"], alone=False)
    assert quarantine.has_suspects
    assert quarantine.is_suspect(b"a")
    assert not quarantine
    quarantine.clear(b"a")
    quarantine.found([b"b"], alone=True)
    assert not quarantine.has_suspects
    assert quarantine.left_s(b"b") > 0
    assert told == [b"b"]


def test_no_more_suspects_are_kept_than_the_last_ones_and_none_where_there_is_no_quarantine():
    quarantine = Quarantine(100, max_inputs=2)
    quarantine.found([b"a", b"b", b"c"], alone=False)
    assert [quarantine.is_suspect(one) for one in (b"a", b"b", b"c")] == [False, True, True]
    off = Quarantine(0)
    off.found([b"a"], alone=False)
    assert not off.has_suspects


@given(st.lists(st.tuples(st.sampled_from("al"), st.integers(0, 20), st.integers(0, 50)), max_size=200))
def test_the_size_is_bounded_and_what_is_kept_was_added_in_time(steps):
    clock, added = Clock(), {}
    quarantine = Quarantine(100, max_inputs=8, clock=clock)
    for action, number, later_s in steps:
        clock.now_s += later_s
        key = bytes([number])
        if action == "a":
            quarantine.add(key)
            added[key] = clock.now_s
        elif (left_s := quarantine.left_s(key)) > 0:
            assert left_s == added[key] + 100 - clock.now_s
        assert len(quarantine) <= 8


def test_the_one_asked_for_longest_ago_makes_room():
    quarantine = Quarantine(100, max_inputs=2)
    quarantine.add(b"a")
    quarantine.add(b"b")
    assert quarantine.left_s(b"a") > 0
    quarantine.add(b"c")
    assert quarantine.left_s(b"a") > 0
    assert quarantine.left_s(b"b") == 0


def test_one_that_is_found_guilty_again_is_not_the_next_to_make_room():
    quarantine = Quarantine(100, max_inputs=2)
    for one in (b"a", b"b", b"a", b"c"):
        quarantine.add(one)
    assert [quarantine.left_s(one) > 0 for one in (b"a", b"b", b"c")] == [True, False, True]


def test_a_fingerprint_depends_on_all_that_the_device_sees_and_on_nothing_else():
    same = Encode(("x", "poison"), first_index=7, timeout_ms=5, traceparent="t", alone=True, dimensions=3)
    assert fingerprint("m", same, 1) == fingerprint("m", Encode(("poison",)), 0)
    others = [
        Encode(("poison ",)),
        Encode(("poison",), prompt="p"),
        Encode(("poison",), prompt_name="q"),
        Encode(("poison",), seconds=("document",)),
        Encode(("poison",), seconds=("other document",)),
        Encode(("poison",), max_tokens=3),
        Encode(("poison",), overlong="end"),
        Encode(("poison",), outputs=("sparse",)),
        Encode((), token_ids=((1, 2),)),
        Encode(("\ud800",)),
    ]
    marks = {fingerprint("m", one, 0) for one in [*others, Encode(("poison",))]} | {fingerprint("n", same, 1)}
    assert len(marks) == len(others) + 2


def test_each_of_several_pairs_has_the_fingerprint_that_it_has_alone():
    pairs = Encode(("query", "query"), seconds=("document", "poison"))
    assert fingerprint("m", pairs, 1) == fingerprint("m", Encode(("query",), seconds=("poison",)), 0)
    assert fingerprint("m", pairs, 0) != fingerprint("m", pairs, 1)


def test_what_is_spelled_in_another_way_has_another_fingerprint_and_no_input_that_of_an_encoded_one():
    asked = [
        Encode(("poison",)),
        Tokenize(("poison",)),
        Tokenize(("other",)),
        Tokenize(("poison",), add_special_tokens=False),
        Tokenize(("poison",), prompt_name="query"),
        Tokenize(("poison",), prompt="query: "),
        Encode((), token_ids=((1, 2),)),
        Detokenize(((1, 2),)),
        Detokenize(((1, 3),)),
        Detokenize(((1, 2),), skip_special_tokens=False),
    ]
    marks = [fingerprint("m", one, 0) for one in asked]
    assert len(set(marks)) == len(marks)
    assert fingerprint("m", Tokenize(("x", "poison")), 1) == marks[1]
    assert fingerprint("m", Detokenize(((3,), (1, 2))), 1) == marks[7]
