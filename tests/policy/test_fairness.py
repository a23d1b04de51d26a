"""Fair shares: who gets the next token, whatever the estimates were worth."""

from __future__ import annotations

import pytest

from engine.model import LeaseId
from tests.policy.words import a_book, an_ask, end_lease_of, granted_names, limits


@pytest.mark.parametrize("cost", [1e17, 1e308])
def test_one_absurd_cost_does_not_end_fairness(cost: float) -> None:
    """After a unit that says it took longer than the world exists, users of later units still take turns."""
    book = a_book(limits(cores=1))
    book.ask("day", an_ask("absurd", "cy", weight=0.1))
    book.grants()
    end_lease_of(book, "absurd", cost)
    for number in range(4):
        for user in ("ann", "bob"):
            book.ask("night", an_ask(f"{user}-{number}", user))
    order = []
    while granted := granted_names(book):
        order += granted
        end_lease_of(book, granted[0])
    assert order == [f"{user}-{number}" for number in range(4) for user in ("ann", "bob")]


def test_numbers_too_large_to_calculate_with_are_garbage() -> None:
    """A whole number beyond every float is refused as malformed, in an ask and in a return."""
    book = a_book(limits())
    with pytest.raises(ValueError, match="malformed ask"):
        book.ask("day", an_ask("x", cost=10**400))
    book.ask("day", an_ask("y"))
    (grant,) = book.grants()
    with pytest.raises(ValueError, match="malformed cost"):
        book.give_back("day", LeaseId(grant.lease_id), 10**400)
    assert set(book.tokens.leases) == {grant.lease_id}
