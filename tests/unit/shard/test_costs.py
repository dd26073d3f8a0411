import pytest
from hypothesis import given
from hypothesis import strategies as st

from emb_model_provider.errors import InvalidRequestError
from shard.batching.costs import CostModel, Pace, Sample, SlicePlan, fit, measure, plan
from shard.encoder import PLAIN
from tests.support.fake_encoder import MAX_TOKENS, FakeEncoder

models = st.builds(CostModel, st.floats(0, 10), st.floats(0, 10), st.floats(0.001, 1), st.floats(0, 0.01))
SHAPES = [(8,), (64,), (8,) * 4, (64,) * 4, (64,) * 16, (512,)]


def sample(model: CostModel, lengths: tuple[int, ...]) -> Sample:
    return Sample(lengths, model.ms(len(lengths), sum(lengths), sum(length * length for length in lengths)))


@given(models)
def test_the_fit_finds_the_model_that_the_times_come_from(model):
    found = fit([sample(model, lengths) for lengths in SHAPES])
    for lengths in [(3,), (3,) * 100, (64,) * 32, (500, 20, 3)]:
        assert sample(found, lengths).ms == pytest.approx(sample(model, lengths).ms, rel=1e-3)


@given(st.lists(st.floats(0, 1000), min_size=len(SHAPES), max_size=len(SHAPES)), st.integers(1, len(SHAPES)))
def test_no_times_however_odd_make_a_negative_cost(times, count):
    found = fit([Sample(lengths, ms) for lengths, ms in zip(SHAPES, times, strict=True)][:count])
    assert found.base >= 0
    assert found.per_token >= 0
    assert found.per_pair >= 0


def a_token(model: CostModel, tokens: float) -> float:
    return model.ms(tokens / 64, tokens, 64 * tokens) / tokens


@given(models)
def test_a_slice_is_the_shortest_batch_of_nearly_the_best_rate_but_at_least_fifty_milliseconds(model):
    planned = plan([sample(model, lengths) for lengths in SHAPES], 1_000_000)
    of_a_quarter_second, tokens = ((ms - model.base) / model.per_usual_token for ms in (250, planned.slice_ms))
    nearly_best = 1.05 * a_token(model, max(of_a_quarter_second, *map(sum, SHAPES)))
    assert planned.slice_ms >= 50
    assert a_token(model, tokens) <= nearly_best * 1.001
    if planned.slice_ms > max(50, sample(model, (64,)).ms * 1.001):
        assert a_token(model, tokens) >= nearly_best * 0.999, "a shorter one would do"


@given(models)
def test_a_usual_text_is_small_however_slow_the_model_and_nothing_small_takes_longer_than_a_slice(model):
    planned = plan([sample(model, lengths) for lengths in SHAPES], 1_000_000)
    assert sample(planned.costs, (64,)).ms <= planned.small_ms * 1.000001
    assert planned.small_ms <= planned.slice_ms


def test_where_a_slice_is_shorter_than_a_usual_text_small_is_half_a_slice():
    assert SlicePlan(CostModel(0.0, 0.0, 1.0, 0.0), slice_ms=50.0, max_tokens=2048).small_ms == 25
    assert SlicePlan(CostModel(0.0, 0.0, 1.0, 0.0), slice_ms=64.0, max_tokens=2048).small_ms == 64


def test_on_a_quick_device_a_slice_is_fifty_milliseconds():
    assert plan([Sample((64,), 1), Sample((64,) * 2, 2)], 2048).slice_ms == 50


@given(models, st.lists(st.floats(0.7, 1.5), min_size=7, max_size=7))
def test_on_a_noisy_machine_usual_texts_alone_never_make_pairs_of_tokens_dear_and_tokens_cheap(model, noise):
    shapes = [(8,), (8,) * 4, *((64,) * 2**doubling for doubling in range(5))]
    times = [Sample(lengths, sample(model, lengths).ms * factor) for lengths, factor in zip(shapes, noise, strict=True)]
    assert fit(times).per_pair == 0
    assert fit([*times, sample(model, (256,))]).ms(16, 160, 160 * 10) > 0.3 * model.per_token * 160


def test_where_all_texts_are_short_no_slice_is_shorter_than_the_longest_and_none_as_long_as_a_usual_text():
    assert plan([Sample((8,), 80), Sample((16,), 160)], 2048).slice_ms == pytest.approx(160)


def test_texts_have_no_price_where_there_was_no_crowd_of_short_ones():
    costs = fit([Sample((8,), 10), Sample((64,), 20), Sample((64,) * 2, 38)])
    assert costs.per_text == 0
    assert fit([Sample((8,), 10), Sample((64,), 20), Sample((8,) * 4, 38)]).per_text > 0


@pytest.mark.parametrize(
    ("first", "second"), [(73.12176821304028, 103.91475990268614), (25.077102881323604, 26.413032155550294)]
)
def test_of_prices_that_are_as_good_it_is_that_of_a_token(first, second):
    times = {1: first, 2: second, 4: first + 3 * (second - first)}
    costs = fit([Sample((40,) * count, ms) for count, ms in times.items()])
    assert (costs.per_text, costs.per_token) == (0, pytest.approx((second - first) / 40))


@pytest.mark.parametrize("ms", [0.1, 0.3, 0.7, 3.0, 7.0, 49.0])
def test_of_prices_that_are_as_good_it_is_that_of_a_pass(ms):
    assert fit([Sample((64,), ms)]) == CostModel(pytest.approx(ms), 0.0, 0.0, 0.0)


@given(models, st.integers(64, 4096))
def test_the_tokens_of_a_slice_take_about_as_long_as_a_slice(model, max_tokens):
    planned = plan([sample(model, lengths) for lengths in SHAPES], max_tokens)
    tokens = planned.slice_tokens
    assert 0 < tokens <= max_tokens
    assert planned.costs.ms(tokens / 64, tokens, 64 * tokens) <= planned.slice_ms * 1.001


class SlowEncoder(FakeEncoder):
    """Takes so long by its own clock, and no time by any other."""

    def __init__(self, base_s: float, per_token_s: float, per_pair_s: float = 0.0, per_text_s: float = 0.0) -> None:
        super().__init__()
        self.now_s = 0.0
        self.costs = CostModel(base_s, per_text_s, per_token_s, per_pair_s)

    def encode(self, batch):
        lengths = [len(one.ids) for one in batch]
        self.now_s += self.costs.ms(len(lengths), sum(lengths), sum(length * length for length in lengths))
        return super().encode(batch)

    def clock(self) -> float:
        return self.now_s


def test_measuring_ends_soon_on_a_slow_device():
    encoder = SlowEncoder(0.0, 0.001)
    measured = measure(encoder, 32768, encoder.clock)
    assert encoder.now_s < 2
    assert measured.costs.per_token == pytest.approx(1, rel=0.01)
    assert measured.costs.base == pytest.approx(0, abs=0.1)


def test_of_a_model_that_takes_half_a_second_for_a_word_it_is_still_known_what_a_token_costs():
    encoder = SlowEncoder(0.5, 0.01)
    measured = measure(encoder, 32768, encoder.clock)
    assert encoder.now_s < 2 * (0.5 + 0.01 * MAX_TOKENS)
    assert measured.costs.base == pytest.approx(500, rel=0.01)
    assert measured.costs.per_token == pytest.approx(10, rel=0.01)
    assert MAX_TOKENS <= measured.slice_tokens < 2 * MAX_TOKENS, "no batch is the whole queue, and none a single word"


def test_what_a_pair_of_tokens_costs_is_known_on_a_device_that_is_soon_done_measuring():
    encoder = SlowEncoder(0.007, 0.0002, 0.0000002)
    encoder.info = encoder.info.replace(max_tokens=512)
    measured = measure(encoder, 2048, encoder.clock)
    assert encoder.now_s < 1
    assert measured.costs.per_token == pytest.approx(0.2, rel=0.01)
    assert measured.costs.per_pair == pytest.approx(0.0002, rel=0.01)


def test_a_crowd_of_short_texts_is_as_dear_as_it_is_where_each_takes_a_pass_of_its_own():
    encoder = SlowEncoder(0.0, 0.0002, per_text_s=0.007)
    costs = measure(encoder, 2048, encoder.clock).costs
    assert costs.ms(100, 500, 100 * 25) == pytest.approx(100 * 7 + 500 * 0.2, rel=0.01)


def test_measuring_uses_no_text_longer_than_the_model_takes():
    encoder = FakeEncoder()
    measure(encoder, 300)
    assert max(len(text) for text in encoder.encoded) == MAX_TOKENS
    assert max(encoder.batch_sizes) * MAX_TOKENS <= 300


@pytest.mark.parametrize(("longest", "timed"), [(200, 200), (300, 300), (512, 512), (64, 64), (4, 4)])
def test_one_long_text_is_timed_of_the_length_that_the_model_takes(longest, timed):
    encoder = FakeEncoder()
    encoder.info = encoder.info.replace(max_tokens=longest)
    measure(encoder, 2048, SlowEncoder(0.0, 0.0).clock)
    assert max(len(text) for text in encoder.encoded) == timed
    if longest > 64:
        assert len([text for text in encoder.encoded if len(text) == timed]) == 3, "a quick pass, three times"


def test_what_the_first_pass_of_a_size_takes_to_make_its_kernels_does_not_count():
    class Preparing(SlowEncoder):
        def encode(self, batch):
            shape = tuple(len(one.ids) for one in batch)
            self.now_s += 0 if shape in seen else 0.3
            seen.add(shape)
            return super().encode(batch)

    seen, encoder = set(), Preparing(0.01, 0.001)
    costs = measure(encoder, 2048, encoder.clock).costs
    assert (costs.base, costs.per_token) == (pytest.approx(10), pytest.approx(1))


@pytest.mark.parametrize(("task", "seconds"), [("rerank", ["0"]), ("embed", ())])
def test_a_model_that_takes_no_ids_is_timed_with_what_it_takes_and_all_that_it_gives(task, seconds):
    class Refusing(FakeEncoder):
        def accept_ids(self, ids, reading=None):
            raise InvalidRequestError("no ids")

        def tokenize(self, texts, reading=PLAIN, seconds=()):
            asked.append((list(texts), seconds))
            return super().tokenize(texts, reading)

        def encode(self, batch):
            outputs.update(one.outputs for one in batch)
            return super().encode(batch)

    asked, outputs, encoder = [], set(), Refusing()
    encoder.info = encoder.info.replace(task=task, outputs=("dense", "sparse"))
    measure(encoder, 300, SlowEncoder(0.0, 0.0).clock)
    assert set(encoder.encoded) == {"0" * 8, "0" * MAX_TOKENS}
    assert all(one == (["0"], seconds) for one in asked)
    assert outputs == {("dense", "sparse")}


def test_a_model_that_takes_no_ids_is_timed_with_texts_of_the_same_lengths_whatever_it_makes_of_one_letter():
    class Framing(FakeEncoder):
        def accept_ids(self, ids, reading=None):
            raise InvalidRequestError("no ids")

        def tokenize(self, texts, reading=PLAIN, seconds=()):
            return super().tokenize([f"<{text}>" for text in texts], reading)

    measure(encoder := Framing(), 300, SlowEncoder(0.0, 0.0).clock)
    assert set(encoder.encoded) == {"<0><0><0>"[:8], ("<0>" * MAX_TOKENS)[:MAX_TOKENS]}


@pytest.mark.parametrize(("max_tokens", "largest"), [(80, 80), (79, MAX_TOKENS), (160, 160), (159, 80)])
def test_no_batch_is_timed_that_is_larger_than_any_will_be_and_one_that_is_as_large(max_tokens, largest):
    passes = []

    class Counting(FakeEncoder):
        def encode(self, batch):
            passes.append(sum(len(one.ids) for one in batch))
            return super().encode(batch)

    assert measure(Counting(), max_tokens, SlowEncoder(0.0, 0.0).clock).max_tokens == max_tokens
    assert max(passes) == largest


def test_batches_that_take_no_time_make_the_pace_quicker_within_bounds():
    pace = Pace()
    for _ in range(200):
        pace.observe(10.0, 0.0)
    assert pace.factor == pytest.approx(0.25, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10_000))))
def test_the_pace_stays_within_bounds(observed):
    pace = Pace()
    for predicted_ms, took_ms in observed:
        pace.observe(predicted_ms, took_ms)
        assert 0.25 <= pace.factor <= 4


@given(st.floats(100, 1e9))
def test_one_batch_during_which_the_process_stood_still_hardly_changes_the_pace(took_ms):
    pace = Pace()
    pace.observe(1.0, took_ms)
    assert pace.factor < 1.2


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory")], ids=["host", "card"])
def test_a_size_that_does_not_fit_into_memory_limits_every_batch(error):
    tried = []

    class SmallEncoder(FakeEncoder):
        def encode(self, batch):
            tried.append(len(batch))
            if len(batch) > 4:
                raise error
            return super().encode(batch)

    assert measure(SmallEncoder(), 32768).max_tokens == 4 * MAX_TOKENS
    assert max(tried) == 8, "what is larger still is not tried"


def test_where_hardly_more_than_one_text_fits_the_largest_that_did_counts_and_not_the_last():
    class TinyEncoder(FakeEncoder):
        def encode(self, batch):
            if sum(len(one.ids) for one in batch) > MAX_TOKENS:
                raise MemoryError
            return super().encode(batch)

    assert measure(TinyEncoder(), 32768).max_tokens == MAX_TOKENS > 4 * 8


def test_a_model_that_cannot_encode_one_text_is_no_model():
    class BrokenEncoder(FakeEncoder):
        def encode(self, batch):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure(BrokenEncoder(), 32768)


def test_the_rate_is_that_of_slices_of_usual_texts():
    slow = SlicePlan(CostModel(0.0, 0.0, 0.5, 0.0), slice_ms=50.0, max_tokens=2048)
    assert slow.tokens_per_s == 2000
    assert SlicePlan(CostModel(0.0, 0.0, 0.5, 0.5 / 64), slice_ms=50.0, max_tokens=2048).tokens_per_s == 1000
    assert SlicePlan(CostModel(0.0, 0.0, 0.0, 0.0), slice_ms=50.0, max_tokens=2048).tokens_per_s == 0
    assert SlicePlan(CostModel(10.0, 0.0, 0.5, 0.0), slice_ms=50.0, max_tokens=2048).tokens_per_s == 1600
    short_of_a_usual_text = SlicePlan(CostModel(48.0, 0.0, 0.5, 0.0), slice_ms=50.0, max_tokens=2048)
    assert short_of_a_usual_text.slice_tokens == 4
    assert short_of_a_usual_text.tokens_per_s == 800
