"""Sessions, lanes and promotion: what the book makes of the words it is told."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from engine.model import Lane, TokenKind, UserId
from tests.policy.words import Talk, a_book, an_ask, any_limits, end_lease_of, examples, granted_names, limits


@examples(60)
@given(seed=st.integers(0, 2**32))
def test_interactive_waits_for_no_more_than_one_running_unit_of_bulk(seed: int) -> None:
    """A bulk CPU unit that ends lets an interactive one start, or all wait for interactive leases or their own caps."""
    luck = random.Random(seed)
    talk = Talk(any_limits(luck))
    for _ in range(80):
        ending = [
            lease_id
            for lease_id, out in talk.out.items()
            if out.lane is Lane.BULK and out.ask.kind is TokenKind.CPU and luck.random() < 0.2
        ]
        if not ending:
            talk.say_anything(luck, memory=0, limits_change=False)
            talk.grants()
            continue
        talk.give_back(ending[0], 1.0)
        if any(talk.book.tokens.leases[started.lease_id].lane is Lane.INTERACTIVE for started in talk.grants()):
            continue  # It was for the first of them.
        total, cores = talk.limits.max_total_workers, talk.limits.cpu_limit
        for (session, name), (lane, ask) in talk.standing.items():
            if lane is Lane.BULK or talk.users()[ask.user] >= talk.limits.max_workers_per_user:
                continue
            own, own_cpu = talk.lanes()[lane], talk.cpu()[lane]
            assert own >= max(1, total - 1) or (ask.kind is TokenKind.CPU and own_cpu >= cores), f"{session}/{name}"


def test_interactive_goes_first_and_bulk_keeps_one_token() -> None:
    """Interactive work is granted before older bulk asks, and never takes the last token of three or more."""
    book = a_book(limits(total=3, cores=8))
    for number in range(5):
        book.ask("night", an_ask(f"n{number}", "bob"))
        book.ask("day", an_ask(f"d{number}", "ann", lane=Lane.INTERACTIVE))
    assert granted_names(book) == ["d0", "d1", "n0"]


def test_a_promoted_users_asks_are_interactive_in_their_old_order() -> None:
    """Promotion moves what waits, in all sessions, and what will be asked; what is out stays in its lane."""
    book = a_book(limits(total=2, cores=1))
    for name in ("a", "b"):
        book.ask("night", an_ask(f"{name}-bob", "bob"))
    for number in (1, 2, 3):
        book.ask("night", an_ask(f"ann-{number}", "ann", memory=10 * (4 - number)))
    assert granted_names(book) == ["a-bob"]
    assert not book.promote(UserId("nobody"))
    assert book.promote(UserId("ann"))
    assert book.promoted("night") == {"ann"}
    assert book.promoted("day") == frozenset()
    assert granted_names(book) == ["ann-1"]
    book.ask("day", an_ask("ann-4", "ann"))
    for number in (1, 2, 3):
        end_lease_of(book, f"ann-{number}")
        assert granted_names(book) == [f"ann-{number + 1}"]
    assert {lease.ask_id: lease.lane for lease in book.tokens.leases.values()} == {
        "a-bob": Lane.BULK,
        "ann-4": Lane.INTERACTIVE,
    }


def test_a_promotion_ends_with_the_last_session_that_has_the_user() -> None:
    """As long as one session has asked for the user its asks are interactive; after that they are as they say."""
    book = a_book(limits())
    for session in ("day", "night"):
        book.ask(session, an_ask("a", "ann"))
    assert book.promote(UserId("ann"))
    book.end_session("day")
    assert book.promoted("night") == {"ann"}
    book.end_session("night")
    book.begin_session("night")
    assert not book.promote(UserId("ann"))
    book.ask("night", an_ask("b", "ann"))
    book.grants()
    assert [lease.lane for lease in book.tokens.leases.values()] == [Lane.BULK]
    assert book.promoted("night") == frozenset()


def test_a_session_that_ends_leaves_nothing() -> None:
    """Its asks are gone and its tokens free; another session's stay. `end_asks` leaves the leases out."""
    book = a_book(limits(cores=2))
    for session in ("day", "night"):
        for number in range(2):
            book.ask(session, an_ask(f"{session}-{number}", session))
    assert granted_names(book) == ["day-0", "night-0"]
    book.end_asks("day")
    assert book.waiting() == {"night": 1}
    assert len(book.tokens.leases) == 2
    book.end_session("day")
    assert granted_names(book) == ["night-1"]
    assert book.waits("day") == {}
