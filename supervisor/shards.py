"""One model's desired process and what is known of it: the row it fills in the shard table. Made by ``tree``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from emb_model_provider.errors import EXIT_CONFIGURATION
from emb_model_provider.logs import EventLog
from emb_model_provider.messages import (
    LoadFailed,
    LoadProgress,
    LogConfig,
    Message,
    Ready,
    ShardConfig,
    ShardStatus,
)
from emb_model_provider.modelmap import Hubs, ModelSpec
from supervisor.child import Launch
from supervisor.keeper import Keeper, describe_exit
from supervisor.plan import Placement, shard_environment
from supervisor.rundir import RunDirectory

log = EventLog("supervisor.shards")

#: A guess for the first load, before there is a measured one; a small model on a CPU takes about this long.
_FIRST_LOAD_GUESS_S = 10.0


@dataclass(frozen=True, slots=True)
class ShardSetting:
    """What stays the same over all generations of one shard."""

    index: int
    spec: ModelSpec
    placement: Placement
    hubs: Hubs
    log: LogConfig
    run_directory: RunDirectory
    cache_dir: Path
    drain_s: float


class Shard:
    """Knows how to launch one model's process and follows its states. Implements ``keeper.Kept``."""

    def __init__(self, setting: ShardSetting, on_change: Callable[[Shard], None]) -> None:
        spec = setting.spec
        self.name = f"shard[{spec.id}]"
        self.keeper: Keeper | None = None
        self._setting = setting
        self._on_change = on_change
        self._started_s = 0.0
        self._load_s = _FIRST_LOAD_GUESS_S
        self._due_s = 0.0
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
        """Return the row with the time left until ready as of now."""
        left_s = 0.0 if self.status.state in ("ready", "failed") else max(1.0, self._due_s - time.monotonic())
        return replace(self.status, expected_ready_s=left_s, pid=self.keeper.pid if self.keeper else 0)

    # --------------------------------------------------------------------------------- called by the keeper

    def launch(self, generation: int) -> Launch:
        setting = self._setting
        socket_path = setting.run_directory.socket_path(setting.index, generation)
        config = ShardConfig(
            spec=setting.spec,
            hubs=setting.hubs,
            log=setting.log,
            generation=generation,
            device=setting.placement.device,
            threads=setting.placement.threads,
            cpus=setting.placement.cpus,
            socket_path=str(socket_path),
            cache_dir=str(setting.cache_dir),
            drain_s=setting.drain_s,
        )
        self._started_s = time.monotonic()
        self._due_s = self._started_s + self._load_s
        self._change(
            state="starting",
            generation=generation,
            restarts=generation - 1,
            socket_path=str(socket_path),
            done_bytes=0,
            total_bytes=0,
            reason="",
            detail="",
        )
        return Launch("shard", shard_environment(setting.placement, os.environ), (config,))

    def on_message(self, message: Message) -> None:
        if isinstance(message, LoadProgress):
            self._take_progress(message)
        elif isinstance(message, Ready):
            assert self.keeper is not None
            self.keeper.became_ready()
            self._load_s = self.age_s
            self._change(state="ready", info=message.info)
        elif isinstance(message, LoadFailed):
            self._change(state="failed", reason=message.reason, detail=message.message)
        else:
            log.error("unexpected_message", model=self.status.model_id, kind=type(message).__name__)

    def on_died(self, exit_code: int, restart_in_s: float | None) -> None:
        if self.status.state == "failed" and exit_code == EXIT_CONFIGURATION:
            return  # it said why before it went
        how = describe_exit(exit_code)
        log.error("shard_died", model=self.status.model_id, generation=self.status.generation, how=how)
        if restart_in_s is not None:
            self._due_s = time.monotonic() + restart_in_s + self._load_s
            self._change(state="restarting", reason="crashed", detail=f"its process {how}")
        else:
            self._change(state="failed", reason="internal", detail=f"its process {how}")

    def _take_progress(self, message: LoadProgress) -> None:
        if message.total_bytes and message.done_bytes:
            rate = message.done_bytes / max(0.1, self.age_s)
            left_s = (message.total_bytes - message.done_bytes) / rate
            self._due_s = time.monotonic() + left_s + self._load_s
        self._change(state=message.state, done_bytes=message.done_bytes, total_bytes=message.total_bytes)

    def _change(self, **fields: object) -> None:
        before = self.status
        self.status = replace(before, **fields)  # type: ignore[arg-type]
        if self.status != before:
            self._on_change(self)
