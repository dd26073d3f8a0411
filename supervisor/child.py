"""One child process: started as a fresh interpreter, heard over its control channel, watched until it is reaped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import site
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from emb_model_provider.errors import ProtocolError
from emb_model_provider.frames import FrameDecoder
from emb_model_provider.logs import EventLog
from emb_model_provider.messages.framing import Message, pack, unpack
from supervisor.stillness import Stillness

log = EventLog("supervisor.child")

_ROOT = Path(__file__).resolve().parent.parent
_STDERR_BYTES = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024
_LAST_WORDS_S = 1.0
#: Enough for the stacks of a few hundred threads.
_DUMP_S = 2.0


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a child: its package, its environment, its first messages, descriptors it inherits.

    ``first_messages`` and ``environment`` may hold secrets and are kept out of ``repr``.
    """

    package: str
    environment: dict[str, str] = field(repr=False)
    first_messages: tuple[Message, ...] = field(repr=False)
    descriptors: tuple[int, ...] = ()


class Child:
    """A running child. Made by ``spawn``."""

    def __init__(self, process: asyncio.subprocess.Process, control: _Control, stderr: _Stderr) -> None:
        self._process = process
        self._control = control
        self._stderr = stderr
        self.pid = process.pid
        self._stillness = Stillness(process.pid)

    @property
    def is_stopped(self) -> bool:
        """Tell whether a signal has stopped the child (proc(5), stat: ``T``; one under a debugger is ``t``)."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return stat.rpartition(")")[2].lstrip().startswith("T")

    def stands_still(self) -> bool:
        """Tell whether none of its threads has run since the last call; one that is gone does not."""
        return self._stillness.look()

    def send(self, message: Message) -> None:
        """Send a control message; a child that is gone drops it."""
        self._control.send(message)

    def request_end(self) -> None:
        """Ask the child to finish what it has, and end; also one that is stopped, which would not hear of it."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the child alone, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the child, and whatever it has started in its process group, now; also one that is stopped."""
        if self._process.returncode is None:  # until it is reaped the number is its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def abort(self) -> None:
        """Have the child write the stacks of all its threads to stderr and die; kill it if it does not.

        ``faulthandler`` does that within the signal, so that it works in a thread that never gives the GIL back.
        """
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)  # one that is stopped would take no other signal than SIGKILL
        await asyncio.sleep(_DUMP_S)
        self.kill()

    async def wait(self) -> int:
        """Return the exit code (negative: a signal's number) once the child is reaped and its last words are read.

        Those are its control messages, among them why it could not load, and its stderr.
        """
        code = await self._process.wait()
        # A grandchild may hold either open; what the child itself wrote is there within moments.
        await asyncio.wait([self._stderr.read, self._control.closed], timeout=_LAST_WORDS_S)
        self._stderr.transport.close()
        self._control.close()
        return code


async def spawn(launch: Launch, on_message: Callable[[Message], None], on_line: Callable[[str], None]) -> Child:
    """Start a child; its messages and the lines it writes to stderr arrive on the event loop.

    Raises ``OSError`` where none can be made.
    """
    # Before there is a process that would wait for what cannot be packed.
    first = b"".join(map(pack, launch.first_messages))
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as undoing:  # also at a cancellation: nobody else knows descriptors and process
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undoing.callback(ours.close)  # ends the child, if the signal does not
        with theirs:
            heard, said = os.pipe()
            pipe = undoing.enter_context(os.fdopen(heard, "rb", buffering=0))
            try:
                process = await _start(launch, theirs.fileno(), said)
            finally:
                os.close(said)
        undoing.callback(_kill, process)
        stderr = await _listen(pipe, on_line)
        undoing.callback(stderr.transport.close)
        control = _Control(on_message)
        ours.setblocking(False)  # noqa: FBT003 - the standard library's signature
        transport, _ = await loop.create_connection(lambda: control, sock=ours)
        undoing.pop_all()
    transport.write(first)
    return Child(process, control, stderr)


async def _start(launch: Launch, control: int, stderr: int) -> asyncio.subprocess.Process:
    """Start the process with two descriptors of ours beside those it inherits.

    Not with a pipe of asyncio's own for stderr: the wait for the process would then be one for whoever holds its end.
    """
    passed = (control, *launch.descriptors)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            launch.package,
            str(os.getpid()),
            *(str(descriptor) for descriptor in passed),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            env=launch.environment | {"PYTHONPATH": _python_path(launch.environment)},
            cwd=_directory(),
            pass_fds=passed,
            # Ctrl-C in the terminal is for the supervisor, which stops the others in order.
            process_group=0,
        )
    except RuntimeError as error:  # the last process number was had for it, and none for the thread that waits for it
        raise OSError(errno.EAGAIN, str(error)) from error


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _directory() -> str | None:
    """Return another working directory where our own has been deleted: what is now in its place, else "/".

    oneMKL, with which torch computes, ends each process that has none. Names of models may be relative to it, and a
    deployment that deletes it puts a new one there.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        new = str(Path("/proc/self/cwd").readlink()).removesuffix(" (deleted)")  # the kernel marks it so (proc(5))
        return new if os.access(new, os.X_OK) and Path(new).is_dir() else "/"
    return None


def _python_path(environment: dict[str, str]) -> str:
    """Put our own root first, so that a stray ``shard`` folder elsewhere is never imported.

    Not where it is a site directory, which comes by itself and would shadow the standard library if it came first.
    """
    inherited = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    is_site = str(_ROOT) in {*site.getsitepackages(), site.getusersitepackages()}
    return os.pathsep.join(inherited if is_site else [str(_ROOT), *inherited])


class _Control(asyncio.Protocol):
    """The supervisor's end of the socket pair."""

    def __init__(self, on_message: Callable[[Message], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._on_message(unpack(frame))
        except ProtocolError:
            # Closing ends the child: without its control channel it does not go on.
            log.exception("control_broken")
            self.close()

    def send(self, message: Message) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass(frozen=True, slots=True)
class _Stderr:
    """What a child writes there: ``read`` is done once nobody can write any more, or ``transport`` is closed."""

    transport: asyncio.ReadTransport
    read: asyncio.Task[None]


async def _listen(pipe: IO[bytes], on_line: Callable[[str], None]) -> _Stderr:
    stream = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), pipe
    )
    return _Stderr(transport, asyncio.create_task(_read_lines(stream, on_line)))


async def _read_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    """Hand over complete lines; one that never ends is cut, so that it cannot fill the memory."""
    rest = b""
    while data := await stream.read(_STDERR_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            lines.append(rest)
            rest = b""
        for line in lines:
            on_line(line.decode("utf-8", "replace"))
    if rest:
        on_line(rest.decode("utf-8", "replace"))
