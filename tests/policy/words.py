"""What is said to a book in these tests: sound asks, unsound ones, and long random conversations.

A `Talk` says the same words to one or more listeners, insists that all answer alike, and keeps an account of its own:
plain dictionaries of what stands and what is out, which know nothing of turns, heaps or reservations.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import settings

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.admission import size_class
from engine.policy.book import Book, Granted
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
