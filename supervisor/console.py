"""What a person at the terminal sees: models, their states as they change, the address and a line to try.

Silent when logs are JSON: then the same facts are log events for a machine to read.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection

from emb_model_provider.logs import escape
from emb_model_provider.messages.status import EncoderInfo, ModelInfo, ShardStatus
from emb_model_provider.modelmap import ModelSpec
from supervisor.output import Output
from supervisor.plan import Placement, format_cpus

_BAR_CELLS = 24
_STEP_PERCENT = 10
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Console:
    """Turns states into sentences."""

    def __init__(self, output: Output, *, silent: bool) -> None:
        self._output = output
        self._silent = silent
        self._width = 0
        self._shown_step: dict[str, int] = {}
        self._downloads: dict[str, ShardStatus] = {}
        self._tried = False

    def open(self, version: str, address: str, models: tuple[ModelSpec, ...], places: dict[str, Placement]) -> None:
        """Say what is about to be served and where."""
        self._width = max(len(spec.id) for spec in models)
        self.say(f"emb-provider {version} on {address} (accepting connections; models load in the background)")
        for spec in models:
            self.add(spec, places[spec.id])

    def add(self, spec: ModelSpec, placement: Placement) -> None:
        """Say what a model is and where its process runs."""
        origin = "embedded" if spec.embedded else spec.source
        self._line(spec.id, f"{spec.name} ({origin}), {spec.precision} on {describe_place(placement)}")

    def show(self, status: ShardStatus, took_s: float) -> None:
        """Say that a model's state has changed; ``took_s`` is the time since its process started."""
        if status.state == "downloading":
            self._show_download(status)
            return
        self.forget(status.model_id)
        self._line(status.model_id, describe_state(status, took_s))

    def forget(self, model_id: str) -> None:
        """Take away the bar of a download that goes on no more."""
        self._downloads.pop(model_id, None)
        self._shown_step.pop(model_id, None)
        self._redraw()

    def invite(self, address: str, status: ShardStatus, *, needs_key: bool) -> None:
        """Print, once, a command that works now; none where the only address is a Unix socket."""
        if not self._tried and not address.startswith("unix:"):
            self._tried = True
            self.say("\nTry it:\n" + curl_command(address, status, needs_key=needs_key) + "\n")

    def say(self, text: str) -> None:
        """Print a sentence, or several lines."""
        if not self._silent:
            self._output.say(text)

    def _show_download(self, status: ShardStatus) -> None:
        self._downloads[status.model_id] = status
        if self._output.is_terminal and status.total_bytes:
            self._redraw()
            return
        step = percent(status) // _STEP_PERCENT
        if step != self._shown_step.get(status.model_id):
            self._shown_step[status.model_id] = step
            self._line(status.model_id, describe_download(status))

    def _redraw(self) -> None:
        if not self._silent:
            self._output.progress(render_downloads(self._downloads.values(), shutil.get_terminal_size().columns - 1))

    def _line(self, model_id: str, text: str) -> None:
        self.say(f"  {model_id:<{self._width}}  {text}")


def describe_place(place: Placement) -> str:
    """Return device, CPUs and threads in words."""
    device = place.device + (f" (GPU {place.visible_gpus})" if place.visible_gpus else "")
    cpus = f", CPUs {format_cpus(place.cpus)}" if place.cpus else ""
    return f"{device}, {place.threads} thread{'s' if place.threads > 1 else ''}{cpus}"


def describe_state(status: ShardStatus, took_s: float) -> str:
    """Return a state in words, on one line: what a process fails of may quote its model's files."""
    if status.state == "ready" and status.info is not None:
        return f"ready after {took_s:.1f} s: {describe_info(status.info)}"
    if status.state == "failed":
        return f"FAILED ({status.reason}): {escape(status.detail)}"
    if status.state == "restarting":
        return f"restarting: {escape(status.detail)}; back in about {status.expected_ready_s:.0f} s"
    return status.state


def describe_info(info: ModelInfo) -> str:
    """Return the facts of a loaded model in words."""
    encoder = info.encoder
    computed = "" if encoder.storage_dtype == encoder.compute_dtype else f" (computed in {encoder.compute_dtype})"
    return (
        f"{_describe_results(encoder)}, {encoder.max_tokens} tokens, {encoder.precision}{computed} "
        f"on {encoder.device}, from {info.source}"
    )


def _describe_results(encoder: EncoderInfo) -> str:
    if encoder.dimension:
        return f"{encoder.dimension} dimensions"
    if encoder.task == "classify":
        return f"{len(encoder.labels)} classes"
    return {"rerank": "scores", "sparse": "sparse vectors"}.get(encoder.task, "token vectors")


def describe_download(status: ShardStatus) -> str:
    """Return a download's progress in words."""
    if not status.total_bytes:
        return "downloading"
    done, total = format_bytes(status.done_bytes), format_bytes(status.total_bytes)
    return f"downloading {percent(status)} % ({done} of {total})"


def percent(status: ShardStatus) -> int:
    """Return whole percents done, 0 where the total is not known yet."""
    return 100 * status.done_bytes // status.total_bytes if status.total_bytes else 0


def render_downloads(downloads: Collection[ShardStatus], columns: int) -> str:
    """Return one line of at most so many columns: one that wraps could not be redrawn in place.

    Without bars, or without bytes too, where they would leave no room for all models.
    """
    line = ""
    for render in (render_bar, _render_bytes, _render_percent):
        line = "   ".join(f"{status.model_id} {render(status)}" for status in downloads)
        if len(line) <= columns:
            break
    return line[:columns]


def render_bar(status: ShardStatus) -> str:
    """Return a progress bar of fixed width with bytes behind it.

    In ASCII: terminals set up for Chinese draw block characters two cells wide, so that the line would wrap.
    """
    filled = min(_BAR_CELLS, _BAR_CELLS * status.done_bytes // max(1, status.total_bytes))
    bar = "#" * filled + "-" * (_BAR_CELLS - filled)
    return f"{bar} {_render_bytes(status)}"


def _render_bytes(status: ShardStatus) -> str:
    done, total = format_bytes(status.done_bytes), format_bytes(status.total_bytes)
    return f"{_render_percent(status)} {done} of {total}"


def _render_percent(status: ShardStatus) -> str:
    return f"{percent(status):3d} %"


def format_bytes(count: int) -> str:
    """Return a byte count with a binary unit: 1536 is "1.5 KiB"."""
    power = min(int(math.log2(count) // 10) if count else 0, len(_UNITS) - 1)
    return f"{count} B" if power == 0 else f"{count / 2 ** (10 * power):.1f} {_UNITS[power]}"


def curl_command(address: str, status: ShardStatus, *, needs_key: bool) -> str:
    """Return a command for a shell that asks a model what it is for, in Chinese and English.

    ``address`` is that of the API, with the path that stands before all of it.
    """
    path, asked = _example(status.info.encoder if status.info else None)
    body = json.dumps({"model": status.model_id, **asked}, ensure_ascii=False)
    key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    return f"  curl {address}{path} -H 'Content-Type: application/json'{key} -d '{body}'"


def _example(encoder: EncoderInfo | None) -> tuple[str, dict[str, object]]:
    if encoder is not None and encoder.task == "rerank":
        return "/v1/rerank", {"query": "天气 weather", "documents": ["今天天气很好", "He drove to the stadium."]}
    if encoder is not None and encoder.task == "classify":
        return "/classify", {"input": ["你好，世界", "Hello, world"]}
    outputs = {} if encoder is None or "dense" in encoder.outputs else {"outputs": list(encoder.outputs)}
    return "/v1/embeddings", {"input": ["你好，世界", "Hello, world"], **outputs}
