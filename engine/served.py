"""What the scheduler serves: each method one transaction on the book, plain values in, plain values out.

Rule: it decides nothing and never waits. It owns the clock, one lock and the book (policy/book.py), tells the book
what happened, puts what the book grants into the sessions' trays and rings their bells.

    coordinators --greet, exchange, promote, tell, leave--> ServedDesk --> Book
    the process's watcher (scheduler.py) --end_dead, end_recovery, scale-+
    its guard of memory (guarding.py) ------memory_view, note_memory-----+

A lease belongs to the process that its session names. When that ends, its workers are killed and waited for, and only
then its leases end. After a scheduler was killed nothing is granted until every coordinator of the one before has come
back, or is dead and its workers with it, or is stopped: then it keeps the leases that its file lists.

The limits in force are the strictest of all that are here: every session brings its own, a scheduler that an operator
runs in the foreground keeps those it was started with, and the guard finds those of groups, which may change at any
time. Lowered while leases are out, they let nothing new start before there is room.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import rendezvous
from engine.guarding import Guard, Placed, Sight, View
from engine.model import LeaseId, UserId
from engine.policy.book import Book, is_number
from engine.policy.tokens import Limits
from engine.ports import Ask, Claim
from engine.processes import LACKING, Watched, kill_group, start_time
from engine.rows import AskRow, ClaimRow, ask_from, backlog_from, claim_from, status_from

_log = logging.getLogger(__name__)

#: How long a new scheduler waits for the coordinators of the one before it to come back. They notice its end at once
#: (pidfd) or within a second, and the process takes about half a second to start; ten cover a machine that swaps.
RECOVERY_SECONDS = 10.0
#: Before what could not be done at the end of a session is tried again: descriptors that lack now come back.
_BURIAL_PAUSE_SECONDS = 0.25
#: Grants a second are said over so many looks of the watcher at the load, a second apart.
_RATE_LOOKS = 10

#: What an exchange is answered with; see there.
ExchangeAnswer = tuple[
    list[tuple[str, str]],
    dict[str, str] | None,
    list[str],
    dict[str, int] | None,
    list[str],
    dict[str, str],
    int,
]


@dataclass(slots=True)
class _Session:
    """A coordinator that is here. `tray`: what was granted and not yet collected, (ask, lease).

    visit       the number of the latest greeting, and greeted_in the thread that serves its connection. 0: it has not
                greeted this scheduler, only left the leases of an earlier one; its limits are not known then
    """

    name: str
    client: Watched
    bell: int
    limits: Limits | None = None
    told_limits: Limits | None = None
    visit: int = 0
    greeted_in: int = 0
    tray: list[tuple[str, str]] = field(default_factory=list)
    backlog: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    dying: bool = False


class ServedDesk:
    """The one served object."""

    def __init__(
        self,
        place: Path,
        limits: Limits,
        *,
        keeps_limits: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """keeps_limits: they hold whoever is here; otherwise only until somebody is."""
        self._place = place
        self._clock = clock
        self._own_limits = limits if keeps_limits else None
        #: As those who are here, or were here last, were set; and the memory that is there, as the guard last saw it.
        self._set = limits
        self._there_bytes = limits.memory_limit_bytes
        self._book = Book(limits, epoch=secrets.token_hex(4))
        self._guard = Guard(self._book)
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._awaited: dict[str, Path] = {}
        #: Client files of the dead that are being cleared away, by session.
        self._burials: set[str] = set()
        self._recovery_ends = clock() + RECOVERY_SECONDS
        self._idle_since = clock()
        self._scaled_by = ""
        self._granted = 0
        self._rate: deque[tuple[float, int]] = deque(maxlen=_RATE_LOOKS)
        self._asked_at: dict[tuple[str, str], float] = {}
        #: Called when the watcher should look again; when something was lent; to end the process. Set by the process.
        self.wake: Callable[[], None] = lambda: None
        self.wake_guard: Callable[[], None] = lambda: None
        self.end_process: Callable[[], None] = lambda: None
        #: Who calls, by thread; the server fills it in from SO_PEERCRED.
        self.caller = threading.local()

    # --- called by coordinators (rendezvous.EXPOSED) ---

    def greet(self, protocol: int, session: str, introduction: Mapping[str, Any]) -> dict[str, Any]:
        """A coordinator introduces itself, or comes back, with all that it has here.

        introduction: `asks` that stand, `leases` held as (lease_id, ask row), who works on them (`claims`, see
        `exchange`), `limits` that it was set, `backlog` and `told` (see `exchange` and `tell`), and the number of this
        `visit`, greater than that of the one before.
        Answers with `scheduler` (pid, start time), `limits` in force and `void`: the leases that are not counted. A
        refusal is {"refused": why}. Raises OSError (processes.LACKING) when the scheduler can open nothing now.
        """
        if protocol != rendezvous.PROTOCOL:
            older = "scheduler" if protocol > rendezvous.PROTOCOL else "coordinator"
            return {
                "refused": f"coordinator and scheduler speak different protocols ({protocol} and "
                f"{rendezvous.PROTOCOL}): the {older} is older and must be restarted from the present release"
            }
        try:
            wished = [ask_from(row) for row in introduction["asks"]]
            held = [(LeaseId(str(lease_id)), ask_from(row)) for lease_id, row in introduction["leases"]]
            claims = [claim_from(row) for row in introduction["claims"]]
            limits = Limits(**introduction["limits"])
            backlog = backlog_from(introduction["backlog"])
            told = {str(user): status_from(status) for user, status in introduction["told"].items()}
            visit = int(introduction["visit"])
            client, bell = self._identify(session)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in LACKING:
                # Not the greeting's fault: the caller hears of it, and comes again.
                raise
            return {"refused": f"the greeting of {session!r} makes no sense: {error}"}
        with self._lock:
            known = self._sessions.get(session)
            if known is not None:
                client.close()
                os.close(bell)
                if known.dying:
                    return {"refused": f"session {session!r} is being ended"}
                if visit <= known.visit:
                    return {"refused": f"session {session!r} has greeted anew since"}
                known.tray.clear()
                may_adopt = known.visit == 0
            else:
                may_adopt = session in self._awaited
                known = self._sessions[session] = _Session(session, client, bell, limits)
                self._book.begin_session(session)
            known.limits, known.backlog, known.statuses = limits, backlog, told
            known.visit, known.greeted_in = visit, threading.get_ident()
            self._set_limits()
            void = self._take_up(session, held, wished, may_adopt=may_adopt)
            self._claim(known, claims)
            self._awaited.pop(session, None)
            self._grant(but=None)
            known.told_limits = self._book.limits
            limits_now = asdict(self._book.limits)
        self.wake()
        # It may be in a group of its own.
        self.wake_guard()
        return {"scheduler": self.whoami(), "limits": limits_now, "void": void}

    def exchange(
        self,
        session: str,
        asks: list[AskRow],
        returns: list[tuple[str, float]],
        withdraw: list[str],
        claims: list[ClaimRow],
        backlog: Mapping[str, int],
        explain: bool,
    ) -> ExchangeAnswer | None:
        """Returns, withdrawals, claims, asks, in this order, in one transaction.

        claims: (lease, pid, start time, bytes): that process works on the lease and is to be promised so much; of
        leases that are not out they are passed over. backlog: items of a user that are to be worked on, where that has
        changed; 0: none are left.

        Answers with (grants, waits, promoted, limits, denied, stops, room): waits None unless `explain`; limits None
        while they are as last told; denied the leases whose claim was not met; stops those that must end now, and why;
        room the bytes that are free. The whole answer is None when the session is unknown (greet again). Garbage
        raises ValueError before anything has changed.
        """
        wished = [ask_from(row) for row in asks]
        given = [(LeaseId(str(lease_id)), cost) for lease_id, cost in returns]
        if not all(is_number(cost) and cost >= 0 for _, cost in given):
            raise ValueError("malformed return")
        gone = [str(ask_id) for ask_id in withdraw]
        claimed = [claim_from(row) for row in claims]
        counts = backlog_from(backlog)
        with self._lock:
            borrower = self._session_of_caller(session)
            if borrower is None:
                return None
            for lease_id, cost in given:
                self._book.give_back(session, lease_id, cost)
            for ask_id in gone:
                if not self._book.withdraw(session, ask_id):
                    self._take_back(borrower, ask_id)
                self._asked_at.pop((session, ask_id), None)
            denied = self._claim(borrower, claimed) if claimed else []
            for ask in wished:
                self._book.ask(session, ask)
            for user, waiting in counts.items():
                if waiting:
                    borrower.backlog[user] = waiting
                else:
                    borrower.backlog.pop(user, None)
            if _log.isEnabledFor(logging.DEBUG):
                self._asked_at.update(((session, ask.ask_id), self._clock()) for ask in wished)
            if given or gone or wished or claimed:
                self._grant(but=borrower)
            if _log.isEnabledFor(logging.DEBUG):
                self._log_waits(session, wished)
            grants, borrower.tray = borrower.tray, []
            return (
                grants,
                self._waits(session) if explain else None,
                list(self._book.promoted(session)),
                self._limits_for(borrower),
                denied,
                self._guard.stops_of(session),
                self._room_bytes(),
            )

    def promote(self, user: str) -> bool:
        """The user's asks count as interactive, in all sessions. False if no session has it."""
        with self._lock:
            known = self._book.promote(UserId(str(user)))
            if known:
                self._grant(but=None)
                for borrower in self._sessions.values():
                    if user in self._book.promoted(borrower.name):
                        rendezvous.ring(borrower.bell)
            return known

    def tell(self, session: str, user: str, status: Mapping[str, Any]) -> bool:
        """What a product wants to be shown of a user, until its session ends; {}: nothing any more."""
        checked = status_from(status)
        with self._lock:
            borrower = self._session_of_caller(session)
            if borrower is None:
                return False
            if checked:
                borrower.statuses[str(user)] = checked
            else:
                borrower.statuses.pop(str(user), None)
            return True

    def statistics(self) -> dict[str, Any]:
        """The counters now, as the fields of ports.DeskStats."""
        with self._lock:
            tokens, limits = self._book.tokens, self._book.limits
            reasons: Counter[str] = Counter()
            backlog: Counter[str] = Counter()
            statuses: dict[str, dict[str, Any]] = {}
            for borrower in self._sessions.values():
                reasons.update(self._waits(borrower.name).values())
                backlog.update(borrower.backlog)
                statuses.update(borrower.statuses)
            return {
                "active_workers": len(tokens.leases),
                "max_total_workers": limits.max_total_workers,
                "max_workers_per_user": limits.max_workers_per_user,
                "user_workers": dict(tokens.by_user),
                "waiting": dict(self._book.waiting()),
                "reasons": dict(reasons),
                "backlog": dict(backlog),
                "sessions": len(self._sessions),
                **self._guard.statistics(),
                "cpu_limit": limits.cpu_limit,
                "cpu_target": tokens.cpu_target,
                "scaled_by": self._scaled_by,
                "granted": self._granted,
                "grants_per_second": self._grants_per_second(),
                "user_status": statuses,
            }

    def leave(self, session: str) -> None:
        """A coordinator is done: its leases end, its asks are withdrawn. Another's session is left as it is."""
        with self._lock:
            borrower = self._session_of_caller(session)
            if borrower is not None:
                self._end(borrower)
        self.wake()

    def whoami(self) -> tuple[int, float]:
        """The scheduler's process: id and start time."""
        return os.getpid(), start_time(os.getpid())

    def stop(self) -> None:
        """End the process, in a moment. Coordinators that still work start another one."""
        self.end_process()

    # --- called by the process's watcher ---

    def recover(self) -> None:
        """Before the first caller: end what dead coordinators left, and note the living ones that must come back."""
        for path in rendezvous.client_files(self._place):
            if rendezvous.client_is_alive(path) or not self._clear_away(path):
                self._awaited[path.stem] = path
        self._recovery_ends = self._clock() + RECOVERY_SECONDS

    def descriptors(self) -> list[int]:
        """The pidfds of the coordinators that are here: readable when one has ended."""
        with self._lock:
            return [s.client.fd for s in self._sessions.values() if s.client.fd >= 0 and not s.dying]

    def idle_seconds(self) -> float:
        """How long nobody has been here."""
        with self._lock:
            now = self._clock()
            if self._sessions or self._awaited:
                self._idle_since = now
            return now - self._idle_since

    def end_dead(self) -> None:
        """Bury the sessions whose process has ended, each on a thread of its own: a worker may be slow to die.

        Raises OSError (processes.LACKING) when there can be no thread for one; it is buried at the next look.
        """
        with self._lock:
            dead = [s for s in self._sessions.values() if not s.dying and not s.client.alive]
            for borrower in dead:
                self._start_burial(borrower.name)
                borrower.dying = True
                self._book.end_asks(borrower.name)
            if dead:
                self._grant(but=None)

    def end_recovery(self) -> None:
        """Wait no longer for coordinators that have died, whose workers are ended first, or that are overdue."""
        with self._lock:
            overdue = self._clock() >= self._recovery_ends
            awaited = list(self._awaited.items())
        for name, path in awaited:
            # Taken off the list only after that: until then nothing is granted.
            if not rendezvous.client_is_alive(path) and self._clear_away(path):
                with self._lock:
                    self._awaited.pop(name, None)
                    self._grant(but=None)
            elif overdue:
                self._go_on_without(name, path)

    def _go_on_without(self, session: str, path: Path) -> None:
        """A coordinator that lives and does not come back is stopped. It keeps the leases that its file lists; the
        others go on with the rest. What it was lent and had not listed yet, it will not use (Desk._take)."""
        try:
            held = [(LeaseId(str(lease_id)), ask_from(row)) for lease_id, row in rendezvous.read_leases(path)]
            client, bell = self._identify(session) if held else (None, -1)
        except ProcessLookupError:
            return  # Dead by now; the next look finds that out.
        except (ValueError, TypeError) as error:
            # Written at this moment, which it is not for long. As long as nobody knows what is out, nothing is lent.
            _log.warning("the leases of %s cannot be read yet: %s", session, error)
            return
        with self._lock:
            if self._awaited.pop(session, None) is None or client is None:
                if client is not None:
                    client.close()
                    os.close(bell)
            else:
                self._sessions[session] = _Session(session, client, bell)
                self._book.begin_session(session)
                self._take_up(session, held, [], may_adopt=True)
                _log.info("%s does not come back; it keeps %s leases", session, len(held))
            self._grant(but=None)

    def our_processes(self) -> list[int]:
        """The coordinators that are here and the workers that they list, as process ids."""
        with self._lock:
            sessions = [(s.name, s.client.pid) for s in self._sessions.values()]
        found = [os.getpid()]
        for name, pid in sessions:
            found += [pid, *rendezvous.read_client_file(rendezvous.client_path(self._place, name))]
        return found

    def look(self) -> None:
        """Once a second: note how many grants there were, and bury clients that died after they had left, or before
        they had greeted."""
        with self._lock:
            self._rate.append((self._clock(), self._granted))
        for path in rendezvous.client_files(self._place):
            with self._lock:
                known = self._sessions.keys() | self._awaited.keys() | self._burials
            if path.stem not in known and not rendezvous.client_is_alive(path):
                with self._lock:
                    self._start_burial(path.stem)

    def scale(self, target: int, why: str) -> None:
        """So many bulk CPU leases may be out from now on, because of "load" or "memory" ("": all that there may be)."""
        with self._lock:
            before = self._book.tokens.cpu_target
            self._book.scale_to(target if why else None)
            self._scaled_by = why
            now = self._book.tokens.cpu_target
            if now != before:
                _log.info("bulk work may use %s of %s cores now%s", now, self.limits.cpu_limit, why and f": {why}")
                self._grant(but=None)

    def memory_view(self) -> View:
        """What the guard has to know before it looks at the machine."""
        with self._lock:
            here = {borrower.name: borrower.client.pid for borrower in self._sessions.values()}
            return self._guard.view(here, self._set.memory_limit_bytes)

    def note_memory(self, view: View, sight: Sight) -> Placed | None:
        """What the guard saw counts from now on. Answers with a worker that has to be ended by force."""
        with self._lock:
            # Behind the limit that was set.
            self._there_bytes = min(ceiling.limit_bytes for ceiling in sight.ceilings[1:])
            self._put_limits_in_force()
            stopped, overdue = self._guard.note(self._clock(), view, sight)
            borrower = self._sessions.get(stopped.session) if stopped is not None else None
            if borrower is not None:
                rendezvous.ring(borrower.bell)
            self._grant(but=None)
            return overdue

    def memory_used_share(self) -> float | None:
        """What is used of the memory that may be, 0 to 1, as the guard last saw it."""
        with self._lock:
            return self._guard.used_share()

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._book.limits

    # --- how ---

    def _session_of_caller(self, session: str) -> _Session | None:
        """The session, if it is the caller's own and the caller has greeted on this very connection.

        A connection that a coordinator has given up (time-out, Ctrl-C) to greet anew may still have a call in it: what
        that was about has been told in the greeting, and nobody would hear of what it is granted.
        """
        borrower = self._sessions.get(session)
        if borrower is None or borrower.dying or borrower.greeted_in != threading.get_ident():
            return None
        # A thread's number is used again: of a caller that has hung up, by the next one.
        return borrower if getattr(self.caller, "pid", None) in (borrower.client.pid, None) else None

    def _identify(self, session: str) -> tuple[Watched, int]:
        """The process that the session names, and its bell. Raises ValueError or OSError when it is not the caller."""
        pid, started = rendezvous.owner_of(session)
        calling = getattr(self.caller, "pid", None)
        if calling is not None and pid != calling:
            raise ValueError(f"it names process {pid}, but process {calling} is calling")
        path = rendezvous.client_path(self._place, session)
        if not path.exists():
            raise ValueError("it has no client file")
        bell = rendezvous.open_bell(path)
        try:
            return Watched(pid, started), bell
        except BaseException:
            os.close(bell)
            raise

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

    def _claim(self, borrower: _Session, claims: list[Claim]) -> list[str]:
        """Answers with the leases that were not promised so much."""
        return [str(claim.lease_id) for claim in claims if not self._guard.claim(borrower.name, claim)]

    def _room_bytes(self) -> int:
        """What is free for whoever may start now; below 0: less is there than was promised."""
        free = self._book.memory.free_bytes
        return min(0, free) if self._awaited or self._book.memory.closed else free

    def _take_back(self, borrower: _Session, ask_id: str) -> None:
        """An ask is withdrawn whose grant has not been collected yet: the lease ends unused."""
        for granted in borrower.tray:
            if granted[0] == ask_id:
                borrower.tray.remove(granted)
                self._book.give_back(borrower.name, LeaseId(granted[1]), 0.0)
                return

    def _end(self, borrower: _Session) -> None:
        self._book.end_session(borrower.name)
        del self._sessions[borrower.name]
        borrower.client.close()
        os.close(borrower.bell)
        for key in [key for key in self._asked_at if key[0] == borrower.name]:
            del self._asked_at[key]
        self._set_limits()
        self._grant(but=None)

    def _start_burial(self, session: str) -> None:
        thread = threading.Thread(target=self._bury, args=(session,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.ENOMEM, f"no thread to bury {session}") from error
        self._burials.add(session)

    def _bury(self, session: str) -> None:
        """Its workers first, its leases only when they are gone: nothing is lent twice in between."""
        path = rendezvous.client_path(self._place, session)
        while True:
            try:
                self._clear_away(path)
                break
            except OSError as error:
                _log.warning("%s cannot be buried yet; its tokens stay out: %s", session, error)
                time.sleep(_BURIAL_PAUSE_SECONDS)
        with self._lock:
            self._burials.discard(session)
            borrower = self._sessions.get(session)
            if borrower is not None and borrower.dying:
                self._end(borrower)
        self.wake()

    def _clear_away(self, path: Path) -> bool:
        """End what a dead client's file lists, and remove the file. False when the client lives after all."""
        self._kill_workers(path)
        return rendezvous.remove_dead_client(path)

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

    def _set_limits(self) -> None:
        """The strictest of all that are here. With nobody here the last ones stay: they bound nothing."""
        all_here = [borrower.limits for borrower in self._sessions.values() if borrower.limits is not None]
        if all_here:
            self._set = Limits.strictest([*all_here, *([self._own_limits] if self._own_limits else [])])
        self._put_limits_in_force()

    def _put_limits_in_force(self) -> None:
        limits = replace(self._set, memory_limit_bytes=min(self._set.memory_limit_bytes, self._there_bytes))
        if limits != self._book.limits:
            _log.info("limits in force: %s", limits)
            self._book.set_limits(limits)
            self._guard.note_limit(self._set.memory_limit_bytes)

    def _limits_for(self, borrower: _Session) -> dict[str, int] | None:
        if borrower.told_limits == self._book.limits:
            return None
        borrower.told_limits = self._book.limits
        return asdict(self._book.limits)

    def _grant(self, *, but: _Session | None) -> None:
        """Put what the book grants into the trays, and ring for everybody `but` who is being answered anyway.

        Nothing is granted before everyone is back.
        """
        if self._awaited:
            return
        granted = self._book.grants()
        self._granted += len(granted)
        if granted:
            self.wake_guard()
        for grant in granted:
            borrower = self._sessions[grant.session]
            if not borrower.tray and borrower is not but:
                rendezvous.ring(borrower.bell)
            borrower.tray.append((grant.ask_id, grant.lease_id))
        if granted and _log.isEnabledFor(logging.DEBUG):
            for grant in granted:
                lease = self._book.tokens.leases[grant.lease_id]
                since = self._asked_at.pop((grant.session, grant.ask_id), None)
                _log.debug(
                    "lease %s: %s, a %s %s token, to %s for %s, after %.3f s; %.2f s and %s bytes expected",
                    *(grant.lease_id, lease.user, lease.lane, lease.kind, grant.session, grant.ask_id),
                    *(self._clock() - since if since is not None else 0.0, lease.cost_seconds, lease.memory_bytes),
                )

    def _waits(self, session: str) -> dict[str, str]:
        waits = {str(user): why for user, why in self._book.waits(session).items()}
        return dict.fromkeys(waits, "recovering") if self._awaited else waits

    def _log_waits(self, session: str, wished: list[Ask]) -> None:
        for ask in wished:
            if self._book.stands(session, ask.ask_id):
                why = "recovering" if self._awaited else self._book.why(session, ask.ask_id)
                _log.debug("wait: %s, a %s token, of %s for %s: %s", ask.user, ask.kind, session, ask.ask_id, why)

    def _grants_per_second(self) -> float:
        if len(self._rate) < 2:
            return 0.0
        (began, before), (ended, after) = self._rate[0], self._rate[-1]
        return round((after - before) / (ended - began), 2)
