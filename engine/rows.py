"""What a coordinator says to the scheduler, as plain values: made here, and checked here when they arrive.

Rule: whatever comes out of a `..._from` is sound; anything else raises ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.model import Lane, LeaseId, TokenKind
from engine.policy.book import check_ask, is_number
from engine.ports import Ask, Claim

#: What a product tells of a user is shown, not stored: a line or two.
_LONGEST_STATUS = 2000

#: The values of an ask (on the wire, and in the file of leases) and of a claim, in the order of `row_of` and
#: `claim_row_of`. Nothing is known of one that has just arrived.
AskRow = tuple[Any, ...]
ClaimRow = tuple[Any, ...]


def row_of(ask: Ask) -> AskRow:
    """An ask as it is told."""
    return (
        ask.ask_id,
        str(ask.user),
        ask.lane.value,
        ask.kind.value,
        ask.cost_seconds,
        ask.memory_bytes,
        ask.weight,
    )


def claim_row_of(claim: Claim) -> ClaimRow:
    """A claim as it is told."""
    return (str(claim.lease_id), claim.pid, claim.started, claim.memory_bytes)


def ask_from(row: AskRow) -> Ask:
    """Raises ValueError or TypeError for anything that is no sound ask."""
    ask_id, user, lane, kind, cost_seconds, memory_bytes, weight = row
    ask = Ask(
        ask_id=ask_id,
        user=user,
        lane=Lane(lane),
        kind=TokenKind(kind),
        cost_seconds=cost_seconds,
        memory_bytes=memory_bytes,
        weight=weight,
    )
    check_ask(ask)
    return ask


def claim_from(row: ClaimRow) -> Claim:
    """Raises ValueError or TypeError for anything that is no sound claim."""
    lease_id, pid, started, memory_bytes = row
    if not (type(pid) is int and pid > 1 and is_number(started) and type(memory_bytes) is int and memory_bytes >= 0):
        raise ValueError(f"malformed claim: {row!r:.200}")
    return Claim(lease_id=LeaseId(str(lease_id)), pid=pid, started=float(started), memory_bytes=memory_bytes)


def backlog_from(rows: Mapping[str, int]) -> dict[str, int]:
    """Items to be worked on, by user. Raises ValueError or TypeError."""
    counts = dict(rows)
    if not all(type(user) is str and type(count) is int and count >= 0 for user, count in counts.items()):
        raise ValueError("malformed backlog")
    return counts


def status_from(status: Mapping[str, Any]) -> dict[str, Any]:
    """What a product shows of a user: text, numbers and None. Raises ValueError or TypeError."""
    checked = dict(status)
    sound = all(
        type(name) is str and (value is None or type(value) in (str, bool) or is_number(value))
        for name, value in checked.items()
    )
    if not sound or len(repr(checked)) > _LONGEST_STATUS:
        raise ValueError(f"malformed status: {checked!r:.200}")
    return checked
