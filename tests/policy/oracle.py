"""The book's promises in the plainest words: lists, full scans, exact fractions, every sum made anew.

Rule: written from the specification and not from engine/policy, whose decisions it has to foresee one by one. It
takes nothing from there but the record of ceilings. Slow on purpose; nothing here is kept that could be counted again.

The turns of a lane (start-time fair queueing), in seconds over weight, for each kind of token and for all together:

    start    the later of the user's floor and finish
    floor    the lane's time when a user that had no asks there began to wait, or came back from its cap
    finish   on a grant: start + estimate; when the lease ends: + (truth - estimate)
    time     the latest start that was ever granted; a lane without asks and leases begins anew at its latest finish

Of those who want one kind the earliest start of that kind is next; between kinds, the earliest start of all together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.tokens import Limits
from engine.ports import Ask

#: A kind of token, or all of them.
Scope = TokenKind | None
#: A lease is never charged more than thirty years.
MOST_CHARGED = Fraction(10**9)


def rounded_size(need_bytes: int) -> int:
    """The first of the steps 0 to 16, 17 to 32, then 16 for each doubling, that is not below the need."""
    for doubling in range(need_bytes.bit_length() + 1):
        for sixteenths in range(16, 33):
            if sixteenths << doubling >= need_bytes > 16:
                return sixteenths << doubling
    return need_bytes


def charged(cost_seconds: float, weight: float) -> Fraction:
    """What a lease of this cost counts in its user's turn."""
    return min(Fraction(cost_seconds) / Fraction(weight), MOST_CHARGED)


@dataclass
class Standing:
    """An ask that waits. `asked` and `joined`: when it came, and when it came into its present lane."""

    session: str
    ask: Ask
    lane: Lane
    asked: int
    joined: int


@dataclass
class Out:
    """A lease that is out. `size`: what it counts as; `lent`: how many were before it; `used`: as last read."""

    lease_id: LeaseId
    session: str
    ask: Ask
    lane: Lane
    size: int
    promise: int
    lent: int
    used: int = 0


@dataclass
class Known:
    """What one lane remembers of one user."""

    user: UserId
    lane: Lane
    came: int
    floor: dict[Scope, Fraction] = field(default_factory=dict)
    finish: dict[Scope, Fraction] = field(default_factory=dict)


@dataclass
class Kept:
    """The reservation: for whom, and how many leases had been lent when it was made."""

    holder: Standing
    lent_before: int


@dataclass
class Oracle:
    """Hears what a book hears, and answers as it should."""

    limits: Limits
    epoch: str
    scaled: int | None = None
    clock: int = 0
    granted: int = 0
    lent: int = 0
    asks: list[Standing] = field(default_factory=list)
    leases: list[Out] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    time: dict[tuple[Lane, Scope], Fraction] = field(default_factory=dict)
    sessions: dict[str, set[UserId]] = field(default_factory=dict)
    promoted_users: set[UserId] = field(default_factory=set)
    kept: Kept | None = None
    taken: int = 0
    closed: bool = False

    # --- what it is told ---

    def begin_session(self, session: str) -> None:
        self.sessions.setdefault(session, set())

    def ask(self, session: str, ask: Ask) -> bool:
        if any(one.session == session and one.ask.ask_id == ask.ask_id for one in self.asks):
            return False
        self.sessions[session].add(ask.user)
        lane = Lane.INTERACTIVE if ask.user in self.promoted_users else ask.lane
        self._join(Standing(session, ask, lane, self._tick(), 0))
        return True

    def withdraw(self, session: str, ask_id: str) -> bool:
        for one in self.asks:
            if one.session == session and one.ask.ask_id == ask_id:
                self._leave(one)
                self._release_if(self.kept is not None and self.kept.holder is one)
                return True
        return False

    def give_back(self, session: str, lease_id: LeaseId, cost_seconds: float) -> bool:
        for out in self.leases:
            if out.lease_id == lease_id and out.session == session:
                user, was_at_cap = out.ask.user, self._at_cap(out.ask.user)
                self.leases.remove(out)
                known = self._find(out.lane, user)
                assert known is not None
                truth, estimate = (charged(cost, out.ask.weight) for cost in (cost_seconds, out.ask.cost_seconds))
                for scope in (None, out.ask.kind):
                    known.finish[scope] = max(Fraction(0), known.finish[scope] + truth - estimate)
                self._forget_if_done(out.lane, user)
                self._come_back({user} if was_at_cap else set())
                return True
        return False

    def claim(self, session: str, lease_id: LeaseId, memory_bytes: int) -> bool:
        for out in self.leases:
            if out.lease_id == lease_id and out.session == session:
                size = rounded_size(memory_bytes)
                if size > out.size and not self._may_grow(out, size):
                    return False
                out.size, out.promise = size, min(size, self.limits.memory_limit_bytes)
                return True
        return False

    def note_memory(self, taken_bytes: int, used_bytes: Mapping[LeaseId, int], closed: bool) -> None:
        self.taken, self.closed = taken_bytes, closed
        for out in self.leases:
            out.used = used_bytes.get(out.lease_id, 0)

    def adopt(self, session: str, lease_id: LeaseId, ask: Ask) -> bool:
        if lease_id.startswith(self.epoch + "-") or any(out.lease_id == lease_id for out in self.leases):
            return False
        self.sessions[session].add(ask.user)
        known = self._remember(ask.lane, ask.user)
        for scope in (None, ask.kind):
            known.floor.setdefault(scope, self._time(ask.lane, scope))
            known.finish[scope] = self._start(known, scope) + charged(ask.cost_seconds, ask.weight)
        self._lend(lease_id, session, ask, ask.lane)
        return True

    def end_asks(self, session: str) -> None:
        for one in [one for one in self.asks if one.session == session]:
            self.withdraw(session, one.ask.ask_id)

    def end_session(self, session: str) -> None:
        self.end_asks(session)
        for out in [out for out in self.leases if out.session == session]:
            self.give_back(session, out.lease_id, out.ask.cost_seconds)
        self.sessions.pop(session, None)
        self.promoted_users = {
            user for user in self.promoted_users if any(user in users for users in self.sessions.values())
        }

    def promote(self, user: UserId) -> bool:
        if not any(user in users for users in self.sessions.values()):
            return False
        self.promoted_users.add(user)
        for one in sorted(self.asks, key=lambda one: one.joined):
            if one.ask.user == user and one.lane is Lane.BULK:
                self._leave(one)
                self._release_if(self.kept is not None and self.kept.holder is one)
                self._join(Standing(one.session, one.ask, Lane.INTERACTIVE, one.asked, 0))
        return True

    def set_limits(self, limits: Limits) -> None:
        at_cap = {out.ask.user for out in self.leases if self._at_cap(out.ask.user)}
        self.limits = limits
        self._come_back(at_cap)
        self._release_if_at_cap()

    def scale_to(self, target: int | None) -> None:
        self.scaled = target

    @property
    def target(self) -> int:
        return self.limits.cpu_limit if self.scaled is None else min(max(self.scaled, 1), self.limits.cpu_limit)

    # --- what it answers ---

    def grants(self) -> list[tuple[str, str, str]]:
        """(session, ask, lease) of all that can be lent now, in order."""
        lent: list[tuple[str, str, str]] = []
        while True:
            chosen = self._choose(Lane.INTERACTIVE) or self._choose(Lane.BULK)
            if chosen is None:
                return lent
            self.granted += 1
            lease_id = LeaseId(f"{self.epoch}-{self.granted}")
            known = self._find(chosen.lane, chosen.ask.user)
            assert known is not None
            for scope in (None, chosen.ask.kind):
                start = self._start(known, scope)
                self.time[chosen.lane, scope] = max(self._time(chosen.lane, scope), start)
                known.finish[scope] = start + charged(chosen.ask.cost_seconds, chosen.ask.weight)
            self.asks = [one for one in self.asks if one is not chosen]
            self._release_if(self.kept is not None and self.kept.holder is chosen)
            self._lend(lease_id, chosen.session, chosen.ask, chosen.lane)
            lent.append((chosen.session, chosen.ask.ask_id, lease_id))

    def why(self, one: Standing) -> str:
        """What a standing ask waits for."""
        if self._at_cap(one.ask.user):
            return "user_cap"
        obstacle = self._obstacle(one.lane, one.ask.kind)
        if obstacle:
            return obstacle
        if not self._fits(one):
            return "memory"
        return (
            "turn" if self._is_holder(one) or rounded_size(one.ask.memory_bytes) <= self._room(one.lane) else "reserved"
        )

    def waits(self, session: str) -> dict[UserId, str]:
        """Why the first ask of each user of this session waits."""
        reasons: dict[UserId, str] = {}
        for one in sorted(self.asks, key=lambda one: one.asked):
            if one.session == session and one.ask.user not in reasons:
                reasons[one.ask.user] = self.why(one)
        return reasons

    def promoted(self, session: str) -> set[UserId]:
        return self.promoted_users & self.sessions.get(session, set())

    def waiting(self) -> Counter[UserId]:
        return Counter(one.ask.user for one in self.asks)

    # --- the rules ---

    def _choose(self, lane: Lane) -> Standing | None:
        """Who may start now in this lane; the first turn that lacks nothing but memory gets the reservation."""
        able = [
            one
            for one in self.asks
            if one.lane is lane and not self._at_cap(one.ask.user) and self._obstacle(lane, one.ask.kind) is None
        ]
        for one in able:
            if self._is_holder(one) and self._fits(one):
                return one
        firsts = self._in_turn(able)
        if (
            firsts
            and not self._fits_in_open_memory(firsts[0])
            and (self.kept is None or self._outranks(lane, self.kept))
        ):
            self.kept = Kept(firsts[0], self.lent)
        room = self._room(lane)
        if firsts and rounded_size(firsts[0].ask.memory_bytes) <= room:
            return firsts[0]
        small = self._in_turn([one for one in able if rounded_size(one.ask.memory_bytes) <= room])
        return small[0] if small else None

    def _in_turn(self, able: list[Standing]) -> list[Standing]:
        """The first of each kind, the earliest first."""
        firsts = []
        for kind in TokenKind:
            of_kind = [one for one in able if one.ask.kind is kind]
            if of_kind:
                firsts.append(min(of_kind, key=lambda one: self._turn(one, one.ask.kind)))
        return sorted(firsts, key=lambda one: self._turn(one, None))

    def _turn(self, one: Standing, scope: Scope) -> tuple[Fraction, int, int]:
        known = self._find(one.lane, one.ask.user)
        assert known is not None
        return self._start(known, scope), known.came, one.joined

    def _obstacle(self, lane: Lane, kind: TokenKind) -> str | None:
        """Try it: would a cap be broken with one more lease of this lane and kind?"""
        total, cores = self.limits.max_total_workers, self.limits.cpu_limit
        out = [(lease.lane, lease.ask.kind) for lease in self.leases] + [(lane, kind)]
        if len(out) > total or (total >= 3 and sum(one[0] is lane for one in out) > total - 1):
            return "total_cap"
        if kind is not TokenKind.CPU:
            return None
        bulk = out.count((Lane.BULK, TokenKind.CPU))
        interactive = out.count((Lane.INTERACTIVE, TokenKind.CPU))
        broken = [bulk + interactive > cores + 1]
        if lane is Lane.INTERACTIVE:
            broken += [total >= 3 and interactive > cores]
        else:
            is_kept_token = total >= 3 and bulk == 1
            broken += [bulk > cores, bulk > self.target, bulk + interactive > cores and not is_kept_token]
        return "cpu_cap" if any(broken) else None

    def _at_cap(self, user: UserId) -> bool:
        return sum(out.ask.user == user for out in self.leases) >= self.limits.max_workers_per_user

    def promised_bytes(self) -> int:
        """The memory of all leases, as it was promised when they were lent or last claimed it."""
        return sum(out.promise for out in self.leases)

    def _held_bytes(self, lent_from: int = 0) -> int:
        """What leases hold: their promise, or what they use if that is more."""
        return sum(max(out.promise, out.used) for out in self.leases if out.lent >= lent_from)

    def _free(self) -> int:
        return self.limits.memory_limit_bytes - self.taken - self._held_bytes()

    def _beyond(self) -> int:
        """What is left beside the reservation and those that began after it was made."""
        assert self.kept is not None
        limit = self.limits.memory_limit_bytes
        kept = min(rounded_size(self.kept.holder.ask.memory_bytes), limit)
        return limit - self.taken - self._held_bytes(self.kept.lent_before) - kept

    def _fits(self, one: Standing) -> bool:
        """In closed memory only what is free may start, and only where nothing is promised."""
        if self.closed:
            return not self.promised_bytes() and rounded_size(one.ask.memory_bytes) <= max(0, self._free())
        return self._fits_in_open_memory(one)

    def _fits_in_open_memory(self, one: Standing) -> bool:
        """A unit without need always fits, and any unit does where no memory is promised."""
        size = rounded_size(one.ask.memory_bytes)
        is_first = self.promised_bytes() == 0
        return size == 0 or is_first or min(size, self.limits.memory_limit_bytes) <= self._free()

    def _may_grow(self, out: Out, size: int) -> bool:
        """Into what is free, and what began after a reservation only into what lies beyond it. One that was there
        before it and has all the memory that is promised may take the rest, if memory is open."""
        if size > self.limits.memory_limit_bytes:
            return False
        began_after = self.kept is not None and out.lent >= self.kept.lent_before
        if not began_after and not self.closed and out.promise == self.promised_bytes():
            return True
        more = max(size, out.used) - max(out.promise, out.used)
        if began_after and self.kept is not None and not self._outranks(out.lane, self.kept):
            return more <= min(self._free(), self._beyond())
        return more <= self._free()

    def _room(self, lane: Lane) -> float:
        """The largest size that others than the holder may start with."""
        if self.closed:
            return -1 if self.promised_bytes() else max(0, self._free())
        if self.kept is None or self._outranks(lane, self.kept):
            return max(0, self._free()) if self.promised_bytes() else float("inf")
        return max(0, min(self._free(), self._beyond()))

    @staticmethod
    def _outranks(lane: Lane, kept: Kept) -> bool:
        """Interactive work takes a reservation over from bulk, and does not wait for it."""
        return lane is Lane.INTERACTIVE and kept.holder.lane is Lane.BULK

    def _is_holder(self, one: Standing) -> bool:
        return self.kept is not None and self.kept.holder is one

    def _release_if(self, over: bool) -> None:
        if over:
            self.kept = None

    def _release_if_at_cap(self) -> None:
        self._release_if(self.kept is not None and self._at_cap(self.kept.holder.ask.user))

    # --- the turns ---

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _time(self, lane: Lane, scope: Scope) -> Fraction:
        return self.time.get((lane, scope), Fraction(0))

    @staticmethod
    def _start(known: Known, scope: Scope) -> Fraction:
        return max(known.floor[scope], known.finish.get(scope, Fraction(0)))

    def _find(self, lane: Lane, user: UserId) -> Known | None:
        return next((one for one in self.known if one.lane is lane and one.user == user), None)

    def _remember(self, lane: Lane, user: UserId) -> Known:
        known = self._find(lane, user)
        if known is None:
            known = Known(user, lane, self._tick())
            self.known.append(known)
        return known

    def _join(self, one: Standing) -> None:
        known = self._remember(one.lane, one.ask.user)
        waits_for = [other.ask.kind for other in self.asks if other.lane is one.lane and other.ask.user == one.ask.user]
        if not waits_for:
            known.floor[None] = self._time(one.lane, None)
        if one.ask.kind not in waits_for:
            known.floor[one.ask.kind] = self._time(one.lane, one.ask.kind)
        one.joined = self._tick()
        self.asks.append(one)

    def _leave(self, one: Standing) -> None:
        self.asks = [other for other in self.asks if other is not one]
        self._forget_if_done(one.lane, one.ask.user)

    def _lend(self, lease_id: LeaseId, session: str, ask: Ask, lane: Lane) -> None:
        size = rounded_size(ask.memory_bytes)
        promise = min(size, self.limits.memory_limit_bytes)
        self.leases.append(Out(lease_id, session, ask, lane, size, promise, self.lent))
        self.lent += 1
        self._release_if_at_cap()

    def _come_back(self, were_at_cap: set[UserId]) -> None:
        """No credit for the time at the cap, in either lane."""
        for known in self.known:
            if known.user in were_at_cap and not self._at_cap(known.user):
                known.floor = {scope: self._time(known.lane, scope) for scope in known.floor}

    def _forget_if_done(self, lane: Lane, user: UserId) -> None:
        """A user that is done is remembered while it is ahead of its turn; an idle lane forgets everybody."""
        here = [one.ask.user for one in self.asks if one.lane is lane]
        here += [out.ask.user for out in self.leases if out.lane is lane]
        if not here:
            for known in self.known:
                for scope, finish in known.finish.items():
                    if known.lane is lane:
                        self.time[lane, scope] = max(self._time(lane, scope), finish)
            self.known = [known for known in self.known if known.lane is not lane]
        elif user not in here:
            self.known = [
                known
                for known in self.known
                if known.lane is not lane
                or known.user != user
                or any(finish > self._time(lane, scope) for scope, finish in known.finish.items())
            ]
