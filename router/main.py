"""The life of the router: configure → accept on the inherited socket → serve → drain."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import socket
import ssl
from collections.abc import Callable

import uvloop
from aiohttp import web

from emb_model_provider.lifecycle import ControlChannel, needing_threads, start_child
from emb_model_provider.logs import EventLog, configure_child_logs
from emb_model_provider.messages.configs import RouterConfig
from emb_model_provider.messages.framing import Message
from emb_model_provider.messages.status import Acquitted, Quarantined, RouterReady, ShardTable
from emb_model_provider.tracing import make_tracer
from router import access_log
from router.accepting import Accepting, room_for_connections
from router.app import build_app
from router.auth import Authenticator
from router.backend import LocalBackend
from router.connection import Runner
from router.cors import Cors
from router.entrance import make_entrance
from router.handlers import Handlers
from router.heartbeat import beat
from router.limits import RequestLimits
from router.metrics.endpoint import metrics_endpoint
from router.metrics.meter import Meter
from router.metrics.store import Gauges, Store
from router.openapi.endpoints import describing_routes
from router.registry import Registry
from router.service import EmbeddingService, Policy
from router.tracing import trace_requests

log = EventLog("router")

#: Python's own 700 are made by two requests: those of 32 under way would be looked through again and again.
_YOUNG_OBJECTS = 20_000
#: Also the time a client may take to send its headers, which aiohttp measures with the same clock.
_KEEPALIVE_S = 75.0


def main(arguments: list[str]) -> int:
    """Run the router until it is told to stop; return its exit code."""
    faulthandler.enable()
    control = start_child(arguments)
    config, table = control.receive_first(RouterConfig), control.receive_first(ShardTable)
    around = config.around
    name = "router" if around.routers == 1 else f"router[{around.index}]"
    configure_child_logs(name, config.log.level, config.log.format)
    listeners = [socket.socket(fileno=int(descriptor)) for descriptor in arguments[2:]]
    with needing_threads():
        uvloop.run(_serve(control, config, table, listeners))
    return 0


async def _serve(
    control: ControlChannel, config: RouterConfig, table: ShardTable, listeners: list[socket.socket]
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    registry = Registry(config.ready_wait_s)
    registry.update(table)
    backend = LocalBackend(registry, control.post)
    service = EmbeddingService(registry, backend, _policy(config))
    backend.on_left = service.left_behind
    around = config.around
    meter = Meter(Store(around.run_directory, around.index))
    service.on_resent, service.quarantine.on_added = meter.resent, _tell_of_quarantine(control)
    service.on_acquitted = lambda model_id: control.post(Acquitted(model_id))
    own = [web.get("/metrics", metrics_endpoint(meter, registry)), *describing_routes(around.url_prefix)]
    handlers = Handlers(service, registry, config.max_request_bytes, own, meter.loop_lag_s)
    authenticator = Authenticator(config.api_key_digests)
    tracer = make_tracer(f"router-{around.index}-{os.getpid()}")

    control.watch(_on_loop(loop, lambda message: _take(message, registry, service, authenticator)))
    runner = Runner(
        build_app(
            handlers,
            authenticator,
            config.max_request_bytes,
            config.intake.max_queue_bytes // around.routers,
            [
                make_entrance(
                    meter,
                    Cors(around.cors_origins),
                    handlers,
                    access_log.writer(around.access_log),
                    trace_requests(tracer) if tracer is not None else None,
                )
            ],
            open_paths=() if around.metrics_need_key else ("/metrics",),
        ),
        around.url_prefix,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=_KEEPALIVE_S,
        auto_decompress=False,
        shutdown_timeout=config.drain_s,
    )
    await runner.setup()
    meter.watch(lambda: _gauges(service, runner))
    limit = room_for_connections(max(1, config.intake.max_connections // around.routers))
    for listener in listeners:
        is_tcp = listener.family != socket.AF_UNIX
        await Accepting(runner, listener, limit, _tls(config) if is_tcp else None, meter.refused).start()
    # What stands now lives as long as the process: looking through it again and again would cost requests 4 ms each
    # time. ``__main__`` has put collecting off until now for the same reason.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    gc.enable()
    control.post(RouterReady(os.getpid()))
    beating = asyncio.create_task(
        beat(control.begin_sending, backend.in_flight, service.quarantine.__len__, config.report_every_s),
        name="heartbeat",
    )
    writing = asyncio.create_task(meter.write_again_and_again(), name="metrics")
    await stop.wait()
    await runner.cleanup()
    writing.cancel()
    meter.write()
    beating.cancel()
    backend.close()
    if tracer is not None:
        tracer.close()


def _on_loop(loop: asyncio.AbstractEventLoop, take: Callable[[Message], None]) -> Callable[[Message], None]:
    """Return what has ``take`` called on the loop, from any thread; once that is closed this process ends."""

    def hear(message: Message) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(take, message)

    return hear


def _tls(config: RouterConfig) -> ssl.SSLContext | None:
    certificate = config.around.certificate
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate.load(context)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _gauges(service: EmbeddingService, runner: Runner) -> Gauges:
    return Gauges(
        connections=runner.connections(),
        quarantined=len(service.quarantine),
        by_model={gate.model_id: (gate.tokens, gate.waiting_slices) for gate in service.gates()},
    )


def _tell_of_quarantine(control: ControlChannel) -> Callable[[bytes], None]:
    """Return what lets every other router know of an input that kills, by way of the supervisor."""
    return lambda fingerprint: control.post(Quarantined((fingerprint,)))


def _policy(config: RouterConfig) -> Policy:
    intake = config.intake
    limits = RequestLimits(intake.max_inputs, intake.max_input_chars, intake.max_request_tokens)
    return Policy(
        config.request_timeout_s, intake.max_queue_s, intake.quarantine_s, limits, routers=config.around.routers
    )


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
    elif isinstance(message, Quarantined):
        for fingerprint in message.fingerprints:
            service.quarantine.learn(fingerprint)
    else:
        log.error("unexpected_message", kind=type(message).__name__)
