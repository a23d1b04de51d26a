"""The book against the oracle: the same words, the same grants in the same order, reasons and counts, at every step."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import size_class
from engine.policy.tokens import Limits
from tests.policy.oracle import Oracle, rounded_size
from tests.policy.words import EPOCH, GARBAGE, SESSIONS, USERS, Talk, an_ask, any_limits, check_garbage, examples

#: Parts of two, so that floats are exact and the oracle's fractions have to be met to the last bit.
COSTS = st.sampled_from((0.0, 0.25, 1.0, 2.5, 16.0))
WEIGHTS = st.sampled_from((0.5, 1.0, 4.0))
MEMORY = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 130))
LIMITS = st.builds(
    Limits,
    max_total_workers=st.integers(1, 8),
    max_workers_per_user=st.integers(1, 4),
    cpu_limit=st.integers(1, 4),
    memory_limit_bytes=st.integers(1, 120),
)


def compare(talk: Talk, oracle: Oracle) -> None:
    """Everything that can be seen of the book is as the oracle counts it."""
    book = talk.book
    for session in SESSIONS:
        assert book.waits(session) == oracle.waits(session)
        assert book.promoted(session) == oracle.promoted(session)
    assert {key: book.why(*key) for key in talk.standing} == {
        (one.session, one.ask.ask_id): oracle.why(one) for one in oracle.asks
    }
    assert book.waiting() == oracle.waiting()
    assert {lease.lease_id: (lease.session, lease.lane) for lease in book.tokens.leases.values()} == {
        out.lease_id: (out.session, out.lane) for out in oracle.leases
    }
    assert dict(book.tokens.by_user) == dict(talk.users())
    assert book.memory.promised_bytes == oracle.promised_bytes()
    assert book.memory.free_bytes == talk.free_bytes()
    assert book.tokens.cpu_target == oracle.target


class BookMachine(RuleBasedStateMachine):
    """Any sequence of words, with or without grants in between."""

    @initialize(given=LIMITS)
    def open(self, given: Limits) -> None:
        self.oracle = Oracle(given, EPOCH)
        self.talk = Talk(given, self.oracle)

    @rule(
        session=st.sampled_from(SESSIONS),
        user=st.sampled_from(USERS),
        lane=st.sampled_from(Lane),
        kind=st.sampled_from((TokenKind.CPU, TokenKind.CPU, TokenKind.API, TokenKind.DOWNLOAD)),
        cost=COSTS,
        memory=MEMORY,
        weight=WEIGHTS,
        many=st.integers(1, 3),
        grant=st.booleans(),
    )
    def wish(self, session: str, user: UserId, many: int, grant: bool, **wish: Any) -> None:
        for _ in range(many):
            name = self.talk.new_ask(session, user, **wish)
            assert not self.talk.ask(session, an_ask(name, "eve")), "that name is taken"
        if grant:
            self.talk.grants()

    @rule()
    def grant(self) -> None:
        self.talk.grants()
        assert self.talk.grants() == []

    @precondition(lambda self: self.talk.out)
    @rule(data=st.data(), cost=COSTS)
    def give_back(self, data: st.DataObject, cost: float) -> None:
        self.talk.give_back(data.draw(st.sampled_from(list(self.talk.out))), cost)
        self.talk.grants()

    @precondition(lambda self: self.talk.out)
    @rule(data=st.data(), memory=MEMORY)
    def claim(self, data: st.DataObject, memory: int) -> None:
        lease_id = data.draw(st.sampled_from(list(self.talk.out)))
        self.talk.claim(self.talk.out[lease_id].session, lease_id, memory)

    @rule(data=st.data(), taken=MEMORY, closed=st.booleans(), grant=st.booleans())
    def reading(self, data: st.DataObject, taken: int, closed: bool, grant: bool) -> None:
        uses = st.dictionaries(st.sampled_from([*self.talk.out, LeaseId("ended")]), MEMORY)
        self.talk.note_memory(taken, data.draw(uses), closed)
        if grant:
            self.talk.grants()

    @precondition(lambda self: self.talk.standing)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.talk.withdraw(*data.draw(st.sampled_from(list(self.talk.standing))))

    @rule(session=st.sampled_from(SESSIONS), user=st.sampled_from(USERS), lane=st.sampled_from(Lane), memory=MEMORY)
    def adopt(self, session: str, user: UserId, lane: Lane, memory: int) -> None:
        lease_id = LeaseId(f"old-{len(self.talk.log)}")
        for _ in range(2):
            self.talk.adopt(session, lease_id, an_ask("old", user, lane=lane, memory=memory))

    @rule(session=st.sampled_from(SESSIONS), asks_only=st.booleans())
    def die(self, session: str, asks_only: bool) -> None:
        if asks_only:
            self.talk.end_asks(session)
        else:
            self.talk.end_session(session)
            self.talk.begin_session(session)

    @rule(user=st.sampled_from(USERS))
    def promote(self, user: UserId) -> None:
        self.talk.promote(user)

    @rule(given=LIMITS)
    def other_limits(self, given: Limits) -> None:
        self.talk.set_limits(given)

    @rule(leases=st.one_of(st.none(), st.integers(-1, 5)))
    def other_target(self, leases: int | None) -> None:
        self.talk.scale_to(leases)

    @rule(bad=st.sampled_from(GARBAGE))
    def garbage(self, bad: tuple[str, tuple[Any, ...]]) -> None:
        check_garbage(self.talk.book, *bad)

    @invariant()
    def agree(self) -> None:
        compare(self.talk, self.oracle)


BookMachine.TestCase.settings = examples(60)
TestBook = BookMachine.TestCase


@examples(110)
@given(seed=st.integers(0, 2**32), words=st.integers(1, 80))
def test_long_conversations(seed: int, words: int) -> None:
    """Long talks at random, which meet what short ones do not: idle lanes, caps left and reservations taken over."""
    luck = random.Random(seed)
    ceilings = any_limits(luck)
    oracle = Oracle(ceilings, EPOCH)
    talk = Talk(ceilings, oracle)
    for _ in range(words):
        talk.say_anything(luck)
        if luck.random() < 0.8:
            talk.grants()
        compare(talk, oracle)


@examples(100)
@given(need=st.one_of(st.integers(0, 600), st.integers(0, 2**50)))
def test_a_size_is_the_need_rounded_up_by_a_sixteenth_at_most(need: int) -> None:
    """Never less than the need, never a sixteenth more, and one of sixteen steps in each doubling."""
    assert need <= size_class(need) <= need * 17 / 16
    assert size_class(need) == rounded_size(need) == size_class(size_class(need))
