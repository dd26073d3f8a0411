"""What an operator hears, of a server that is not there: its parts note what they are asked for."""

from types import SimpleNamespace

import pytest

from supervisor import desk as desk_module
from supervisor.control import ControlError, Request
from supervisor.desk import Desk, Plate
from tests.support.statuses import make_status

MIB = 1024 * 1024


class Office:
    """Everything around a desk, and the desk. Implements ``DeskOwner``."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.address = "http://here"
        self.is_stopping = False
        self.changes = SimpleNamespace(summary=lambda: "kept: en")
        self.use = SimpleNamespace(problems=(), needs_restart=("EMB_PROVIDER_PORT",), read_at=5.0, grace_s=12.5)
        self.use.settings = SimpleNamespace(warnings=())
        self.routers = [SimpleNamespace(keeper=SimpleNamespace(pid=40 + n), restarts=n) for n in (1, 2)]
        self.renewals = SimpleNamespace(ask=self._ask, is_asked=lambda post: post.model_id in self.renewing)
        self.renewing: set[str] = set()
        self.serving = {name: self.post(name, pid) for name, pid in (("en", 11), ("zh", 12))}
        self.leaving = [self.post("old", 13)]
        self.desk = Desk(
            Plate("1.2", "/run/here"),
            self,
            self.use,
            SimpleNamespace(routers=self.routers, is_renewing=False, quarantined=3),
            self.renewals,
            lambda: (self.serving, self.leaving),
        )

    def post(self, name: str, pid: int, **fields) -> SimpleNamespace:
        holder = SimpleNamespace(age_s=3.0)
        post = SimpleNamespace(
            model_id=name,
            is_ready=True,
            has_failed=False,
            holder=holder,
            successor=None,
            everybody=lambda: [holder],
            row=lambda: make_status(name, pid=pid),
            revive=lambda: self.done.append(f"revive {name}"),
        )
        vars(post).update(fields)
        return post

    def ask(self, command: str, model: str = "") -> dict[str, object]:
        return self.desk.answer(Request(command, model))

    def report(self) -> dict:
        return self.ask("status")["status"]

    def _ask(self, post, why: str) -> None:
        self.done.append(f"renew {post.model_id}: {why}")

    def reload(self):
        self.done.append("reload")
        return self.changes

    def stop(self) -> None:
        self.done.append("stop")


@pytest.fixture
def office(monkeypatch):
    clock = SimpleNamespace(now_s=1000.0)
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(desk_module, "rss_bytes_of", lambda pid: pid * MIB)
    office = Office()
    office.clock = clock
    return office


def test_the_status_is_that_of_this_moment(office):
    office.clock.now_s += 61.26
    report = office.report()
    assert (report["version"], report["address"], report["run_dir"]) == ("1.2", "http://here", "/run/here")
    assert (report["state"], report["uptime_s"], report["settings_read"]) == ("serving", 61.3, 5.0)
    assert (report["problems"], report["pending_restart"]) == ((), ("EMB_PROVIDER_PORT",))
    assert report["pid"] > 0
    assert office.done == []


def test_the_status_adds_up_all_routers_and_names_the_first(office):
    assert office.report()["router"] == {
        "pid": 41,
        "restarts": 3,
        "rss_bytes": (41 + 42) * MIB,
        "processes": 2,
        "renewing": False,
        "quarantined": 3,
    }


def test_the_status_has_the_models_that_serve_and_then_those_that_are_being_removed(office):
    models = office.report()["models"]
    assert [(model["model"], model["rss_bytes"], model["age_s"]) for model in models] == [
        ("en", 11 * MIB, 3.0),
        ("zh", 12 * MIB, 3.0),
        ("old", 13 * MIB, 3.0),
    ]
    assert {(model["successor"], model["leaving"], model["renewing"]) for model in models} == {("", 0, False)}


def test_a_successor_and_those_that_leave_are_told_apart(office):
    successor = SimpleNamespace(status=SimpleNamespace(state="warming"))
    post = office.serving["zh"]
    office.renewing.add("zh")
    post.successor, post.everybody = successor, lambda: [post.holder, successor, "leaving", "leaving"]
    en, zh, _ = office.report()["models"]
    assert (zh["successor"], zh["leaving"], zh["renewing"]) == ("warming", 2, True)
    assert not en["renewing"]
    post.successor, post.everybody = None, lambda: [post.holder, "leaving"]
    _, zh, _ = office.report()["models"]
    assert (zh["successor"], zh["leaving"]) == ("", 1)


def test_a_server_that_stops_answers_what_it_is_at_and_takes_a_second_stop_and_nothing_else(office):
    office.is_stopping = True
    assert office.report()["state"] == "stopping"
    for command in ("reload", "restart"):
        with pytest.raises(ControlError, match="The server is stopping"):
            office.ask(command, "en")
    assert office.done == []
    assert office.ask("stop") == {"summary": "stopping; requests in flight have 12.5 s"}
    assert office.done == ["stop"]


def test_a_reload_says_what_it_changes(office):
    assert office.ask("reload") == {"summary": "kept: en"}
    assert office.done == ["reload"]


def test_a_reload_says_what_the_settings_are_warned_of_to_who_has_just_edited_them(office):
    office.use.settings.warnings = ("X is ignored.", "Y, too.")
    assert office.ask("reload") == {"summary": "kept: en\nwarning: X is ignored.\nwarning: Y, too."}


def test_a_reload_that_is_refused_says_why_a_line_each(office):
    office.changes, office.use.problems = None, ("one thing.", "another.")
    with pytest.raises(ControlError, match=r"goes on as before\.\none thing\.\nanother\."):
        office.ask("reload")


@pytest.mark.parametrize("model", ["nobody", "old", ""])
def test_only_a_model_that_serves_can_be_restarted(office, model):
    with pytest.raises(ControlError, match=f"No model '{model}' is served here. There are: en, zh"):
        office.ask("restart", model)
    assert office.done == []


def test_a_model_that_serves_goes_on_until_a_fresh_process_is_ready(office):
    answer = office.ask("restart", "zh")
    assert office.done == ["renew zh: an operator asks for it"]
    assert answer == {"summary": "zh: process 12 serves until a fresh one is ready, if memory allows"}


def test_a_model_that_still_loads_is_begun_anew(office):
    office.serving["zh"].is_ready = False
    assert office.ask("restart", "zh") == {"summary": "zh: started anew"}
    assert office.done == ["renew zh: an operator asks for it"]


def test_a_model_that_is_dead_is_started_at_once(office):
    office.serving["zh"].is_ready, office.serving["zh"].has_failed = False, True
    assert office.ask("restart", "zh") == {"summary": "zh: started anew"}
    assert office.done == ["revive zh"]
