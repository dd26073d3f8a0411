"""What a reload changes: the difference of two settings, model by model. Pure; ``tree`` carries it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from emb_model_provider.messages.configs import RouterConfig
from emb_model_provider.settings import Settings


@dataclass(frozen=True, slots=True)
class Changes:
    """Model ids by what becomes of them, in the order of the settings.

    ``needs_restart`` names the settings that count only when the whole server is started again; ``silence`` tells that
    a router may be silent for another time.
    """

    kept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    silence: bool = False

    def summary(self) -> str:
        """Return the changes in a sentence."""
        groups = (("added", self.added), ("removed", self.removed), ("changed", self.changed), ("kept", self.kept))
        models = "; ".join(f"{word}: {', '.join(ids)}" for word, ids in groups if ids)
        restart = f"; counts only after a restart: {', '.join(self.needs_restart)}" if self.needs_restart else ""
        return f"{models}{restart}"


def compare(before: Settings, after: Settings) -> Changes:
    """Return what differs.

    A model is changed where anything in its own description is; a token or a mirror changes no model that is loaded.
    """
    old = {spec.id: spec for spec in before.models}
    new = {spec.id: spec for spec in after.models}
    return Changes(
        kept=tuple(name for name, spec in new.items() if old.get(name) == spec),
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name, spec in new.items() if name in old and old[name] != spec),
        needs_restart=_fixed_at_start(before, after),
        silence=before.supervision.silence_timeout_s != after.supervision.silence_timeout_s,
    )


def keep_fixed(before: Settings, after: Settings) -> Settings:
    """Return ``after`` with what only a restart can change as it was, which is what the server goes on with."""
    held = before.server
    server = replace(
        after.server,
        host=held.host,
        port=held.port,
        unix_socket=held.unix_socket,
        unix_socket_mode=held.unix_socket_mode,
        around=after.server.around.replace(routers=held.around.routers),
    )
    processes = replace(after.processes, run_dir=before.processes.run_dir)
    return replace(after, server=server, processes=processes, logs=before.logs)


def _fixed_at_start(before: Settings, after: Settings) -> tuple[str, ...]:
    pairs = (
        ("EMB_PROVIDER_HOST", before.server.host, after.server.host),
        ("EMB_PROVIDER_PORT", before.server.port, after.server.port),
        ("EMB_PROVIDER_UNIX_SOCKET", before.server.unix_socket, after.server.unix_socket),
        ("EMB_PROVIDER_UNIX_SOCKET_MODE", before.server.unix_socket_mode, after.server.unix_socket_mode),
        ("EMB_PROVIDER_ROUTERS", before.server.around.routers, after.server.around.routers),
        ("EMB_PROVIDER_RUN_DIR", before.processes.run_dir, after.processes.run_dir),
        ("EMB_PROVIDER_LOG_LEVEL", before.logs.level, after.logs.level),
        ("EMB_PROVIDER_LOG_FILE", before.logs.file, after.logs.file),
        ("EMB_PROVIDER_LOG_FORMAT", before.logs.format, after.logs.format),
    )
    return tuple(name for name, old, new in pairs if old != new)


def router_change(before: RouterConfig, after: RouterConfig) -> Literal["none", "live", "replace"]:
    """Tell how a router comes by its new settings; ``router.main`` takes these few while it runs."""
    if before == after:
        return "none"
    taken_live = before.replace(
        api_key_digests=after.api_key_digests,
        ready_wait_s=after.ready_wait_s,
        request_timeout_s=after.request_timeout_s,
        intake=before.intake.replace(
            max_inputs=after.intake.max_inputs,
            max_input_chars=after.intake.max_input_chars,
            max_request_tokens=after.intake.max_request_tokens,
        ),
    )
    return "live" if taken_live == after else "replace"
