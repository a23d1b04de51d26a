"""Where coordinators and the scheduler of one data directory meet: the private folder, its files, and the wire.

Rule: nothing is trusted that is not ours. The folder belongs to this account alone, the socket is spoken to only with
a full key, and what crosses the wire are tuples, dicts, strings and numbers.

    run/ (0700)
      scheduler.lock     locked by the one scheduler, as long as it lives
      scheduler.log      what a scheduler that nobody watches has to say; the log before it is scheduler.log.1
      key (0600)         random bytes, new with each scheduler
      socket (0600)      the desk
      clients/<pid>-<start>-<n>.json   one for each open desk, locked by its process; lists its worker processes
      clients/<pid>-<start>-<n>.bell   a FIFO beside it: the scheduler rings when there is news for that desk
      clients/<pid>-<start>-<n>.leases   the leases that the desk holds, for a scheduler that it does not come back to
"""

from __future__ import annotations

import ast
import errno
import fcntl
import hashlib
import json
import os
import pickle
import secrets
import socket
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from multiprocess.connection import Connection, answer_challenge, deliver_challenge
from multiprocess.managers import BaseProxy, Token, convert_to_error

from engine.errors import CannotRunError
from engine.processes import is_alive, start_time

#: Raised whenever a message changes its shape. Both sides must say the same.
PROTOCOL = 3
#: sun_path holds 107 bytes and its end (unix(7)); some are kept for systems with 104.
LONGEST_SOCKET_PATH = 100
KEY_BYTES = 32
#: Before each message its length, as multiprocess has it.
_LENGTH_BYTES = 4
#: Read at a time: any message but a greeting of many asks.
_READ_BYTES = 1 << 16
_BELL, _LEASES = ".bell", ".leases"
#: Rings taken off a bell at a time; one read is enough unless it rang for minutes unheard.
_RINGS = 4096
#: The served object's name on the wire, and all that may be called on it.
SERVED = "desk"
EXPOSED = ("greet", "exchange", "promote", "tell", "statistics", "leave", "whoami", "stop")


def find_runtime_dir(data_dir: Path) -> Path:
    """The folder where the scheduler of this data directory is met; not created here.

    `<data_dir>/run`, or a short path under $XDG_RUNTIME_DIR or the temporary folder when a socket's path there would
    be too long for the system.
    """
    data_dir = data_dir.resolve()
    place = data_dir / "run"
    if len(os.fsencode(place / "socket")) <= LONGEST_SOCKET_PATH:
        return place
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    if base and len(os.fsencode(base)) <= LONGEST_SOCKET_PATH - 40:
        return Path(base) / f"nightmill-{digest}"
    return Path(tempfile.gettempdir()) / f"nightmill-{os.getuid()}-{digest}"


def make_runtime_dir(data_dir: Path) -> Path:
    """The folder, there and private. Raises CannotRunError when it is not ours alone."""
    place = find_runtime_dir(data_dir)
    try:
        for folder in (place, place / "clients"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            check_private(folder)
    except OSError as error:
        raise CannotRunError(f"the runtime folder {place} cannot be used: {error}") from error
    return place


def check_private(folder: Path) -> None:
    """Raises CannotRunError when a folder is not ours alone, OSError when there is none."""
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise CannotRunError(f"{folder} is a symbolic link; remove it: the runtime folder must be a real one")
    if not stat.S_ISDIR(found.st_mode):
        raise CannotRunError(f"{folder} is not a folder; remove it")
    if found.st_uid != os.getuid():
        raise CannotRunError(f"{folder} belongs to account {found.st_uid}, not to ours ({os.getuid()}); remove it")
    if found.st_mode & 0o077:
        raise CannotRunError(f"{folder} is open to other accounts (mode {found.st_mode & 0o777:o}); chmod it to 700")


# --- the key ---


def write_key(place: Path) -> bytes:
    """A new key, written whole or not at all."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = place / f"key.{secrets.token_hex(4)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
    # Killed before this line: a stray draft is left, and the next scheduler removes it.
    draft.replace(place / "key")
    return key


def read_key(place: Path) -> bytes:
    """The key as it stands. Raises OSError when there is none, CannotRunError when it is not whole.

    An empty key would freeze both sides, so nobody connects with one.
    """
    descriptor = os.open(place / "key", os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise CannotRunError(f"{place / 'key'} holds {len(key)} bytes instead of {KEY_BYTES}; stop the scheduler")
    return key


def find_scheduler(data_dir: Path) -> Path | None:
    """The runtime folder where a scheduler runs, or None. Raises CannotRunError when it cannot be one, or is not ours
    alone: whoever put a lock, a key and a socket there is not to be spoken to."""
    place = find_runtime_dir(data_dir)
    try:
        check_private(place)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CannotRunError(f"the runtime folder {place} cannot be used: {error}") from error
    return place if scheduler_runs(place) else None


def scheduler_runs(place: Path) -> bool:
    """Somebody holds the scheduler's lock. Raises CannotRunError when that cannot be a lock (a link, a folder)."""
    lock = place / "scheduler.lock"
    try:
        return lock_is_held(lock)
    except OSError as error:
        raise CannotRunError(f"the scheduler's lock {lock} cannot be used: {error}") from error


def lock_is_held(path: Path) -> bool:
    """Somebody holds the lock on this file. False when there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# --- client files ---


class ClientFile:
    """What a coordinator leaves for whoever must clean up after it: one line for each worker begun or ended, and
    beside it, anew with each change, the leases that it holds.

    Lines are appended with one write each, so a kill in between leaves at most a torn last line, which is passed over.
    The leases are one write too: whoever is stopped is stopped before it or after it.
    """

    def __init__(self, place: Path) -> None:
        self._workers: dict[int, float] = {}
        self._leases: dict[str, bytes] = {}
        self.bell_fd = self._leases_fd = -1
        pid = os.getpid()
        stem = f"{pid}-{start_time(pid):.0f}"
        while True:
            self.path = place / "clients" / f"{stem}-{secrets.token_hex(4)}.json"
            self._descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            # A scheduler that looked between the two calls took the file for a dead client's and removed it.
            if self.path.exists():
                break
            os.close(self._descriptor)
        try:
            # Killed before this line: a dead client's file without a bell, which a scheduler removes like any.
            os.mkfifo(self.path.with_suffix(_BELL), 0o600)
            # Open for writing too, so that the bell does not read as closed while no scheduler has it.
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self.bell_fd = os.open(self.path.with_suffix(_BELL), flags | os.O_NONBLOCK)
            self._leases_fd = os.open(self.path.with_suffix(_LEASES), flags | os.O_CREAT | os.O_EXCL, 0o600)
        except BaseException:
            self.close()
            raise

    @property
    def session(self) -> str:
        """The name under which this desk is known to every scheduler."""
        return self.path.stem

    def add(self, pid: int, started: float) -> None:
        """A worker that leads its own process group was started. Raises CannotRunError when that cannot be written:
        it must not begin a unit then."""
        try:
            self._append({"worker": pid, "started": started})
        except OSError as error:
            raise CannotRunError(f"worker {pid} cannot be noted in {self.path}: {error}") from error
        self._workers[pid] = started

    def remove(self, pid: int) -> None:
        """That worker was waited for."""
        if self._workers.pop(pid, None) is None:
            return
        if not self._workers:
            os.ftruncate(self._descriptor, 0)
            return
        # On a full disk it stays listed. Whoever reads that finds it dead, by its start time.
        with suppress(OSError):
            self._append({"gone": pid})

    def note_leases(self, begun: Mapping[str, Sequence[str | float]], ended: Iterable[str]) -> None:
        """Leases are held from now on, each with the values that its ask has on the wire; others are no longer.

        Raises CannotRunError when that cannot be written: then none of `begun` is listed, or may be used.
        """
        before, now = self._leases, dict(self._leases)
        for lease_id in ended:
            now.pop(lease_id, None)
        for lease_id, row in begun.items():
            now[lease_id] = repr((lease_id, row)).encode()
        try:
            self._write(now)
        except OSError as error:
            # What stood there may be half overwritten; it has its room on the disk.
            with suppress(OSError):
                self._write(before)
            raise CannotRunError(f"leases cannot be noted beside {self.path}: {error}") from error
        self._leases = now

    def close(self) -> None:
        """Remove the file, its bell and its lock. Idempotent."""
        if self._descriptor >= 0:
            _remove_client(self.path)
            descriptors = self._descriptor, self.bell_fd, self._leases_fd
            # Let go of first, as in processes.Watched.close.
            self._descriptor = self.bell_fd = self._leases_fd = -1
            for descriptor in descriptors:
                if descriptor >= 0:
                    os.close(descriptor)

    def silence(self) -> None:
        """Take the bell's past rings off: the next one is news."""
        try:
            while len(os.read(self.bell_fd, _RINGS)) == _RINGS:
                pass
        except BlockingIOError:
            return

    def _append(self, line: dict[str, int | float]) -> None:
        # The line's end comes before it: one that a full disk cut off does not spoil the next.
        _write_whole(b"\n" + json.dumps(line).encode(), partial(os.write, self._descriptor))

    def _write(self, leases: Mapping[str, bytes]) -> None:
        # Written over, never cut off: what a longer line has left behind the first is not read.
        body = b"[%s]" % b",".join(leases.values())
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        _write_whole(line, lambda data: os.pwrite(self._leases_fd, data, 0))


def _write_whole(data: bytes, write: Callable[[bytes], int]) -> None:
    if write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def client_path(place: Path, session: str) -> Path:
    """The client file of a session."""
    return place / "clients" / f"{session}.json"


def client_files(place: Path) -> list[Path]:
    """All client files, of the living and the dead. What lies beside one that is gone is removed."""
    files = sorted((place / "clients").glob("*.json"))
    for pattern in (f"*{_BELL}", f"*{_LEASES}"):
        for beside in (place / "clients").glob(pattern):
            if not beside.with_suffix(".json").exists():
                beside.unlink(missing_ok=True)
    return files


def remove_dead_client(path: Path) -> bool:
    """Remove the file of a client that is dead, and what lies beside it. False, and no change, when it lives."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        # Held meanwhile: a client that has just made its file takes the lock next, and finds the file gone.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if _owner_is_alive(path):
            return False
    else:
        _remove_client(path)
        return True
    finally:
        os.close(descriptor)
    # A forked child of the dead client keeps its lock.
    _remove_client(path)
    return True


def _remove_client(path: Path) -> None:
    """Killed in between: what lies beside the file is left, and `client_files` removes it."""
    for suffix in (".json", _BELL, _LEASES):
        path.with_suffix(suffix).unlink(missing_ok=True)


def open_bell(path: Path) -> int:
    """The bell of a client file, to ring. Raises OSError when there is none that somebody hears, ValueError when it
    is no FIFO."""
    descriptor = os.open(path.with_suffix(_BELL), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.with_suffix(_BELL).name} is no FIFO")
    return descriptor


def ring(bell: int) -> None:
    """There is news. A bell that has rung thousands of times unheard, or whose owner has died, says nothing more."""
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(bell, b".")


def read_client_file(path: Path) -> dict[int, float]:
    """The workers that a client file lists: process id -> start time. Lines that make no sense are passed over."""
    workers: dict[int, float] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return workers
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            if "worker" in entry:
                workers[int(entry["worker"])] = float(entry["started"])
            else:
                workers.pop(int(entry["gone"]), None)
        except (ValueError, KeyError, TypeError):
            continue
    return workers


def read_leases(path: Path) -> list[Any]:
    """The leases that are listed beside a client file: (lease id, values of its ask). Raises ValueError when they are
    being written at this moment."""
    try:
        line = path.with_suffix(_LEASES).read_bytes().partition(b"\n")[0]
    except FileNotFoundError:
        return []
    checksum, _, body = line.partition(b" ")
    if line and int(checksum, 16) != zlib.crc32(body):
        raise ValueError(f"{path.with_suffix(_LEASES)} does not match its checksum")
    return list(ast.literal_eval(body.decode())) if line else []


def owner_of(session: str) -> tuple[int, float]:
    """The process (id, start time) that a session's name names. Raises ValueError for a name that is none."""
    pid, started, _ = session.split("-")
    return int(pid), float(started)


def client_is_alive(path: Path) -> bool:
    """The client of this file lives. Both signs are asked for: a forked child may keep a dead client's lock."""
    return lock_is_held(path) and _owner_is_alive(path)


def _owner_is_alive(path: Path) -> bool:
    try:
        return is_alive(*owner_of(path.stem))
    except ValueError:
        return False


# --- the wire ---


class Wire(Connection):  # type: ignore[misc]
    """A connection that reads and writes with the pickle of C. The one of multiprocess is dill's, in Python: a hundred
    times slower, for functions and classes that never come over this wire.

    A message is one write and, unless it is long, one read: its length, and then it itself.
    """

    _rest = b""
    _handle: int | None

    def send(self, message: object) -> None:
        """Send a message of plain values."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        data = len(content).to_bytes(_LENGTH_BYTES, "big") + content
        while (written := os.write(self.fileno(), data)) < len(data):
            data = data[written:]

    def recv(self) -> Any:
        """The next message. Whoever is at the other end has proved that it has the key."""
        data = self._at_least(_LENGTH_BYTES, self._rest)
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        data = self._at_least(end, data)
        self._rest = data[end:]
        return pickle.loads(data[_LENGTH_BYTES:end])  # noqa: S301

    def _close(self) -> None:
        """Called by `close` and at the end of the object, once or twice."""
        # Let go of first, as in processes.Watched.close.
        descriptor: int | None = self._handle
        self._handle = None
        if descriptor is not None:
            os.close(descriptor)

    def _at_least(self, size: int, data: bytes) -> bytes:
        while len(data) < size:
            more = os.read(self.fileno(), _READ_BYTES)
            if not more:
                raise EOFError
            data += more
        return data


class DeskProxy(BaseProxy):  # type: ignore[misc]
    """The served desk, called over one connection of its own that never waits longer than `timeout_seconds`.

    Raises OSError, EOFError or AuthenticationError when the scheduler cannot be reached, and whatever it answers.
    """

    def __init__(self, place: Path, *, timeout_seconds: float) -> None:
        address = str(place / "socket")
        # Each time: in a shared temporary folder, what was ours may have been cleared away and made by another account.
        check_private(place)
        key = read_key(place)
        self._connection = _connect(address, key, timeout_seconds)
        # The scheduler keeps its one object for as long as it lives: there are no references to count.
        super().__init__(Token(SERVED, address, SERVED), "pickle", authkey=key, exposed=EXPOSED, incref=False)
        self._unanswered = False
        try:
            self._connection.send((None, "accept_connection", ("desk",), {}))
            kind, result = self._connection.recv()
            if kind != "#RETURN":
                raise convert_to_error(kind, result)
        except BaseException:
            self._connection.close()
            raise

    def _callmethod(
        self,
        methodname: str,
        args: tuple[Any, ...] = (),
        kwds: dict[str, Any] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:
        if self._unanswered:
            # Interrupted (Ctrl-C) in between: what is on the wire would be taken for the answer to this call.
            raise OSError("an earlier call was interrupted")
        self._unanswered = True
        self._connection.send((SERVED, methodname, args, kwds or {}))
        if meanwhile is not None:
            meanwhile()
        kind, result = self._connection.recv()
        self._unanswered = False
        if kind == "#RETURN":
            return result
        raise convert_to_error(kind, result)

    def call(self, methodname: str, *args: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        """Call one of EXPOSED. meanwhile: what there is to do until it answers."""
        return self._callmethod(methodname, args, meanwhile=meanwhile)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._connection.close()


def _connect(address: str, key: bytes, timeout_seconds: float) -> Wire:
    with socket.socket(socket.AF_UNIX) as plain:
        set_timeouts(plain, timeout_seconds)
        plain.connect(address)
        _, uid = peer(plain)
        if uid not in (os.getuid(), None):
            raise CannotRunError(f"account {uid} answers at {address}, not ours ({os.getuid()}); remove it")
        connection = Wire(plain.detach())
    try:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
    except BaseException:
        connection.close()
        raise
    return connection


def peer(plain: socket.socket) -> tuple[int | None, int | None]:
    """(pid, uid) of the process at the other end as the kernel says; (None, None) where it does not."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None, None
    pid, uid, _ = struct.unpack("3i", plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def set_timeouts(plain: socket.socket, seconds: float) -> None:
    """Let the kernel end reads and writes that take longer (BlockingIOError); 0.0: wait for ever."""
    whole = int(seconds)
    value = struct.pack("@ll", whole, int((seconds - whole) * 1_000_000))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
