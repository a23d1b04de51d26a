"""The caps: what is out never exceeds them, and what a lower cap finds out beyond it goes on, but nothing new starts."""

from __future__ import annotations

from engine.model import Lane
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
