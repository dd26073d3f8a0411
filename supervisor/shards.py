"""One model's desired process and what is known of it: the row it fills in the shard table. Made by ``tree``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from emb_model_provider.errors import EXIT_TEMPORARY
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.configs import LogConfig, ShardConfig
from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.status import LoadFailed, LoadProgress, Progress, Ready, ShardHealth, ShardStatus
from emb_model_provider.modelmap import Hubs, ModelSpec
from supervisor.child import Launch
from supervisor.keeper import Death, Keeper
from supervisor.plan import Placement, shard_environment, thread_cpus
from supervisor.rundir import RunDirectory

log = EventLog("supervisor.shards")

#: A guess for the first load, before there is a measured one; a small model on a CPU takes about this long.
_FIRST_LOAD_GUESS_S = 10.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ShardSetting:
    """What stays the same over all generations of one shard.

    ``generations`` counts the processes of a model, whichever settings they were started with: no number comes twice.
    """

    index: int
    generations: Iterator[int] = field(compare=False)
    spec: ModelSpec
    placement: Placement
    hubs: Hubs
    log: LogConfig
    run_directory: RunDirectory
    cache_dir: Path
    drain_s: float

    def next(self, spec: ModelSpec, placement: Placement, hubs: Hubs, drain_s: float) -> ShardSetting:
        """Return what the next process is started with; a GPU, once chosen, stays the model's."""
        if spec.device == self.spec.device and placement.device == self.placement.device:
            placement = replace(placement, visible_gpus=self.placement.visible_gpus)
        return replace(self, spec=spec, placement=placement, hubs=hubs, drain_s=drain_s)


class Shard:
    """Knows how to launch one model's process and follows its states. Implements ``keeper.Kept``.

    ``on_progress`` hears that something but the state has changed: no news for a person.
    """

    def __init__(
        self, setting: ShardSetting, on_change: Callable[[Shard], None], on_progress: Callable[[], None]
    ) -> None:
        spec = setting.spec
        self.name = f"shard[{spec.id}]"
        self.keeper: Keeper | None = None
        self.setting = setting
        self._on_change = on_change
        self._on_progress = on_progress
        #: Why the running generation cannot load, from its own mouth.
        self._load_failure: LoadFailed | None = None
        #: How the generation before ended, in words; kept until one serves.
        self._why = ""
        self._progress: Progress | None = None
        #: When the generations before last made a result.
        self._succeeded_before = 0.0
        self._started_s = 0.0
        self._load_s = _FIRST_LOAD_GUESS_S
        self._due_s = time.monotonic() + self._load_s
        self._is_given_up = False
        #: Whether a person wants the next start, and how many were made for that: those are no restarts.
        self._is_asked_for = False
        self._asked_for = 0
        self.status = ShardStatus(
            model_id=spec.id,
            name=spec.name,
            source="embedded" if spec.embedded else spec.source,
            precision=spec.precision,
            overlong=spec.overlong,
            state="starting",
            reason="",
            detail="",
            done_bytes=0,
            total_bytes=0,
            generation=0,
            restarts=0,
            pid=0,
            socket_path="",
            expected_ready_s=_FIRST_LOAD_GUESS_S,
            created=int(time.time()),
            info=None,
        )

    @property
    def age_s(self) -> float:
        """Seconds since the living process was started."""
        return time.monotonic() - self._started_s

    def current_status(self) -> ShardStatus:
        """Return the row with the time left until ready, and the health, as of now."""
        status, keeper = self.status, self.keeper
        is_waiting = status.state != "ready" and not (status.state == "failed" and self._is_given_up)
        # What is overdue for so long is taken to need as long again.
        left_s = max(1.0, abs(self._due_s - time.monotonic())) if is_waiting else 0.0
        if keeper is None:
            return status.replace(expected_ready_s=left_s)
        health = ShardHealth(
            self._progress, keeper.boot_failures, keeper.crashes, keeper.breaker, self._succeeded_before
        )
        return status.replace(expected_ready_s=left_s, pid=keeper.pid, health=health)

    def was_asked_for(self) -> None:
        """Hear that a person has what is dead started now."""
        self._is_asked_for = True

    # --------------------------------------------------------------------------------- called by the keeper

    def launch(self, generation: int) -> Launch:
        assert self.keeper is not None
        setting = self.setting
        attempt, generation = generation, next(setting.generations)
        socket_path = setting.run_directory.socket_path(setting.index, generation)
        config = ShardConfig(
            spec=setting.spec,
            hubs=setting.hubs,
            log=setting.log,
            generation=generation,
            device=setting.placement.device,
            threads=setting.placement.threads,
            cpus=setting.placement.cpus,
            thread_cpus=thread_cpus(setting.placement, os.environ),
            socket_path=str(socket_path),
            cache_dir=str(setting.cache_dir),
            drain_s=setting.drain_s,
            report_every_s=self.keeper.report_every_s,
        )
        self._load_failure = None
        if self._progress is not None:
            self._succeeded_before = max(self._succeeded_before, self._progress.last_success)
        self._progress = None
        self._started_s = time.monotonic()
        self._due_s = self._started_s + self._load_s
        self._asked_for += self._is_asked_for
        self._is_asked_for = False
        self._change(
            state="starting",
            generation=generation,
            restarts=attempt - 1 - self._asked_for,
            socket_path=str(socket_path),
            done_bytes=0,
            total_bytes=0,
            # Who looks while it is tried again still sees what it failed of.
            detail=self._why,
        )
        return Launch("shard", shard_environment(setting.placement, os.environ), (config,))

    def on_message(self, message: Message) -> None:
        if isinstance(message, Progress):
            self._take_report(message)
        elif isinstance(message, LoadProgress):
            self._take_progress(message)
        elif isinstance(message, Ready):
            self._load_s = self.age_s
            self._why = ""
            self._change(state="ready", reason="", detail="", info=message.info, load_s=round(self._load_s, 3))
        elif isinstance(message, LoadFailed):
            self._load_failure = message
        else:
            log.error("unexpected_message", model=self.status.model_id, kind=type(message).__name__)

    def on_hung(self, why: str) -> None:
        self._change(state="restarting", reason="hung", detail=f"its process {why}")

    def on_died(self, death: Death) -> None:
        """Say how it ended and what comes next: ``restarting`` soon, or ``failed``, with a slow probe or for good."""
        log.error(
            "shard_died",
            model=self.status.model_id,
            generation=self.status.generation,
            how=death.how,
            last_rss_mib=self._progress.rss_bytes // _MIB if self._progress else None,
            restart_in_s=death.restart_in_s,
            breaker=death.breaker if death.breaker != "closed" else None,
        )
        if self._progress is not None:
            # What it was at is gone with it; what it has done is still to be counted.
            self._progress = self._progress.replace(running_s=0.0, waiting_texts=0, waiting_tokens=0, rss_bytes=0)
        reason, self._why = self._explain(death)
        detail = self._why
        if death.restart_in_s is not None and death.breaker != "closed":
            detail = detail.rstrip(".") + f"; it keeps failing, so it is tried again only in {death.restart_in_s:.0f} s"
        self._is_given_up = death.restart_in_s is None
        self._is_asked_for = False
        self._due_s = time.monotonic() + (death.restart_in_s or 0.0) + self._load_s
        is_soon = death.restart_in_s is not None and death.breaker == "closed" and death.exit_code != EXIT_TEMPORARY
        self._change(state="restarting" if is_soon else "failed", reason=reason, detail=detail)

    def _explain(self, death: Death) -> tuple[str, str]:
        if self._load_failure is not None:
            return self._load_failure.reason, self._load_failure.message
        if death.ended_because:
            return "hung", f"its process {death.how}"
        return ("crashed" if death.was_ready else "start_failed"), f"its process {death.how}"

    def _take_report(self, report: Progress) -> None:
        before, self._progress = self._progress, report
        if before is None or before.replace(rss_bytes=0) != report.replace(rss_bytes=0):
            self._on_progress()

    def _take_progress(self, message: LoadProgress) -> None:
        if message.total_bytes and message.done_bytes:
            rate = message.done_bytes / max(0.1, self.age_s)
            left_s = (message.total_bytes - message.done_bytes) / rate
            self._due_s = time.monotonic() + left_s + self._load_s
        self._change(state=message.state, done_bytes=message.done_bytes, total_bytes=message.total_bytes)

    def _change(self, **fields: object) -> None:
        before = self.status
        self.status = before.replace(**fields)
        if self.status != before:
            self._on_change(self)


def own_cache() -> Path:
    """Return where converted weights are kept (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "emb-model-provider"
