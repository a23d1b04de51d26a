"""Which state may follow which: the way of an item, as a table.

Rule: an item settles only from `pending`, and leaves a settled state only to be read again, or because a rule of its
source names it now. So whatever is shown as settled was reached by work that is written down. Saying the same state
again is always allowed: it carries a newer reason, fingerprint or count.

        (new) ------------------> skipped      listed, and a rule of the source names it
          |
          v                 +---> indexed      published
        pending ------------+---> skipped      its content is of a type that is not read
          ^                 +---> failed       no attempt is left in this run
          |                 +---> quarantined  it kills its workers
          |                         |
          +-------------------------+          changed, asked for again, a rule lifted, or missing in the index

        any state --------------> skipped      a rule of the source names it now

Reconciliation with an index that already holds an item is two moves in one transaction: to pending, then to indexed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from engine.errors import NightmillError
from engine.model import ItemId, ItemState

_PENDING, _INDEXED, _SKIPPED = ItemState.PENDING, ItemState.INDEXED, ItemState.SKIPPED
_FAILED, _QUARANTINED = ItemState.FAILED, ItemState.QUARANTINED

#: From (None: not in the ledger yet) -> to.
MOVES: Final[Mapping[ItemState | None, frozenset[ItemState]]] = MappingProxyType(
    {
        None: frozenset({_PENDING, _SKIPPED}),
        _PENDING: frozenset({_PENDING, _INDEXED, _SKIPPED, _FAILED, _QUARANTINED}),
        _INDEXED: frozenset({_INDEXED, _PENDING, _SKIPPED}),
        _SKIPPED: frozenset({_SKIPPED, _PENDING}),
        _FAILED: frozenset({_FAILED, _PENDING, _SKIPPED}),
        _QUARANTINED: frozenset({_QUARANTINED, _PENDING, _SKIPPED}),
    }
)


def is_legal(old: ItemState | None, new: ItemState) -> bool:
    """May an item go from `old` (None: unknown so far) to `new`?"""
    return new in MOVES[old]


def check_move(old: ItemState | None, new: ItemState, item: ItemId) -> None:
    """Raises NightmillError, with the item's id and both states, when the move is not in the table."""
    if not is_legal(old, new):
        raise NightmillError(f"item {item} cannot go from {old or 'new'} to {new}")
