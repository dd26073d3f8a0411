"""The private directory that holds the sockets of one server: made or taken at start, locked, swept, given up at stop.

By default each start makes a fresh one beside those of other servers; ``EMB_PROVIDER_RUN_DIR`` names a fixed one.
``cli`` opens one, ``commands`` looks for living servers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from emb_model_provider.errors import ConfigurationError, ProviderError
from emb_model_provider.private_socket import MAX_PATH_BYTES, bind_private
from supervisor.directory_lock import lock, lock_patiently

_PREFIX = "emb-provider-"
_PID = "pid"
_CONTROL = "control.sock"
#: What we put there; nothing else is ever removed.
_SHARD = re.compile(r"(s\d{1,6}-\d{1,9})\.(sock|tmp|box)")
_OURS = re.compile(rf"pid|control\.(sock|tmp)|metrics-\d{{1,4}}-\d{{1,9}}\.(mp|new)|{_SHARD.pattern}")
#: The longest name inside is a shard's socket.
_LONGEST_NAME = "s0000-000000.sock"
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class DirectoryInUseError(ProviderError):
    """Another server holds the directory; ``pid`` is its process, 0 where it has not said so yet."""

    def __init__(self, path: Path, pid: int) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{path} is the run directory of a server that is running ({holder}). Stop that one first, or set "
            "EMB_PROVIDER_RUN_DIR to another directory."
        )


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A living server as its run directory shows it."""

    path: Path
    pid: int

    @property
    def control_path(self) -> Path:
        return self.path / _CONTROL


class RunDirectory:
    """A locked directory. Made by ``fresh`` and ``fixed``."""

    def __init__(self, path: Path, descriptor: int, *, made: bool) -> None:
        self.path = path
        self._descriptor = descriptor
        self._made = made
        try:
            self._write_pid()
            self._try_a_socket()
        except (OSError, ConfigurationError):
            self.remove()
            raise

    @classmethod
    def fresh(cls, parent: Path) -> RunDirectory:
        """Make a directory of our own in ``parent`` and remove those of servers that died there."""
        _check_length(parent / f"{_PREFIX}00000000", "XDG_RUNTIME_DIR or TMPDIR")
        sweep(parent)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            # Between the two, another server that starts may have swept it as a dead one's.
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                return cls(path, lock(path), made=True)

    @classmethod
    def fixed(cls, path: Path) -> RunDirectory:
        """Take ``path``, which is made where it is missing.

        Raises ``ConfigurationError`` for a directory that cannot hold sockets or not keep them private,
        ``DirectoryInUseError`` for one that another server holds.
        """
        path = path.absolute()
        _check_length(path, "EMB_PROVIDER_RUN_DIR")
        try:
            made = _make(path)
            descriptor = lock_patiently(path)
        except BlockingIOError:
            raise DirectoryInUseError(path, _read_pid(path)) from None
        except OSError as error:
            reason = f"a link to {os.path.realpath(path)} and no directory" if path.is_symlink() else error.strerror
            raise ConfigurationError(
                f"EMB_PROVIDER_RUN_DIR={path} cannot be used: {reason}. It must be a directory, or the name of one in "
                "a directory where this user may make it."
            ) from None
        try:
            _check_private(path, os.fstat(descriptor))
        except ConfigurationError:
            os.close(descriptor)
            raise
        _remove_ours(path)
        return cls(path, descriptor, made=made)

    @property
    def control_path(self) -> Path:
        """Where an operator's requests are taken."""
        return self.path / _CONTROL

    def socket_path(self, index: int, generation: int) -> Path:
        """Return the path of one generation's socket; never used twice."""
        return self.path / f"s{index}-{generation}.sock"

    def restore(self) -> bool:
        """Make the directory again where somebody has removed it; true if that was so.

        Raises ``OSError`` where it cannot be, also where others could replace what is in it: in ``/tmp`` another user
        may have been quicker.
        """
        if self._held():
            return False
        self.path.mkdir(mode=0o700, exist_ok=True)
        descriptor = lock(self.path)
        try:
            _check_private(self.path, os.fstat(descriptor))
        except ConfigurationError as error:
            os.close(descriptor)
            raise PermissionError(str(error)) from None
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._write_pid()
        return True

    def tidy(self, living: Collection[Path]) -> None:
        """Remove what shards that have ended left; ``living`` are the sockets of those that have not."""
        stems = {path.stem for path in living}
        with contextlib.suppress(OSError):
            for entry in self.path.iterdir():
                if _SHARD.fullmatch(entry.name) and entry.stem not in stems and _is_of_its_kind(entry):
                    entry.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what is ours, and the directory where we made it and nothing else is in it."""
        if self._held():
            _remove_ours(self.path)
            if self._made:
                with contextlib.suppress(OSError):
                    self.path.rmdir()
        os.close(self._descriptor)

    def _write_pid(self) -> None:
        try:
            (self.path / _PID).write_text(f"{os.getpid()}\n")
        except OSError as error:  # a full disk; which one, the error does not say where writing fails
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def _try_a_socket(self) -> None:
        try:
            bind_private(self.control_path).close()
            self.control_path.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"The run directory {self.path} cannot hold Unix sockets: {error.strerror}. Network drives and mounted "
                "volumes often cannot: set EMB_PROVIDER_RUN_DIR to a directory on a local file system."
            ) from None

    def _held(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        return False


def runtime_parent(env: Mapping[str, str]) -> Path:
    """Return where run directories go: the user's runtime directory if there is one, else the temporary one.

    Raises ``ConfigurationError`` where there is neither, as in a container whose root is read-only.
    """
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime)
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise ConfigurationError(
            "There is no directory for the server's sockets: neither XDG_RUNTIME_DIR nor TMPDIR, /tmp and /var/tmp can "
            "be written to. Set EMB_PROVIDER_RUN_DIR to one that can, or mount a tmpfs at /tmp."
        ) from None


def sweep(parent: Path) -> None:
    """Remove what supervisors that no longer live have left; what is others', and living ones, stay."""
    for path in _candidates(parent):
        with contextlib.suppress(OSError):
            descriptor = lock(path)
            try:
                _remove_ours(path)
                path.rmdir()
            finally:
                os.close(descriptor)


def find_running(parent: Path) -> list[RunningServer]:
    """Return the servers of this user whose directories are in ``parent``."""
    found = [running_in(path) for path in _candidates(parent)]
    return sorted((server for server in found if server is not None), key=lambda server: server.pid)


def running_in(path: Path) -> RunningServer | None:
    """Return the living server that holds ``path``, if one does.

    Raises ``ConfigurationError`` for a directory that this user may not look into.
    """
    try:
        os.close(lock(path, fcntl.LOCK_SH))
    except PermissionError:
        raise ConfigurationError(
            f"{path} belongs to another user: run this as the server's user, or as root."
        ) from None
    except BlockingIOError:
        return RunningServer(path, _read_pid(path))
    except OSError:
        return None
    return None


def _candidates(parent: Path) -> list[Path]:
    """Return the directories in ``parent`` that servers of this user have made."""
    found: list[Path] = []
    for path in sorted(parent.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):
            owner = path.lstat()
            if stat.S_ISDIR(owner.st_mode) and owner.st_uid == os.getuid() and (path / _PID).is_file():
                found.append(path)
    return found


def _make(path: Path) -> bool:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _check_length(path: Path, advice: str) -> None:
    longest = len(os.fsencode(path / _LONGEST_NAME))
    if longest > MAX_PATH_BYTES:
        raise ConfigurationError(
            f"The directory {path} is too deep for Unix sockets ({longest} bytes, at most {MAX_PATH_BYTES}): "
            f"set {advice} to a shorter one."
        )


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid():
        raise ConfigurationError(
            f"EMB_PROVIDER_RUN_DIR={path} belongs to another user (uid {found.st_uid}; this server runs as "
            f"{os.getuid()}), who could replace its sockets. Name a directory of this user's own."
        )
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise ConfigurationError(
            f"EMB_PROVIDER_RUN_DIR={path} is writable by other users (mode {stat.S_IMODE(found.st_mode):04o}), who "
            f"could replace its sockets. Run 'chmod 700 {path}', or name another directory."
        )


def _remove_ours(path: Path) -> None:
    """Remove sockets and notes of a server; a name of ours that is something else belongs to somebody else."""
    for entry in path.iterdir():
        with contextlib.suppress(OSError):
            if _OURS.fullmatch(entry.name) and _is_of_its_kind(entry):
                entry.unlink()


def _is_of_its_kind(entry: Path) -> bool:
    mode = entry.lstat().st_mode
    return stat.S_ISREG(mode) if entry.suffix in ("", ".box", ".mp", ".new") else stat.S_ISSOCK(mode)


def _read_pid(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((path / _PID).read_text())
    return 0
