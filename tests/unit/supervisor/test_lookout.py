"""What is looked at once a second, each look as a whole: nobody else tells of any of it."""

import asyncio
import shutil
from types import SimpleNamespace

import pytest

from supervisor import lookout as lookout_module
from supervisor.lookout import Lookout
from supervisor.renewals import RecycleLimits
from supervisor.rundir import RunDirectory


class FakeShard(SimpleNamespace):
    __hash__ = object.__hash__


class FakePost:
    """A model whose holder is a process of so many bytes and so many seconds."""

    def __init__(self, directory, index: int, *, size: int = 100, age_s: float = 0.0) -> None:
        socket = directory.socket_path(index, 1)
        status = SimpleNamespace(socket_path=str(socket), generation=1, model_id=f"m{index}")
        self.holder = FakeShard(status=status, age_s=age_s, keeper=SimpleNamespace(pid=size))
        self.is_ready = self.is_reachable = True
        self.problem, self.problem_since_s = "", 0.0

    def everybody(self):
        return [self.holder]

    def row(self):
        return self.holder.keeper


class FakeRenewals:
    def __init__(self) -> None:
        self.asked: dict[FakePost, str] = {}
        self.is_idle = True

    def ask(self, post, why) -> None:
        self.asked[post] = why

    def is_asked(self, post) -> bool:
        return post in self.asked


class FakeControl:
    """Makes the file as the real one does."""

    def __init__(self) -> None:
        self.opened = 0

    async def open(self, path) -> None:
        self.opened += 1
        path.write_text("")


class World:
    """A lookout with all that it looks at; the number of a process stands for its bytes."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.control, self.renewals = FakeControl(), FakeRenewals()
        self.signs_of_life = 0
        self.serving: list[FakePost] = []
        self.leaving: list[FakePost] = []
        notifier = SimpleNamespace(alive=self._note_alive)
        self.lookout = Lookout(directory, self.control, notifier, self.renewals, lambda: (self.serving, self.leaving))

    def _note_alive(self) -> None:
        self.signs_of_life += 1

    async def look(self) -> None:
        await self.lookout._look()

    def serve(self, **options) -> FakePost:
        post = FakePost(self.directory, len(self.serving), **options)
        self.serving.append(post)
        self.lookout.note_ready(post.holder)
        return post


@pytest.fixture
async def world(short_path, monkeypatch):
    monkeypatch.setattr(lookout_module, "rss_bytes_of", lambda pid: pid)
    monkeypatch.setattr(lookout_module.random, "random", lambda: 0.0)
    directory = RunDirectory.fixed(short_path / "run")
    made = World(directory)
    await made.control.open(directory.control_path)
    yield made
    directory.remove()


async def test_each_look_is_a_sign_of_life_and_changes_nothing_where_all_is_well(world):
    post = world.serve()
    for _ in range(2):
        await world.look()
    assert (world.signs_of_life, world.control.opened, world.renewals.asked) == (2, 1, {})
    assert post in world.serving


@pytest.mark.parametrize("gone", [False, True], ids=["its socket", "all of it"])
async def test_a_run_directory_that_somebody_has_emptied_or_removed_takes_requests_again(world, gone, caplog):
    if gone:
        shutil.rmtree(world.directory.path)
    else:
        world.directory.control_path.unlink()
    for _ in range(2):
        await world.look()
    assert world.directory.control_path.exists()
    assert world.control.opened == 2
    assert caplog.messages == ["run_directory_restored"]


@pytest.mark.parametrize(("pid", "looks"), [(1, 1), (2, 0)])
async def test_whoever_is_the_first_process_of_a_container_buries_its_orphans(world, monkeypatch, pid, looks):
    looked = []
    monkeypatch.setattr(world.lookout._orphans, "look", lambda: looked.append(pid))
    monkeypatch.setattr(lookout_module.os, "getpid", lambda: pid)
    await world.look()
    assert len(looked) == looks


async def test_what_the_dead_left_is_removed_and_what_those_who_leave_still_use_stays(world):
    post = world.serve()
    (gone,) = world.leaving = [FakePost(world.directory, 7)]
    boxes = [world.directory.socket_path(index, 1).with_suffix(".box") for index in (0, 7, 8)]
    for box in boxes:
        box.write_text("")
    await world.look()
    assert [box.exists() for box in boxes] == [True, True, False]
    assert (post, gone) == (world.serving[0], world.leaving[0])


async def test_a_process_whose_socket_is_gone_is_replaced_unless_it_is_not_there_yet_or_asked_for_already(world):
    lost, asked, loading = (world.serve() for _ in range(3))
    lost.is_reachable = asked.is_reachable = loading.is_reachable = loading.is_ready = False
    world.renewals.asked[asked] = "an operator's word"
    await world.look()
    assert world.renewals.asked == {asked: "an operator's word", lost: "its socket file is gone"}


@pytest.mark.parametrize("limits", [RecycleLimits(rss_bytes=500), RecycleLimits(age_s=60)], ids=["size", "age"])
async def test_one_process_that_is_too_large_or_too_old_is_replaced_at_a_time(world, limits, monkeypatch):
    monkeypatch.setattr(lookout_module.time, "monotonic", lambda: 5.0)  # a machine that has just started
    _young, old, other = world.serve(), *(world.serve(age_s=99) for _ in range(2))
    old.holder.keeper.pid = other.holder.keeper.pid = 900
    await world.look()
    assert world.renewals.asked == {}, "there is no limit"
    world.lookout.limits = limits
    world.renewals.is_idle = False
    await world.look()
    assert world.renewals.asked == {}, "somebody is being replaced"
    world.renewals.is_idle = True
    await world.look()
    assert list(world.renewals.asked) == [old]


async def test_one_that_does_not_serve_or_whose_replacement_has_just_failed_keeps_nobody_else_from_its_turn(
    world, monkeypatch
):
    world.lookout.limits = RecycleLimits(age_s=60)
    failed, loading, other = (world.serve(age_s=99) for _ in range(3))
    monkeypatch.setattr(lookout_module.time, "monotonic", lambda: 10_000.0)
    failed.problem, failed.problem_since_s, loading.is_ready = "it cannot load", 9401.0, False
    await world.look()
    assert list(world.renewals.asked) == [other]
    failed.problem_since_s = 9400.0
    await world.look()
    assert list(world.renewals.asked) == [other, failed]


async def test_what_a_process_held_when_it_was_ready_is_asked_once_and_anew_for_the_next(world):
    world.lookout.limits = RecycleLimits(rss_bytes=500)
    post = world.serve(size=100)
    post.holder.keeper.pid = 900
    world.lookout.note_ready(post.holder)  # it says so again
    await world.look()
    assert world.renewals.asked.pop(post) == "it holds 0 MiB"
    post.holder.status.generation = 2
    world.lookout.note_ready(post.holder)
    await world.look()
    assert world.renewals.asked == {}, "the next one needs as much from its start"


async def test_a_limit_below_what_a_model_needs_is_told(world, caplog):
    world.lookout.limits = RecycleLimits(rss_bytes=500)
    world.serve(size=499)
    assert caplog.messages == []
    world.serve(size=500)
    assert ["less than this model needs" in one for one in caplog.messages] == [True]


async def test_those_who_have_left_are_forgotten(world):
    world.serve()
    left = world.serve()
    world.serving.remove(left)
    await world.look()
    assert list(world.lookout._lifespans) == [world.serving[0].holder]


async def test_a_run_directory_that_cannot_be_made_again_is_told_of_once_and_models_that_serve_are_left_alone(
    world, monkeypatch, caplog
):
    post = world.serve()
    post.is_reachable = False
    shutil.rmtree(world.directory.path)
    errors = [FileNotFoundError(2, "No such file or directory", "/run/gone")] * 3
    errors.append(PermissionError(13, "Permission denied", "/run/gone"))

    fails = iter(errors)

    def refuse() -> bool:
        raise next(fails)

    with monkeypatch.context() as patched:
        patched.setattr(world.directory, "restore", refuse)
        for _ in errors:
            await world.look()
    told = [(record.message, str(record.values["error"])) for record in caplog.records]
    assert told == [("run_directory_lost", str(errors[0])), ("run_directory_lost", str(errors[3]))]
    assert world.renewals.asked == {}, "no other process could be reached either"
    await world.look()
    assert caplog.records[-1].message == "run_directory_restored"
    assert world.control.opened == 2
    assert list(world.renewals.asked) == [post]


async def test_a_look_that_fails_is_told_once_and_again_only_when_it_fails_otherwise(world, monkeypatch, caplog):
    monkeypatch.setattr(lookout_module, "_LOOK_S", 0.001)
    one, another, third = KeyError(1), TypeError("y"), ValueError("x")
    errors = [one, one, one, another, another, None, another, third, third]
    fails, done = iter(errors), asyncio.Event()

    def restore() -> bool:
        if (error := next(fails, done)) is done:
            done.set()
        elif error is not None:
            raise error
        return False

    monkeypatch.setattr(world.directory, "restore", restore)
    looking = asyncio.create_task(world.lookout.run())
    await asyncio.wait_for(done.wait(), 10)
    looking.cancel()
    assert [str(record.exc_info[1]) for record in caplog.records] == ["1", "y", "y", "x"]
    assert caplog.messages == ["look_crashed"] * 4
    assert world.signs_of_life == len(errors) + 1
