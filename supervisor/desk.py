"""Where an operator's requests are answered, from memory and at once. Made by ``tree``, which carries them out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from emb_model_provider.logs import EventLog
from emb_model_provider.rss import rss_bytes_of
from supervisor.changes import Changes
from supervisor.control import ControlError, Request
from supervisor.front import Front
from supervisor.posts import Post
from supervisor.renewals import Renewals
from supervisor.report import ModelReport, RouterReport, ServerReport, model_report, to_json
from supervisor.settings_in_use import SettingsInUse

log = EventLog("supervisor")


@dataclass(frozen=True, slots=True)
class Plate:
    """What stays true of a server as long as it runs."""

    version: str
    run_directory: str


class DeskOwner(Protocol):
    """Who carries out what is asked; ``tree`` implements it."""

    @property
    def address(self) -> str: ...

    @property
    def is_stopping(self) -> bool: ...

    def reload(self) -> Changes | None:
        """Read the settings again; ``None`` where they cannot be used."""

    def stop(self) -> None:
        """Begin to stop, or, the second time, end everything at once."""


class Desk:
    """Answers requests. ``posts`` returns those that serve, by id, and those that are being removed."""

    def __init__(
        self,
        plate: Plate,
        owner: DeskOwner,
        use: SettingsInUse,
        front: Front,
        renewals: Renewals,
        posts: Callable[[], tuple[dict[str, Post], list[Post]]],
    ) -> None:
        self._plate = plate
        self._owner = owner
        self._use = use
        self._front = front
        self._renewals = renewals
        self._posts = posts
        self._began_s = time.monotonic()

    def answer(self, request: Request) -> dict[str, object]:
        """Return the answer as JSON has it; raise ``ControlError`` for what cannot be done."""
        if request.command == "status":
            return {"status": to_json(self._report())}
        if self._owner.is_stopping and request.command != "stop":
            raise ControlError("The server is stopping.")
        log.info("asked", command=request.command, model=request.model or None)
        if request.command == "reload":
            return {"summary": self._reload()}
        if request.command == "restart":
            return {"summary": self._restart(request.model)}
        self._owner.stop()
        return {"summary": f"stopping; requests in flight have {self._use.grace_s:g} s"}

    def _reload(self) -> str:
        changes = self._owner.reload()
        if changes is None:
            problems = "\n".join(self._use.problems)
            raise ControlError(f"The settings cannot be used; the server goes on as before.\n{problems}")
        # At the terminal of who has just edited the file; the log, which has them too, is elsewhere.
        return "\n".join([changes.summary(), *(f"warning: {warning}" for warning in self._use.settings.warnings)])

    def _restart(self, model: str) -> str:
        serving, _ = self._posts()
        post = serving.get(model)
        if post is None:
            raise ControlError(f"No model {model!r} is served here. There are: {', '.join(serving)}.")
        if post.has_failed:
            post.revive()
            return f"{model}: started anew"
        self._renewals.ask(post, "an operator asks for it")
        if post.is_ready:
            return f"{model}: process {post.row().pid} serves until a fresh one is ready, if memory allows"
        return f"{model}: started anew"

    def _report(self) -> ServerReport:
        serving, leaving = self._posts()
        return ServerReport(
            version=self._plate.version,
            pid=os.getpid(),
            address=self._owner.address,
            run_dir=self._plate.run_directory,
            state="stopping" if self._owner.is_stopping else "serving",
            uptime_s=round(time.monotonic() - self._began_s, 1),
            settings_read=self._use.read_at,
            problems=self._use.problems,
            pending_restart=self._use.needs_restart,
            router=self._router_report(),
            models=tuple(self._model_report(post) for post in (*serving.values(), *leaving)),
        )

    def _router_report(self) -> RouterReport:
        routers = self._front.routers
        return RouterReport(
            routers[0].keeper.pid,
            sum(router.restarts for router in routers),
            sum(rss_bytes_of(router.keeper.pid) for router in routers),
            len(routers),
            self._front.is_renewing,
            self._front.quarantined,
        )

    def _model_report(self, post: Post) -> ModelReport:
        row = post.row()
        successor = post.successor.status.state if post.successor is not None else ""
        return replace(
            model_report(row, age_s=post.holder.age_s, rss_bytes=rss_bytes_of(row.pid)),
            successor=successor,
            leaving=len(post.everybody()) - 1 - bool(successor),
            renewing=self._renewals.is_asked(post),
        )
