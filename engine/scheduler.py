"""The scheduler: one process per data directory that lends tokens to every coordinator of it.

Rule: a shell. It wins the election, opens the socket, watches clocks and processes, and leaves every word about tokens
to what it serves (served.py) and to the book. It may be killed at any time: what is out is known again from the
coordinators, which re-register, and from their client files, whose workers are killed when their coordinator is dead.

    lock --> recover --> key, socket --> accepter: a thread for each caller --> ServedDesk
                                     --> watcher: pidfds of coordinators, overdue ones, load, idleness
                                     --> guard: memory (guarding.py)
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from multiprocess import get_context
from multiprocess.connection import Connection
from multiprocess.managers import BaseManager, Server

from engine import guards, logfile, rendezvous
from engine.errors import CannotRunError, NightmillError
from engine.guarding import MemoryWatch
from engine.policy.scaling import Scale
from engine.policy.tokens import Limits
from engine.processes import LACKING
from engine.served import ServedDesk

_log = logging.getLogger(__name__)

#: Connections at a time, a thread each (some 100 KB). Coordinators use one, pages and metrics one for each look.
MAX_CONNECTIONS = 128
#: A caller that does not prove within this time that it has the key is hung up on.
HANDSHAKE_SECONDS = 5.0
#: The pause after a failed accept: without it, a process that is out of descriptors spins at full load.
ACCEPT_PAUSE_SECONDS = 0.1
#: How often the watcher looks at what gives no sign of its own (idleness, deadlines, systems without pidfds).
WATCH_SECONDS = 0.25
#: How often it looks at the load of the machine.
LOAD_SECONDS = 1.0
#: Tells the coordinator that started it: another one won the election.
EXIT_LOST_ELECTION = 75


class SchedulerServer(Server):  # type: ignore[misc]
    """The Manager's server: one served object, callers of our own account only, a bounded number of them."""

    public = ("accept_connection",)
    desk: ServedDesk

    def serve(self, desk: ServedDesk, stopping: threading.Event) -> None:
        """Accept callers on a thread of their own until the process ends."""
        self.stop_event = stopping
        #: Callers that have not shown the key yet, by thread, the oldest first; a descriptor of our own for each.
        self._strangers: OrderedDict[int, socket.socket] = OrderedDict()
        self._strangers_lock = threading.Lock()
        self.desk = desk
        self.id_to_obj[rendezvous.SERVED] = (desk, set(rendezvous.EXPOSED), None)
        self._free_lines = threading.BoundedSemaphore(MAX_CONNECTIONS)
        threading.Thread(target=self.accepter, daemon=True, name="accepter").start()

    def keep_address(self) -> None:
        """Leave the socket's file where it is when the listener is closed."""
        self.listener._listener._unlink.cancel()

    def accepter(self) -> None:
        """One thread for each caller; a pause when accepting fails, or when too many are here."""
        while not self.stop_event.is_set():
            if not self._free_lines.acquire(blocking=False):
                # Callers that only hold the line must not keep out those who have the key.
                self._hang_up_on_oldest_stranger()
                if not self._free_lines.acquire(timeout=ACCEPT_PAUSE_SECONDS):
                    continue
            try:
                connection = self.listener.accept()
            except OSError as error:
                self._free_lines.release()
                if self.stop_event.is_set() or error.errno == errno.EBADF:
                    return
                _log.warning("no caller can be accepted: %s", error)
                self._hang_up_on_oldest_stranger()
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
            plain = socket.socket(fileno=os.dup(connection.fileno()))
            pid, uid = rendezvous.peer(plain)
            if uid not in (os.getuid(), None):
                _log.warning("a caller of account %s was refused", uid)
                plain.close()
                return
            self.desk.caller.pid = pid
            with self._strangers_lock:
                self._strangers[threading.get_ident()] = plain
            rendezvous.set_timeouts(plain, HANDSHAKE_SECONDS)
            super().handle_request(connection)
        except OSError as error:
            _log.info("a caller hung up: %s", error)
        finally:
            self._know()
            # Hung up on, not left to wait: the accepting thread still knows this connection.
            connection.close()
            self._free_lines.release()

    def accept_connection(self, connection: Connection, name: str) -> None:
        """The caller has the key: from here on it may be silent as long as it likes."""
        self._know()
        try:
            wire = rendezvous.Wire(os.dup(connection.fileno()))
        except OSError as error:
            # Hung up on, it comes again; an answer to this call it would take for good.
            _log.warning("a caller cannot be served: %s", error)
            connection.close()
            return
        with wire:
            super().accept_connection(wire, name)

    def _know(self) -> None:
        """The caller of this thread is no stranger any more."""
        with self._strangers_lock:
            plain = self._strangers.pop(threading.get_ident(), None)
        if plain is not None:
            rendezvous.set_timeouts(plain, 0.0)
            plain.close()

    def _hang_up_on_oldest_stranger(self) -> None:
        with self._strangers_lock:
            if self._strangers:
                _, plain = self._strangers.popitem(last=False)
                with suppress(OSError):
                    plain.shutdown(socket.SHUT_RDWR)
                plain.close()


class SchedulerManager(BaseManager):  # type: ignore[misc]
    """The Manager that holds the counters."""

    _Server = SchedulerServer

    def get_server(self) -> SchedulerServer:
        """The server, bound to its address."""
        return self._Server(self._registry, self._address, self._authkey, self._serializer)


class Watcher:
    """The process's own thread: looks at what gives no sign of its own, and knows when to end."""

    def __init__(self, desk: ServedDesk, place: Path, *, scaling: bool) -> None:
        self.stopping = threading.Event()
        self._desk, self._place = desk, place
        self._meter = guards.LoadMeter()
        self._scale = Scale(desk.limits.cpu_limit) if scaling else None
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        desk.wake, desk.end_process = self.wake, self.stop

    def wake(self) -> None:
        """Look again, now. May be called by any thread and by a signal handler."""
        with suppress(BlockingIOError):
            os.write(self._wake_in, b".")

    def stop(self) -> None:
        """End the process, in a moment."""
        self.stopping.set()
        self.wake()

    def watch(self, idle_seconds: float) -> None:
        """Until stopped: end the sessions of processes that have ended, and all of it when nobody needs it."""
        looked = -math.inf
        while not self.stopping.is_set():
            poller = select.poll()
            for descriptor in (self._wake_out, *self._desk.descriptors()):
                poller.register(descriptor, select.POLLIN)
            for descriptor, _ in poller.poll(WATCH_SECONDS * 1000):
                if descriptor == self._wake_out:
                    os.read(self._wake_out, 4096)
            now = time.monotonic()
            try:
                self._desk.end_dead()
                self._desk.end_recovery()
                if now - looked >= LOAD_SECONDS:
                    looked = now
                    self._desk.look()
                    self._look_at_log()
                    self._follow_load(now)
            except OSError as error:
                if error.errno not in LACKING:
                    raise
                # What could not be looked at now is looked at again; not at once, because a sign may still be there.
                _log.warning("the watcher cannot look: %s", error)
                self.stopping.wait(ACCEPT_PAUSE_SECONDS)
            if self._desk.idle_seconds() >= idle_seconds:
                self.stopping.set()

    def _look_at_log(self) -> None:
        """What we and those who lost an election to us have written must not fill the disk."""
        try:
            logfile.turn_over(self._place)
        except OSError as error:
            # On a full disk it goes on as it is.
            _log.warning("the log cannot be begun anew: %s", error)

    def _follow_load(self, now: float) -> None:
        """Let bulk work use fewer cores while other programs need them, or memory is short."""
        if self._scale is None:
            return
        self._scale.set_budget(self._desk.limits.cpu_limit)
        share = self._desk.memory_used_share()
        self._scale.observe(self._meter.look(now, self._desk.our_processes(), share))
        self._desk.scale(self._scale.target, self._scale.why)


def run_scheduler(data_dir: Path, limits: Limits, *, idle_seconds: float, scaling: bool) -> int:
    """Be the scheduler of this data directory until nobody needs one. Returns an exit code.

    idle_seconds: infinite for one that an operator runs; it keeps its limits whoever comes.
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
    desk = ServedDesk(place, limits, keeps_limits=math.isinf(idle_seconds))
    desk.recover()
    mask = os.umask(0o177)
    try:
        key = rendezvous.write_key(place)
        server = SchedulerManager(address=str(place / "socket"), authkey=key, ctx=get_context("spawn")).get_server()
    finally:
        os.umask(mask)
    watcher = Watcher(desk, place, scaling=scaling)
    signal.signal(signal.SIGTERM, lambda *_: watcher.stop())
    signal.signal(signal.SIGINT, lambda *_: watcher.stop())
    # Before the first caller it knows how much memory there is.
    guard = MemoryWatch(place, desk.memory_view, desk.note_memory, watcher.stop)
    desk.wake_guard = guard.wake
    server.serve(desk, watcher.stopping)
    try:
        watcher.watch(idle_seconds)
    finally:
        guard.stop()
        if not _is_still_there(place / "scheduler.lock", lock):
            # The folder was removed, and perhaps made anew: the socket that lies there is another scheduler's.
            server.keep_address()
        # The socket goes before the lock does, so that nobody finds the lock free and the socket still answering.
        server.listener.close()
        os.close(lock)
    return 0


def _is_still_there(path: Path, descriptor: int) -> bool:
    ours = os.fstat(descriptor)
    try:
        there = path.lstat()
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def main(words: list[str] | None = None) -> int:
    """`python -m engine.scheduler --data-dir D [--foreground]`."""
    parser = argparse.ArgumentParser(prog="python -m engine.scheduler", description="Lend tokens to coordinators.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--max-total-workers", type=int, default=20)
    parser.add_argument("--max-workers-per-user", type=int, default=5)
    parser.add_argument("--cpu-limit", type=int, default=None, help="cores (default: what this machine allows)")
    parser.add_argument("--memory-limit-bytes", type=int, default=None, help="default: what this machine allows")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="end after so long without a coordinator")
    parser.add_argument("--no-scaling", action="store_true", help="do not give way to the load of the machine")
    parser.add_argument("--debug", action="store_true", help="log every grant and every wait")
    parser.add_argument("--foreground", action="store_true", help="stay when idle, for systemd")
    given = parser.parse_args(words)
    logging.basicConfig(
        level=logging.DEBUG if given.debug else logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        limits = Limits(
            max_total_workers=given.max_total_workers,
            max_workers_per_user=given.max_workers_per_user,
            cpu_limit=given.cpu_limit if given.cpu_limit is not None else guards.cpu_limit(),
            memory_limit_bytes=given.memory_limit_bytes or guards.machine_limit(),
        )
        idle_seconds = math.inf if given.foreground else given.idle_seconds
        return run_scheduler(given.data_dir, limits, idle_seconds=idle_seconds, scaling=not given.no_scaling)
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
