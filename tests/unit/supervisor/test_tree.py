"""What the tree decides, with children that are no processes: their keepers note what they are told."""

import asyncio
import itertools
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.messages.status import Ready, RestartShard, RouterReady, ShardTable
from emb_model_provider.modelmap import BatchLimits, HubAccess, Hubs, ModelSpec
from emb_model_provider.settings import load_settings
from supervisor import tree as tree_module
from supervisor.front import ROUTER_LIMITS, ROUTER_STARTUP_S
from supervisor.plan import Placement
from supervisor.posts import KILL_MARGIN_S
from supervisor.tree import Ground, Tree
from tests.support.no_keeper import NoKeeper
from tests.support.statuses import make_info


class TreeKeeper(NoKeeper):
    """Its child has gone as soon as it is told to."""

    def __init__(self, kept, policy, watchdog, _lines) -> None:
        super().__init__()
        self.kept = kept
        self.limits, self.watch = policy._limits, watchdog._limits
        self.gone.set()
        self.goes_by_itself = True

    def start(self) -> None:
        super().start()
        self.pid = 7
        if self.kept.name.startswith("shard"):
            self.kept.launch(1)

    def send(self, message) -> None:
        """What is pushed is ``test_front``'s."""

    async def stop(self, grace_s: float) -> bool:
        self.told.append(f"stop within {grace_s:g}")
        World.diary.append(f"{self.kept.name} stops")
        await self.gone.wait()
        World.diary.append(f"{self.kept.name} has gone")
        return self.goes_by_itself

    def retune(self, restarts, watch) -> None:
        self.told.append((restarts.first_delay_s, watch.batch_s))


class Recorder:
    """Notes every call."""

    def __init__(self, notes: list[str], name: str) -> None:
        self._notes = notes
        self._name = name

    def __getattr__(self, method: str):
        return lambda *values, **_named: self._notes.append(" ".join([self._name, method, *map(str, values)]))


def model(name: str, **fields) -> ModelSpec:
    return ModelSpec(id=name, name=f"hub/{name}", **fields)


class World:
    """A tree and everything around it; what is set anew comes with the next reload."""

    diary: list[str]

    def __init__(self, tmp_path: Path, monkeypatch, env=()) -> None:
        self.keepers: list[TreeKeeper] = []
        self.notes: list[str] = []
        World.diary = []
        monkeypatch.setattr(tree_module, "Keeper", self._keep)
        self.settings = self.with_models(model("en"), model("zh"), env=env)
        self.places: dict[str, Placement] = {}
        self.problem = ""
        self.path = tmp_path
        sockets = lambda index, generation: tmp_path / f"s{index}-{generation}.sock"  # noqa: E731
        run_directory = SimpleNamespace(path=tmp_path, control_path=tmp_path / "control", socket_path=sockets)
        listening = SimpleNamespace(
            address=lambda is_tls: "https://here" if is_tls else "http://here",
            open_host="192.0.2.1",
            descriptors=lambda _index: (),
            close=lambda: None,
        )
        ground = Ground(
            "1",
            listening,
            run_directory,
            SimpleNamespace(),
            Recorder(self.notes, "console"),
            Recorder(self.notes, "notifier"),
            self._load,
        )
        self.tree = Tree(self.settings, self._places(), ground)
        for post in self.tree._posts.values():
            post.start()
        self.notes.clear()

    def with_models(self, *models: ModelSpec, env=()):
        return replace(load_settings(dict(env), None), models=models)

    def _places(self) -> dict[str, Placement]:
        return {spec.id: self.places.get(spec.id, Placement("cpu", "", (), 1)) for spec in self.settings.models}

    def _load(self):
        if self.problem:
            raise ConfigurationError(self.problem)
        return self.settings, self._places()

    def _keep(self, *parts) -> TreeKeeper:
        self.keepers.append(TreeKeeper(*parts))
        return self.keepers[-1]

    def reload(self, *models: ModelSpec, env=()):
        if models:
            self.settings = self.with_models(*models, env=env)
        return self.tree.reload()

    def keeper(self, model_id: str, number: int = 0) -> TreeKeeper:
        return [keeper for keeper in self.keepers if keeper.kept.name == f"shard[{model_id}]"][number]

    @property
    def router(self) -> TreeKeeper:
        return next(keeper for keeper in self.keepers if keeper.kept.name == "router")

    def post(self, model_id: str):
        return self.tree._posts[model_id]

    def serve(self, model_id: str, number: int = 0) -> None:
        self.keeper(model_id, number).kept.on_message(Ready(make_info()))

    def states(self) -> list[tuple[str, str]]:
        return [(row.model_id, row.state) for row in self.tree._table().shards]

    def asked(self) -> dict[str, str]:
        return {post.model_id: why for post, why in self.tree._renewals._waiting.items()}


@pytest.fixture
async def world(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    yield world
    for keeper in world.keepers:
        keeper.gone.set()
    await settle()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------------- running


async def test_signals_and_operators_are_heard_before_any_child_is_started_and_until_all_have_gone(world, monkeypatch):
    tree, handlers, looking = world.tree, {}, asyncio.Event()
    for keeper in world.keepers:
        keeper.told.clear()

    async def open_control(path):
        assert set(handlers) == unblocked == set(tree_module.OBEYED)
        assert not any(keeper.told for keeper in world.keepers)
        World.diary.append(f"control opens {path.name}")

    async def close_control():
        World.diary.append("control closes")

    async def look():
        looking.set()
        try:
            await asyncio.Event().wait()
        finally:
            looking.clear()

    unblocked, masks = set(), []
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", handlers.__setitem__, raising=False)

    def mask(how, those):
        masks.append((how, set(those)))
        if how == signal.SIG_UNBLOCK:
            unblocked.update(those)

    monkeypatch.setattr(signal, "pthread_sigmask", mask)
    monkeypatch.setattr(tree, "_control", SimpleNamespace(open=open_control, close=close_control))
    monkeypatch.setattr(tree._lookout, "run", look)
    running = asyncio.create_task(tree.run())
    await settle()
    assert World.diary == ["control opens control"]
    assert [keeper.told for keeper in world.keepers] == [["start"]] * 3
    assert looking.is_set()
    handlers[signal.SIGHUP]()
    assert world.notes[-3:-1] == ["notifier reloading", "console say settings read again; kept: en, zh"]
    assert tree._renewals._task is not None
    handlers[signal.SIGTERM]()
    assert await asyncio.wait_for(running, 5) == 0
    assert World.diary[-1] == "control closes"
    assert masks[-1] == (signal.SIG_BLOCK, set(tree_module.OBEYED)), "one more would end it before it has tidied up"
    assert not looking.is_set()
    assert tree._renewals._task.done()
    handlers[signal.SIGINT]()
    assert world.router.told[-1] == "kill"


# ----------------------------------------------------------------------------------------------------------- reloading


async def test_a_reload_leaves_models_that_did_not_change_to_themselves(world):
    world.serve("en")
    changes = world.reload(model("zh"), model("en"))
    assert (changes.kept, world.asked()) == (("zh", "en"), {})
    assert list(world.tree._posts) == ["zh", "en"], "the order of the settings"
    assert len(world.keepers) == 3
    assert [keeper.told[0] for keeper in world.keepers[1:]] == ["start", "start"]
    assert not {"revive", "kill"}.intersection(*[map(str, keeper.told) for keeper in world.keepers])
    assert world.notes[-3:] == [
        "notifier reloading",
        "console say settings read again; kept: zh, en",
        "notifier ready",
    ]


async def test_a_reload_that_changes_no_more_than_the_order_reaches_the_routers(world, monkeypatch):
    pushed: list[ShardTable] = []
    monkeypatch.setattr(world.keepers[0], "send", pushed.append)
    await asyncio.sleep(0.03)
    pushed.clear()
    world.reload(model("zh"), model("en"))
    await asyncio.sleep(0.03)
    assert [[row.model_id for row in table.shards] for table in pushed] == [["zh", "en"]]


async def test_a_reload_starts_what_is_new_and_announces_it(world):
    world.reload(model("en"), model("zh"), model("fr"))
    assert world.keeper("fr").told == ["start"]
    assert any(note.startswith("console add ModelSpec(id='fr'") for note in world.notes)
    assert [name for name, _ in world.states()] == ["en", "zh", "fr"]
    indexes = [world.post(name).wanted.index for name in ("en", "zh", "fr")]
    assert len(set(indexes)) == 3, "each has its own socket"


async def test_a_reload_has_what_changed_renewed_with_its_new_description(world):
    world.reload(model("en", precision="int8"), model("zh"))
    assert world.asked() == {"en": "its settings have changed"}
    assert world.post("en").wanted.spec.precision == "int8"
    assert world.post("en").holder.setting.spec.precision == "auto", "who runs is what it was started as"


async def test_a_reload_tries_again_what_could_not_be_replaced_before(world):
    world.serve("en")
    world.post("en").problem = "it did not fit"
    world.reload()
    assert world.asked() == {"en": "it could not be replaced before"}


async def test_a_reload_revives_what_is_dead_and_did_not_change(world):
    world.keeper("en").kept._change(state="failed")
    world.keeper("zh").kept._change(state="failed")
    world.reload(model("en"), model("zh", precision="int8"))
    assert "revive" in world.keeper("en").told
    assert "revive" not in world.keeper("zh").told
    assert world.asked() == {"zh": "its settings have changed"}


async def test_a_reload_gives_everybody_the_limits_and_hubs_of_now(world):
    world.settings = replace(
        world.with_models(
            model("en"),
            model("zh"),
            env={
                "EMB_PROVIDER_RESTART_DELAY_S": "3",
                "EMB_PROVIDER_BATCH_TIMEOUT_S": "44",
                "EMB_PROVIDER_SHUTDOWN_GRACE_S": "21",
                "EMB_PROVIDER_RECYCLE_AGE_S": "99",
                "EMB_PROVIDER_READY_WAIT_S": "5",
            },
        ),
        hubs=Hubs(huggingface=HubAccess(token="new")),
    )
    world.reload()
    post = world.post("en")
    assert (3.0, 44.0) in world.keeper("en").told
    assert post.holder.setting.hubs.huggingface.token == "new"
    assert (post.wanted.hubs.huggingface.token, post.wanted.drain_s) == ("new", 21.0)
    assert world.tree._lookout.limits.age_s == 99.0
    assert world.tree._front._config.ready_wait_s == 5.0
    assert world.tree._front._push_due is not None


@pytest.mark.parametrize(
    ("device", "planned", "gpus"), [("cuda", "cuda:0", "1"), ("auto", "cuda:0", "0"), ("cuda", "cpu", "")]
)
async def test_a_gpu_once_chosen_stays_the_models_as_long_as_it_asks_for_the_same(world, device, planned, gpus):
    """Or a reload would move a model beside others, although it did not change."""
    world.post("en").wanted = replace(
        world.post("en").wanted, spec=model("en", device="cuda"), placement=Placement("cuda:0", "1", (), 1)
    )
    world.places["en"] = Placement(planned, "" if planned == "cpu" else "0", (), 2)
    world.reload(model("en", device=device), model("zh"))
    placement = world.post("en").wanted.placement
    assert (placement.device, placement.visible_gpus, placement.threads) == (planned, gpus, 2)


async def test_a_reload_that_takes_the_last_key_away_warns_of_a_server_open_to_the_network(world, caplog):
    world.reload(model("en"), env={"EMB_PROVIDER_API_KEYS": "hush"}.items())
    assert "open to the network" not in caplog.text
    world.reload(model("en"))
    assert "open to the network: listening on 192.0.2.1 without a key" in caplog.text


async def test_a_server_that_is_open_on_purpose_is_not_warned_of_at_each_reload(world, caplog):
    world.reload(model("en"))
    assert "open to the network" not in caplog.text


async def test_the_address_is_told_when_the_sockets_are_closed_too(world):
    def closed(is_tls: bool) -> str:
        raise OSError(9, "Bad file descriptor")

    world.tree._ground.listening.address = closed
    world.tree.stop()
    report = world.tree._desk._report()
    assert (report.state, report.address) == ("stopping", "http://here")


async def test_a_reload_that_sets_a_certificate_changes_the_address_that_is_told(world):
    world.reload(model("en"), env={"EMB_PROVIDER_TLS_CERT_FILE": "c.pem"}.items())
    assert world.tree._desk._report().address == "https://here"
    world.reload(model("en"))
    assert world.tree._desk._report().address == "http://here"


async def test_settings_that_cannot_be_used_change_nothing(world):
    world.problem = "a comma is missing."
    before = dict(world.tree._posts)
    assert world.reload() is None
    assert world.tree._posts == before
    assert world.notes[-3:] == [
        "notifier reloading",
        "console say reload refused, the server goes on as before: a comma is missing.",
        "notifier ready",
    ]


async def test_a_server_that_stops_reads_no_settings(world):
    world.tree.stop()
    assert world.reload(model("fr")) is None
    assert world.notes == []
    assert list(world.tree._posts) == ["en", "zh"]


# ------------------------------------------------------------------------------------------------------------ removing


async def test_a_model_that_is_removed_is_shown_as_stopping_until_it_has_finished(world):
    world.serve("en")
    world.serve("zh")
    world.keeper("zh").gone.clear()
    world.reload(model("en"))
    await settle()
    assert world.states() == [("en", "ready"), ("zh", "stopping")]
    grace_s = world.tree._use.grace_s
    assert world.keeper("zh").told[-1] == f"stop within {grace_s + KILL_MARGIN_S:g}"
    world.tree._front._push_due = None
    world.keeper("zh").gone.set()
    await settle()
    assert world.states() == [("en", "ready")]
    assert world.notes.index("console forget zh") < world.notes.index("console say   zh  removed")
    assert world.tree._front._push_due is not None


async def test_a_model_that_is_removed_before_it_serves_is_shown_no_more(world):
    world.keeper("zh").gone.clear()
    world.reload(model("en"))
    await settle()
    assert [name for name, _ in world.states()] == ["en"]


async def test_a_model_that_is_removed_is_renewed_no_more(world):
    world.reload(model("en"), model("zh", precision="int8"))
    assert "zh" in world.asked()
    world.reload(model("en"))
    assert world.asked() == {}


async def test_a_model_that_comes_back_while_it_leaves_has_one_row_and_no_number_twice(world):
    world.serve("zh")
    world.keeper("zh").gone.clear()
    world.reload(model("en"))
    await settle()
    world.reload(model("en"), model("zh"))
    assert [name for name, _ in world.states()] == ["en", "zh"]
    assert world.post("zh").holder.status.generation == 2


# ------------------------------------------------------------------------------------------------------------ stopping


async def stopped(world) -> int:
    return await asyncio.wait_for(world.tree._stop(), 5)


async def test_the_shards_stop_when_the_router_has_finished(world):
    world.router.gone.clear()
    stopping = asyncio.create_task(world.tree._stop())
    await settle()
    assert World.diary == ["router stops"]
    world.keeper("en").gone.clear()
    world.router.gone.set()
    await settle()
    assert World.diary == [
        "router stops",
        "router has gone",
        "shard[en] stops",
        "shard[zh] stops",
        "shard[zh] has gone",
    ]
    world.keeper("en").gone.set()
    assert await asyncio.wait_for(stopping, 5) == 0
    assert world.notes == [
        "console say stopping: finishing what is in flight (once more to stop at once)",
        "notifier stopping",
    ]


@pytest.mark.parametrize(("grace_s", "shard_s"), [("30", 7), ("1", 3)])
async def test_once_the_router_is_gone_shards_have_little_time_and_none_beyond_the_grace(world, grace_s, shard_s):
    world.reload(model("en"), model("zh"), env={"EMB_PROVIDER_SHUTDOWN_GRACE_S": grace_s})
    await stopped(world)
    assert world.keeper("en").told[-1] == f"stop within {shard_s}"
    assert world.router.told[-1] == f"stop within {float(grace_s) + KILL_MARGIN_S:g}"


@pytest.mark.parametrize("who", ["router", "shard[zh]"])
async def test_somebody_who_had_to_be_killed_makes_the_exit_code(world, who):
    next(keeper for keeper in world.keepers if keeper.kept.name == who).goes_by_itself = False
    assert await stopped(world) == 1


async def test_successors_on_their_way_are_given_up_before_the_router_finishes(world):
    world.serve("en")
    renewal = asyncio.create_task(world.post("en").renew(overlap=True))
    await settle()
    world.router.gone.clear()
    stopping = asyncio.create_task(world.tree._stop())
    await settle()
    assert world.keeper("en", 1).told[:2] == ["start", "kill"]
    assert not await renewal
    world.router.gone.set()
    assert await stopping == 0


async def test_a_stop_waits_for_models_that_are_being_removed(world):
    world.serve("zh")
    world.keeper("zh").gone.clear()
    world.reload(model("en"))
    await settle()
    stopping = asyncio.create_task(world.tree._stop())
    await settle()
    assert "shard[en] has gone" in World.diary
    assert not stopping.done()
    world.keeper("zh").gone.set()
    assert await asyncio.wait_for(stopping, 5) == 0


async def test_the_first_stop_is_orderly_and_the_second_ends_everybody_at_once(world):
    world.serve("zh")
    world.keeper("zh").gone.clear()
    world.reload(model("en"))
    await settle()
    assert not world.tree.is_stopping
    world.tree.stop()
    assert world.tree.is_stopping
    assert not any("kill" in keeper.told for keeper in world.keepers)
    world.tree.stop()
    assert all(keeper.told[-1] == "kill" for keeper in world.keepers), "also who is being removed"
    assert await stopped(world) == 1


async def test_a_person_reads_why_nobody_is_answered_yet(world):
    world.tree.front_failed("router", "exited with code 1")
    assert [note for note in world.notes if "takes no connections yet: its process exited with code 1" in note]


async def test_a_server_that_can_have_no_router_stops_and_its_exit_code_says_so(world):
    world.tree.front_lost()
    assert world.tree.is_stopping
    assert await stopped(world) == 1


# ------------------------------------------------------------------------------------------------- the router's demands


async def test_a_demand_is_carried_out_for_the_process_that_it_is_about(world, caplog):
    world.tree.shard_demanded(RestartShard("en", 1, "it lies"))
    assert world.keeper("en").told[-1] == "replace: failed the router: it lies"
    assert [record.message for record in caplog.records] == ["given_up"]


@pytest.mark.parametrize(("model_id", "generation"), [("en", 2), ("nobody", 1)])
async def test_a_demand_about_who_is_gone_harms_nobody(world, caplog, model_id, generation):
    world.tree.shard_demanded(RestartShard(model_id, generation, "it lies"))
    assert world.keeper("en").told == ["start"]
    assert caplog.records == []


async def test_a_model_that_is_acquitted_has_its_deaths_forgotten_and_one_that_is_gone_harms_nobody(world):
    world.tree.shard_acquitted("nobody")
    world.tree.shard_acquitted("en")
    assert world.keeper("en").told == ["start", "revive"]


async def test_systemd_hears_that_connections_are_taken(world):
    world.router.kept.on_message(RouterReady(5))
    assert world.notes == ["notifier ready"]


# ------------------------------------------------------------------------------------------------------- what is said


async def test_a_model_that_is_ready_is_shown_counted_and_pushed(world, caplog):
    caplog.set_level("INFO")
    seen = []
    world.tree._lookout.note_ready = seen.append
    world.tree._front._push_due = None
    world.serve("en")
    assert [shard.status.model_id for shard in seen] == ["en"]
    assert world.notes[0].startswith("console show ")
    assert world.notes[1].startswith("console invite http://here ")
    assert world.notes[2] == "notifier status 1 of 2 models ready on http://here"
    assert world.tree._front._push_due is not None
    (line,) = [record.values for record in caplog.records if record.message == "model_state"]
    assert (line["model"], line["state"], line["generation"], line["reason"]) == ("en", "ready", 1, None)


async def test_why_a_model_has_failed_is_logged_where_errors_alone_are(world, caplog):
    caplog.set_level("ERROR")
    world.keeper("en").kept._change(state="loading")
    world.keeper("en").kept._change(state="failed", reason="no_such_model", detail="no such directory")
    (line,) = [record.values for record in caplog.records if record.message == "model_state"]
    assert (line["state"], line["reason"], line["detail"]) == ("failed", "no_such_model", "no such directory")


async def test_a_download_fills_no_log(world, caplog):
    caplog.set_level("INFO")
    world.keeper("en").kept._change(state="downloading", done_bytes=1, total_bytes=2)
    assert [record.message for record in caplog.records] == []
    assert [note.split()[:2] for note in world.notes] == [["console", "show"], ["notifier", "status"]]
    world.keeper("en").kept._change(state="loading")
    assert [record.message for record in caplog.records] == ["model_state"]


async def test_a_holder_without_a_process_yet_is_said_to_nobody(world, caplog):
    caplog.set_level("INFO")
    world.serve("en")
    world.keeper("en").gone.clear()
    caplog.clear()
    world.notes.clear()
    renewal = asyncio.create_task(world.post("en").renew(overlap=False))
    await settle()
    assert "model_state" not in [record.message for record in caplog.records]
    assert [note.split()[:2] for note in world.notes] == [["notifier", "status"]]
    world.post("en").give_up_renewal()
    world.keeper("en").gone.set()
    assert not await renewal


# -------------------------------------------------------------------------------------------------------------- limits


async def test_shards_have_the_limits_of_the_settings_and_routers_their_own(world):
    use = world.tree._use
    assert world.keeper("en").limits == use.restart_limits()
    assert world.keeper("en").watch == use.watch_limits(BatchLimits())
    assert world.router.limits == ROUTER_LIMITS
    assert world.router.watch == replace(use.watch_limits(), startup_s=ROUTER_STARTUP_S)


async def test_processes_are_recycled_by_the_settings_of_the_start(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch, {"EMB_PROVIDER_RECYCLE_AGE_S": "99"})
    assert world.tree._lookout.limits.age_s == 99.0


async def test_a_shard_is_made_with_what_the_settings_say(world):
    setting = world.post("zh").wanted
    assert (setting.spec, setting.placement) == (world.settings.models[1], Placement("cpu", "", (), 1))
    assert setting.drain_s == world.tree._use.grace_s
    assert setting.log == world.tree._use.log_config()
    assert isinstance(setting.generations, itertools.count)
