"""The desk's book: told of asks, returns, promotions and the end of sessions, it says what is granted to whom.

Rule: the same words in the same order give the same grants. No clock, no luck; garbage raises ValueError or answers
False, and changes nothing.

    ask / withdraw / promote ----> FairQueue (a lane's turns) --+
    give_back / end_session  ----> Tokens (caps), Memory -------+--> grants()
    claim / note_memory      --------------------> Memory

Interactive is served before bulk; within a lane, whoever holds the memory reservation as soon as its unit fits, then
the earliest turn that tokens and memory allow. A user that holds all the tokens it may hold is parked in both lanes.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import Memory, Reservation, size_class
from engine.policy.fairness import AskKey, FairQueue
from engine.policy.tokens import Lease, Limits, Tokens
from engine.ports import Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """One token lent: to which session, for which of its asks."""

    session: str
    ask_id: str
    lease_id: LeaseId


@dataclass(slots=True)
class _Session:
    """asks: by id, with the lane each stands in; waiting: the ids by user; users: all it ever asked for."""

    asks: dict[str, tuple[Lane, Ask]]
    waiting: dict[UserId, dict[str, None]]
    users: set[UserId]


def check_ask(ask: Ask) -> None:
    """Raises ValueError for an ask that no honest coordinator would make."""
    sound = (
        isinstance(ask.ask_id, str)
        and bool(ask.ask_id)
        and isinstance(ask.user, str)
        and bool(ask.user)
        and isinstance(ask.lane, Lane)
        and isinstance(ask.kind, TokenKind)
        and is_number(ask.cost_seconds)
        and ask.cost_seconds >= 0
        and is_number(ask.weight)
        and ask.weight > 0
        and _is_bytes(ask.memory_bytes)
    )
    if not sound:
        raise ValueError(f"malformed ask: {ask!r}")


def is_number(value: object) -> bool:
    """A finite int or float that floats can hold; True and False are not numbers here."""
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max  # type: ignore[operator]


def _is_bytes(value: object) -> bool:
    return type(value) is int and value >= 0


class Book:
    """All that is out and all that is waited for. `epoch` makes this book's lease ids unlike any other's."""

    def __init__(self, limits: Limits, *, epoch: str) -> None:
        self.limits = limits
        self.tokens = Tokens(limits)
        self.memory = Memory(limits.memory_limit_bytes)
        self._lanes = {Lane.INTERACTIVE: FairQueue(), Lane.BULK: FairQueue()}
        self._sessions: dict[str, _Session] = {}
        self._promoted: set[UserId] = set()
        self._epoch = epoch
        self._lent = 0

    # --- what the book is told ---

    def begin_session(self, session: str) -> None:
        """A borrower may ask from now on. Known ones stay as they are."""
        self._sessions.setdefault(session, _Session({}, {}, set()))

    def ask(self, session: str, ask: Ask) -> bool:
        """A wish for a token. False when an ask of that name stands already. Raises ValueError for garbage."""
        check_ask(ask)
        borrower = self._sessions.get(session)
        if borrower is None:
            raise ValueError(f"unknown session {session!r}")
        if ask.ask_id in borrower.asks:
            return False
        lane = Lane.INTERACTIVE if ask.user in self._promoted else ask.lane
        borrower.asks[ask.ask_id] = (lane, ask)
        borrower.waiting.setdefault(ask.user, {})[ask.ask_id] = None
        borrower.users.add(ask.user)
        self._lanes[lane].add((session, ask.ask_id), ask, size_class(ask.memory_bytes))
        return True

    def withdraw(self, session: str, ask_id: str) -> bool:
        """The wish is gone. False when there is none of that name (it may have been granted)."""
        borrower = self._sessions.get(session)
        if borrower is None or ask_id not in borrower.asks:
            return False
        lane, ask = self._strike(session, ask_id)
        self._lanes[lane].remove((session, ask_id), ask, size_class(ask.memory_bytes))
        self.memory.release_reservation(key=(session, ask_id))
        return True

    def give_back(self, session: str, lease_id: LeaseId, cost_seconds: float) -> bool:
        """A lease ends. False, and no change, when it is not out, or out to another session. ValueError for garbage."""
        if not is_number(cost_seconds) or cost_seconds < 0:
            raise ValueError(f"malformed cost of lease {lease_id!r}: {cost_seconds!r}")
        lease = self.tokens.end(lease_id, session)
        if lease is None:
            return False
        self.memory.end(lease_id)
        self._lanes[lease.lane].correct(
            lease.user,
            lease.kind,
            estimated_seconds=lease.cost_seconds,
            true_seconds=cost_seconds,
            weight=lease.weight,
        )
        self._park_or_unpark(lease.user)
        return True

    def claim(self, session: str, lease_id: LeaseId, memory_bytes: int) -> bool:
        """A lease that is out is to be promised so much memory, more or less than it was, worker included.

        False, and no change, when there is no room for that, or no such lease of this session. ValueError for garbage.
        """
        if not _is_bytes(memory_bytes):
            raise ValueError(f"malformed claim of lease {lease_id!r}: {memory_bytes!r}")
        if not self.has_lease(session, lease_id):
            return False
        return self.memory.claim(lease_id, size_class(memory_bytes), self.tokens.leases[lease_id].lane)

    def note_memory(self, taken_bytes: int, used_bytes: Mapping[LeaseId, int], closed: bool) -> None:
        """A reading of the machine: what is in use beside the leases (and has to be kept free), what each of them uses
        as far as that is known, and whether nothing may start for now. ValueError for garbage."""
        if not (_is_bytes(taken_bytes) and all(map(_is_bytes, used_bytes.values())) and type(closed) is bool):
            raise ValueError(f"malformed reading: {taken_bytes!r}, {used_bytes!r}, {closed!r}")
        self.memory.note(taken_bytes, used_bytes, closed)

    def adopt(self, session: str, lease_id: LeaseId, ask: Ask) -> bool:
        """A lease that an earlier scheduler lent is still out. Counted whatever the caps say: it is a fact.

        False, and no change, when it is out here already, or is one of this book's own, which has ended or is to come.
        """
        check_ask(ask)
        if session not in self._sessions:
            raise ValueError(f"unknown session {session!r}")
        if lease_id in self.tokens.leases or lease_id.startswith(f"{self._epoch}-"):
            return False
        self._sessions[session].users.add(ask.user)
        self._lend(lease_id, session, ask.lane, ask)
        self._lanes[ask.lane].adopt(ask)
        return True

    def end_asks(self, session: str) -> None:
        """Everything this session waits for is withdrawn; its leases stay out."""
        borrower = self._sessions.get(session)
        for ask_id in list(borrower.asks) if borrower else ():
            self.withdraw(session, ask_id)

    def end_session(self, session: str) -> None:
        """The borrower is gone, and so is all it ran: asks withdrawn, leases ended at their estimated cost."""
        self.end_asks(session)
        for lease_id in sorted(self.tokens.of_session(session)):
            self.give_back(session, lease_id, self.tokens.leases[lease_id].cost_seconds)
        borrower = self._sessions.pop(session, None)
        if borrower is not None:
            still = {user for other in self._sessions.values() for user in other.users & self._promoted}
            self._promoted &= still

    def promote(self, user: UserId) -> bool:
        """The user's asks, present and to come, are interactive as long as a session has it. False when none has."""
        if not any(user in borrower.users for borrower in self._sessions.values()):
            return False
        self._promoted.add(user)
        for key, ask, size in self._lanes[Lane.BULK].asks_of(user):
            self._lanes[Lane.BULK].remove(key, ask, size)
            self.memory.release_reservation(key=key)
            self._sessions[key[0]].asks[key[1]] = (Lane.INTERACTIVE, ask)
            self._lanes[Lane.INTERACTIVE].add(key, ask, size)
        return True

    def set_limits(self, limits: Limits) -> None:
        """Other ceilings from now on. What is out beyond them stays out; nothing new starts before there is room."""
        self.limits = self.tokens.limits = limits
        self.memory.limit_bytes = limits.memory_limit_bytes
        for user in list(self.tokens.by_user):
            self._park_or_unpark(user)

    def scale_to(self, target: int | None) -> None:
        """So many bulk CPU leases may be out from now on (1 to the cores count); None: as many as there are cores."""
        self.tokens.scaled_to = target

    # --- what the book answers ---

    def grants(self) -> list[Granted]:
        """Lend every token that can be lent now, in the order of turns."""
        lent = []
        while (granted := self._grant_one()) is not None:
            lent.append(granted)
        return lent

    def waits(self, session: str) -> dict[UserId, str]:
        """For each user this session waits for, why its first ask does.

        "user_cap", "total_cap", "cpu_cap", "memory", "reserved" or "turn".
        """
        borrower = self._sessions.get(session)
        if borrower is None:
            return {}
        return {user: self.why(session, next(iter(ids))) for user, ids in borrower.waiting.items()}

    def stands(self, session: str, ask_id: str) -> bool:
        """The ask waits for a token."""
        borrower = self._sessions.get(session)
        return borrower is not None and ask_id in borrower.asks

    def has_lease(self, session: str, lease_id: LeaseId) -> bool:
        """The lease is out, to this session."""
        lease = self.tokens.leases.get(lease_id)
        return lease is not None and lease.session == session

    def why(self, session: str, ask_id: str) -> str:
        """What a standing ask waits for. Raises KeyError when it does not stand."""
        lane, ask = self._sessions[session].asks[ask_id]
        if self.tokens.at_cap(ask.user):
            return "user_cap"
        obstacle = self.tokens.obstacle(lane, ask.kind)
        if obstacle is not None:
            return obstacle
        size, held = size_class(ask.memory_bytes), self.memory.reservation
        if not self.memory.fits(size):
            return "memory"
        is_holder = held is not None and held.key == (session, ask_id)
        return "turn" if is_holder or size <= self.memory.room(lane) else "reserved"

    def promoted(self, session: str) -> frozenset[UserId]:
        """The promoted users that this session has asked for at some time."""
        borrower = self._sessions.get(session)
        return frozenset(self._promoted & borrower.users) if borrower else frozenset()

    def waiting(self) -> Counter[UserId]:
        """How many asks stand, by user."""
        total: Counter[UserId] = Counter()
        for borrower in self._sessions.values():
            for user, ids in borrower.waiting.items():
                total[user] += len(ids)
        return total

    # --- how ---

    def _grant_one(self) -> Granted | None:
        for lane in (Lane.INTERACTIVE, Lane.BULK):
            found = self._next_in(lane)
            if found is not None:
                key, ask, size = found
                self._lent += 1
                lease_id = LeaseId(f"{self._epoch}-{self._lent}")
                self.memory.release_reservation(key=key)
                self._strike(*key)
                self._lanes[lane].take(key, ask, size)
                self._lend(lease_id, key[0], lane, ask)
                return Granted(session=key[0], ask_id=key[1], lease_id=lease_id)
        return None

    def _next_in(self, lane: Lane) -> tuple[AskKey, Ask, int] | None:
        """Who may start now in this lane; a turn that only lacks memory gets the reservation, if it is free."""
        queue, memory = self._lanes[lane], self.memory
        kinds = [kind for kind in queue.kinds if self.tokens.obstacle(lane, kind) is None]
        if not kinds:
            return None
        held = memory.reservation
        if held is not None and held.lane is lane and held.kind in kinds and memory.fits(held.size):
            # Its memory is there. Another turn before it would be one more to wait for.
            return held.key, self._sessions[held.key[0]].asks[held.key[1]][1], held.size
        head = queue.first(kinds, math.inf)
        if head is None:
            return None
        key, ask, size = head
        if size <= memory.room(lane):
            return head
        if not memory.fits_when_open(size):
            memory.reserve(Reservation(key=key, user=ask.user, lane=lane, kind=ask.kind, size=size))
        return queue.first(kinds, memory.room(lane))

    def _park_or_unpark(self, user: UserId) -> None:
        if self.tokens.at_cap(user):
            for queue in self._lanes.values():
                queue.park(user)
            self.memory.release_reservation(user=user)
        else:
            for queue in self._lanes.values():
                queue.unpark(user)

    def _strike(self, session: str, ask_id: str) -> tuple[Lane, Ask]:
        borrower = self._sessions[session]
        lane, ask = borrower.asks.pop(ask_id)
        ids = borrower.waiting[ask.user]
        del ids[ask_id]
        if not ids:
            del borrower.waiting[ask.user]
        return lane, ask

    def _lend(self, lease_id: LeaseId, session: str, lane: Lane, ask: Ask) -> None:
        self.tokens.lend(
            Lease(
                lease_id=lease_id,
                session=session,
                ask_id=ask.ask_id,
                user=ask.user,
                lane=lane,
                kind=ask.kind,
                cost_seconds=ask.cost_seconds,
                memory_bytes=ask.memory_bytes,
                weight=ask.weight,
            )
        )
        self.memory.lend(lease_id, size_class(ask.memory_bytes))
        self._park_or_unpark(ask.user)
