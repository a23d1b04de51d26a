"""What is said to a book in these tests: sound asks, unsound ones, and long random conversations.

A `Talk` says the same words to one or more listeners, insists that all answer alike, and keeps an account of its own:
plain dictionaries of what stands and what is out, which know nothing of turns, heaps or reservations.
"""

from __future__ import annotations

import math
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hypothesis import settings

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import size_class
from engine.policy.book import Book
from engine.policy.tokens import Limits
from engine.ports import Ask

SESSIONS: Final = ("day", "night")
USERS: Final = tuple(UserId(name) for name in ("ann", "bob", "cy", "dee", "eve"))
#: The epoch of every book here: its leases are e-1, e-2, ...
EPOCH: Final = "e"


def examples(count: int) -> settings:
    """So many examples in the suite, and as many times more as NIGHTMILL_LONGER says (`scripts/search_policy`)."""
    times = int(os.environ.get("NIGHTMILL_LONGER", "1"))
    return settings(max_examples=count * times, stateful_step_count=40, deadline=None)


def limits(total: int = 20, per_user: int = 5, cores: int = 4, memory: int = 1000) -> Limits:
    """Ceilings, with room for most things."""
    return Limits(max_total_workers=total, max_workers_per_user=per_user, cpu_limit=cores, memory_limit_bytes=memory)


def an_ask(
    name: str,
    user: str = "ann",
    *,
    lane: Lane = Lane.BULK,
    kind: TokenKind = TokenKind.CPU,
    cost: float = 1.0,
    memory: int = 0,
    weight: float = 1.0,
) -> Ask:
    """A wish for a CPU token of the night, if nothing else is said."""
    return Ask(
        ask_id=name, user=UserId(user), lane=lane, kind=kind, cost_seconds=cost, memory_bytes=memory, weight=weight
    )


def a_book(given: Limits) -> Book:
    """A book that both sessions may ask."""
    book = Book(given, epoch=EPOCH)
    for session in SESSIONS:
        book.begin_session(session)
    return book


def granted_names(book: Book) -> list[str]:
    """The asks that are granted now, in order."""
    return [grant.ask_id for grant in book.grants()]


def end_lease_of(book: Book, ask_id: str, cost: float = 1.0) -> None:
    """The unit that was started for this ask ends."""
    lease = next(lease for lease in book.tokens.leases.values() if lease.ask_id == ask_id)
    assert book.give_back(lease.session, lease.lease_id, cost)


#: Words that make no sense, as (method, arguments). The answer has to be ValueError or False.
GARBAGE: Final[tuple[tuple[str, tuple[Any, ...]], ...]] = (
    ("ask", ("day", an_ask(""))),
    ("ask", ("day", an_ask("x", ""))),
    ("ask", ("day", an_ask("x", cost=math.nan))),
    ("ask", ("day", an_ask("x", cost=math.inf))),
    ("ask", ("day", an_ask("x", cost=-1.0))),
    ("ask", ("day", an_ask("x", cost=10**400))),
    ("ask", ("day", an_ask("x", cost=True))),
    ("ask", ("day", an_ask("x", weight=0.0))),
    ("ask", ("day", an_ask("x", weight=-2.0))),
    ("ask", ("day", an_ask("x", weight=math.inf))),
    ("ask", ("day", an_ask("x", memory=-1))),
    ("ask", ("day", an_ask("x", memory=1.5))),  # type: ignore[arg-type]
    ("ask", ("day", an_ask("x", memory=True))),
    ("ask", ("day", an_ask("x", lane="bulk?"))),  # type: ignore[arg-type]
    ("ask", ("day", an_ask("x", kind=None))),  # type: ignore[arg-type]
    ("ask", ("day", an_ask(7))),  # type: ignore[arg-type]
    ("ask", ("nobody", an_ask("x"))),
    ("adopt", ("day", LeaseId("old-x"), an_ask("x", cost=-1.0))),
    ("adopt", ("nobody", LeaseId("old-x"), an_ask("x"))),
    ("adopt", ("day", LeaseId(f"{EPOCH}-1"), an_ask("x"))),
    ("withdraw", ("day", "never asked")),
    ("withdraw", ("nobody", "x")),
    ("give_back", ("day", LeaseId(f"{EPOCH}-999999"), 1.0)),
    ("give_back", ("nobody", LeaseId(f"{EPOCH}-1"), 1.0)),
    ("promote", (UserId("nobody"),)),
    ("claim", ("day", LeaseId(f"{EPOCH}-999999"), 10)),
    ("claim", ("nobody", LeaseId(f"{EPOCH}-1"), 10)),
    ("claim", ("day", LeaseId(f"{EPOCH}-1"), -1)),
    ("claim", ("day", LeaseId(f"{EPOCH}-1"), 1.5)),
    ("note_memory", (-1, {}, False)),
    ("note_memory", (True, {}, False)),
    ("note_memory", (0, {LeaseId(f"{EPOCH}-1"): -1}, False)),
    ("note_memory", (0, {LeaseId(f"{EPOCH}-1"): None}, False)),
    ("note_memory", (0, {}, None)),
)


def all_that_can_be_seen(book: Book) -> dict[str, Any]:
    """What anybody could ask the book, and what it keeps to itself, byte for byte."""
    return {
        "leases": dict(book.tokens.leases),
        "users": dict(book.tokens.by_user),
        "obstacles": {(lane, kind): book.tokens.obstacle(lane, kind) for lane in Lane for kind in TokenKind},
        "memory": (book.memory.promised_bytes, book.memory.free_bytes, book.memory.closed, book.memory.reservation),
        "room": [book.memory.room(lane) for lane in Lane],
        "waits": {session: (book.waits(session), book.promoted(session)) for session in SESSIONS},
        "waiting": book.waiting(),
        "kept to itself": pickle.dumps(book),
    }


def check_garbage(book: Book, word: str, arguments: tuple[Any, ...]) -> None:
    """A word that makes no sense raises ValueError or is answered False, and changes nothing."""
    before = all_that_can_be_seen(book)
    try:
        assert getattr(book, word)(*arguments) is False
    except ValueError as error:
        assert "malformed" in str(error) or "unknown session" in str(error)  # noqa: PT017
    assert all_that_can_be_seen(book) == before


@dataclass(frozen=True, slots=True)
class Out:
    """A lease that is out, as a Talk remembers it."""

    session: str
    lane: Lane
    ask: Ask
    promise: int
    used: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """One grant, as a Talk heard it."""

    session: str
    ask_id: str
    lease_id: LeaseId


class Talk:
    """A conversation with a book, which answers first, and perhaps others that have to answer the same.

    standing  asks by (session, name), with the lane each stands in
    out       leases by id; `ended`: those that have ended, with their sessions
    log       every word, to be said again to a book of `log_limits`; `granted`: all grants in order
    at_grant  is called when a grant is heard, before it is put into the account
    """

    def __init__(self, given: Limits, *others: Any, at_grant: Callable[[Started], None] | None = None) -> None:
        self.limits = self.log_limits = given
        self.taken, self.closed = 0, False
        self._scaled: int | None = None
        self.book = Book(given, epoch=EPOCH)
        self.standing: dict[tuple[str, str], tuple[Lane, Ask]] = {}
        self.out: dict[LeaseId, Out] = {}
        self.ended: list[tuple[str, LeaseId]] = []
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self.granted: list[Started] = []
        self._listeners = (self.book, *others)
        self._at_grant = at_grant
        self._users: dict[str, set[UserId]] = {}
        self._promoted: set[UserId] = set()
        self._names = 0
        for session in SESSIONS:
            self.begin_session(session)

    # --- words, each with its line in the account ---

    def begin_session(self, session: str) -> None:
        self._tell("begin_session", session)
        self._users.setdefault(session, set())

    def ask(self, session: str, ask: Ask) -> bool:
        taken = self._tell("ask", session, ask)
        assert taken == ((session, ask.ask_id) not in self.standing)
        if taken:
            self._users[session].add(ask.user)
            lane = Lane.INTERACTIVE if ask.user in self._promoted else ask.lane
            self.standing[session, ask.ask_id] = lane, ask
        return bool(taken)

    def new_ask(self, session: str, user: str, **wish: Any) -> str:
        """Ask under a new name, which is the answer."""
        self._names += 1
        assert self.ask(session, an_ask(str(self._names), user, **wish))
        return str(self._names)

    def withdraw(self, session: str, ask_id: str) -> None:
        gone = self._tell("withdraw", session, ask_id)
        assert gone == (self.standing.pop((session, ask_id), None) is not None)

    def give_back(self, lease_id: LeaseId, cost: float) -> None:
        session = self.out[lease_id].session
        other = next(name for name in SESSIONS if name != session)
        assert not self._tell("give_back", other, lease_id, cost), "it is not that session's"
        assert self._tell("give_back", session, lease_id, cost)
        assert not self._tell("give_back", session, lease_id, cost), "it ended a second time"
        self._ended(lease_id)

    def claim(self, session: str, lease_id: LeaseId, memory: int) -> bool:
        met = self._tell("claim", session, lease_id, memory)
        if met:
            promise = min(size_class(memory), self.limits.memory_limit_bytes)
            self.out[lease_id] = replace(self.out[lease_id], promise=promise)
        return bool(met)

    def note_memory(self, taken: int, used: Mapping[LeaseId, int], closed: bool) -> None:
        self._tell("note_memory", taken, used, closed)
        self.taken, self.closed = taken, closed
        self.out = {lease_id: replace(out, used=used.get(lease_id, 0)) for lease_id, out in self.out.items()}

    def adopt(self, session: str, lease_id: LeaseId, ask: Ask) -> None:
        taken = self._tell("adopt", session, lease_id, ask)
        assert taken == (lease_id not in self.out)
        if taken:
            self._users[session].add(ask.user)
            self.out[lease_id] = self._out(session, ask.lane, ask)

    def end_asks(self, session: str) -> None:
        self._tell("end_asks", session)
        self.standing = {key: value for key, value in self.standing.items() if key[0] != session}

    def end_session(self, session: str) -> None:
        self._tell("end_session", session)
        self.standing = {key: value for key, value in self.standing.items() if key[0] != session}
        for lease_id in [lease_id for lease_id, out in self.out.items() if out.session == session]:
            self._ended(lease_id)
        del self._users[session]
        self._promoted &= {user for users in self._users.values() for user in users}

    def promote(self, user: UserId) -> None:
        known = self._tell("promote", user)
        assert known == any(user in users for users in self._users.values())
        if known:
            self._promoted.add(user)
            for key, (_, ask) in list(self.standing.items()):
                if ask.user == user:
                    self.standing[key] = Lane.INTERACTIVE, ask

    def set_limits(self, given: Limits) -> None:
        self._tell("set_limits", given)
        self.limits = given

    def scale_to(self, target: int | None) -> None:
        self._tell("scale_to", target)
        self._scaled = target

    @property
    def target(self) -> int:
        cores = self.limits.cpu_limit
        return cores if self._scaled is None else max(1, min(self._scaled, cores))

    def grants(self) -> list[Started]:
        """All that is granted now, by every listener alike."""
        self.log.append(("grants", ()))
        heard = [
            [one if isinstance(one, tuple) else (one.session, one.ask_id, one.lease_id) for one in listener.grants()]
            for listener in self._listeners
        ]
        assert all(one == heard[0] for one in heard), f"granted {heard[0]}, should be {heard[1:]}"
        started = [Started(session, ask_id, LeaseId(lease_id)) for session, ask_id, lease_id in heard[0]]
        for one in started:
            lane, ask = self.standing.pop((one.session, one.ask_id))
            assert one.lease_id not in self.out
            assert one.lease_id not in {lease_id for _, lease_id in self.ended}
            if self._at_grant is not None:
                self._at_grant(one)
            self.out[one.lease_id] = self._out(one.session, lane, ask)
            self.granted.append(one)
        return started

    # --- at random ---

    def say_anything(self, luck: random.Random, *, memory: int = 130, limits_change: bool = True) -> str:
        """One random word, sound or late or of no consequence. Answers with its name."""
        word = luck.choices(
            ("ask", "give_back", "withdraw", "promote", "end", "claim", "adopt", "limits", "target", "reading"),
            (45, 35, 6, 2, 1, 8, *(weight * limits_change for weight in (2, 3, 3, 8))),
        )[0]
        session, user = luck.choice(SESSIONS), luck.choice(USERS)
        if word == "ask":
            wish = self._any_wish(luck, memory)
            for _ in range(luck.randint(1, 3)):
                self.new_ask(session, user, **wish)
        elif word == "give_back" and self.out:
            self.give_back(luck.choice(list(self.out)), luck.choice((0.0, 0.5, 1.0, 3.0, 20.0)))
        elif word == "withdraw" and self.standing:
            self.withdraw(*luck.choice(list(self.standing)))
        elif word == "promote":
            self.promote(user)
        elif word == "end":
            luck.choice((self.end_asks, self.end_session))(session)
            self.begin_session(session)
        elif word == "claim" and self.out:
            lease_id = luck.choice(list(self.out))
            self.claim(self.out[lease_id].session, lease_id, luck.choice((0, luck.randint(0, memory), memory // 4)))
        elif word == "reading":
            self.note_memory(*self.any_reading(luck, memory))
        elif word == "adopt":
            self._names += 1
            wish = self._any_wish(luck, memory)
            self.adopt(session, LeaseId(f"old-{self._names}"), an_ask(str(self._names), user, **wish))
        elif word == "limits":
            self.set_limits(any_limits(luck, memory))
        elif word == "target":
            self.scale_to(luck.choice([None, *range(7)]))
        return word

    def any_reading(self, luck: random.Random, memory: int = 130) -> tuple[int, dict[LeaseId, int], bool]:
        """What others have taken, what some of the leases use, and whether memory is closed."""
        taken = luck.choice((0, luck.randint(0, memory // 4), luck.randint(0, memory)))
        used = {
            lease_id: luck.randint(0, 2 * out.promise + memory // 16)
            for lease_id, out in self.out.items()
            if luck.random() < 0.7
        }
        return taken, used, luck.random() < 0.25

    def _any_wish(self, luck: random.Random, memory: int) -> dict[str, Any]:
        return {
            "lane": luck.choice((Lane.BULK, Lane.BULK, Lane.INTERACTIVE)),
            "kind": luck.choice((TokenKind.CPU, TokenKind.CPU, TokenKind.API, TokenKind.DOWNLOAD)),
            "cost": luck.choice((0.0, 0.25, 1.0, 1.0, 4.0)),
            "memory": luck.choice((0, luck.randint(0, memory), luck.randint(0, memory // 8))),
            "weight": luck.choice((0.5, 1.0, 1.0, 4.0)),
        }

    # --- how ---

    def _tell(self, word: str, *arguments: Any) -> Any:
        self.log.append((word, arguments))
        answers = [getattr(listener, word)(*arguments) for listener in self._listeners]
        assert all(answer == answers[0] for answer in answers), f"{word}{arguments}: {answers}"
        return answers[0]

    def _out(self, session: str, lane: Lane, ask: Ask) -> Out:
        return Out(session, lane, ask, self.size(ask))

    def _ended(self, lease_id: LeaseId) -> None:
        self.ended.append((self.out.pop(lease_id).session, lease_id))

    # --- counted ---

    def size(self, ask: Ask) -> int:
        """What a unit would be promised now."""
        return min(size_class(ask.memory_bytes), self.limits.memory_limit_bytes)

    def cpu(self) -> Counter[Lane]:
        """CPU leases that are out, by lane."""
        return Counter(out.lane for out in self.out.values() if out.ask.kind is TokenKind.CPU)

    def lanes(self) -> Counter[Lane]:
        """Leases that are out, by lane."""
        return Counter(out.lane for out in self.out.values())

    def users(self) -> Counter[UserId]:
        """Leases that are out, by user."""
        return Counter(out.ask.user for out in self.out.values())

    def promised_bytes(self) -> int:
        """What the leases that are out were promised."""
        return sum(out.promise for out in self.out.values())

    def free_bytes(self) -> int:
        """What is neither taken nor held: a lease holds its promise, or what it uses if that is more."""
        held = sum(max(out.promise, out.used) for out in self.out.values())
        return self.limits.memory_limit_bytes - self.taken - held


def any_limits(luck: random.Random, memory: int = 130) -> Limits:
    """Small ceilings, so that all of them are met."""
    return limits(luck.randint(1, 8), luck.randint(1, 4), luck.randint(1, 4), luck.randint(1, memory))
