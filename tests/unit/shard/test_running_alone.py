"""What may kill the process: an engine works at nothing else meanwhile, and reads nothing either."""

import threading
import time

import pytest

from emb_model_provider.messages.link import Detokenize, Encode, Encoded, Texts, Tokenize
from shard.listener import FIRST_LANE, HOST_THREAD
from tests.support.fake_encoder import FakeEncoder, expected_vector
from tests.support.recorder import is_soon_idle, vectors


def test_a_request_that_runs_alone_shares_neither_its_batch_nor_an_equal_text(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("first",)))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("same", "other")))
    engine.submit(3, Encode(("same",), alone=True))
    engine.submit(4, Encode(("same",)))
    encoder.gate.set()
    recorder.wait_for(1, 2, 3, 4)
    assert encoder.batch_sizes[:2] == [1, 1]
    assert encoder.encoded[:2] == ["first", "same"]
    assert sorted(encoder.encoded[2:]) == ["other", "same"]
    assert recorder.encoded_keys.index(3) < recorder.encoded_keys.index(2)


def test_a_request_that_runs_alone_is_answered_where_nothing_else_comes(make_engine):
    engine, recorder = make_engine(FakeEncoder(), lanes=2)
    time.sleep(0.05)  # until every lane waits
    engine.submit(1, Encode(("suspect",), alone=True))
    recorder.wait_for(1)


class SlowReader(FakeEncoder):
    """Reads ``SLOW`` only when it is told to, and tells when it is at it."""

    def __init__(self) -> None:
        super().__init__(closed=True)
        self.at_slow, self.go_on = threading.Event(), threading.Event()

    def tokenize(self, texts, *more):
        if "SLOW" in texts:
            self.at_slow.set()
            assert self.go_on.wait(10)
        return super().tokenize(texts, *more)


def test_a_request_that_runs_alone_waits_for_what_is_being_read(make_engine):
    encoder = SlowReader()
    encoder.gate.set()
    engine, recorder = make_engine(encoder)
    threading.Thread(target=engine.submit, args=(1, Encode(("SLOW",)))).start()
    assert encoder.at_slow.wait(10)
    engine.submit(2, Encode(("suspect",), alone=True))
    time.sleep(0.05)
    assert recorder.at == {HOST_THREAD: [1]}
    encoder.go_on.set()
    recorder.wait_for(1, 2)
    assert encoder.encoded[0] == "suspect"


def test_a_request_that_takes_long_to_read_is_not_read_before_submit_returns(make_engine):
    encoder = SlowReader()
    encoder.gate.set()
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("SLOW", *(f"text {n}" for n in range(20)))))
    assert encoder.at_slow.wait(10)
    assert HOST_THREAD not in recorder.at
    encoder.go_on.set()
    recorder.wait_for(1)


def test_when_a_request_that_was_to_run_alone_leaves_nothing_waits_for_it_any_more(make_engine):
    encoder = SlowAtFirst()
    engine, recorder = make_engine(encoder, lanes=2)
    engine.submit(1, Encode(("first",), priority="bulk"))
    assert encoder.entered.wait(10)
    time.sleep(0.05)  # until the other lane waits
    engine.submit(2, Encode(("suspect",), alone=True))
    engine.submit(3, Encode(("other",)))
    engine.cancel(2)
    recorder.wait_for(3)
    assert 1 not in recorder.outcomes


class SlowAtFirst(FakeEncoder):
    """Encodes ``first`` only once ``gate`` is set, and everything else at once."""

    def __init__(self) -> None:
        super().__init__(closed=True)
        self.open = FakeEncoder()

    def encode(self, batch):
        is_first = any(one.ids == tuple(map(ord, "first")) for one in batch)
        return (super() if is_first else self.open).encode(batch)


def test_nothing_is_read_beside_a_request_that_runs_alone(make_engine):
    encoder = SlowReader()
    encoder.go_on.set()
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("suspect",), alone=True))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("SLOW",)))  # returns: who hosts the engine never waits
    engine.submit(3, Encode(tuple(f"text {n}" for n in range(20))))
    assert not encoder.at_slow.wait(0.05)
    assert recorder.at == {FIRST_LANE: [1]}
    encoder.gate.set()
    assert all(isinstance(outcome, Encoded) for outcome in recorder.wait_for(1, 2, 3))


def test_a_request_that_runs_alone_is_at_the_device_while_it_is_read(make_engine):
    encoder = SlowReader()
    encoder.gate.set()
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("SLOW",), alone=True))
    assert encoder.at_slow.wait(10)
    assert recorder.at == {FIRST_LANE: [1]}
    encoder.go_on.set()
    (outcome,) = recorder.wait_for(1)
    assert vectors(outcome).tolist() == [expected_vector("SLOW")]


def test_whatever_comes_at_whatever_time_a_request_that_runs_alone_is_the_only_one_at_anything(make_engine):
    company = []

    class Watching(FakeEncoder):
        def encode(self, batch):
            time.sleep(0.0005)
            company.extend((list(recorder.at.values()), len(batch)) for one in batch if one.ids[0] == ord("!"))
            return super().encode(batch)

    engine, recorder = make_engine(Watching(), lanes=3)

    def ask(keys, make):
        for key in keys:
            engine.submit(key, make(key))

    threads = [
        threading.Thread(target=ask, args=(range(100), lambda key: Encode((f"!{key}",), alone=True))),
        threading.Thread(target=ask, args=(range(100, 400), lambda key: Encode((f"small {key}",)))),
        threading.Thread(
            target=ask, args=(range(400, 460), lambda key: Encode(tuple(f"bulk {key} {n}" for n in range(20))))
        ),
    ]
    for thread in threads:
        thread.start()
    outcomes = recorder.wait_for(*range(460))
    assert all(isinstance(outcome, Encoded) for outcome in outcomes)
    assert sorted(company) == [([[key]], 1) for key in range(100)]
    assert [vectors(outcomes[key]).tolist() for key in range(100)] == [
        [expected_vector(f"!{key}")] for key in range(100)
    ]


def test_a_text_that_is_spelled_out_alone_has_the_process_to_itself(make_engine):
    encoder = SlowReader()
    encoder.go_on.set()
    engine, recorder = make_engine(encoder, lanes=2)
    engine.submit(1, Encode(("first",)))
    assert encoder.entered.wait(10)
    engine.submit(2, Tokenize(("ab",), alone=True))
    engine.submit(3, Detokenize(((97,),), alone=True))
    engine.submit(4, Tokenize(("a",), prompt_name="unknown", alone=True))
    time.sleep(0.05)
    assert recorder.at == {FIRST_LANE: [1]}
    assert not recorder.outcomes
    encoder.gate.set()
    _, tokens, texts, bad = recorder.wait_for(1, 2, 3, 4)
    assert [one.text for one in tokens.rows[0]] == ["a", "b"]
    assert texts == Texts(("a",))
    assert (bad.status, bad.param) == (400, "prompt_name")
    engine.submit(5, Encode(("after",)))
    recorder.wait_for(5)
    assert is_soon_idle(engine, 5)


@pytest.mark.parametrize("partial", [False, True])
def test_a_request_that_runs_alone_and_cannot_be_read_has_its_error(make_engine, partial):
    encoder = FakeEncoder()
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("UNTOKENIZABLE",), alone=True, partial=partial))
    engine.submit(2, Encode(("fine",)))
    bad, good = recorder.wait_for(1, 2)
    assert encoder.encoded == ["fine"]
    assert (bad.errors[0] if partial else bad).code == "encode_failed"
    assert isinstance(good, Encoded)
    assert is_soon_idle(engine, 5)


def test_a_request_that_runs_alone_and_is_cancelled_is_never_read(make_engine):
    encoder = SlowReader()
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("first",)))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("SLOW",), alone=True))
    engine.cancel(2)
    encoder.gate.set()
    recorder.wait_for(1)
    assert is_soon_idle(engine, 5)
    assert not encoder.at_slow.is_set()
