"""Which process a request goes to while processes come and go."""

import asyncio
import time

import pytest

from emb_model_provider.errors import ModelNotFoundError, UnavailableError
from emb_model_provider.messages.status import ShardTable
from router.registry import Registry
from tests.support.statuses import make_info, make_status


def table(*rows):
    return ShardTable(rows)


def row(model_id="en", **changes):
    return make_status(model_id, info=make_info(), **changes)


@pytest.fixture
def registry():
    it = Registry(5.0)
    it.update(table(row(generation=1), row("zh")))
    return it


async def test_a_successor_with_a_smaller_number_than_one_that_was_lost_is_used(registry):
    registry.update(table(row(generation=3)))
    registry.mark_lost("en", 3)
    assert not registry.is_ready(registry.find("en"))
    registry.update(table(row(generation=2)))
    assert (await registry.ready("en")).generation == 2


async def test_a_process_that_was_lost_in_this_moment_is_not_said_to_be_ready_and_not_ready(registry):
    registry.set_ready_wait(0.0)
    registry.mark_lost("en", 1)
    with pytest.raises(UnavailableError, match="The model 'en' is not ready: restarting"):
        await registry.ready("en")


async def test_a_lost_process_is_not_used_again_although_an_older_table_still_calls_it_ready(registry):
    registry.mark_lost("en", 1)
    registry.update(table(row(generation=1)))
    assert not registry.is_ready(registry.find("en"))


async def test_a_removed_model_is_unknown_to_new_requests_and_finishes_those_it_has(registry):
    registry.update(table(row(generation=1, state="stopping"), row("zh")))
    with pytest.raises(ModelNotFoundError):
        registry.find("en")
    assert [status.model_id for status in registry.all()] == ["zh"]
    assert (await registry.ready("en")).generation == 1
    registry.update(table(row("zh")))
    with pytest.raises(ModelNotFoundError):
        await registry.ready("en")


def test_a_model_whose_id_was_its_full_name_is_found_by_it_while_the_process_from_before_finishes(registry):
    registry.update(table(row("m3", name="BAAI/bge-m3"), row("BAAI/bge-m3", name="BAAI/bge-m3", state="stopping")))
    assert registry.find("BAAI/bge-m3").model_id == "m3"


async def test_who_waits_for_a_model_that_is_removed_hears_that_it_is_unknown(registry):
    registry.update(table(row(generation=1, state="loading"), row("zh")))
    waiting = asyncio.create_task(registry.ready("en"))
    await asyncio.sleep(0)
    registry.update(table(row("zh")))
    with pytest.raises(ModelNotFoundError, match="Models served here: zh"):
        await waiting


def test_a_process_that_was_to_go_is_told_from_one_that_was_lost(registry):
    assert not registry.is_relieved("en", 1)
    registry.update(table(row(generation=2), row("zh", generation=1, state="stopping")))
    assert registry.is_relieved("en", 1)
    assert registry.is_relieved("zh", 1)
    assert registry.is_relieved("gone", 1)


def test_a_model_that_changed_meanwhile_is_told_from_one_that_was_only_replaced(registry):
    begun = registry.making("en")
    registry.update(table(row(generation=2)))
    assert registry.making("en") == begun
    registry.update(table(make_status("en", generation=3, state="starting")))
    assert registry.making("en") == begun, "nothing came from a process that does not serve yet"
    registry.update(table(make_status("en", generation=3, info=make_info(fingerprint="other"))))
    changed = registry.making("en")
    assert changed != begun
    registry.update(table(row("zh")))
    assert registry.making("en") == changed, "it is served no more, and answers what it has begun"
    registry.update(table(row(generation=4)))
    assert registry.making("en") not in (begun, changed), "it is again what it was, and was another between"


def test_a_model_that_was_removed_twice_and_finishes_twice_changes_with_no_table_that_says_so_again(registry):
    again = make_status("en", generation=2, state="stopping", info=make_info(fingerprint="other"))
    registry.update(table(row(state="stopping"), again))
    making = registry.making("en")
    registry.update(table(row(state="stopping"), again))
    assert registry.making("en") == making


async def test_the_generation_that_is_current_is_the_one_in_the_table_while_it_serves():
    registry = Registry(ready_wait_s=1)
    assert not registry.is_current("m", 1)
    registry.update(ShardTable((make_status("m", generation=2, name="hub/m"),)))
    assert [registry.is_current("m", generation) for generation in (1, 2, 3)] == [False, True, False]
    assert not registry.is_current("other", 2)
    assert [registry.knows(name) for name in ("m", "hub/m", "other")] == [True, True, False]
    registry.mark_lost("m", 2)
    assert not registry.is_current("m", 2)


def test_a_model_that_is_not_served_is_told_beside_those_that_are():
    registry = Registry(ready_wait_s=1)
    with pytest.raises(ModelNotFoundError, match=r"Models served here: none\.$"):
        registry.find("minilm")
    registry.update(ShardTable((make_status("mini-lm"), make_status("bge"))))
    with pytest.raises(ModelNotFoundError, match=r"Models served here: mini-lm, bge\. Did you mean 'mini-lm'\?$"):
        registry.find("minilm")


async def test_a_name_as_long_as_a_body_is_compared_with_others_no_further_than_it_is_shown(registry):
    began_s = time.thread_time()
    with pytest.raises(ModelNotFoundError, match=r"^The model 'zzz"):
        registry.find("z" * 4_000_000)  # while all of it is compared, nobody else is answered
    assert time.thread_time() - began_s < 0.2
