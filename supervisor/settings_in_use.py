"""The settings that count now, what each part is made with by them, why newer ones do not count. Made by ``tree``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from emb_model_provider.errors import ConfigurationError
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.configs import LogConfig, RouterConfig
from emb_model_provider.modelmap import BatchLimits
from emb_model_provider.settings import Settings
from supervisor.changes import Changes, compare, keep_fixed
from supervisor.plan import Placement
from supervisor.renewals import RecycleLimits
from supervisor.restarts import RestartLimits
from supervisor.watchdog import WatchLimits

log = EventLog("supervisor")

#: Reads the settings, as at the start, and plans where models run.
Load = Callable[[], tuple[Settings, dict[str, Placement]]]


class SettingsInUse:
    """Settings and places, exchanged as a whole."""

    def __init__(self, settings: Settings, places: dict[str, Placement], load: Load) -> None:
        self.settings = settings
        self.places = places
        self.read_at = time.time()
        #: Why those that were read last cannot be used, a sentence each.
        self.problems: tuple[str, ...] = ()
        #: Names of settings that have changed and count only after a restart of the server.
        self.needs_restart: tuple[str, ...] = ()
        self._load = load

    def read_again(self) -> Changes | None:
        """Take what is set now and return what it changes; ``None`` where it cannot be used and all stays as it was."""
        try:
            read, places = self._load()
        except ConfigurationError as error:
            self.problems = error.problems
            for problem in error.problems:
                log.error("reload_refused", problem=problem)
            return None
        for warning in read.warnings:
            log.warning(warning)
        changes = compare(self.settings, read)
        self.settings, self.places = keep_fixed(self.settings, read), places
        self.problems, self.needs_restart, self.read_at = (), changes.needs_restart, time.time()
        log.info("reloaded", changes=changes.summary())
        return changes

    @property
    def grace_s(self) -> float:
        """How long requests in flight may take when their process is to go."""
        return self.settings.server.shutdown_grace_s

    def router_config(self, run_directory: str) -> RouterConfig:
        """Return what a router is started with."""
        server = self.settings.server
        return RouterConfig(
            log=self.log_config(),
            api_key_digests=tuple(hashlib.sha256(key.encode()).digest() for key in server.api_keys),
            ready_wait_s=server.ready_wait_s,
            max_request_bytes=server.max_request_bytes,
            drain_s=server.shutdown_grace_s,
            request_timeout_s=server.request_timeout_s,
            intake=server.intake,
            report_every_s=self.watch_limits().report_every_s,
            around=server.around.replace(run_directory=run_directory),
        )

    def watch_limits(self, batch: BatchLimits | None = None) -> WatchLimits:
        """Return when a child counts as hung; ``batch`` is how a shard forms its batches."""
        supervision = self.settings.supervision
        return WatchLimits(
            supervision.startup_timeout_s,
            supervision.batch_timeout_s,
            supervision.silence_timeout_s,
            company_s=batch.max_wait_time_ms / 1000 if batch is not None else 0.0,
        )

    def restart_limits(self) -> RestartLimits:
        """Return when a shard that died is started again."""
        supervision = self.settings.supervision
        return RestartLimits(
            first_delay_s=supervision.restart_delay_s,
            max_delay_s=supervision.restart_max_delay_s,
            stable_s=supervision.restart_stable_s,
            intensity=supervision.restart_limit,
            period_s=supervision.restart_period_s,
            probe_s=supervision.restart_probe_s,
        )

    def recycle_limits(self) -> RecycleLimits:
        """Return when a shard is replaced by a fresh one."""
        processes = self.settings.processes
        return RecycleLimits(processes.recycle_rss_bytes, processes.recycle_age_s)

    def log_config(self) -> LogConfig:
        """Return how children write their log lines."""
        return LogConfig(self.settings.logs.level, self.settings.logs.format)
