"""One model's post with shards that start no process: their keepers note what they are told."""

import asyncio
from dataclasses import replace

import pytest

from emb_model_provider.messages.status import LoadFailed, LoadProgress, Progress, Ready
from emb_model_provider.modelmap import HubAccess, Hubs, ModelSpec
from supervisor.keeper import Death
from supervisor.posts import Post
from supervisor.shards import Shard
from tests.support.no_keeper import NoKeeper
from tests.support.shard_settings import make_setting
from tests.support.statuses import make_info


class ShardKeeper(NoKeeper):
    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self.shard = shard

    def start(self) -> None:
        super().start()
        self.pid = 1
        self.shard.launch(1)

    async def stop(self, grace_s: float) -> bool:
        self.told.append("stop")
        if self.pid and "kill" not in self.told:
            await self.gone.wait()
        self.pid = 0
        return "kill" not in self.told

    def retune(self, restarts, watch) -> None:
        self.told.append(f"retune: {restarts}, {watch}")


class Scene:
    """A post, all shards it ever had, and what was told of them."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.changes: list[tuple[int, str]] = []
        self.post = Post(make_setting(), self._hire, lambda shard: self.changes.append(state(shard)))
        self.post.start()

    def _hire(self, setting, on_change) -> Shard:
        shard = Shard(setting, on_change, lambda: None)
        shard.keeper = ShardKeeper(shard)
        self.shards.append(shard)
        return shard

    def told(self, number: int) -> list[str]:
        return self.shards[number].keeper.told

    def leave(self, number: int) -> None:
        self.shards[number].keeper.gone.set()


def state(shard: Shard) -> tuple[int, str]:
    return shard.status.generation, shard.status.state


def serve(shard: Shard) -> None:
    shard.on_message(Ready(make_info()))


def fail(shard: Shard, reason: str = "crashed") -> None:
    shard._change(state="failed", reason=reason, detail="its process ended")


async def begin(coroutine) -> asyncio.Task:
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


@pytest.fixture
async def scene():
    return Scene()


async def test_the_successor_is_ready_before_the_holder_is_told_to_leave(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    assert scene.told(0) == ["start"]
    assert scene.post.row().generation == 1
    assert scene.post.successor is scene.shards[1]
    serve(scene.shards[1])
    assert await renewal
    assert scene.post.row().generation == 2
    await asyncio.sleep(0)
    assert scene.told(0) == ["start", "stop"]
    assert scene.shards[0] in scene.post.everybody()
    scene.leave(0)
    await asyncio.sleep(0.01)
    assert scene.post.everybody() == [scene.shards[1]]


async def test_without_room_for_two_the_holder_leaves_first(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=False))
    assert scene.told(0) == ["start", "stop"]
    assert scene.told(1) == []
    assert scene.post.row().state == "starting"
    scene.leave(0)
    await begin(asyncio.sleep(0))
    assert scene.told(1) == ["start"]
    serve(scene.shards[1])
    assert await renewal


@pytest.mark.parametrize("closed", [True, False])
async def test_who_waits_for_the_holder_to_leave_never_starts_once_the_post_is_closed_or_filled_anew(scene, closed):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=False))
    scene.post.give_up_renewal()
    newer = await begin(scene.post.close(1.0) if closed else scene.post.renew(overlap=False))
    scene.leave(0)
    await begin(asyncio.sleep(0))
    assert "start" not in scene.told(1)
    assert not await renewal
    if not closed:
        assert scene.told(2) == ["start"]
        serve(scene.shards[2])
    assert await newer


async def test_all_that_changes_of_holder_and_successor_is_told_and_nothing_of_who_leaves(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.shards[0].on_message(LoadProgress("loading", 0, 0))
    serve(scene.shards[0])
    assert (1, "ready") in scene.changes
    assert scene.changes[-3:] == [(2, "starting"), (1, "loading"), (1, "ready")]
    serve(scene.shards[1])
    assert await renewal
    assert scene.changes[-1] == (2, "ready")
    scene.changes.clear()
    fail(scene.shards[0])
    assert scene.changes == []
    again = await begin(scene.post.renew(overlap=False))
    assert scene.changes[0] == (0, "starting"), "whoever begins anew is told of before it starts"
    scene.post.give_up_renewal()
    scene.leave(1)
    assert not await again


async def test_killed_is_everybody_of_a_post(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.post.kill()
    assert [scene.told(number)[-1] for number in (0, 1)] == ["kill", "kill"]
    scene.post.withdraw()
    assert not await renewal


async def test_a_holder_that_does_not_serve_is_replaced_at_once(scene):
    fail(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.leave(0)
    await begin(asyncio.sleep(0))
    assert scene.post.holder is scene.shards[1]
    serve(scene.shards[1])
    assert await renewal


async def test_a_process_on_its_way_is_started_again_with_a_mirror_that_was_set_meanwhile(scene):
    mirror = Hubs(huggingface=HubAccess(endpoint="https://mirror.example"))
    scene.post.wanted = replace(scene.post.wanted, hubs=mirror)
    scene.post.take_hubs()
    (config,) = scene.shards[0].launch(2).first_messages
    assert config.hubs == mirror


async def test_a_start_that_never_ends_is_given_up_for_newer_settings(scene):
    fail(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=False))
    scene.leave(0)
    await begin(asyncio.sleep(0))
    assert scene.told(1) == ["start"]
    scene.post.give_up_renewal()
    assert not await renewal
    await begin(scene.post.renew(overlap=False))
    assert scene.told(1) == ["start", "stop"]


@pytest.mark.parametrize(("reason", "lacked"), [("wrong_weights", False), ("out_of_memory", True)])
async def test_a_successor_that_cannot_come_up_leaves_the_holder_where_it_is(scene, reason, lacked):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    fail(scene.shards[1], reason)
    assert not await renewal
    assert scene.post.holder is scene.shards[0]
    assert scene.post.successor is None
    assert "kill" in scene.told(1)
    row = scene.post.row()
    assert (row.state, row.reason, row.generation) == ("ready", "not_replaced", 1)
    assert scene.post.lacked_memory is lacked
    again = await begin(scene.post.renew(overlap=True))
    assert scene.post.row().reason == "", "a new try clears it"
    assert not scene.post.lacked_memory
    serve(scene.shards[2])
    assert await again


async def test_a_holder_that_fails_later_says_what_it_failed_of_and_not_that_it_was_not_replaced(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    fail(scene.shards[1], "wrong_weights")
    assert not await renewal
    fail(scene.shards[0], "crashed")
    assert (scene.post.row().state, scene.post.row().reason) == ("failed", "crashed")


async def test_a_holder_that_failed_is_revived_with_the_settings_wanted_now(scene):
    fail(scene.shards[0])
    scene.post.wanted = replace(scene.post.wanted, spec=ModelSpec(id="en", name="hub/newer"))
    scene.post.revive()
    assert scene.told(0) == ["start", "revive"]
    assert scene.shards[0].setting.spec.name == "hub/newer"
    scene.shards[0].launch(2)
    assert scene.post.row().restarts == 0


async def test_a_holder_that_fails_for_good_makes_room_for_the_successor_at_once(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.changes.clear()
    fail(scene.shards[0])
    assert scene.post.row().generation == 2
    assert scene.post.row().state == "starting"
    assert scene.changes == [(2, "starting")], "routers still take the one before for ready"
    serve(scene.shards[1])
    assert await renewal


async def test_a_holder_that_restarts_meanwhile_never_gets_the_successors_number(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.shards[0].launch(2)
    assert [shard.status.generation for shard in scene.shards] == [3, 2]
    serve(scene.shards[1])
    assert await renewal
    assert scene.post.row().generation == 2


async def test_a_holder_that_fails_the_router_gives_way_to_a_successor_or_is_started_again(scene):
    serve(scene.shards[0])
    assert scene.post.give_up(1, "answered nonsense")
    assert scene.told(0) == ["start", "replace: answered nonsense"]
    assert not scene.post.give_up(7, "answered nonsense"), "nobody has this number"
    renewal = await begin(scene.post.renew(overlap=True))
    scene.changes.clear()
    assert scene.post.give_up(1, "answered nonsense")
    assert "kill" in scene.told(0)
    assert scene.post.row().generation == 2
    assert scene.changes == [(2, "starting")]
    serve(scene.shards[1])
    assert await renewal


async def test_a_reason_that_is_a_sentence_is_gone_on_with_without_its_full_stop(scene):
    scene.shards[0].on_message(LoadFailed("no_network", "It cannot be reached."))
    scene.shards[0].on_died(Death(exit_code=75, was_ready=False, ended_because="", restart_in_s=30.0, breaker="open"))
    assert scene.post.row().detail == "It cannot be reached; it keeps failing, so it is tried again only in 30 s"


async def test_what_a_model_failed_of_stands_beside_its_state_until_it_serves(scene):
    shard = scene.shards[0]
    shard.on_message(LoadFailed("out_of_memory", "it does not fit"))
    shard.on_died(Death(exit_code=75, was_ready=False, ended_because="", restart_in_s=30.0, breaker="open"))
    row = scene.post.row()
    assert (row.state, row.reason) == ("failed", "out_of_memory")
    assert row.detail == "it does not fit; it keeps failing, so it is tried again only in 30 s"
    shard.launch(2)
    for state in ("starting", "loading"):
        row = scene.post.row()
        assert (row.state, row.reason, row.detail) == (state, "out_of_memory", "it does not fit")
        shard.on_message(LoadProgress("loading", 0, 0))
    serve(shard)
    row = scene.post.row()
    assert (row.state, row.reason, row.detail) == ("ready", "", "")


async def test_newer_settings_withdraw_a_successor_that_has_older_ones(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.post.wanted = replace(scene.post.wanted, spec=ModelSpec(id="en", name="hub/newer"))
    again = await begin(scene.post.renew(overlap=True))
    assert not await renewal
    assert scene.told(1) == ["start", "kill", "stop"]
    assert scene.shards[2].setting.spec.name == "hub/newer"
    serve(scene.shards[1])  # too late: it is nobody's successor any more
    assert scene.post.holder is scene.shards[0]
    serve(scene.shards[2])
    assert await again
    assert scene.post.row().name == "hub/newer"


async def test_closing_ends_holder_successor_and_those_that_leave_and_its_row_says_stopping(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    closing = await begin(scene.post.close(1.0))
    assert not await renewal
    assert scene.post.row().state == "stopping"
    assert "kill" in scene.told(1)
    assert not closing.done()
    scene.leave(0)
    await closing
    assert not await scene.post.renew(overlap=True), "a closed post is filled no more"
    assert len(scene.shards) == 2


async def test_a_withdrawn_successor_belongs_to_the_post_until_its_process_is_gone(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.post.withdraw()
    assert scene.shards[1] in scene.post.everybody()
    assert not await renewal
    await begin(asyncio.sleep(0))
    assert scene.post.everybody() == [scene.shards[0]]


async def test_a_model_that_failed_before_its_post_is_closed_is_still_said_to_have_failed(scene):
    fail(scene.shards[0])
    closing = await begin(scene.post.close(1.0))
    assert scene.post.row().state == "failed"
    scene.leave(0)
    assert await closing


async def test_what_went_wrong_is_counted_over_replacements(scene):
    first = scene.shards[0]
    first.launch(3)
    first.keeper.crashes, first.keeper.boot_failures = 2, 1
    serve(first)
    first.on_message(Progress(1, 0.0, 0, 0, 1, last_success=1_700_000_000.0))
    renewal = await begin(scene.post.renew(overlap=True))
    serve(scene.shards[1])
    await renewal
    row = scene.post.row()
    assert (row.restarts, row.health.crashes, row.health.boot_failures) == (2, 2, 1)
    assert row.health.last_success == 1_700_000_000.0


async def test_other_limits_reach_every_process_of_the_post(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    scene.post.retune("restarts", "watch")
    assert [shard.keeper.told[-1] for shard in scene.post.everybody()] == ["retune: restarts, watch"] * 2
    scene.post.withdraw()
    assert not await renewal


async def test_closing_waits_for_who_was_to_leave_first_when_the_renewal_was_broken_off(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=False))
    renewal.cancel()
    closing = await begin(scene.post.close(1.0))
    assert renewal.cancelled()
    assert scene.post.everybody() == [scene.shards[1], scene.shards[0]]
    assert not closing.done()
    scene.leave(0)
    assert await closing


async def test_a_post_has_failed_while_no_process_of_it_lives_and_is_reachable_where_its_socket_is(scene):
    holder = scene.shards[0]
    for state, has_failed in [("starting", False), ("ready", False), ("failed", True), ("restarting", True)]:
        holder._change(state=state)
        assert scene.post.has_failed is has_failed
    for path, is_reachable in [("/", True), ("/no/such.sock", False)]:
        holder._change(socket_path=path)
        assert scene.post.is_reachable is is_reachable


async def test_a_holder_that_is_revived_with_the_settings_that_could_not_take_over_serves_them_and_says_so(scene):
    serve(scene.shards[0])
    renewal = await begin(scene.post.renew(overlap=True))
    fail(scene.shards[1], "no_network")
    assert not await renewal
    assert scene.post.row().reason == "not_replaced"
    fail(scene.shards[0])
    scene.post.revive()
    serve(scene.shards[0])
    assert (scene.post.row().state, scene.post.row().reason, scene.post.problem) == ("ready", "", "")
