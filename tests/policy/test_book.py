"""The desk's book against its promises: caps, each lease once, nobody kept waiting for nothing, fair shares."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import size_class
from engine.policy.book import Book, Granted
from engine.policy.tokens import Limits
from engine.ports import Ask

SESSIONS = ("day", "night")
USERS = [UserId(name) for name in ("ann", "bob", "cy", "dee", "eve")]


def limits(total: int = 20, per_user: int = 5, cores: int = 4, memory: int = 1000) -> Limits:
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
    return Ask(
        ask_id=name, user=UserId(user), lane=lane, kind=kind, cost_seconds=cost, memory_bytes=memory, weight=weight
    )


def a_book(given: Limits) -> Book:
    book = Book(given, epoch="e")
    for session in SESSIONS:
        book.begin_session(session)
    return book


class BookMachine(RuleBasedStateMachine):
    """Any sequence of words to the book, against plain counters kept beside it."""

    asks = Bundle("asks")

    @initialize(
        total=st.integers(1, 8), per_user=st.integers(1, 4), cores=st.integers(1, 4), memory=st.integers(1, 100)
    )
    def open(self, total: int, per_user: int, cores: int, memory: int) -> None:
        self.limits = limits(total, per_user, cores, memory)
        self.book = a_book(self.limits)
        self.standing: dict[tuple[str, str], Ask] = {}
        self.out: dict[LeaseId, tuple[str, Lane, Ask]] = {}
        self.ended: list[tuple[str, LeaseId]] = []
        self.promoted: set[UserId] = set()
        self.names = 0
        self.log: list[tuple[object, ...]] = []
        self.granted: list[Granted] = []

    def collect(self) -> None:
        for grant in self.book.grants():
            self.granted.append(grant)
            ask = self.standing.pop((grant.session, grant.ask_id))
            lane = Lane.INTERACTIVE if ask.user in self.promoted else ask.lane
            assert self.book.tokens.leases[grant.lease_id].lane is lane
            assert grant.lease_id not in self.out
            assert grant.lease_id not in {lease_id for _, lease_id in self.ended}
            if ask.memory_bytes > self.limits.memory_limit_bytes:
                assert all(held.memory_bytes == 0 for _, _, held in self.out.values())
            self.out[grant.lease_id] = (grant.session, lane, ask)

    @rule(
        target=asks,
        session=st.sampled_from(SESSIONS),
        user=st.sampled_from(USERS),
        lane=st.sampled_from(Lane),
        kind=st.sampled_from(TokenKind),
        cost=st.floats(0, 100),
        memory=st.one_of(st.just(0), st.integers(0, 130)),
        weight=st.sampled_from((0.5, 1.0, 3.0)),
        many=st.integers(1, 3),
    )
    def wish(
        self,
        session: str,
        user: UserId,
        lane: Lane,
        kind: TokenKind,
        cost: float,
        memory: int,
        weight: float,
        many: int,
    ) -> object:
        made = []
        for _ in range(many):
            self.names += 1
            ask = an_ask(str(self.names), user, lane=lane, kind=kind, cost=cost, memory=memory, weight=weight)
            assert self.book.ask(session, ask)
            assert not self.book.ask(session, ask)
            self.standing[session, ask.ask_id] = ask
            made.append((session, ask.ask_id))
        self.collect()
        return multiple(*made)

    @rule(key=asks)
    def withdraw(self, key: tuple[str, str]) -> None:
        assert self.book.withdraw(*key) == (self.standing.pop(key, None) is not None)
        self.collect()

    @rule(which=st.integers(0, 100), cost=st.floats(0, 100))
    def give_back(self, which: int, cost: float) -> None:
        if self.out:
            lease_id = sorted(self.out)[which % len(self.out)]
            session = self.out[lease_id][0]
            other = next(name for name in SESSIONS if name != session)
            assert not self.book.give_back(other, lease_id, cost)
            assert self.book.give_back(session, lease_id, cost)
            assert not self.book.give_back(session, lease_id, cost)
            del self.out[lease_id]
            self.ended.append((session, lease_id))
            self.collect()

    @rule(session=st.sampled_from(SESSIONS))
    def die(self, session: str) -> None:
        self.book.end_session(session)
        self.standing = {key: ask for key, ask in self.standing.items() if key[0] != session}
        self.ended += [(session, lease_id) for lease_id, held in self.out.items() if held[0] == session]
        self.out = {lease_id: held for lease_id, held in self.out.items() if held[0] != session}
        other = next(name for name in SESSIONS if name != session)
        self.promoted &= self.book.promoted(other)
        self.book.begin_session(session)
        self.collect()

    @rule(user=st.sampled_from(USERS))
    def promote(self, user: UserId) -> None:
        if self.book.promote(user):
            self.promoted.add(user)
            self.collect()
        else:
            assert all(ask.user != user for ask in self.standing.values())

    @rule(
        bad=st.sampled_from(
            (
                an_ask("", "ann"),
                an_ask("x", ""),
                an_ask("x", cost=math.nan),
                an_ask("x", cost=-1.0),
                an_ask("x", weight=0.0),
                an_ask("x", weight=math.inf),
                an_ask("x", memory=-1),
                an_ask("x", memory=1.5),  # type: ignore[arg-type]
                an_ask("x", lane="bulk?"),  # type: ignore[arg-type]
                an_ask("x", kind=None),  # type: ignore[arg-type]
            )
        )
    )
    def garbage(self, bad: Ask) -> None:
        with pytest.raises(ValueError, match="malformed"):
            self.book.ask("day", bad)
        with pytest.raises(ValueError, match="unknown session"):
            self.book.ask("nobody", an_ask("x"))
        assert not self.book.withdraw("nobody", "x")
        assert not self.book.give_back("day", LeaseId("e-999999"), 1.0)
        for session, lease_id in self.ended[-1:]:
            assert not self.book.give_back(session, lease_id, 1.0)
        for lease_id, (session, _, _) in self.out.items():
            with pytest.raises(ValueError, match="malformed"):
                self.book.give_back(session, lease_id, math.nan)
        assert self.book.grants() == []

    @invariant()
    def caps_hold(self) -> None:
        out = list(self.out.values())
        total, cores = self.limits.max_total_workers, self.limits.cpu_limit
        lanes = Counter(lane for _, lane, _ in out)
        cpu = Counter(lane for _, lane, ask in out if ask.kind is TokenKind.CPU)
        assert len(out) <= total
        assert max(Counter(ask.user for _, _, ask in out).values(), default=0) <= self.limits.max_workers_per_user
        assert cpu[Lane.BULK] <= cores
        assert cpu.total() <= cores + 1
        if total >= 3:
            assert max(lanes.values(), default=0) <= total - 1
        budget = self.limits.memory_limit_bytes
        memory = [min(size_class(ask.memory_bytes), budget) for _, _, ask in out]
        assert sum(memory) <= budget
        assert set(self.book.tokens.leases) == set(self.out)
        assert self.book.memory.promised_bytes == sum(memory)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        assert self.book.grants() == []
        memory = self.book.memory
        for session in SESSIONS:
            for why in self.book.waits(session).values():
                assert why in {"user_cap", "total_cap", "cpu_cap", "memory", "reserved", "turn"}
        out = Counter(ask.user for _, _, ask in self.out.values())
        for (session, name), ask in self.standing.items():
            lane = Lane.INTERACTIVE if ask.user in self.promoted else ask.lane
            if out[ask.user] >= self.limits.max_workers_per_user or self.book.tokens.obstacle(lane, ask.kind):
                continue
            ahead = [
                other
                for (other_session, _), other in self.standing.items()
                if other.user == ask.user and other.kind is ask.kind and other.memory_bytes > 0
            ]
            if not ahead and ask.memory_bytes == 0:
                raise AssertionError(f"{session}/{name} could start and was not granted")
        if not self.out:
            # Reserves and the reservation cannot keep everybody out of an empty house.
            assert not self.standing
        assert memory.reservation is None or memory.reservation.key in self.standing


BookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBook = BookMachine.TestCase


def serve(book: Book, rounds: int, *, true_cost: dict[str, float], estimate: float = 1.0) -> Counter[str]:
    """Keep the users of `true_cost` backlogged, end leases in turn, and add up what each really used."""
    used: Counter[str] = Counter()
    names = iter(range(10**9))
    held: list[tuple[LeaseId, str]] = []
    of_ask: dict[str, str] = {}

    def wish(user: str) -> None:
        name = str(next(names))
        of_ask[name] = user
        book.ask("night", an_ask(name, user, cost=estimate, weight=WEIGHTS.get(user, 1.0)))

    for user in true_cost:
        for _ in range(6):
            wish(user)
    for _ in range(rounds):
        for grant in book.grants():
            held.append((grant.lease_id, of_ask[grant.ask_id]))
            wish(of_ask[grant.ask_id])
        lease_id, user = held.pop(0)
        used[user] += true_cost[user]  # type: ignore[assignment]
        book.give_back("night", lease_id, true_cost[user])
    return used


WEIGHTS = {"heavy": 3.0}


def test_shares_follow_true_cost_not_the_number_of_items() -> None:
    """A user of costly items gets as many seconds as one of cheap items, though both were estimated alike."""
    used = serve(a_book(limits(cores=2)), 2000, true_cost={"cheap": 0.5, "costly": 5.0})
    assert abs(used["cheap"] - used["costly"]) <= (2 + 1) * (5.0 + 5.0)


def test_a_share_is_in_proportion_to_its_weight() -> None:
    """A user of weight three gets three times what the others get."""
    used = serve(a_book(limits(cores=1)), 2000, true_cost={"heavy": 1.0, "ann": 1.0, "bob": 1.0})
    assert 2.9 < used["heavy"] / used["ann"] < 3.1
    assert abs(used["ann"] - used["bob"]) <= 4


def test_no_turns_are_saved_up_while_away() -> None:
    """Who comes late shares from then on and does not take back the time before."""
    book = a_book(limits(cores=1))
    serve(book, 500, true_cost={"ann": 1.0})
    for name in range(20):
        book.ask("day", an_ask(f"late-{name}", "bob"))
    order = []
    for _ in range(12):
        for lease in list(book.tokens.leases.values()):
            order.append(lease.user)
            book.give_back(lease.session, lease.lease_id, 1.0)
        book.grants()
    assert 4 <= Counter(order)[UserId("bob")] <= 8


@pytest.mark.parametrize("at_cap", [False, True])
def test_a_lease_that_is_out_for_long_saves_up_no_turns(at_cap: bool) -> None:
    """Neither who only held a lease meanwhile, nor who waited at its own cap, takes back the time before."""
    book = a_book(limits(cores=1, per_user=1 if at_cap else 5))
    book.ask("day", an_ask("call", "bob", kind=TokenKind.API, cost=0.1))
    (call,) = book.grants()
    if at_cap:
        book.ask("day", an_ask("waits", "bob"))
    serve(book, 300, true_cost={"ann": 1.0})
    for name in range(20):
        book.ask("day", an_ask(f"late-{name}", "bob"))
    book.give_back("day", call.lease_id, 0.1)
    order = []
    for _ in range(12):
        for lease in list(book.tokens.leases.values()):
            order.append(lease.user)
            book.give_back(lease.session, lease.lease_id, 1.0)
        book.grants()
    assert 4 <= Counter(order)[UserId("bob")] <= 8


def test_interactive_goes_first_and_bulk_keeps_one_token() -> None:
    """Interactive work is granted before older bulk asks, and never takes the last token of three or more."""
    book = a_book(limits(total=3, cores=8))
    for name in range(5):
        book.ask("night", an_ask(f"n{name}", "bob"))
        book.ask("day", an_ask(f"d{name}", "ann", lane=Lane.INTERACTIVE))
    assert [grant.ask_id for grant in book.grants()] == ["d0", "d1", "n0"]


def test_a_promoted_users_asks_are_interactive() -> None:
    """Promotion moves what waits and what will be asked, and ends with the last session that has the user."""
    book = a_book(limits(total=2, cores=1))
    for name in ("a", "b"):
        book.ask("night", an_ask(f"{name}-bob", "bob"))
    book.ask("night", an_ask("ann-1", "ann"))
    assert [grant.ask_id for grant in book.grants()] == ["a-bob"]
    assert not book.promote(UserId("nobody"))
    assert book.promote(UserId("ann"))
    assert book.promoted("night") == {UserId("ann")}
    assert book.promoted("day") == frozenset()
    assert [grant.ask_id for grant in book.grants()] == ["ann-1"]
    book.end_session("night")
    book.begin_session("night")
    assert not book.promote(UserId("ann"))
    book.ask("night", an_ask("ann-2", "ann"))
    assert book.promoted("night") == frozenset()


def test_a_large_unit_starts_when_those_that_run_are_done() -> None:
    """The reservation holds back small units of others, so that a stream of them cannot starve a large one."""
    book = a_book(limits(memory=100))
    book.ask("night", an_ask("s0", "ann", memory=40))
    book.grants()
    book.ask("night", an_ask("large", "bob", memory=80))
    for name in ("s1", "s2"):
        book.ask("night", an_ask(name, "ann", memory=20))
    assert [grant.ask_id for grant in book.grants()] == ["s1"]
    assert book.waits("night") == {UserId("bob"): "memory", UserId("ann"): "reserved"}
    first = next(lease for lease in book.tokens.leases.values() if lease.ask_id == "s0")
    book.give_back("night", first.lease_id, 1.0)
    assert [grant.ask_id for grant in book.grants()] == ["large"]


def test_a_unit_larger_than_the_budget_runs_alone() -> None:
    """An ask beyond the whole budget is granted when nothing else holds memory, and nothing joins it."""
    book = a_book(limits(memory=100))
    book.ask("night", an_ask("small", "ann", memory=1))
    book.grants()
    book.ask("night", an_ask("huge", "bob", memory=500))
    assert book.grants() == []
    lease = next(iter(book.tokens.leases.values()))
    book.give_back("night", lease.lease_id, 1.0)
    book.ask("night", an_ask("small-2", "cy", memory=1))
    assert [grant.ask_id for grant in book.grants()] == ["huge"]


def test_the_same_words_give_the_same_grants() -> None:
    """Two books that hear the same grant the same, under the same names."""
    heard = []
    for _ in range(2):
        book = a_book(limits(total=4))
        for name in range(12):
            book.ask("night", an_ask(str(name), f"user{name % 5}", cost=name, memory=name * 30))
        heard.append(book.grants())
    assert heard[0] == heard[1]
    assert heard[0]


def test_adopted_leases_count_even_above_a_cap() -> None:
    """What is out is counted as out, and nothing more is granted until it is back under the cap."""
    book = a_book(limits(per_user=1))
    assert book.adopt("night", LeaseId("old-1"), an_ask("a"))
    assert book.adopt("night", LeaseId("old-2"), an_ask("b"))
    assert not book.adopt("night", LeaseId("old-2"), an_ask("b"))
    book.ask("night", an_ask("c"))
    assert book.grants() == []
    assert book.give_back("night", LeaseId("old-1"), 1.0)
    assert book.grants() == []
    assert book.give_back("night", LeaseId("old-2"), 1.0)
    assert [grant.ask_id for grant in book.grants()] == ["c"]
