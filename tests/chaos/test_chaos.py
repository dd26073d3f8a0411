"""The chaos run itself, in small: what it counts, and that half a minute of it loses nothing."""

from collections import Counter

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.ledger import Ledger, Sent, judge
from tests.chaos.run import run
from tests.chaos.soak import judge as judge_soak
from tests.chaos.watch import Sample, Watch, growth, slope_per_hour

RIGHT = [[1.0, 0.0], [0.0, 1.0]]
SENT = Sent("r1", "en", ("a", "b"), poisoned=False)


def rows(*vectors, first=0):
    return {"data": [{"index": index, "embedding": vector} for index, vector in enumerate(vectors, first)]}


def judged(status, body, *, request_id="r1", sent=SENT, **headers):
    ledger = Ledger()
    judge(ledger, sent, status, {"x-request-id": request_id} | headers, body, RIGHT)
    return ledger


def test_right_vectors_in_order_are_an_answer():
    ledger = judged(200, rows(*RIGHT))
    assert (ledger.answered, ledger.vectors_checked, ledger.is_clean()) == (1, 2, True)


@pytest.mark.parametrize(
    "body",
    [
        rows(*RIGHT[::-1]),
        rows(RIGHT[0]),
        rows(*RIGHT, first=1),
        rows([1.0, 0.0], [float("nan"), 1.0]),
        rows([1.0, 0.0], [0.0]),
        {"data": None},
        None,
    ],
)
def test_mixed_missing_or_broken_vectors_are_wrong(body):
    assert judged(200, body).wrong == 1


def test_the_answer_of_another_request_is_a_duplicate():
    assert judged(200, rows(*RIGHT), request_id="r0").duplicate == 1


def test_a_refusal_needs_a_reason_and_a_time_to_come_back():
    error = {"error": {"message": "later", "code": "model_not_ready"}}
    assert judged(503, error, **{"Retry-After": "1"}).refused == Counter({"503 model_not_ready": 1})
    assert judged(503, error).lost == 1
    assert judged(503, "oops").lost == 1


def test_an_error_for_a_healthy_request_is_blame_and_for_a_bad_text_its_due():
    error = {"error": {"message": "no", "code": "encode_failed"}}
    assert judged(500, error).blamed == 1
    poisoned = Sent("r1", "en", ("a", "!raise"), poisoned=True)
    assert judged(500, error, sent=poisoned).poison == Counter({"500 encode_failed": 1})


def test_a_leak_shows_as_growth_and_fails_the_soak():
    leaking = [Sample(float(second), 30.0 + second, 10, 4) for second in range(100)]
    flat = [Sample(float(second), 30.0, 10, 4) for second in range(100)]
    assert growth(leaking, "resident_mb") == pytest.approx(60, abs=2)
    assert slope_per_hour(leaking, "resident_mb") == pytest.approx(3600, rel=0.01)
    assert growth(flat, "resident_mb") == slope_per_hour(flat, "files") == 0
    watch = Watch(1, samples={("router", 2): leaking, ("supervisor", 1): flat})
    _, problems = judge_soak(watch)
    assert len(problems) == 1
    assert "router 2" in problems[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_some_seconds_of_everything_going_wrong_lose_nothing(tmp_path):
    report = run(12, 7, tuple(FAULTS), tmp_path)
    assert report.problems() == [], report.render() + "\n".join(report.ledger.notes)
    assert report.ledger.answered > 20
