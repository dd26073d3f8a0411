"""The one writer of terminal and log file: a thread, so that a slow disk or a stopped terminal never stops us."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import threading
from io import TextIOWrapper
from pathlib import Path
from typing import Literal, TextIO

from emb_model_provider.logs import MARK, EventFormatter, EventLog, escape
from emb_model_provider.process_limits import advice_without_threads

log = EventLog("supervisor")

_MAX_FILE_BYTES = 20 * 1024 * 1024
_KEPT_FILES = 5
_MAX_WAITING_LINES = 10_000
#: How long the last lines may take: whoever reads them may have stopped for good.
_LAST_LINES_S = 5.0
#: How ``faulthandler`` begins.
_FATAL = "Fatal Python error:"
_MAX_STACK_LINES = 1000
_CLEAR_LINE = "\r\x1b[K"

Target = Literal["say", "log", "file", "progress", "stop"]


class Output:
    """Takes lines from any thread and writes them in order.

    ``say`` is for a person (stdout), ``log`` for terminal and file, ``note`` for the file alone; ``progress`` is
    one line that stands below all others on a terminal and is redrawn. Lines that find the queue full are counted
    and reported, not waited for. Raises ``OSError`` where there is no thread to write them.
    """

    def __init__(self, file_path: str, screen: TextIO, log_screen: TextIO) -> None:
        self._screen = screen
        self._log_screen = log_screen
        self.is_terminal = screen.isatty()
        self._lines: queue.Queue[tuple[Target, str]] = queue.Queue(_MAX_WAITING_LINES)
        self._dropped = 0
        self._progress = ""
        self.problem = ""
        self._file = self._open(file_path)
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            if self._file is not None:
                self._file.close()
            raise OSError(f"{error}: {advice_without_threads()}") from None

    def say(self, text: str) -> None:
        self._put("say", text)

    def log(self, line: str) -> None:
        self._put("log", line)

    def note(self, line: str) -> None:
        self._put("file", line)

    def progress(self, text: str) -> None:
        """Show ``text`` as the bottom line of a terminal; empty takes it away."""
        if self.is_terminal:
            self._put("progress", text)

    def close(self) -> bool:
        """Write what is queued and end the thread; leave it behind, and say so, where nobody takes what it writes."""
        with contextlib.suppress(queue.Full):
            self._lines.put(("stop", ""), timeout=_LAST_LINES_S)
            self._thread.join(_LAST_LINES_S)
        return not self._thread.is_alive()

    def _open(self, file_path: str) -> RotatedFile | None:
        if not file_path:
            return None
        try:
            Path(file_path).parent.mkdir(parents=True, exist_ok=True)
            handler = RotatedFile(file_path, maxBytes=_MAX_FILE_BYTES, backupCount=_KEPT_FILES - 1, encoding="utf-8")
        except OSError as error:
            self.problem = f"no log file: {error}; set EMB_PROVIDER_LOG_FILE to a writable path, or to nothing"
            return None
        handler.setFormatter(logging.Formatter("%(message)s"))
        # A full disk must not print a traceback per line: the terminal still has every line.
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # noqa: ARG005
        return handler

    def _put(self, target: Target, text: str) -> None:
        try:
            self._lines.put_nowait((target, text))
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        while True:
            target, text = self._lines.get()
            if target == "stop":
                break
            self._write(target, text)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                log.warning("lines_dropped", lines=dropped, why="the output was too slow")
        self._draw("")
        if self._file is not None:
            with contextlib.suppress(OSError):  # what the disk had no room for
                self._file.close()

    def _write(self, target: Target, text: str) -> None:
        if target in ("log", "file") and self._file is not None:
            self._file.emit(logging.makeLogRecord({"msg": text}))
        # A closed terminal is no reason to stop serving.
        with contextlib.suppress(OSError, ValueError):
            if target == "progress":
                self._draw(text)
            elif target != "file":
                self._print(self._screen if target == "say" else self._log_screen, text)

    def _print(self, stream: TextIO, text: str) -> None:
        if self._progress:
            self._screen.write(_CLEAR_LINE)
            self._screen.flush()
        stream.write(text + "\n")
        stream.flush()
        if self._progress:
            self._screen.write(self._progress)
            self._screen.flush()

    def _draw(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if text or self._progress:
                self._screen.write(_CLEAR_LINE + text)
                self._screen.flush()
        self._progress = text


class RotatedFile(logging.handlers.RotatingFileHandler):
    """A log file that grows where it cannot be renamed, and is made anew where others have done so.

    Those are logrotate and another server with the same file.
    """

    def emit(self, record: logging.LogRecord) -> None:
        # Where it can be neither seen nor made, what is open is written to.
        with contextlib.suppress(OSError):
            self._follow()
        super().emit(record)

    def _follow(self) -> None:
        before = self.stream
        if before is None:
            return
        try:
            if os.path.samestat(Path(self.baseFilename).stat(), os.fstat(before.fileno())):
                return
        except FileNotFoundError:
            pass
        self.stream = self._open()
        before.close()

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_open_at_once)

    def shouldRollover(self, record: logging.LogRecord) -> int:  # noqa: N802 - the standard library's name
        # Python 3.13 asks a pipe where it stands, and loses the line.
        is_pipe = self.stream is not None and not self.stream.seekable()
        return not is_pipe and super().shouldRollover(record)

    def doRollover(self) -> None:  # noqa: N802 - the standard library's name
        try:
            super().doRollover()
        except OSError as error:
            self.maxBytes += _MAX_FILE_BYTES  # until then nothing is tried again
            self.stream = self._open()
            log.warning("log_not_rotated", error=error, next_try_at_mib=self.maxBytes // (1024 * 1024))


def _open_at_once(path: str, flags: int) -> int:
    """Open for a file; a named pipe that nobody reads is an error, where the start would wait for a reader."""
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


class OutputHandler(logging.Handler):
    """Carries the supervisor's own log records to ``Output``; those marked ``said`` only to the file.

    With JSON logs the console is silent, so that nothing has been said and every record goes to both.
    """

    def __init__(self, output: Output, style: Literal["plain", "json"]) -> None:
        super().__init__()
        self._output = output
        self._says_nothing = style == "json"
        self.setFormatter(EventFormatter("supervisor", style))

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if getattr(record, "said", False) and not self._says_nothing:
            self._output.note(line)
        else:
            self._output.log(line)


class ChildLines:
    """Takes the lines of one child's stderr: ours as they are, anything else wrapped as an event.

    The stacks that ``faulthandler`` writes when a process crashes become one event together.
    """

    def __init__(self, process: str, output: Output, style: Literal["plain", "json"]) -> None:
        self._output = output
        self._formatter = EventFormatter(process, style)
        self._stacks: list[str] = []

    def take(self, line: str) -> None:
        """Write one line without its newline."""
        if line.startswith(MARK):
            self._output.log(line[len(MARK) :])
        elif self._stacks or line.startswith(_FATAL):
            if len(self._stacks) < _MAX_STACK_LINES:
                self._stacks.append(line)
        elif line.strip():
            self._write("WARNING", "stderr", {"line": escape(line)})

    def end(self) -> None:
        """Write what stands out: this process will say no more."""
        if self._stacks:
            first, *others = self._stacks
            self._stacks = []
            self._write("ERROR", "stacks", {"of": first.removeprefix(_FATAL).strip()}, "\n".join(others).strip("\n"))

    def _write(self, level: str, event: str, values: dict[str, str], trace: str = "") -> None:
        record = logging.makeLogRecord({"msg": event, "levelname": level, "values": values, "trace": trace})
        self._output.log(self._formatter.format(record))
