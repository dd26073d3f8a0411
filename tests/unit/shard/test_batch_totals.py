import pytest

from emb_model_provider.messages.status import BatchTotals
from emb_model_provider.modelmap import BatchLimits
from shard.batching.batch_totals import FILL_BOUNDS, RATIO_BOUNDS, Totals
from tests.support.plans import make_plan


def make_totals(*, is_padded: bool = False) -> Totals:
    return Totals(BatchLimits(max_batch_size=10), make_plan(slice_ms=100, max_tokens=1000), is_padded=is_padded)


def bucket(bounds: tuple[float, ...], *values: float) -> tuple[float, ...]:
    """Return counts of ``values``, each at the first bound that is not below it, and their sum."""
    counts = [0.0] * (len(bounds) + 2)
    for value in values:
        counts[next((place for place, bound in enumerate(bounds) if value <= bound), len(bounds))] += 1
        counts[-1] += value
    return tuple(counts)


@pytest.mark.parametrize(
    ("lengths", "predicted_ms", "fill"),
    [
        ([100], 0.0, 0.1),  # by its tokens
        ([10, 10, 10], 0.0, 0.3),  # by its texts
        ([10], 80.0, 0.8),  # by its time
        ([1500], 20.0, 1.5),
    ],
)
def test_a_batch_is_as_full_as_by_the_limit_that_it_is_nearest_to(lengths, predicted_ms, fill):
    totals = make_totals()
    totals.add(lengths, predicted_ms)
    assert totals.so_far().fill == bucket(FILL_BOUNDS, fill)


def test_where_no_time_is_set_a_batch_is_as_full_as_by_the_other_limits():
    totals = Totals(BatchLimits(max_batch_size=10), make_plan(slice_ms=0, max_tokens=1000), is_padded=False)
    totals.add([500], 80.0)
    assert totals.so_far().fill == bucket(FILL_BOUNDS, 0.5)


@pytest.mark.parametrize(
    ("lengths", "computed"),
    [
        ([100], 100),
        ([50, 100], 100 + 100),
        ([100, 20], 100 + 20),  # the shorter one has a pass of its own: too much would be padding
        ([50, 100, 50], 100 + 100 + 50),
    ],
)
def test_what_is_computed_counts_with_its_padding_where_texts_are_padded_alone(lengths, computed):
    for is_padded in (True, False):
        totals = make_totals(is_padded=is_padded)
        totals.add(lengths, 1.0)
        found = totals.so_far()
        assert (found.texts, found.tokens) == (len(lengths), sum(lengths))
        assert found.computed_tokens == (computed if is_padded else sum(lengths))


def test_batches_add_up_and_one_without_a_text_is_none():
    totals = make_totals()
    totals.add([], 5.0)
    assert totals.so_far() == BatchTotals(fill=bucket(FILL_BOUNDS), time_ratio=bucket(RATIO_BOUNDS))
    for count in (2, 3):
        totals.add([100] * count, 1.0)
    found = totals.so_far()
    assert (found.texts, found.tokens, found.computed_tokens) == (5, 500, 500)
    assert found.fill == bucket(FILL_BOUNDS, 0.2, 0.3)


def test_what_batches_took_is_held_against_what_was_predicted_of_them():
    totals = make_totals()
    totals.timed(10.0, 15.0)
    totals.timed(40.0, 10.0)
    totals.timed(0.0, 3.0)  # of which there is no ratio
    found = totals.so_far()
    assert (found.predicted_ms, found.took_ms) == (50.0, 28.0)
    assert found.time_ratio == bucket(RATIO_BOUNDS, 1.5, 0.25)
