"""Who may read while somebody is alone, with real threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.batching.solitude import Solitude


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_many_read_at_once_and_nobody_waits():
    solitude = Solitude()
    solitude.read()
    assert solitude.try_read()
    solitude.read()


def test_one_that_is_alone_waits_for_all_that_read_and_keeps_out_those_that_come():
    solitude, is_alone, may_end, has_read = (Solitude(), *(threading.Event() for _ in range(3)))
    solitude.read()
    assert solitude.try_read()

    def be_alone():
        with solitude.alone():
            is_alone.set()
            assert may_end.wait(10)

    alone = in_thread(be_alone)
    while solitude.try_read():  # until it has asked
        solitude.done_reading()
        time.sleep(0.001)
    late = in_thread(lambda: (solitude.read(), has_read.set()))
    solitude.done_reading()
    assert not is_alone.wait(0.05)
    solitude.done_reading()
    assert is_alone.wait(10)
    assert not has_read.wait(0.05)
    assert not solitude.try_read()
    may_end.set()
    alone.join(10)
    late.join(10)
    assert has_read.is_set()
    assert solitude.try_read()


def test_readers_that_were_kept_out_are_in_before_the_next_may_be_alone():
    solitude, order = Solitude(), []
    with solitude.alone():
        late = in_thread(lambda: (solitude.read(), time.sleep(0.05), order.append("read"), solitude.done_reading()))
        while not solitude._kept_out:
            time.sleep(0.001)
    with solitude.alone():  # asked for at once
        order.append("alone")
    late.join(10)
    assert order == ["read", "alone"]


def test_what_goes_wrong_alone_keeps_nobody_out():
    solitude = Solitude()
    with pytest.raises(RuntimeError), solitude.alone():
        raise RuntimeError
    assert solitude.try_read()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_whatever_the_order_nobody_reads_beside_one_that_is_alone_and_all_come_to_an_end(orders):
    solitude = Solitude()
    readers, lonely = set(), set()

    def read(number):
        solitude.read()
        readers.add(number)
        assert not lonely
        readers.discard(number)
        solitude.done_reading()

    def be_alone(number):
        with solitude.alone():
            lonely.add(number)
            assert (readers, lonely) == (set(), {number})
            time.sleep(0.0005)
            assert (readers, lonely) == (set(), {number})
            lonely.discard(number)

    with ThreadPoolExecutor(8) as pool:
        started = [pool.submit(read if order else be_alone, number) for number, order in enumerate(orders)]
        for one in started:
            one.result(timeout=20)
