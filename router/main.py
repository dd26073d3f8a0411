"""The life of the router: configure → accept on the inherited socket → serve → drain."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import socket

import uvloop
from aiohttp import web

from emb_model_provider.errors import ProtocolError
from emb_model_provider.lifecycle import ControlChannel, start_child
from emb_model_provider.logs import EventLog, configure_child_logs
from emb_model_provider.messages import Message, RouterConfig, RouterReady, ShardTable
from router.app import build_app
from router.auth import Authenticator
from router.backend import LocalBackend
from router.connection import Runner
from router.handlers import Handlers
from router.heartbeat import beat
from router.limits import RequestLimits
from router.registry import Registry
from router.service import EmbeddingService, Policy

log = EventLog("router")

#: Also the time a client may take to send its headers, which aiohttp measures with the same clock.
_KEEPALIVE_S = 75.0


def main(arguments: list[str]) -> int:
    """Run the router until it is told to stop; return its exit code."""
    faulthandler.enable()
    control = start_child(arguments)
    config = control.receive()
    table = control.receive()
    if not isinstance(config, RouterConfig) or not isinstance(table, ShardTable):
        raise ProtocolError("the first control messages must be the configuration and the shard table")
    configure_child_logs("router", config.log.level, config.log.format)
    uvloop.run(_serve(control, config, table, socket.socket(fileno=int(arguments[2]))))
    return 0


async def _serve(control: ControlChannel, config: RouterConfig, table: ShardTable, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    registry = Registry(config.ready_wait_s)
    registry.update(table)
    backend = LocalBackend(registry, control.send)
    service = EmbeddingService(registry, backend, _policy(config))
    handlers = Handlers(service, registry, config.max_request_bytes)
    authenticator = Authenticator(config.api_key_digests)

    def hear(message: Message) -> None:
        loop.call_soon_threadsafe(_take, message, registry, service, authenticator)

    control.watch(hear)
    runner = Runner(
        build_app(handlers, authenticator, config.max_request_bytes, config.intake.max_queue_bytes),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=_KEEPALIVE_S,
        auto_decompress=False,
        shutdown_timeout=config.drain_s,
    )
    await runner.setup()
    await web.SockSite(runner, listener, backlog=1024).start()
    # What stands now lives as long as the process: looking through it again and again would cost requests 4 ms each
    # time.
    gc.freeze()
    control.send(RouterReady(os.getpid()))
    beating = asyncio.create_task(beat(control.send, backend.in_flight, config.report_every_s), name="heartbeat")
    await stop.wait()
    await runner.cleanup()
    beating.cancel()
    backend.close()


def _policy(config: RouterConfig) -> Policy:
    intake = config.intake
    limits = RequestLimits(intake.max_inputs, intake.max_input_chars, intake.max_request_tokens)
    return Policy(config.request_timeout_s, intake.max_queue_s, intake.quarantine_s, limits)


def _take(message: Message, registry: Registry, service: EmbeddingService, authenticator: Authenticator) -> None:
    """Take a control message on the loop: the newest table, or those settings that count from now on.

    ``supervisor.changes`` knows which these are; for any other a new router is started.
    """
    if isinstance(message, ShardTable):
        registry.update(message)
    elif isinstance(message, RouterConfig):
        authenticator.accept(message.api_key_digests)
        registry.set_ready_wait(message.ready_wait_s)
        service.set_policy(_policy(message))
        log.info("settings_taken")
    else:
        log.error("unexpected_message", kind=type(message).__name__)
