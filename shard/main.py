"""The life of a shard: configure → fetch → load → warm up → bind → ready → serve → drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from emb_model_provider.black_box import BlackBox, box_path
from emb_model_provider.errors import EXIT_BROKEN, LoadError, LoadReason
from emb_model_provider.lifecycle import ControlChannel, needing_threads, pin_to_cpus, start_child
from emb_model_provider.logs import EventLog, configure_child_logs
from emb_model_provider.messages.configs import ShardConfig
from emb_model_provider.messages.link import Hello
from emb_model_provider.messages.status import LoadFailed, LoadProgress, ModelInfo, Ready
from emb_model_provider.private_socket import bind_private
from emb_model_provider.process_limits import files_limited
from emb_model_provider.tracing import make_tracer
from shard.batching.costs import SlicePlan, measure
from shard.batching.lane import Lane, count_lanes, threads_of_lane
from shard.encoder import Encoder
from shard.hubs import Progress
from shard.loading.fetched import Fetched, fetch_model
from shard.loading.first_answer import refuse_bad_answers
from shard.loading.light_imports import import_torch_placed, leave_out_evaluation, without_collecting
from shard.mapped_files import MappedFiles, states_below
from shard.memory import advice_of_shortage, private_bytes, ran_out
from shard.model_files.json_files import whole
from shard.tracing import trace_outcomes

if TYPE_CHECKING:  # both are imported when they are needed: see _load
    from shard.channel import Channel
    from shard.engine import Engine

log = EventLog("shard")

#: Larger batches are slower on a CPU, where they fall out of the cache, and faster on a GPU. There it is a little less
#: than what ``encoders.cuda.recording`` has room for.
_MAX_TOKENS_CPU = 2048
_MAX_TOKENS_CUDA = 32760
#: A lane takes back the interpreter some sixty times a batch; by default another thread may keep it for 5 ms each time.
_SWITCH_S = 0.0005
#: What a library quotes of a model's files may be megabytes, and each refused client would get all of it.
_MAX_SENTENCE_CHARS = 4000
#: When nothing has come for so long while a router could send, nothing will.
_QUIET_S = 0.25
#: How often a process that is to end looks whether all is answered.
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class _Loaded:
    encoder: Encoder
    plan: SlicePlan
    info: ModelInfo
    box: BlackBox
    files: MappedFiles


def main(arguments: list[str]) -> int:
    """Run one shard until it is told to stop; return its exit code."""
    faulthandler.enable()
    sys.setswitchinterval(_SWITCH_S)
    control = start_child(arguments)
    config = control.receive_first(ShardConfig)
    is_pinned = _pin(config.cpus)
    configure_child_logs(f"shard[{config.spec.id}#{config.generation}]", config.log.level, config.log.format)
    if not is_pinned:
        log.warning(
            "cpus_gone", cpus=list(config.cpus), reason="none may be used any more; what may be is used instead"
        )
    threading.excepthook = _end_process
    with needing_threads():
        control.watch(lambda _message: None)
        first_lane = Lane()
    try:
        loaded = first_lane.call(lambda: _prepare(config, control))
    except LoadError as error:
        return _report(control, error.reason, str(error))
    except Exception as error:  # whatever a model's files make a library raise, the operator gets a reason
        if ran_out(error):
            advice = advice_of_shortage(error)
            sentence = f"the model does not fit into memory: {advice} ({str(error) or 'MemoryError'})"
            return _report(control, LoadReason.OUT_OF_MEMORY, sentence)
        log.exception("load_failed")
        return _report(control, LoadReason.INTERNAL, f"{type(error).__name__}: {error} (the log has the traceback)")
    try:
        with needing_threads():
            _serve(config, control, loaded, first_lane)
    except LoadError as error:  # there is no socket, and nobody has been told that it is ready
        return _report(control, error.reason, str(error))
    return 0


def _pin(cpus: tuple[int, ...]) -> bool:
    """Keep to these CPUs; false where a container has lost all of them since the supervisor looked."""
    try:
        pin_to_cpus(cpus)
    except OSError:
        return False
    return True


def _report(control: ControlChannel, reason: LoadReason, sentence: str) -> int:
    """Say why the model cannot be loaded; return the exit code that goes with it."""
    if len(sentence) > _MAX_SENTENCE_CHARS:
        sentence = sentence[:_MAX_SENTENCE_CHARS] + "…"
    control.send(LoadFailed(reason, whole(sentence)))  # a library may have quoted a file of the model
    return reason.exit_code


def _prepare(config: ShardConfig, control: ControlChannel) -> _Loaded:
    fetched = _fetch(config, control)
    control.send(LoadProgress("loading"))
    began_s = time.monotonic()
    before = states_below(fetched.directory)
    encoder = _load(config, fetched)
    files = MappedFiles(before)
    control.send(LoadProgress("warming"))
    loaded_s = time.monotonic()
    lanes = count_lanes(encoder.info, config.threads)
    encoder.use_threads(threads_of_lane(config.threads, lanes))
    refuse_bad_answers(encoder)
    plan = measure(encoder, _MAX_TOKENS_CUDA if encoder.info.device.startswith("cuda") else _MAX_TOKENS_CPU)
    info = encoder.info.replace(
        lanes=lanes,
        slice_ms=round(plan.slice_ms, 1),
        slice_tokens=plan.slice_tokens,
        private_bytes=private_bytes(),
        # Lanes have a core each, but one card.
        tokens_per_s=round((lanes if encoder.info.device == "cpu" else 1) * plan.tokens_per_s),
    )
    log.info(
        "model_loaded",
        source=fetched.source,
        revision=fetched.revision,
        layout=info.layout,
        precision=info.precision,
        cosine=info.cosine,
        device=info.device,
        dimension=info.dimension,
        max_tokens=info.max_tokens,
        lanes=info.lanes,
        slice_ms=info.slice_ms,
        slice_tokens=info.slice_tokens,
        load_s=round(loaded_s - began_s, 3),
        warm_up_s=round(time.monotonic() - loaded_s, 3),
    )
    box = _make_box(Path(config.socket_path), lanes)
    return _Loaded(encoder, plan, ModelInfo(info, fetched.source, fetched.revision), box, files)


def _fetch(config: ShardConfig, control: ControlChannel) -> Fetched:
    def report(progress: Progress) -> None:
        control.send(LoadProgress("downloading", progress.done_bytes, progress.total_bytes))

    return fetch_model(config.spec, config.hubs, report)


def _load(config: ShardConfig, fetched: Fetched) -> Encoder:
    if not fetched.is_trusted:
        leave_out_evaluation()
    # Kept out of the module's head: importing costs seconds, and the supervisor should hear of a wrong configuration
    # before that.
    with without_collecting():
        import_torch_placed()
        from shard.loading.loader import load  # noqa: PLC0415

    if fetched.is_trusted:
        from shard.encoders.foreign_classes import take_classes_from  # noqa: PLC0415

        take_classes_from(fetched.foreign_code)
    spec = replace(config.spec, device=config.device)
    return load(fetched, spec, threads=config.threads, cache_directory=Path(config.cache_dir))


def _make_box(socket_path: Path, lanes: int) -> BlackBox:
    """Make the black box; a run directory without room for it is a disk to be freed, and no crash."""
    from shard.listener import FIRST_LANE  # noqa: PLC0415

    with _needs_room(socket_path.parent):
        return BlackBox(box_path(socket_path), FIRST_LANE + lanes)


def _bind(socket_path: Path) -> socket.socket:
    """Make the socket of this process, which may find no room where the black box has found the last of it."""
    with _needs_room(socket_path.parent):
        return bind_private(socket_path)


@contextlib.contextmanager
def _needs_room(run_directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise files_limited(run_directory) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sentence = f"the disk of the run directory {run_directory} is full: free some space, or set"
        raise LoadError(LoadReason.DISK_FULL, f"{sentence} EMB_PROVIDER_RUN_DIR to another directory") from None


def _end_process(failure: threading.ExceptHookArgs) -> None:
    """End a process that would look alive and answer nothing without this thread; the supervisor starts another."""
    name = failure.thread.name if failure.thread else ""
    trace = traceback.format_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    log.error("thread_failed", thread=name, error="".join(trace))
    os._exit(EXIT_BROKEN)


def _serve(config: ShardConfig, control: ControlChannel, loaded: _Loaded, first_lane: Lane) -> None:
    import uvloop  # noqa: PLC0415

    uvloop.run(_serve_until_stopped(config, control, loaded, first_lane))


async def _drain(channel: Channel, engine: Engine, limit_s: float) -> bool:
    """Finish what was asked and what is still on its way; false if that takes longer than ``limit_s``.

    A router that has just heard of our successor may still send, and a client's large request comes in slices.
    """
    give_up_s = time.monotonic() + limit_s
    while channel.has_links:
        left_s, before = give_up_s - time.monotonic(), channel.requests_taken
        if left_s <= 0:
            return False
        if not engine.is_idle():  # without a thread that waits: at the limit of threads there is none to be had
            await asyncio.sleep(min(_LOOK_S, left_s))
            continue
        await asyncio.sleep(min(_QUIET_S, left_s))
        if channel.requests_taken == before:
            break
    return True


async def _serve_until_stopped(config: ShardConfig, control: ControlChannel, loaded: _Loaded, first_lane: Lane) -> None:
    from shard.channel import Channel  # noqa: PLC0415
    from shard.engine import Engine  # noqa: PLC0415
    from shard.progress import report_progress  # noqa: PLC0415

    # Before there are threads to be ended.
    listener = _bind(Path(config.socket_path))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    tracer = make_tracer(f"{config.spec.id}-{config.generation}-{os.getpid()}")
    trace = trace_outcomes(tracer, config.spec.id) if tracer is not None else None
    channel = Channel(Hello(config.spec.id, config.generation), loop, loaded.box, trace)
    # OpenMP has placed the first lane with the threads of its pool.
    places = (config.thread_cpus[number : number + 1] for number in range(1, loaded.info.encoder.lanes))
    lanes = [first_lane, *map(Lane, places)]
    engine = Engine(loaded.encoder, lanes, config.threads, config.spec.batch, loaded.plan, channel, loaded.files)
    engine.start()
    await channel.serve(engine, listener)
    # What is here now stays; looking through it for garbage would hold up every thread for tens of milliseconds.
    gc.collect()
    gc.freeze()
    control.send(Ready(loaded.info))
    report_progress(engine, loop, control.send, config.report_every_s)
    await stop.wait()
    idle = await _drain(channel, engine, config.drain_s)
    log.info("drained", complete=idle)
    await channel.close()
    engine.stop()
    if tracer is not None:
        tracer.close()
