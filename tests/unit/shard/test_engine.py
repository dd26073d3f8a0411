import mmap
import threading
import time

import pytest

from emb_model_provider.errors import InvalidRequestError
from emb_model_provider.messages.link import Detokenize, Encode, Encoded, Failed, Texts, Tokenize
from emb_model_provider.modelmap import BatchLimits
from shard.activity import Activity
from shard.batching.failures import too_late
from shard.batching.intake import is_small
from shard.batching.lane import Lane
from shard.encoder import FatalDeviceError
from shard.engine import Engine
from shard.listener import FIRST_LANE, SPELLING_THREAD
from shard.mapped_files import MappedFiles, states_below
from tests.support.fake_encoder import FakeEncoder, expected_vector
from tests.support.plans import make_plan
from tests.support.recorder import Recorder, is_soon_idle, vectors


def test_each_request_gets_its_own_vectors_in_order(make_engine):
    engine, heard = make_engine(FakeEncoder())
    for key in range(20):
        engine.submit(key, Encode(tuple(f"text {key} {index}" for index in range(key + 1))))
    for key, outcome in enumerate(heard.wait_for(*range(20))):
        expected = [expected_vector(f"text {key} {index}") for index in range(key + 1)]
        assert vectors(outcome).tolist() == expected
    assert sorted(set(heard.encoded_keys)) == list(range(20))


def test_requests_that_queue_up_share_batches_within_the_limit(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, max_batch_size=4)
    for key in range(9):
        engine.submit(key, Encode((f"t{key}",)))
        time.sleep(0.01)
    encoder.gate.set()
    heard.wait_for(*range(9))
    assert sum(encoder.batch_sizes) == 9
    assert max(encoder.batch_sizes) == 4


def test_without_dynamic_batching_each_request_is_a_batch_of_its_own(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, dynamic=False)
    for key in range(5):
        engine.submit(key, Encode((f"a{key}", f"b{key}")))
    encoder.gate.set()
    heard.wait_for(*range(5))
    assert encoder.batch_sizes == [2] * 5


def test_a_minimum_batch_is_waited_for_no_longer_than_asked(make_engine):
    engine, heard = make_engine(FakeEncoder(), min_batch_size=8, max_wait_time_ms=150)
    began_s = time.monotonic()
    engine.submit(1, Encode(("alone",)))
    heard.wait_for(1)
    assert 0.14 <= time.monotonic() - began_s < 1.0


def test_an_input_that_makes_the_model_raise_fails_its_own_request_only(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("good", "also good")))
    engine.submit(2, Encode(("fine", "POISON"), first_index=64))
    engine.submit(3, Encode(("good too",)))
    encoder.gate.set()
    first, second, third = heard.wait_for(1, 2, 3)
    assert vectors(first).tolist() == [expected_vector("good"), expected_vector("also good")]
    assert vectors(third).tolist() == [expected_vector("good too")]
    assert isinstance(second, Failed)
    assert (second.status, second.code) == (500, "encode_failed")
    assert second.message.startswith("The model failed on input 65;")


def test_of_several_inputs_that_fail_the_first_is_named(make_engine):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode(("a", "POISON", "POISON")))
    (failed,) = heard.wait_for(1)
    assert failed.message.startswith("The model failed on input 1;")


def test_what_fails_is_called_and_logged_by_the_clients_own_names(make_engine, caplog):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode(("a", "POISON"), labels=("the query", "input 9"), request_id="req-7"))
    (failed,) = heard.wait_for(1)
    assert failed.message.startswith("The model failed on input 9;")
    (record,) = [one for one in caplog.records if one.getMessage() == "encode_failed"]
    assert (record.values["request_id"], record.values["input"]) == ("req-7", "input 9")
    engine.submit(2, Encode(("UNTOKENIZABLE",), request_id="req-8"))
    heard.wait_for(2)
    (record,) = [one for one in caplog.records if one.getMessage() == "tokenize_failed"]
    assert record.values["request_id"] == "req-8"


def test_a_vector_that_is_not_finite_is_made_once_more_in_fp32_and_else_never_delivered(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("NAN",)))
    engine.submit(2, Encode(("fine", "OVERFLOW")))
    encoder.gate.set()
    broken, mended = heard.wait_for(1, 2)
    assert isinstance(broken, Failed)
    assert broken.code == "encode_failed"
    assert broken.message.startswith("The model failed on input 0;")
    assert vectors(mended).tolist() == [expected_vector("fine"), expected_vector("OVERFLOW")]
    assert sorted(encoder.encoded_exactly) == ["NAN", "OVERFLOW"]


def test_equal_texts_in_flight_are_encoded_once_and_answered_each(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("same", "other", "same")))
    while not encoder.entered.wait(0.01):
        pass
    engine.submit(2, Encode(("same",)))
    engine.submit(3, Encode(("third", "same"), dimensions=2))
    engine.submit(4, Encode(("third",)))
    time.sleep(0.1)
    encoder.gate.set()
    first, second, _, fourth = heard.wait_for(1, 2, 3, 4)
    assert vectors(first).tolist() == [expected_vector(text) for text in ("same", "other", "same")]
    assert vectors(second).tolist() == [expected_vector("same")]
    assert second.timing.queue_ms == 0  # its text was with the device already
    assert vectors(fourth).tolist() == [expected_vector("third")]
    assert sorted(encoder.encoded) == ["other", "same", "third"]


def test_a_text_that_somebody_else_waits_for_outlives_the_request_that_brought_it(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, max_batch_size=1)
    engine.submit(1, Encode(("first",)))
    while not encoder.entered.wait(0.01):
        pass
    engine.submit(2, Encode(("shared", "lonely")))
    engine.submit(3, Encode(("shared",)))
    time.sleep(0.05)
    engine.cancel(2)
    encoder.gate.set()
    (outcome,) = heard.wait_for(3)
    assert vectors(outcome).tolist() == [expected_vector("shared")]
    assert is_soon_idle(engine, 1.0)
    assert "lonely" not in encoder.encoded


def test_a_request_whose_time_is_over_is_answered_so_and_never_encoded(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, max_batch_size=1)
    engine.submit(1, Encode(("first",)))
    while not encoder.entered.wait(0.01):
        pass
    engine.submit(2, Encode(("hurried", "shared"), timeout_ms=50))
    engine.submit(3, Encode(("patient", "shared"), timeout_ms=60_000))
    time.sleep(0.1)
    encoder.gate.set()
    late, patient = heard.wait_for(2, 3)
    assert isinstance(late, Failed)
    assert (late.status, late.code) == (504, "deadline_exceeded")
    assert vectors(patient).tolist() == [expected_vector("patient"), expected_vector("shared")]
    assert "hurried" not in encoder.encoded


def test_a_short_query_waits_for_one_slice_of_bulk_and_not_for_the_rest(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, make_plan(slice_ms=50, ms_per_token=1))
    engine.submit(1, Encode(tuple(f"bulk {index:04}" for index in range(64))))
    while not encoder.entered.wait(0.01):
        pass
    engine.submit(2, Encode(("hi",)))
    time.sleep(0.05)
    encoder.gate.set()
    heard.wait_for(1, 2)
    assert encoder.encoded.index("hi") == 5


def test_a_broken_device_ends_the_thread_and_with_it_the_process_and_answers_nobody(monkeypatch):
    ended = threading.Event()
    failures = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: (failures.append(failure.exc_type), ended.set()))
    encoder, heard = FakeEncoder(), Recorder()
    engine = Engine(encoder, [Lane()], 1, BatchLimits(), make_plan(), heard)
    engine.start()
    engine.submit(1, Encode(("fine", "BROKEN DEVICE")))
    assert ended.wait(5)
    engine.submit(2, Encode(("fine",)))
    time.sleep(0.05)
    assert failures == [FatalDeviceError]
    assert heard.outcomes == {}
    engine.stop()


def test_what_was_computed_from_a_file_that_has_changed_is_told_nobody_and_ends_the_process(monkeypatch, tmp_path):
    ended = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _failure: ended.set())
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    encoder, heard = FakeEncoder(closed=True), Recorder()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        files = MappedFiles(states_below(tmp_path))
    engine = Engine(encoder, [Lane()], 1, BatchLimits(), make_plan(), heard, files)
    engine.start()
    engine.submit(1, Encode(("fine",)))
    assert encoder.entered.wait(5)
    path.write_bytes(b"other weights")
    encoder.gate.set()
    assert ended.wait(5)
    assert heard.outcomes == {}
    engine.stop()
    files.close()


def test_a_cancelled_request_is_neither_encoded_nor_answered(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, max_batch_size=1)
    engine.submit(1, Encode(("first",)))
    while not encoder.entered.wait(0.01):
        pass
    engine.submit(2, Encode(("second",)))
    engine.submit(3, Encode(("third",)))
    engine.cancel(2)
    encoder.gate.set()
    heard.wait_for(1, 3)
    assert is_soon_idle(engine, 1.0)
    assert 2 not in heard.outcomes
    assert "second" not in encoder.encoded


def test_with_several_lanes_every_request_of_either_kind_is_answered(make_engine):
    encoder = FakeEncoder()
    engine, heard = make_engine(encoder, make_plan(slice_ms=20, ms_per_token=1), lanes=3)
    for key in range(200):
        count = 12 if key % 3 == 0 else 1
        engine.submit(key, Encode(tuple(f"{key} {index}" for index in range(count))))
        if key % 20 == 0:
            time.sleep(0.005)
    for key, outcome in enumerate(heard.wait_for(*range(200))):
        assert vectors(outcome)[0].tolist() == expected_vector(f"{key} 0")
    assert is_soon_idle(engine, 1.0)


def test_too_long_a_text_is_refused_where_the_policy_says_so_and_reported_where_it_is_cut(make_engine):
    encoder = FakeEncoder()
    engine, heard = make_engine(encoder)
    long = "x" * (encoder.info.max_tokens + 5)
    engine.submit(1, Encode(("ok", long), overlong="error", first_index=10))
    engine.submit(2, Encode(("ok", long)))
    refused, cut_off = heard.wait_for(1, 2)
    assert isinstance(refused, Failed)
    assert (refused.status, refused.code) == (400, "context_length_exceeded")
    assert f"maximum context length is {encoder.info.max_tokens} tokens, however input 11" in refused.message
    assert isinstance(cut_off, Encoded)
    assert cut_off.truncated == (1,)
    assert cut_off.tokens == (2, encoder.info.max_tokens)


def test_fewer_dimensions_are_cut_and_normalised_again(make_engine):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode(("hello",), dimensions=2))
    (outcome,) = heard.wait_for(1)
    first, second = expected_vector("hello")[:2]
    norm = (first**2 + second**2) ** 0.5
    assert vectors(outcome)[0] == pytest.approx([first / norm, second / norm])


def test_token_ids_are_taken_as_they_are_and_wrong_ones_are_named_with_their_index(make_engine):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode((), token_ids=((104, 105),)))
    engine.submit(2, Encode((), token_ids=((1,), (10**7,)), first_index=3))
    good, bad = heard.wait_for(1, 2)
    assert vectors(good).tolist() == [expected_vector("hi")]
    assert isinstance(bad, Failed)
    assert bad.message.startswith("Input 4: ")
    assert bad.status == InvalidRequestError.status


def test_a_tokenizer_that_raises_fails_that_request_only(make_engine):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode(("UNTOKENIZABLE",)))
    engine.submit(2, Encode(("fine",)))
    first, second = heard.wait_for(1, 2)
    assert isinstance(first, Failed)
    assert isinstance(second, Encoded)


def test_idle_means_that_everything_accepted_has_been_answered(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder)
    assert engine.is_idle()
    engine.submit(1, Encode(("a",)))
    assert not is_soon_idle(engine, 0.05)
    encoder.gate.set()
    assert is_soon_idle(engine, 5.0)
    assert 1 in heard.outcomes


def test_the_listener_knows_what_every_thread_is_at_while_it_is_at_it(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, recorder = make_engine(encoder, max_batch_size=2)
    engine.submit(1, Encode(("a", "b", "c")))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("d",)))
    assert recorder.at == {FIRST_LANE: [1]}
    encoder.gate.set()
    recorder.wait_for(1, 2)
    assert recorder.at == {}


def test_the_engine_says_what_it_is_at_and_how_far_it_has_come(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, recorder = make_engine(encoder, max_batch_size=2)
    assert engine.activity() == Activity(0, 0.0, 0, 0, 0.0)
    engine.submit(1, Encode(("aa", "bb", "ccc")))
    assert encoder.entered.wait(10)
    began_s = time.monotonic()
    time.sleep(0.05)
    activity = engine.activity()
    assert (activity.batches_done, activity.waiting_texts) == (0, 1)
    assert activity.waiting_tokens in (2, 3)
    assert activity.oldest_s >= time.monotonic() - began_s - 0.01
    encoder.gate.set()
    recorder.wait_for(1)
    assert is_soon_idle(engine, 5.0)
    done = engine.activity()
    assert (done.batches_done, done.oldest_s, done.waiting_texts, done.waiting_tokens) == (2, 0.0, 0, 0)
    assert abs(done.last_success - time.time()) < 60


@pytest.mark.parametrize(("batching", "computed"), [("padded", 10), ("packed", 7)])
def test_the_tokens_that_are_computed_are_counted_with_the_padding_of_models_that_pad(make_engine, batching, computed):
    encoder = FakeEncoder()
    encoder.info = encoder.info.replace(batching=batching)
    engine, recorder = make_engine(encoder)
    engine.submit(1, Encode(("aa", "bbbbb")))
    recorder.wait_for(1)
    assert engine.activity().batches.computed_tokens == computed


def test_a_batch_has_all_cores_where_nothing_else_waits_and_else_those_of_its_lane_by_which_alone_the_pace_is_told(
    make_engine,
):
    class Counting(FakeEncoder):
        def use_threads(self, count):
            threads.append(count)

    threads: list[int] = []
    engine, recorder = make_engine(Counting(), make_plan(slice_ms=20, ms_per_token=1), lanes=2)
    engine.submit(1, Encode(("a",)))
    recorder.wait_for(1)
    assert threads == [2]
    assert engine.activity().batches.took_ms == 0
    engine.submit(2, Encode(tuple("bcdefghijklm"[number] * 15 for number in range(12))))
    recorder.wait_for(2)
    assert threads[1] == 1
    assert engine.activity().batches.took_ms > 0


def test_no_thread_of_an_engine_keeps_a_process_from_its_end(make_engine):
    before = set(threading.enumerate())
    make_engine(FakeEncoder())
    assert {thread.daemon for thread in set(threading.enumerate()) - before} == {True}


# --- partial answers, timing, tokens, priorities ---------------------------------------------------------------


def test_a_partial_request_gets_its_good_vectors_and_the_errors_of_the_rest(make_engine):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode(("good", "POISON", "x" * 50, "NAN"), partial=True, overlong="error", first_index=8))
    (outcome,) = heard.wait_for(1)
    assert vectors(outcome)[0].tolist() == expected_vector("good")
    assert not vectors(outcome)[1:].any()
    assert [(error.index, error.status) for error in outcome.errors] == [(1, 500), (2, 400), (3, 500)]
    assert "input 9" in outcome.errors[0].message
    assert outcome.tokens == (4, 6, 0, 3)


@pytest.mark.parametrize(("texts", "is_success"), [(("POISON", "NAN"), False), (("POISON", "good"), True)])
def test_an_answer_of_nothing_but_errors_is_no_success(make_engine, texts, is_success):
    engine, heard = make_engine(FakeEncoder())
    engine.submit(1, Encode(texts, partial=True))
    assert isinstance(heard.wait_for(1)[0], Encoded)
    assert (engine.activity().last_success > 0) == is_success


def test_a_partial_request_without_a_good_input_is_answered_at_once(make_engine):
    encoder = FakeEncoder()
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("UNTOKENIZABLE", "UNTOKENIZABLE"), partial=True))
    (outcome,) = heard.wait_for(1)
    assert [error.index for error in outcome.errors] == [0, 1]
    assert encoder.encoded == []


def test_an_answer_says_where_its_time_went(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("first",)))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("second",)))
    time.sleep(0.1)
    encoder.gate.set()
    first, second = heard.wait_for(1, 2)
    assert first.timing.encode_ms >= 90
    assert second.timing.queue_ms >= 90
    assert second.timing.tokenize_ms >= 0
    assert (first.original_tokens, second.original_tokens) == ((5,), (6,))


def test_tokens_and_texts_are_answered_by_the_tokenizer_and_wait_for_no_device(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("holds the device",)))
    engine.submit(2, Tokenize(("ab",)))
    engine.submit(3, Detokenize(((97,),)))
    tokens, texts = heard.wait_for(2, 3)
    assert [one.text for one in tokens.rows[0]] == ["a", "b"]
    assert texts == Texts(("a",))
    assert engine.is_idle() is False


def test_what_is_to_be_encoded_is_read_while_something_else_is_spelled(make_engine):
    encoder = SlowSpeller()
    engine, recorder = make_engine(encoder)
    engine.submit(1, Tokenize(("ab",)))
    assert encoder.is_at_it.wait(10)
    large = Encode(tuple(f"text {number}" for number in range(20)))
    assert not is_small(large)
    engine.submit(2, large)
    recorder.wait_for(2)
    assert recorder.at == {SPELLING_THREAD: [1]}
    encoder.go_on.set()
    recorder.wait_for(1)


class SlowSpeller(FakeEncoder):
    """Spells only when it is told to, and tells when it is at it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_at_it, self.go_on = threading.Event(), threading.Event()

    def spell(self, texts, **options):
        self.is_at_it.set()
        assert self.go_on.wait(10)
        return super().spell(texts, **options)


def test_a_small_request_may_queue_with_bulk_and_a_large_one_before_it(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, max_batch_size=2)
    engine.submit(1, Encode(("holds the device",)))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("small",), priority="bulk"))
    engine.submit(3, Encode(tuple(f"large {index}" for index in range(12)), priority="interactive"))
    deadline_s = time.monotonic() + 10
    while engine._jobs.scheduler.waiting_texts < 13:  # the large one is tokenised in a thread of its own
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    encoder.gate.set()
    heard.wait_for(1, 2, 3)
    order = encoder.encoded[1:]
    assert order.index("small") > order.index("large 0")


def test_requests_for_different_outputs_of_one_text_are_different_work(make_engine):
    encoder = FakeEncoder(closed=True)
    encoder.info = encoder.info.replace(normalized=True)
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode(("holds the device",)))
    assert encoder.entered.wait(10)
    engine.submit(2, Encode(("same",)))
    engine.submit(3, Encode(("same",), normalize=False))
    encoder.gate.set()
    heard.wait_for(1, 2, 3)
    assert encoder.encoded.count("same") == 2


def test_a_short_query_with_a_long_document_is_not_small():
    assert is_small(Encode(("query",), seconds=("short",)))
    assert not is_small(Encode(("query",), seconds=("x" * 10_000,)))
    assert not is_small(Encode(("query",), prompt="x" * 10_000))


# --- who is woken, and who waits for nothing -------------------------------------------------------------------


def test_what_one_lane_leaves_wakes_the_next(make_engine):
    encoder = FakeEncoder(closed=True)
    engine, heard = make_engine(encoder, lanes=2)
    time.sleep(0.05)  # until both wait
    engine.submit(1, Encode(tuple(f"text {n}" for n in range(16))))
    until_s = time.monotonic() + 5
    while set(heard.at) != {FIRST_LANE, FIRST_LANE + 1} and time.monotonic() < until_s:
        time.sleep(0.01)
    assert set(heard.at) == {FIRST_LANE, FIRST_LANE + 1}
    encoder.gate.set()
    heard.wait_for(1)


def test_an_engine_is_idle_as_soon_as_its_last_request_is_cancelled(make_engine):
    engine, _ = make_engine(FakeEncoder(closed=True))
    engine.submit(1, Encode(("text",)))
    threading.Timer(0.05, engine.cancel, [1]).start()
    began_s = time.monotonic()
    assert is_soon_idle(engine, 20)
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize("last", ["left 20", "UNTOKENIZABLE"])
def test_a_request_that_is_cancelled_while_it_is_read_is_never_encoded_nor_answered(make_engine, last):
    at_it, go_on = threading.Event(), threading.Event()

    class Reader(FakeEncoder):
        def tokenize(self, texts, *more):
            at_it.set()
            assert go_on.wait(10)
            return super().tokenize(texts, *more)

    encoder = Reader()
    engine, heard = make_engine(encoder)
    engine.submit(1, Encode((*(f"left {n}" for n in range(20)), last)))
    assert at_it.wait(10)
    engine.cancel(1)
    engine.submit(2, Encode(tuple(f"stays {n}" for n in range(20))))
    go_on.set()
    heard.wait_for(2)
    assert {text.split()[0] for text in encoder.encoded} == {"stays"}
    assert 1 not in heard.outcomes


def test_what_waited_too_long_to_be_read_or_was_cancelled_meanwhile_is_never_read(make_engine):
    go_on, read = threading.Event(), []

    class Reader(FakeEncoder):
        def tokenize(self, texts, *more):
            read.append(texts[0])
            assert go_on.wait(10)
            return super().tokenize(texts, *more)

    engine, heard = make_engine(Reader())
    for key, timeout_ms in ((1, 0), (2, 20), (3, 0), (4, 0)):
        engine.submit(key, Encode(tuple(f"{key} {n}" for n in range(20)), timeout_ms=timeout_ms))
    engine.cancel(3)
    time.sleep(0.05)
    go_on.set()
    late = heard.wait_for(1, 2, 4)[1]
    assert (late.status, read) == (too_late().status, ["1 0", "4 0"])
    assert 3 not in heard.outcomes


@pytest.mark.parametrize("route", [0, 1])
def test_texts_that_take_a_way_without_inference_teach_nothing_of_its_pace(make_engine, route):
    class Routed(FakeEncoder):
        def tokenize(self, texts, reading, seconds=()):
            read = super().tokenize(texts, reading, seconds)
            ways = [-1 if text.startswith("?") else route for text in texts]
            return [one._replace(route=way) for one, way in zip(read, ways, strict=True)]

    engine, recorder = make_engine(Routed())
    engine.submit(1, Encode(("?", "??")))
    recorder.wait_for(1)
    assert engine.activity().batches.took_ms == 0
    engine.submit(2, Encode(("a",)))
    recorder.wait_for(2)
    assert engine.activity().batches.took_ms > 0
