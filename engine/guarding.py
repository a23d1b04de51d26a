"""The scheduler's guard: ten times a second it looks at memory, says what is free, and has a lease stopped if it must.

Rule: what follows from a reading is decided in policy/pressure.py and policy/admission.py; here it is read and carried
out. Nothing is read while the desk's lock is held, so that no caller waits for a look at the machine.

    guard thread --view--> who works on what        (the desk's lock, microseconds)
                 --look--> /proc, cgroups           (no lock, a millisecond)
                 --note--> book, stops, bells       (the desk's lock)
                 --end---> SIGKILL to the group of a worker that was to be stopped a second ago, and is not
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import guards, rendezvous
from engine.model import Lane, LeaseId
from engine.policy import pressure
from engine.policy.book import Book
from engine.policy.pressure import Ceiling, Pressure, Use
from engine.ports import Claim
from engine.processes import LACKING, kill_group, private_bytes

_log = logging.getLogger(__name__)

#: Between two looks while leases are out. A look takes a millisecond, so that is a hundredth of a core; what a process
#: can take in the meantime is what the hard mark keeps free (policy/pressure.py).
LOOK_SECONDS = 0.1
#: And while none are: how much others use is all there is to see then.
IDLE_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Who works on a lease: a process of that session."""

    session: str
    pid: int
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the desk knows before a look at the machine.

    limit_bytes  that was set, for all our processes together
    sessions     the process ids of the coordinators that are here
    leases       those with a worker, the oldest first: (lane, promised bytes, worker)
    is_busy      some lease is out, with a worker or without
    """

    limit_bytes: int
    sessions: Mapping[str, int]
    leases: Mapping[LeaseId, tuple[Lane, int, Placed]]
    is_busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What was seen there.

    used    by the worker of each lease; None: it is gone
    idle    by each session's workers that work on no lease, together
    """

    ceilings: Sequence[Ceiling]
    used: Mapping[LeaseId, int | None]
    idle: Mapping[str, int]

    @property
    def used_bytes(self) -> int:
        """By the workers of all leases."""
        return sum(used or 0 for used in self.used.values())


class Guard:
    """Who works on which lease, how full memory is, and which leases are to be stopped. All under the desk's lock."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._pressure = Pressure()
        self._placed: dict[LeaseId, Placed] = {}
        self._stops: dict[LeaseId, str] = {}
        self._sight: Sight | None = None

    def claim(self, session: str, claim: Claim) -> bool:
        """That process works on the lease and is to be promised so much. False when it cannot be promised so much; of
        a lease that is not out to this session nobody wants to know any more."""
        if not self._book.has_lease(session, claim.lease_id):
            return True
        self._placed[claim.lease_id] = Placed(session=session, pid=claim.pid, started=claim.started)
        return self._book.claim(session, claim.lease_id, claim.memory_bytes)

    def stops_of(self, session: str) -> dict[str, str]:
        """The leases of this session that must end, and why."""
        if not self._stops:
            return {}
        return {str(lease_id): why for lease_id, why in self._stops.items() if self._book.has_lease(session, lease_id)}

    def view(self, sessions: Mapping[str, int], limit_bytes: int) -> View:
        """What a look at the machine needs: see View. Leases that have ended are forgotten."""
        leases = self._book.tokens.leases
        for gone in self._placed.keys() - leases.keys():
            del self._placed[gone]
        for gone in self._stops.keys() - leases.keys():
            del self._stops[gone]
        return View(
            limit_bytes=limit_bytes,
            sessions=sessions,
            leases={
                lease_id: (lease.lane, self._book.memory.promise_of(lease_id), self._placed[lease_id])
                for lease_id, lease in leases.items()
                if lease_id in self._placed
            },
            is_busy=bool(leases),
        )

    def note(self, now_seconds: float, view: View, sight: Sight) -> tuple[Placed | None, Placed | None]:
        """What was seen counts from now on: (the worker to be stopped by its coordinator, the worker to be ended)."""
        uses = [
            Use(lease_id=lease_id, lane=lane, promised_bytes=promised, used_bytes=sight.used[lease_id])
            for lease_id, (lane, promised, _) in view.leases.items()
        ]
        verdict = self._pressure.observe(now_seconds, sight.ceilings, uses)
        before = self._book.memory.closed
        self._sight = sight
        self._count(sight, verdict.closed)
        if verdict.closed != before:
            _log.info("memory is %s: %s", "closed" if verdict.closed else "open again", self._in_words())
        if verdict.stop is not None:
            lease_id, why = verdict.stop
            self._stops[lease_id] = why
            _log.warning("lease %s is to be stopped: %s", lease_id, why)
        return (
            view.leases[verdict.stop[0]][2] if verdict.stop is not None else None,
            view.leases[verdict.end][2] if verdict.end is not None else None,
        )

    def note_limit(self, limit_bytes: int) -> None:
        """Other limits are in force, and so much was set: what was seen last is held against them until the next look.
        Else what a large limit keeps free would count as taken of a small one."""
        if self._sight is not None:
            first, *others = self._sight.ceilings
            self._sight = replace(self._sight, ceilings=(replace(first, limit_bytes=limit_bytes), *others))
            self._count(self._sight, self._book.memory.closed)

    def used_share(self) -> float | None:
        """What is used of what may be, by the fullest ceiling; None before the first look."""
        return pressure.used_share(self._sight.ceilings) if self._sight is not None else None

    def statistics(self) -> dict[str, Any]:
        """The fields of ports.DeskStats that speak of memory."""
        memory, limit = self._book.memory, self._book.limits.memory_limit_bytes
        narrowest = pressure.narrowest(self._sight.ceilings) if self._sight is not None else None
        used = self._sight.used_bytes if self._sight is not None else 0
        return {
            "memory_reserved_bytes": memory.promised_bytes,
            "memory_limit_bytes": limit,
            "memory_used_bytes": narrowest.used_bytes if narrowest else 0,
            "memory_taken_bytes": max(0, narrowest.used_bytes - used) if narrowest else 0,
            "memory_source": narrowest.source if narrowest else "",
            "memory_closed": memory.closed,
            "memory_stopped": self._pressure.stopped,
        }

    def _count(self, sight: Sight, closed: bool) -> None:
        room = pressure.room_bytes(sight.ceilings)
        taken = self._book.limits.memory_limit_bytes - room - sight.used_bytes - self._soon_working(sight.idle)
        used = {lease_id: used or 0 for lease_id, used in sight.used.items()}
        self._book.note_memory(max(0, taken), used, closed)

    def _soon_working(self, idle: Mapping[str, int]) -> int:
        """Bytes of idle workers that work, or soon will, on leases that nobody has been named for: counted as taken
        they would count twice, because a promise includes the worker."""
        nameless: Counter[str] = Counter()
        for lease_id, lease in self._book.tokens.leases.items():
            if lease_id not in self._placed:
                nameless[lease.session] += self._book.memory.promise_of(lease_id)
        return sum(min(idle.get(session, 0), promised) for session, promised in nameless.items())

    def _in_words(self) -> str:
        assert self._sight is not None
        fullest = max(self._sight.ceilings, key=lambda one: pressure.used_share([one]))
        return f"{fullest.used_bytes // 10**6:,} of {fullest.limit_bytes // 10**6:,} MB are in use ({fullest.source})"


class Looker:
    """Looks at the machine, for one thread."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._meter = guards.MemoryMeter()
        #: What client files listed when they were last read, and what they looked like then.
        self._listed: dict[str, tuple[tuple[int, int, int], dict[int, float]]] = {}
        #: What each coordinator held when it was first seen: a product's own program may hold more than our limit.
        self._at_first: dict[str, int] = {}

    def look(self, now_seconds: float, view: View) -> Sight:
        """One look. Raises OSError (processes.LACKING) when nothing can be opened now."""
        workers = {session: self.workers_of(session) for session in view.sessions}
        self._listed = {session: self._listed[session] for session in view.sessions if session in self._listed}
        held: dict[int, int] = {}
        for pid in {placed.pid for _, _, placed in view.leases.values()}.union(*workers.values()):
            held[pid] = _or_none(guards.held_bytes, pid) or 0
        leaders = (os.getpid(), *view.sessions.values())
        self._at_first = {session: held for session, held in self._at_first.items() if session in view.sessions}
        working = {placed.pid for _, _, placed in view.leases.values()}
        total = sum(held.values()) + (_or_none(private_bytes, os.getpid()) or 0)
        for session, pid in view.sessions.items():
            now = _or_none(private_bytes, pid) or 0
            total += max(0, now - self._at_first.setdefault(session, now))
        return Sight(
            # Last: what has ended by now has given its memory back.
            ceilings=self._meter.read(now_seconds, view.limit_bytes, total, leaders),
            used={lease_id: held[placed.pid] or None for lease_id, (_, _, placed) in view.leases.items()},
            idle={session: sum(held[pid] for pid in listed.keys() - working) for session, listed in workers.items()},
        )

    def workers_of(self, session: str) -> Mapping[int, float]:
        """The workers that a session's client file lists, read again when it has changed."""
        path = rendezvous.client_path(self._place, session)
        try:
            found = path.stat()
        except FileNotFoundError:
            return {}
        looks = found.st_ino, found.st_size, found.st_mtime_ns
        known = self._listed.get(session)
        if known is None or known[0] != looks:
            known = self._listed[session] = looks, rendezvous.read_client_file(path)
        return known[1]


class MemoryWatch:
    """The guard's thread.

    view, note  of the desk: see `ServedDesk.memory_view` and `note_memory`
    """

    def __init__(
        self,
        place: Path,
        view: Callable[[], View],
        note: Callable[[View, Sight], Placed | None],
        end_process: Callable[[], None],
    ) -> None:
        self._looker = Looker(place)
        self._view, self._note, self._end_process = view, note, end_process
        self._stopping = threading.Event()
        self._waker = threading.Event()
        self.look()
        threading.Thread(target=self._watch, daemon=True, name="guard").start()

    def wake(self) -> None:
        """Something was lent."""
        if not self._waker.is_set():
            self._waker.set()

    def stop(self) -> None:
        """No look begins after this."""
        self._stopping.set()
        self._waker.set()

    def look(self) -> bool:
        """One look, and what follows from it. False when no lease is out."""
        view = self._view()
        overdue = self._note(view, self._looker.look(time.monotonic(), view))
        if overdue is not None:
            self._end(overdue)
        return view.is_busy

    def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                # What was lent wakes it out of its long pause, but does not make it look at once: nothing to see yet.
                self._waker.wait(IDLE_LOOK_SECONDS)
                self._waker.clear()
                is_busy = True
                while is_busy and not self._stopping.wait(LOOK_SECONDS):
                    try:
                        is_busy = self.look()
                    except OSError as error:
                        if error.errno not in LACKING:
                            raise
                        _log.warning("memory cannot be looked at: %s", error)
        finally:
            # Without a guard nothing may be lent: those who need a scheduler start another.
            if not self._stopping.is_set():
                self._end_process()

    def _end(self, worker: Placed) -> None:
        """End a worker whose coordinator does not. Only what its client file lists is ended."""
        if self._looker.workers_of(worker.session).get(worker.pid) != worker.started:
            _log.warning("worker %s was to be stopped, and is not listed by %s", worker.pid, worker.session)
            return
        _log.warning("worker %s of %s was not stopped; it is ended now", worker.pid, worker.session)
        try:
            # Not waited for: the next look says whether it is gone.
            kill_group(worker.pid, worker.started, timeout_seconds=0.0)
        except (ValueError, PermissionError) as error:
            _log.warning("worker %s cannot be ended: %s", worker.pid, error)


def _or_none(look: Callable[[int], int], pid: int) -> int | None:
    try:
        return look(pid)
    except ProcessLookupError:
        return None
