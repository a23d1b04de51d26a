"""May this unit start now, as far as memory goes? And who is next when it may not.

Rule: memory decides only who is eligible, never whose turn it is. One reservation exists: it goes to the user whose
turn it is and whose unit does not fit. From then on others start only in what lies beyond it, so that it starts at the
latest when those that ran at that moment are done (the rule of EASY backfilling: Lifka, 1995). Memory is kept for it,
a token is not: where others have all tokens of its kind by then, the next that comes back is its own.
Knows units only as sizes; never looks at the machine.

What is promised to a unit is its need rounded up by a sixteenth at most (`size_class`), so that the queue can keep
units of one size in one heap; a unit beyond the whole budget is promised all of it, and so runs alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.fairness import AskKey


def size_class(need_bytes: int) -> int:
    """The size that a unit counts as: its need rounded up to one of sixteen steps between powers of two."""
    step = 1 << max(0, need_bytes.bit_length() - 5)
    return -(-need_bytes // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Whose large unit is next."""

    key: AskKey
    user: UserId
    lane: Lane
    kind: TokenKind
    size: int


class Memory:
    """The memory that leases have been promised, in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.promised_bytes = 0
        self.reservation: Reservation | None = None
        self._promises: dict[LeaseId, int] = {}
        #: Leases that began after the reservation was made, and their sum.
        self._newcomers: set[LeaseId] = set()
        self._newcomers_bytes = 0

    def fits(self, size: int) -> bool:
        """There is memory for a unit of this size, if nobody else is to be thought of."""
        return size == 0 or not self.promised_bytes or self.promised_bytes + self._promise(size) <= self.limit_bytes

    def room(self, lane: Lane) -> float:
        """The largest size that may start now in this lane, the holder of the reservation aside.

        Interactive work does not wait for a bulk reservation.
        """
        if not self.promised_bytes and not self._waits_for_holder(lane):
            return math.inf
        free = self.limit_bytes - self.promised_bytes
        if self._waits_for_holder(lane):
            assert self.reservation is not None
            free = min(free, self.limit_bytes - self._newcomers_bytes - self._promise(self.reservation.size))
        return max(0, free)

    def reserve(self, wanted: Reservation) -> None:
        """Keep what is freed for this ask, if nobody has the reservation (interactive takes it over from bulk)."""
        held = self.reservation
        if held is None or (wanted.lane is Lane.INTERACTIVE and held.lane is Lane.BULK):
            self._drop_reservation()
            self.reservation = wanted

    def release_reservation(self, *, key: AskKey | None = None, user: UserId | None = None) -> None:
        """The ask was served or withdrawn, or its user may not be served for another reason. No change for others."""
        if self.reservation is not None and (self.reservation.key == key or self.reservation.user == user):
            self._drop_reservation()

    def lend(self, lease_id: LeaseId, size: int) -> None:
        """The unit starts."""
        promise = self._promises[lease_id] = self._promise(size)
        self.promised_bytes += promise
        if self.reservation is not None:
            self._newcomers.add(lease_id)
            self._newcomers_bytes += promise

    def end(self, lease_id: LeaseId) -> None:
        """The unit has ended."""
        promise = self._promises.pop(lease_id)
        self.promised_bytes -= promise
        if lease_id in self._newcomers:
            self._newcomers.discard(lease_id)
            self._newcomers_bytes -= promise

    def _promise(self, size: int) -> int:
        return min(size, self.limit_bytes)

    def _waits_for_holder(self, lane: Lane) -> bool:
        held = self.reservation
        return held is not None and not (lane is Lane.INTERACTIVE and held.lane is Lane.BULK)

    def _drop_reservation(self) -> None:
        self.reservation = None
        self._newcomers.clear()
        self._newcomers_bytes = 0
