"""May this unit start now, as far as memory goes? And who is next when it may not.

Rule: memory decides only who is eligible, never whose turn it is. One reservation exists: it goes to the user whose
turn it is and whose unit does not fit. From then on others start only in what lies beyond it, so that it starts at the
latest when those that ran at that moment are done (the rule of EASY backfilling: Lifka, 1995). Memory is kept for it,
a token is not: where others have all tokens of its kind by then, the next that comes back is its own.
Knows units only as sizes; never looks at the machine. What is in use there it is told (pressure.py).

    limit = taken by others + what each lease holds + free        a lease holds its promise, or what it uses if more

What is promised to a unit is its need rounded up by a sixteenth at most (`size_class`), so that the queue can keep
units of one size in one heap; a unit beyond the whole budget is promised all of it, and so runs alone. A promise may
grow while the unit runs, into what is free. While memory is closed nothing starts beside what was
promised something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

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


class _Loan(NamedTuple):
    """What one lease has of the memory. is_new: it began after the reservation was made."""

    size: int
    promise: int
    used: int
    is_new: bool

    @property
    def held(self) -> int:
        return max(self.promise, self.used)


class Memory:
    """The memory that leases have been promised, in bytes, and what others have taken of it.

    closed  so much is in use that nothing starts beside what was promised something, however small
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.promised_bytes = 0
        self.taken_bytes = 0
        self.closed = False
        self.reservation: Reservation | None = None
        self._loans: dict[LeaseId, _Loan] = {}
        #: Sums of what all leases hold, and of those that began after the reservation was made.
        self._held_bytes = self._newcomers_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What is neither taken nor held. Below 0 when more is in use, or was promised, than may be now."""
        return self.limit_bytes - self.taken_bytes - self._held_bytes

    def fits(self, size: int) -> bool:
        """There is memory for a unit of this size, if nobody else is to be thought of."""
        if self.closed:
            return size <= self._alone_in_closed()
        return self.fits_when_open(size)

    def fits_when_open(self, size: int) -> bool:
        """It would start if memory were not closed. A unit that does not wants the reservation."""
        return size == 0 or not self.promised_bytes or self._promise(size) <= self.free_bytes

    def room(self, lane: Lane) -> float:
        """The largest size that may start now in this lane, the holder of the reservation aside; below 0: none at all.

        Interactive work does not wait for a bulk reservation.
        """
        if self.closed:
            return self._alone_in_closed()
        if not self.promised_bytes and not self._waits_for_holder(lane):
            return math.inf
        return max(0, self._free_for(lane))

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
        loan = self._loans[lease_id] = _Loan(size, self._promise(size), 0, self.reservation is not None)
        self._count(loan, +1)

    def claim(self, lease_id: LeaseId, size: int, lane: Lane) -> bool:
        """Let a unit that runs count as of this size from now on. False, and no change, when it cannot grow so far.

        What is free may be grown into, but for what is kept for the reservation by those that began after it. One that
        is alone may have the whole budget unless memory is closed, as it would have had at its start.
        """
        loan = self._loans[lease_id]
        grown = loan._replace(size=size, promise=self._promise(size))
        if size > loan.size:
            room = self._free_for(lane) if loan.is_new else self.free_bytes
            is_alone = self.promised_bytes == loan.promise and not loan.is_new and not self.closed
            if size > self.limit_bytes or (grown.held - loan.held > room and not is_alone):
                return False
        self._change(lease_id, grown)
        return True

    def note(self, taken_bytes: int, used_bytes: Mapping[LeaseId, int], closed: bool) -> None:
        """A reading: what others have taken, what leases use (0: not known), and whether memory is closed."""
        self.taken_bytes, self.closed = taken_bytes, closed
        for lease_id, loan in list(self._loans.items()):
            used = used_bytes.get(lease_id, 0)
            if used != loan.used:
                self._change(lease_id, loan._replace(used=used))

    def promise_of(self, lease_id: LeaseId) -> int:
        """What a lease was promised, in bytes. Raises KeyError when it is not out."""
        return self._loans[lease_id].promise

    def end(self, lease_id: LeaseId) -> None:
        """The unit has ended."""
        self._count(self._loans.pop(lease_id), -1)

    def _change(self, lease_id: LeaseId, loan: _Loan) -> None:
        self._count(self._loans[lease_id], -1)
        self._loans[lease_id] = loan
        self._count(loan, +1)

    def _count(self, loan: _Loan, by: int) -> None:
        held = by * loan.held
        self.promised_bytes += by * loan.promise
        self._held_bytes += held
        if loan.is_new:
            self._newcomers_bytes += held

    def _promise(self, size: int) -> int:
        return min(size, self.limit_bytes)

    def _free_for(self, lane: Lane) -> int:
        """What is free for a newcomer of this lane that is not the holder."""
        if not self._waits_for_holder(lane):
            return self.free_bytes
        assert self.reservation is not None
        kept = self._promise(self.reservation.size)
        return min(self.free_bytes, self.limit_bytes - self.taken_bytes - self._newcomers_bytes - kept)

    def _alone_in_closed(self) -> int:
        # Whoever has the reservation is no exception: it is next as soon as its need is there.
        # What was promised nothing (calls of a product, held for hours) is not in the way of anybody.
        return -1 if self.promised_bytes else max(0, self.free_bytes)

    def _waits_for_holder(self, lane: Lane) -> bool:
        held = self.reservation
        return held is not None and not (lane is Lane.INTERACTIVE and held.lane is Lane.BULK)

    def _drop_reservation(self) -> None:
        self.reservation = None
        self._newcomers_bytes = 0
        for lease_id, loan in self._loans.items():
            if loan.is_new:
                self._loans[lease_id] = loan._replace(is_new=False)
