"""The desk's book: told of asks, returns, promotions and the end of sessions, it says what is granted to whom.

Rule: the same words in the same order give the same grants. No clock, no luck; garbage raises ValueError or answers
False, and changes nothing.

    ask / withdraw / promote ----> FairQueue (a lane's turns) --+
    give_back / end_session  ----> Tokens (caps), Memory -------+--> grants()

Interactive is served before bulk; within a lane the earliest turn that tokens and memory allow.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import Memory
from engine.policy.fairness import AskKey, FairQueue
from engine.policy.tokens import Lease, Limits, Tokens
from engine.ports import Ask

#: How many turns that do not fit into memory are passed over in search of one that does. More would make a grant
#: cost as much as there are users; with fewer, small units would wait behind a handful of large ones.
LOOK_AHEAD = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """One token lent: to which session, for which of its asks."""

    session: str
    ask_id: str
    lease_id: LeaseId


@dataclass(slots=True)
class _Session:
    asks: dict[str, tuple[Lane, Ask]]
    waiting: Counter[UserId]
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
        and type(ask.memory_bytes) is int
        and ask.memory_bytes >= 0
        and math.isfinite(ask.cost_seconds / ask.weight)
    )
    if not sound:
        raise ValueError(f"malformed ask: {ask!r}")


def is_number(value: object) -> bool:
    """A finite int or float; True and False are not numbers here."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


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
        self._sessions.setdefault(session, _Session({}, Counter(), set()))

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
        borrower.waiting[ask.user] += 1
        borrower.users.add(ask.user)
        self._lanes[lane].add((session, ask.ask_id), ask)
        return True

    def withdraw(self, session: str, ask_id: str) -> bool:
        """The wish is gone. False when there is none of that name (it may have been granted)."""
        borrower = self._sessions.get(session)
        if borrower is None or ask_id not in borrower.asks:
            return False
        lane, ask = self._strike(session, ask_id)
        self._lanes[lane].remove((session, ask_id), ask)
        self.memory.release_reservation((session, ask_id))
        return True

    def give_back(self, session: str, lease_id: LeaseId, cost_seconds: float) -> bool:
        """A lease ends. False, and no change, when it is not out, or out to another session. ValueError for garbage."""
        if not is_number(cost_seconds) or cost_seconds < 0:
            raise ValueError(f"malformed cost of lease {lease_id!r}: {cost_seconds!r}")
        lease = self.tokens.end(lease_id, session)
        if lease is None:
            return False
        self.memory.end(lease_id)
        self._lanes[lease.lane].correct(lease.user, cost_seconds - lease.cost_seconds, lease.weight)
        if not self.tokens.at_cap(lease.user):
            for queue in self._lanes.values():
                queue.unpark(lease.user)
        return True

    def adopt(self, session: str, lease_id: LeaseId, ask: Ask) -> bool:
        """A lease that an earlier scheduler lent is still out. Counted whatever the caps say: it is a fact."""
        check_ask(ask)
        if session not in self._sessions:
            raise ValueError(f"unknown session {session!r}")
        if lease_id in self.tokens.leases:
            return False
        self._sessions[session].users.add(ask.user)
        self._lend(lease_id, session, ask.lane, ask)
        self._lanes[ask.lane].adopt(ask.user, ask.cost_seconds, ask.weight)
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
        for key, ask in self._lanes[Lane.BULK].asks_of(user):
            self._lanes[Lane.BULK].remove(key, ask)
            self.memory.release_reservation(key)
            self._sessions[key[0]].asks[key[1]] = (Lane.INTERACTIVE, ask)
            self._lanes[Lane.INTERACTIVE].add(key, ask)
        return True

    # --- what the book answers ---

    def grants(self) -> list[Granted]:
        """Lend every token that can be lent now, in the order of turns."""
        lent = []
        while (granted := self._grant_one()) is not None:
            lent.append(granted)
        return lent

    def waits(self, session: str) -> dict[UserId, str]:
        """For each user this session waits for: "user_cap", "total_cap", "cpu_cap", "memory", "reserved" or "turn"."""
        borrower = self._sessions.get(session)
        reasons: dict[UserId, str] = {}
        for ask_id, (lane, ask) in borrower.asks.items() if borrower else ():
            if ask.user not in reasons:
                reasons[ask.user] = self._why(lane, (session, ask_id), ask)
        return reasons

    def promoted(self, session: str) -> frozenset[UserId]:
        """The promoted users that this session has asked for at some time."""
        borrower = self._sessions.get(session)
        return frozenset(self._promoted & borrower.users) if borrower else frozenset()

    def waiting(self) -> Counter[UserId]:
        """How many asks stand, by user."""
        total: Counter[UserId] = Counter()
        for borrower in self._sessions.values():
            total.update(borrower.waiting)
        return total

    # --- how ---

    def _grant_one(self) -> Granted | None:
        for lane in (Lane.INTERACTIVE, Lane.BULK):
            found = self._next_in(lane)
            if found is not None:
                key, ask = found
                self._lent += 1
                lease_id = LeaseId(f"{self._epoch}-{self._lent}")
                self.memory.release_reservation(key)
                self._strike(*key)
                self._lend(lease_id, key[0], lane, ask)
                self._lanes[lane].take(key, ask)
                return Granted(session=key[0], ask_id=key[1], lease_id=lease_id)
        return None

    def _next_in(self, lane: Lane) -> tuple[AskKey, Ask] | None:
        """The ask of the earliest turn that may start; the first one that only lacks memory gets the reservation."""
        best: tuple[float, int, AskKey, Ask] | None = None
        lacking: list[tuple[float, int, AskKey, Ask]] = []
        queue = self._lanes[lane]
        for kind in TokenKind:
            if self.tokens.obstacle(lane, kind) is not None:
                continue
            at_cap, passed_over = [], 0
            with closing(queue.heads(kind)) as turns:
                for turn in turns:
                    if best is not None and turn[:2] >= best[:2]:
                        break
                    _, _, key, ask = turn
                    if self.tokens.at_cap(ask.user):
                        at_cap.append(turn)
                    elif self.memory.obstacle(key, lane, ask.memory_bytes) is None:
                        best = turn
                        break
                    else:
                        lacking.append(turn)
                        passed_over += 1
                        if passed_over >= LOOK_AHEAD:
                            break
            for _, _, key, ask in at_cap:
                queue.park(ask.user)
                self.memory.release_reservation(key)
        lacking = [turn for turn in lacking if best is None or turn[:2] < best[:2]]
        if lacking:
            first = min(lacking, key=lambda turn: turn[:2])
            if self.memory.obstacle(first[2], lane, first[3].memory_bytes) == "memory":
                had = self.memory.reservation
                self.memory.reserve(first[2], lane, first[3].memory_bytes)
                if self.memory.reservation is not had and best is not None:
                    # The reservation is new, and what was found may not lie beyond it.
                    return self._next_in(lane)
        return None if best is None else (best[2], best[3])

    def _why(self, lane: Lane, key: AskKey, ask: Ask) -> str:
        if self.tokens.at_cap(ask.user):
            return "user_cap"
        return self.tokens.obstacle(lane, ask.kind) or self.memory.obstacle(key, lane, ask.memory_bytes) or "turn"

    def _strike(self, session: str, ask_id: str) -> tuple[Lane, Ask]:
        borrower = self._sessions[session]
        lane, ask = borrower.asks.pop(ask_id)
        borrower.waiting[ask.user] -= 1
        if not borrower.waiting[ask.user]:
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
        self.memory.lend(lease_id, ask.memory_bytes)
