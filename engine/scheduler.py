"""The scheduler: one process per data directory that lends tokens to every coordinator of it.

Rule: it decides nothing. It owns the clock, one lock and the book (policy/book.py), tells the book what happened, and
hands out what the book grants. It may be killed at any time: what is out is known again from the coordinators, which
re-register, and from their client files, whose workers are killed when their coordinator is dead.

    coordinator --greet/exchange/leave--> ServedDesk --> Book
    pidfds of coordinators, clock ------> watcher -----> kill workers, wait until they are gone, then end the leases

The limits in force are those of the coordinator that started it; `statistics` shows them. Others bring theirs in
the greeting and are told the ones in force.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import math
import os
import secrets
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multiprocess import get_context
from multiprocess.connection import Connection
from multiprocess.managers import BaseManager, Server

from engine import rendezvous
from engine.errors import CannotRunError, NightmillError
from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.book import Book, check_ask, is_number
from engine.policy.tokens import Limits
from engine.ports import Ask
from engine.processes import Watched, kill_group, start_time

_log = logging.getLogger(__name__)

#: The longest that `exchange` waits for a grant: the desk never blocks for more than some tens of milliseconds.
MAX_PATIENCE_SECONDS = 0.05
#: How long a new scheduler waits for the coordinators of the one before it to come back. They notice its end at once
#: (pidfd) or within a second, and the process takes about half a second to start; ten cover a machine that swaps.
RECOVERY_SECONDS = 10.0
#: Connections at a time, a thread each (some 100 KB). Coordinators use one, pages and metrics one for each look.
MAX_CONNECTIONS = 128
#: A caller that does not prove within this time that it has the key is hung up on.
HANDSHAKE_SECONDS = 5.0
#: The pause after a failed accept: without it, a process that is out of descriptors spins at full load.
ACCEPT_PAUSE_SECONDS = 0.1
#: How often the watcher looks at what gives no sign of its own (idleness, deadlines, systems without pidfds).
WATCH_SECONDS = 0.25
#: Tells the coordinator that started it: another one won the election.
EXIT_LOST_ELECTION = 75


@dataclass(slots=True)
class _Session:
    name: str
    client: Watched
    granted: list[tuple[str, str]]
    dying: bool = False


class ServedDesk:
    """The one served object. Each public method is one transaction on the book; plain values in, plain values out."""

    def __init__(self, place: Path, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.stopping = threading.Event()
        self._place = place
        self._clock = clock
        self._book = Book(limits, epoch=secrets.token_hex(4))
        self._news = threading.Condition()
        self._sessions: dict[str, _Session] = {}
        self._awaited: dict[str, Path] = {}
        self._recovery_ends = clock() + RECOVERY_SECONDS
        self._idle_since = clock()
        self._wake_out, self._wake_in = os.pipe()
        #: Who calls, by thread; the server fills it in from SO_PEERCRED.
        self.caller = threading.local()

    # --- called by coordinators ---

    def greet(
        self, protocol: int, session: str, asks: list[tuple[Any, ...]], leases: list[tuple[Any, ...]]
    ) -> dict[str, Any]:
        """A coordinator introduces itself, or comes back, with the asks that stand and the leases that it holds.

        leases: (lease_id, ask tuple). Answers with `scheduler` (pid, start time), `limits` and `void`, the leases that
        are no longer counted (their workers have been killed). A refusal is {"refused": why}.
        """
        if protocol != rendezvous.PROTOCOL:
            older = "scheduler" if protocol > rendezvous.PROTOCOL else "coordinator"
            return {
                "refused": f"coordinator and scheduler speak different protocols ({protocol} and "
                f"{rendezvous.PROTOCOL}): the {older} is older and must be restarted from the present release"
            }
        try:
            client = self._identify(session)
            wished = [_ask_from(entry) for entry in asks]
            held = [(LeaseId(str(lease_id)), _ask_from(entry)) for lease_id, entry in leases]
        except (ValueError, TypeError, ProcessLookupError) as error:
            return {"refused": f"the greeting of {session!r} makes no sense: {error}"}
        with self._news:
            known = self._sessions.get(session)
            if known is not None and known.dying:
                client.close()
                return {"refused": f"session {session!r} is being ended"}
            if known is not None:
                client.close()
                known.granted.clear()
            else:
                self._sessions[session] = _Session(session, client, [])
                self._book.begin_session(session)
            void = self._take_up(session, held, wished, may_adopt=session in self._awaited)
            self._awaited.pop(session, None)
            self._grant()
            self._wake()
        return {
            "scheduler": self.whoami(),
            "limits": asdict(self.limits),
            "void": void,
        }

    def exchange(
        self,
        session: str,
        asks: list[tuple[Any, ...]],
        returns: list[tuple[str, float]],
        withdraw: list[str],
        patience_seconds: float,
    ) -> tuple[list[tuple[str, str]], dict[str, str], list[str]] | None:
        """Returns, withdrawals, asks, in this order, in one transaction: (grants, waits, promoted).

        None when the session is unknown (greet again). Garbage raises ValueError before anything has changed.
        """
        wished = [_ask_from(entry) for entry in asks]
        given = [(LeaseId(str(lease_id)), cost) for lease_id, cost in returns]
        if not all(is_number(cost) and cost >= 0 for _, cost in given) or not is_number(patience_seconds):
            raise ValueError("malformed return or patience")
        gone = [str(ask_id) for ask_id in withdraw]
        with self._news:
            borrower = self._sessions.get(session)
            if borrower is None or borrower.dying:
                return None
            for lease_id, cost in given:
                self._book.give_back(session, lease_id, cost)
            for ask_id in gone:
                if not self._book.withdraw(session, ask_id):
                    self._take_back(borrower, ask_id)
            for ask in wished:
                self._book.ask(session, ask)
            if given or gone or wished:
                self._grant()
            if not borrower.granted and patience_seconds > 0:
                self._news.wait_for(
                    lambda: borrower.granted or borrower.dying, min(patience_seconds, MAX_PATIENCE_SECONDS)
                )
            grants, borrower.granted = borrower.granted, []
            waits = {str(user): why for user, why in self._book.waits(session).items()}
            if self._awaited:
                waits = dict.fromkeys(waits, "recovering")
            return grants, waits, list(self._book.promoted(session))

    def promote(self, user: str) -> bool:
        """The user's asks count as interactive, in all sessions. False if no session has it."""
        with self._news:
            known = self._book.promote(UserId(str(user)))
            if known:
                self._grant()
            return known

    def statistics(self) -> dict[str, Any]:
        """The counters now, as the fields of ports.DeskStats."""
        with self._news:
            tokens, memory = self._book.tokens, self._book.memory
            return {
                "active_workers": len(tokens.leases),
                "max_total_workers": self.limits.max_total_workers,
                "max_workers_per_user": self.limits.max_workers_per_user,
                "user_workers": dict(tokens.by_user),
                "waiting": dict(self._book.waiting()),
                "sessions": len(self._sessions),
                "memory_reserved_bytes": memory.promised_bytes,
                "memory_limit_bytes": self.limits.memory_limit_bytes,
            }

    def leave(self, session: str) -> None:
        """A coordinator is done: its leases end, its asks are withdrawn."""
        with self._news:
            borrower = self._sessions.get(session)
            if borrower is not None and not borrower.dying:
                self._end(borrower)

    def whoami(self) -> tuple[int, float]:
        """The scheduler's process: id and start time."""
        return os.getpid(), start_time(os.getpid())

    def stop(self) -> None:
        """End the process, in a moment. Coordinators that still work start another one."""
        self.stopping.set()
        self._wake()

    # --- called by the process itself ---

    def recover(self) -> None:
        """Before the first caller: end what dead coordinators left, and note the living ones that must come back."""
        for path in sorted((self._place / "clients").glob("*.json")):
            if rendezvous.client_is_alive(path):
                self._awaited[path.stem] = path
            else:
                self._kill_workers(path)
                path.unlink(missing_ok=True)
        self._recovery_ends = self._clock() + RECOVERY_SECONDS

    def watch(self, idle_seconds: float) -> None:
        """Until stopped: end the sessions of processes that have ended, and the process when nobody needs it."""
        while not self.stopping.is_set():
            with self._news:
                watched = {s.client.fd: s for s in self._sessions.values() if s.client.fd >= 0 and not s.dying}
            poller = select.poll()
            poller.register(self._wake_out, select.POLLIN)
            for descriptor in watched:
                poller.register(descriptor, select.POLLIN)
            for descriptor, _ in poller.poll(WATCH_SECONDS * 1000):
                if descriptor == self._wake_out:
                    os.read(self._wake_out, 4096)
            self._end_dead_sessions()
            self._end_recovery_when_due()
            with self._news:
                now = self._clock()
                if self._sessions or self._awaited:
                    self._idle_since = now
                elif now - self._idle_since >= idle_seconds:
                    self.stopping.set()

    def _end_dead_sessions(self) -> None:
        with self._news:
            dead = [s for s in self._sessions.values() if not s.dying and not s.client.alive]
            for borrower in dead:
                borrower.dying = True
                self._book.end_asks(borrower.name)
                threading.Thread(target=self._bury, args=(borrower,), daemon=True).start()
            if dead:
                self._grant()

    def _bury(self, borrower: _Session) -> None:
        """Its workers first, its leases only when they are gone: nothing is lent twice in between."""
        path = self._place / "clients" / f"{borrower.name}.json"
        self._kill_workers(path)
        path.unlink(missing_ok=True)
        with self._news:
            self._end(borrower)

    def _kill_workers(self, path: Path) -> None:
        """Kill every worker that a client file lists and wait until all are gone, however long the kernel takes."""
        for pid, started in rendezvous.read_client_file(path).items():
            try:
                while not kill_group(pid, started):
                    _log.warning("worker %s of %s does not end; its tokens stay out", pid, path.stem)
            except ValueError as error:
                _log.warning("client file %s: %s", path.name, error)
            except PermissionError as error:
                _log.warning("worker %s of %s is not ours to end: %s", pid, path.stem, error)

    def _end_recovery_when_due(self) -> None:
        with self._news:
            if not self._awaited:
                return
            overdue = self._clock() >= self._recovery_ends
            given_up = [
                (name, path) for name, path in self._awaited.items() if overdue or not rendezvous.client_is_alive(path)
            ]
            # Taken off the list only after their workers are gone, below: until then nothing is granted. One that
            # greets meanwhile finds its leases adopted, its workers dead, and returns them.
        for name, path in given_up:
            self._kill_workers(path)
            if not rendezvous.client_is_alive(path):
                path.unlink(missing_ok=True)
            with self._news:
                self._awaited.pop(name, None)
                self._grant()

    # --- how ---

    def _identify(self, session: str) -> Watched:
        pid, started = rendezvous.owner_of(session)
        if pid != getattr(self.caller, "pid", None):
            raise ValueError(f"it names process {pid}, but process {getattr(self.caller, 'pid', None)} is calling")
        if not (self._place / "clients" / f"{session}.json").exists():
            raise ValueError("it has no client file")
        return Watched(pid, started)

    def _take_up(
        self, session: str, held: list[tuple[LeaseId, Ask]], wished: list[Ask], *, may_adopt: bool
    ) -> list[str]:
        """Make the book agree with what the coordinator says; answers with the leases that are not counted."""
        self._book.end_asks(session)
        named = {lease_id for lease_id, _ in held}
        counted = self._book.tokens.of_session(session)
        for lease_id in sorted(counted - named):
            # Granted or returned in a call whose answer was lost.
            self._book.give_back(session, lease_id, 0.0)
        void = []
        for lease_id, ask in held:
            if lease_id not in counted:
                if may_adopt:
                    self._book.adopt(session, lease_id, ask)
                else:
                    void.append(str(lease_id))
        for ask in wished:
            self._book.ask(session, ask)
        return void

    def _take_back(self, borrower: _Session, ask_id: str) -> None:
        """An ask is withdrawn whose grant has not been collected yet: the lease ends unused."""
        for granted in borrower.granted:
            if granted[0] == ask_id:
                borrower.granted.remove(granted)
                self._book.give_back(borrower.name, LeaseId(granted[1]), 0.0)
                return

    def _end(self, borrower: _Session) -> None:
        self._book.end_session(borrower.name)
        del self._sessions[borrower.name]
        borrower.client.close()
        self._grant()
        self._wake()

    def _grant(self) -> None:
        """Hand what the book grants to the sessions' trays. Nothing is granted before everyone is back."""
        if self._awaited:
            return
        granted = self._book.grants()
        for grant in granted:
            self._sessions[grant.session].granted.append((grant.ask_id, grant.lease_id))
        if granted:
            self._news.notify_all()

    def _wake(self) -> None:
        os.write(self._wake_in, b".")


def _ask_from(entry: tuple[Any, ...]) -> Ask:
    """Raises ValueError or TypeError for anything that is no sound ask."""
    ask_id, user, lane, kind, cost_seconds, memory_bytes, weight = entry
    ask = Ask(
        ask_id=ask_id,
        user=user,
        lane=Lane(lane),
        kind=TokenKind(kind),
        cost_seconds=cost_seconds,
        memory_bytes=memory_bytes,
        weight=weight,
    )
    check_ask(ask)
    return ask


class SchedulerServer(Server):  # type: ignore[misc]
    """The Manager's server: one served object, callers of our own account only, a bounded number of them."""

    public = ("accept_connection",)
    desk: ServedDesk

    def serve(self, desk: ServedDesk) -> None:
        """Accept callers on a thread of their own until the process ends."""
        self.desk = desk
        self.stop_event = desk.stopping
        self.id_to_obj[rendezvous.SERVED] = (desk, set(rendezvous.EXPOSED), None)
        self._free_lines = threading.BoundedSemaphore(MAX_CONNECTIONS)
        threading.Thread(target=self.accepter, daemon=True, name="accepter").start()

    def accepter(self) -> None:
        """One thread for each caller; a pause when accepting fails, or when too many are here."""
        while not self.stop_event.is_set():
            if not self._free_lines.acquire(timeout=1.0):
                continue
            try:
                connection = self.listener.accept()
            except OSError as error:
                self._free_lines.release()
                if self.stop_event.is_set() or error.errno == errno.EBADF:
                    return
                _log.warning("no caller can be accepted: %s", error)
                self.stop_event.wait(ACCEPT_PAUSE_SECONDS)
                continue
            try:
                threading.Thread(target=self.handle_request, args=(connection,), daemon=True).start()
            except RuntimeError as error:
                self._free_lines.release()
                connection.close()
                _log.warning("no thread for a caller: %s", error)
                self.stop_event.wait(ACCEPT_PAUSE_SECONDS)

    def handle_request(self, connection: Connection) -> None:
        """Check the caller's account before a byte of it is read, then serve it."""
        try:
            pid, uid = _peer(connection)
            if uid not in (os.getuid(), None):
                _log.warning("a caller of account %s was refused", uid)
                connection.close()
                return
            self.desk.caller.pid = pid
            _set_timeouts(connection, HANDSHAKE_SECONDS)
            super().handle_request(connection)
        except OSError as error:
            _log.info("a caller hung up: %s", error)
        finally:
            self._free_lines.release()

    def accept_connection(self, connection: Connection, name: str) -> None:
        """The caller has the key: from here on it may be silent as long as it likes."""
        _set_timeouts(connection, 0.0)
        super().accept_connection(connection, name)


class SchedulerManager(BaseManager):  # type: ignore[misc]
    """The Manager that holds the counters."""

    _Server = SchedulerServer

    def get_server(self) -> SchedulerServer:
        """The server, bound to its address."""
        return self._Server(self._registry, self._address, self._authkey, self._serializer)


def _peer(connection: Connection) -> tuple[int | None, int | None]:
    """(pid, uid) of the caller as the kernel says; (None, None) where it does not."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None, None
    with socket.socket(fileno=os.dup(connection.fileno())) as plain:
        pid, uid, _ = struct.unpack("3i", plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _set_timeouts(connection: Connection, seconds: float) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as plain:
        rendezvous.set_timeouts(plain, seconds)


def run_scheduler(data_dir: Path, limits: Limits, *, idle_seconds: float) -> int:
    """Be the scheduler of this data directory until nobody needs one. Returns an exit code.

    Raises CannotRunError when the runtime folder is not private.
    """
    place = rendezvous.make_runtime_dir(data_dir)
    lock = os.open(place / "scheduler.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return EXIT_LOST_ELECTION
    # From here on this is the only scheduler: what lies here is left over from one that was killed.
    for stale in [place / "socket", *place.glob("key.*")]:
        stale.unlink(missing_ok=True)
    desk = ServedDesk(place, limits)
    desk.recover()
    mask = os.umask(0o177)
    try:
        key = rendezvous.write_key(place)
        server = SchedulerManager(address=str(place / "socket"), authkey=key, ctx=get_context("spawn")).get_server()
    finally:
        os.umask(mask)
    signal.signal(signal.SIGTERM, lambda *_: desk.stop())
    signal.signal(signal.SIGINT, lambda *_: desk.stop())
    server.serve(desk)
    try:
        desk.watch(idle_seconds)
    finally:
        # The socket goes before the lock does, so that nobody finds the lock free and the socket still answering.
        server.listener.close()
        os.close(lock)
    return 0


def main(words: list[str] | None = None) -> int:
    """`python -m engine.scheduler --data-dir D [--foreground]`."""
    parser = argparse.ArgumentParser(prog="python -m engine.scheduler", description="Lend tokens to coordinators.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--max-total-workers", type=int, default=20)
    parser.add_argument("--max-workers-per-user", type=int, default=5)
    parser.add_argument("--cpu-limit", type=int, default=None, help="cores (default: what this machine allows)")
    parser.add_argument("--memory-limit-bytes", type=int, default=None, help="default: what this machine allows")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="end after so long without a coordinator")
    parser.add_argument("--foreground", action="store_true", help="stay when idle, for systemd")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from engine import guards

    try:
        limits = Limits(
            max_total_workers=given.max_total_workers,
            max_workers_per_user=given.max_workers_per_user,
            cpu_limit=given.cpu_limit if given.cpu_limit is not None else guards.cpu_limit(),
            memory_limit_bytes=(
                given.memory_limit_bytes if given.memory_limit_bytes is not None else guards.memory_limit(None)[0]
            ),
        )
        return run_scheduler(given.data_dir, limits, idle_seconds=math.inf if given.foreground else given.idle_seconds)
    except ValueError as error:
        _log.error("%s", error)
        return 2
    except NightmillError as error:
        _log.error("%s", error)
        return error.exit_code
    except OSError as error:
        _log.error("%s", error)
        return CannotRunError.exit_code


if __name__ == "__main__":
    sys.exit(main())
