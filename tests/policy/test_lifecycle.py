"""Which state may follow which."""

from __future__ import annotations

import pytest

from engine.errors import NightmillError
from engine.model import ItemId, ItemState
from engine.policy.lifecycle import MOVES, check_move, is_legal

SETTLED = tuple(state for state in ItemState if state is not ItemState.PENDING)


@pytest.mark.parametrize("state", ItemState)
def test_a_listing_never_meets_an_illegal_move(state: ItemState) -> None:
    """From any state an item can be read again, be named by a rule of its source, or be said to stand as it does."""
    assert is_legal(state, ItemState.PENDING)
    assert is_legal(state, ItemState.SKIPPED)
    assert is_legal(state, state)


@pytest.mark.parametrize("state", SETTLED)
def test_work_settles_items_and_nothing_else_does(state: ItemState) -> None:
    """Each settled state is reached from pending; from another settled one only a rule leads anywhere: to skipped."""
    assert is_legal(ItemState.PENDING, state)
    others = {new for new in SETTLED if new is not state and is_legal(state, new)}
    assert others == ({ItemState.SKIPPED} if state is not ItemState.SKIPPED else set())


def test_a_new_item_waits_or_is_skipped_by_rule() -> None:
    """Nothing is indexed or failed that was not pending first."""
    assert MOVES[None] == {ItemState.PENDING, ItemState.SKIPPED}


def test_the_table_knows_every_state() -> None:
    """No state lacks a line."""
    assert set(MOVES) == {None, *ItemState}


def test_an_illegal_move_names_the_item_and_both_states() -> None:
    """Whoever reads the message knows where to look."""
    with pytest.raises(NightmillError, match="item 7 cannot go from indexed to failed"):
        check_move(ItemState.INDEXED, ItemState.FAILED, ItemId(7))
    with pytest.raises(NightmillError, match="from new to indexed"):
        check_move(None, ItemState.INDEXED, ItemId(7))
    check_move(ItemState.PENDING, ItemState.INDEXED, ItemId(7))
