import asyncio
import queue
import time

from emb_model_provider.messages.status import BatchTotals
from shard.activity import Activity, WorkInHand
from shard.progress import _Reporter, report_progress


class Engine:
    def __init__(self, oldest_s: float = 0.0) -> None:
        self.oldest_s = oldest_s

    def activity(self) -> Activity:
        return Activity(7, self.oldest_s, 3, 30, 1_700_000_000.0, BatchTotals(texts=9))


async def test_a_report_says_what_the_engine_is_at():
    reports = queue.SimpleQueue()
    began_s = time.monotonic()
    report_progress(Engine(oldest_s=2.5), asyncio.get_running_loop(), reports.put, every_s=0.02)
    first, *_others = [reports.get(timeout=5) for _ in range(3)]
    assert (first.batches_done, first.running_s, first.waiting_texts, first.waiting_tokens) == (7, 2.5, 3, 30)
    assert time.monotonic() - began_s >= 0.04
    assert (first.last_success, first.batches.texts) == (1_700_000_000.0, 9)
    assert first.rss_bytes > 1_000_000


async def test_a_loop_that_stands_counts_as_work_that_does_not_end():
    reporter = _Reporter(Engine(), asyncio.get_running_loop(), lambda _message: None)
    assert reporter._report().running_s == 0.0
    time.sleep(0.01)  # noqa: ASYNC251 - as any loop does for a moment
    assert reporter._report().running_s == 0.0
    time.sleep(1.1)  # noqa: ASYNC251 - the loop stands
    assert 1.0 < reporter._report().running_s < 60.0
    await asyncio.sleep(0.01)
    assert reporter._report().running_s == 0.0


def test_the_oldest_work_in_hand_counts():
    now_s = [10.0]
    hand = WorkInHand(lambda: now_s[0])
    assert hand.oldest_s == 0.0
    hand.begin(1)
    now_s[0] = 12.0
    hand.begin(2)
    now_s[0] = 15.0
    assert hand.oldest_s == 5.0
    hand.end(1)
    assert hand.oldest_s == 3.0
    hand.end(2)
    assert hand.oldest_s == 0.0


def test_work_that_has_only_just_begun_is_work():
    hand = WorkInHand(lambda: 1.0)
    hand.begin(1)
    assert hand.oldest_s > 0
