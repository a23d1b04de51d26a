"""The caps: what is out never exceeds them; what is out beyond a lower cap goes on, but nothing new starts."""

from __future__ import annotations

from engine.model import Lane, LeaseId
from tests.policy.words import a_book, an_ask, granted_names, limits


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
