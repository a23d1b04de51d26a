"""What is said to the book: the same again gives the same; what makes no sense or comes too late changes nothing."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.book import Book
from tests.policy.words import EPOCH, GARBAGE, SESSIONS, Talk, any_limits, check_garbage, examples


@examples(20)
@given(seed=st.integers(0, 2**32))
def test_the_same_words_give_the_same_grants(seed: int) -> None:
    """A log that is said again to a new book is answered with the same grants under the same names."""
    luck = random.Random(seed)
    talk = Talk(any_limits(luck))
    for _ in range(80):
        talk.say_anything(luck)
        talk.grants()
    again = Book(talk.log_limits, epoch=EPOCH)
    granted = []
    for word, arguments in talk.log:
        answer = getattr(again, word)(*arguments)
        if word == "grants":
            granted += [(one.session, one.ask_id, one.lease_id) for one in answer]
    assert granted == [(one.session, one.ask_id, one.lease_id) for one in talk.granted]
    assert set(again.tokens.leases) == set(talk.out)


@pytest.mark.parametrize("bad", GARBAGE, ids=lambda bad: f"{bad[0]}{bad[1]}"[:60])
def test_garbage_changes_nothing(bad: tuple[str, tuple[Any, ...]]) -> None:
    """Whatever makes no sense leaves the book as it was, in the middle of things."""
    luck = random.Random(3)
    talk = Talk(any_limits(luck))
    for _ in range(60):
        talk.say_anything(luck)
        talk.grants()
    check_garbage(talk.book, *bad)


def test_late_and_false_returns_change_nothing() -> None:
    """A lease that has ended, one of another session, and a cost that is none: nothing ends, nothing is counted."""
    luck = random.Random(5)
    talk = Talk(any_limits(luck))
    while len(talk.ended) < 5 or len(talk.out) < 2:
        talk.say_anything(luck)
        talk.grants()
    for session, lease_id in talk.ended:
        check_garbage(talk.book, "give_back", (session, lease_id, 1.0))
    for lease_id, out in talk.out.items():
        other = next(session for session in SESSIONS if session != out.session)
        check_garbage(talk.book, "give_back", (other, lease_id, 1.0))
        check_garbage(talk.book, "adopt", (out.session, lease_id, out.ask))
        for cost in (float("nan"), float("inf"), -0.5, 10**400, None, "1"):
            check_garbage(talk.book, "give_back", (out.session, lease_id, cost))
