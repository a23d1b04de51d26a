"""The caps: what is out never exceeds them; what is out beyond a lower cap goes on, but nothing new starts."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine.model import Lane, LeaseId, TokenKind
from engine.policy.admission import size_class
from tests.policy.words import (
    SESSIONS,
    Started,
    Talk,
    a_book,
    an_ask,
    any_limits,
    end_lease_of,
    examples,
    granted_names,
    limits,
)

SEEDS = st.integers(0, 2**32)


class Ceilings:
    """Looks at every grant, at the moment it is heard: no ceiling that it counts under may be exceeded with it."""

    def __init__(self, luck: random.Random) -> None:
        self.talk = Talk(any_limits(luck), at_grant=self.check)
        self.checked = 0

    def check(self, started: Started) -> None:
        self.checked += 1
        talk, lease = self.talk, self.talk.book.tokens.leases[started.lease_id]
        total, cores = talk.limits.max_total_workers, talk.limits.cpu_limit
        # The account does not have this lease yet.
        assert len(talk.out) + 1 <= total
        assert talk.users()[lease.user] + 1 <= talk.limits.max_workers_per_user
        if total >= 3:
            assert talk.lanes()[lease.lane] + 1 <= total - 1
        if lease.kind is TokenKind.CPU:
            cpu = talk.cpu()
            cpu[lease.lane] += 1
            assert cpu.total() <= cores + 1
            if lease.lane is Lane.BULK:
                assert cpu[Lane.BULK] <= min(cores, talk.target)
                assert cpu.total() <= cores or (total >= 3 and cpu[Lane.BULK] == 1), "bulk only for its kept token"
            elif total >= 3:
                assert cpu[Lane.INTERACTIVE] <= cores
        if talk.closed:
            assert talk.promised_bytes() == 0, "nothing starts beside what was promised something"
            assert lease.memory_bytes <= max(0, talk.free_bytes())
        if lease.memory_bytes > 0:
            assert talk.promised_bytes() == 0 or lease.memory_bytes <= talk.free_bytes()


@examples(80)
@given(seed=SEEDS)
def test_no_grant_exceeds_a_ceiling(seed: int) -> None:
    """Whatever was said before, limits lowered, leases adopted and memory taken by others included, every grant is
    within every ceiling."""
    luck = random.Random(seed)
    ceilings = Ceilings(luck)
    for _ in range(60):
        ceilings.talk.say_anything(luck)
        ceilings.talk.grants()


@examples(40)
@given(seed=SEEDS)
def test_what_is_out_never_exceeds_a_ceiling_that_stands(seed: int) -> None:
    """While the ceilings stay and nothing is adopted, the sums over all that is out are within them at every step."""
    luck = random.Random(seed)
    talk = Talk(any_limits(luck))
    total, cores = talk.limits.max_total_workers, talk.limits.cpu_limit
    for _ in range(60):
        talk.say_anything(luck, limits_change=False)
        talk.grants()
        assert len(talk.out) <= total
        assert max(talk.users().values(), default=0) <= talk.limits.max_workers_per_user
        assert max(talk.lanes().values(), default=0) <= (total - 1 if total >= 3 else total)
        assert talk.cpu()[Lane.BULK] <= cores
        assert talk.cpu().total() <= cores + 1
        assert talk.promised_bytes() <= talk.limits.memory_limit_bytes


@examples(40)
@given(seed=SEEDS)
def test_each_lease_ends_exactly_once(seed: int) -> None:
    """What is out for the book is what was granted and has not ended; a second end is answered False (in Talk)."""
    luck = random.Random(seed)
    talk = Talk(any_limits(luck))
    for _ in range(60):
        talk.say_anything(luck)
        talk.grants()
        assert set(talk.book.tokens.leases) == set(talk.out)
        for session, lease_id in talk.ended[-3:]:
            assert not talk.book.give_back(session, lease_id, 1.0)
    for session in SESSIONS:
        talk.end_session(session)
    assert not talk.book.tokens.leases
    assert not talk.book.tokens.by_user
    assert talk.book.memory.promised_bytes == 0
    every = [lease_id for _, lease_id in talk.ended]
    assert len(every) == len(set(every)) >= len({started.lease_id for started in talk.granted})


@examples(80)
@given(seed=SEEDS)
def test_nobody_waits_for_nothing(seed: int) -> None:
    """No standing ask could start: each waits for a full cap, for memory, or for what a reservation keeps."""
    luck = random.Random(seed)
    talk = Talk(any_limits(luck))
    for _ in range(60):
        talk.say_anything(luck)
        talk.grants()
        total, cores = talk.limits.max_total_workers, talk.limits.cpu_limit
        lanes, cpu, users, promised = talk.lanes(), talk.cpu(), talk.users(), talk.promised_bytes()
        held = talk.book.memory.reservation
        if not talk.out and not talk.closed:
            assert not talk.standing, "an empty house keeps nobody out"
        for key, (lane, ask) in talk.standing.items():
            full = (
                users[ask.user] >= talk.limits.max_workers_per_user
                or len(talk.out) >= total
                or (total >= 3 and lanes[lane] >= total - 1)
            )
            if ask.kind is TokenKind.CPU:
                full = full or cpu.total() > cores or (lane is Lane.BULK and cpu[lane] >= min(cores, talk.target))
                full = full or (total >= 3 and lane is Lane.INTERACTIVE and cpu[lane] >= cores)
                full = full or (lane is Lane.BULK and cpu.total() >= cores and (total < 3 or cpu[lane] > 0))
            if full:
                continue
            size = talk.size(ask)
            free = talk.free_bytes()
            lacks_memory = size > 0 and promised > 0 and size > free
            if talk.closed:
                lacks_memory = promised > 0 or size_class(ask.memory_bytes) > max(0, free)
            kept = (
                held is not None
                and held.key != key
                and size > 0
                and (lane is Lane.BULK or held.lane is Lane.INTERACTIVE)
                # No more is kept than the holder needs: this unit and the holder's do not both fit.
                and size + min(held.size, talk.limits.memory_limit_bytes) > free
            )
            assert lacks_memory or kept, f"{key} could start"


def test_interactive_may_start_one_unit_above_the_cores_and_no_second() -> None:
    """Bulk has all cores: one interactive CPU unit starts beside it at once, the next one when something ends."""
    book = a_book(limits(cores=2))
    for name in ("b1", "b2"):
        book.ask("night", an_ask(name, name))
    assert granted_names(book) == ["b1", "b2"]
    for name in ("i1", "i2"):
        book.ask("day", an_ask(name, name, lane=Lane.INTERACTIVE))
    assert granted_names(book) == ["i1"]
    assert book.waits("day") == {"i2": "cpu_cap"}
    end_lease_of(book, "b1")
    assert granted_names(book) == ["i2"]


def test_bulk_finds_its_kept_token_usable() -> None:
    """Interactive has all cores: one bulk CPU unit starts beside it, and no second."""
    book = a_book(limits(cores=2))
    for name in ("i1", "i2", "i3"):
        book.ask("day", an_ask(name, name, lane=Lane.INTERACTIVE))
    for name in ("b1", "b2"):
        book.ask("night", an_ask(name, name))
    assert granted_names(book) == ["i1", "i2", "b1"]
    assert book.waits("night") == {"b2": "cpu_cap"}


def test_each_class_keeps_a_token_of_three() -> None:
    """Neither lane takes the last token of three; of two, interactive takes both."""
    for first, second in ((Lane.INTERACTIVE, Lane.BULK), (Lane.BULK, Lane.INTERACTIVE)):
        for total, expected in ((3, ["a", "b", "late"]), (2, ["a", "b"])):
            book = a_book(limits(total=total))
            for name in ("a", "b", "c"):
                book.ask("day", an_ask(name, name, lane=first, kind=TokenKind.API))
            granted = granted_names(book)
            book.ask("day", an_ask("late", "late", lane=second, kind=TokenKind.API))
            assert granted + granted_names(book) == expected


def test_the_scaled_target_holds_bulk_and_not_interactive() -> None:
    """With a target of one, one bulk CPU unit is out; it is brought into one to the cores."""
    book = a_book(limits(cores=4))
    book.scale_to(0)
    for name in ("b1", "b2"):
        book.ask("night", an_ask(name, name))
    for name in ("i1", "i2"):
        book.ask("day", an_ask(name, name, lane=Lane.INTERACTIVE))
    assert granted_names(book) == ["i1", "i2", "b1"]
    book.scale_to(99)
    assert book.tokens.cpu_target == 4
    assert granted_names(book) == ["b2"]


def test_cores_that_were_fewer_for_a_while_do_not_scale_for_good() -> None:
    """When the limits rise again, what was scaled stands as it was: nothing, or its own number."""
    book = a_book(limits(cores=4))
    for target, expected in ((None, 4), (3, 3)):
        book.scale_to(target)
        book.set_limits(limits(cores=1))
        assert book.tokens.cpu_target == 1
        book.set_limits(limits(cores=4))
        assert book.tokens.cpu_target == expected


def test_a_lower_cap_of_users_holds_at_once_and_a_higher_one_too() -> None:
    """Who is beyond a lowered cap gets nothing until it is below; a raised one is used at the next grants."""
    book = a_book(limits(per_user=3, cores=8))
    for name in "abcdef":
        book.ask("night", an_ask(name))
    assert granted_names(book) == ["a", "b", "c"]
    book.set_limits(limits(per_user=2, cores=8))
    end_lease_of(book, "a")
    assert granted_names(book) == []
    assert book.waits("night") == {"ann": "user_cap"}
    end_lease_of(book, "b")
    assert granted_names(book) == ["d"]
    book.set_limits(limits(per_user=4, cores=8))
    assert granted_names(book) == ["e", "f"]


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
    assert granted_names(book) == ["c"]


def test_bulks_kept_token_is_not_lent_above_cores_that_have_become_fewer() -> None:
    """Five interactive CPU leases are out when the cores fall to two: bulk's kept token has to wait as well."""
    book = a_book(limits(cores=5))
    for name in "abcde":
        book.ask("day", an_ask(name, name, lane=Lane.INTERACTIVE))
    assert granted_names(book) == list("abcde")
    book.set_limits(limits(cores=2))
    book.ask("night", an_ask("night"))
    assert book.grants() == []
    assert book.waits("night") == {"ann": "cpu_cap"}


def test_a_books_own_leases_are_never_adopted() -> None:
    """A lease of this book that has ended does not come back, and one that is to come is not taken before its time."""
    book = a_book(limits())
    book.ask("night", an_ask("a"))
    (grant,) = book.grants()
    book.give_back("night", grant.lease_id, 1.0)
    assert not book.adopt("night", grant.lease_id, an_ask("a"))
    assert not book.adopt("night", LeaseId("e-2"), an_ask("b"))
    assert not book.tokens.leases
    book.ask("night", an_ask("c"))
    assert granted_names(book) == ["c"]
