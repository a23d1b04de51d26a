"""May this unit start now, as far as memory goes? And who is next when it may not.

Rule: memory decides only who is eligible, never whose turn it is. One reservation exists: it goes to the user whose
turn it is and whose unit does not fit. From then on others start only in what lies beyond it, so that it starts at the
latest when those that ran at that moment are done (the rule of EASY backfilling: Lifka, 1995).
Knows leases only as sizes; never looks at the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.model import Lane, LeaseId
from engine.policy.fairness import AskKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Whose large unit is next; `need_bytes` is capped at the whole budget."""

    key: AskKey
    lane: Lane
    need_bytes: int


class Memory:
    """The memory that leases have been promised, in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.reserved_bytes = 0
        self.reservation: Reservation | None = None
        self._sizes: dict[LeaseId, int] = {}
        #: Leases that began after the reservation was made, and their sum.
        self._newcomers: set[LeaseId] = set()
        self._newcomers_bytes = 0

    def obstacle(self, key: AskKey, lane: Lane, need_bytes: int) -> str | None:
        """Why this unit cannot have its memory now: "memory" or "reserved"; None: it can.

        A unit larger than the whole budget runs when nothing else holds memory. Interactive work does not wait for
        a bulk reservation.
        """
        if need_bytes == 0:
            return None
        if self.reserved_bytes and self.reserved_bytes + need_bytes > self.limit_bytes:
            return "memory"
        held = self.reservation
        if held is None or held.key == key or (lane is Lane.INTERACTIVE and held.lane is Lane.BULK):
            return None
        beyond = self._newcomers_bytes + need_bytes + held.need_bytes <= self.limit_bytes
        return None if beyond else "reserved"

    def reserve(self, key: AskKey, lane: Lane, need_bytes: int) -> None:
        """Keep what is freed for this ask, if nobody has the reservation (interactive takes it over from bulk)."""
        held = self.reservation
        if held is not None and not (lane is Lane.INTERACTIVE and held.lane is Lane.BULK):
            return
        self.reservation = Reservation(key=key, lane=lane, need_bytes=min(need_bytes, self.limit_bytes))
        self._newcomers.clear()
        self._newcomers_bytes = 0

    def release_reservation(self, key: AskKey) -> None:
        """The ask was served, withdrawn, or may not be served for another reason. No change for any other ask."""
        if self.reservation is not None and self.reservation.key == key:
            self.reservation = None
            self._newcomers.clear()
            self._newcomers_bytes = 0

    def lend(self, lease_id: LeaseId, need_bytes: int) -> None:
        """The unit starts."""
        self._sizes[lease_id] = need_bytes
        self.reserved_bytes += need_bytes
        if self.reservation is not None:
            self._newcomers.add(lease_id)
            self._newcomers_bytes += need_bytes

    def end(self, lease_id: LeaseId) -> None:
        """The unit has ended."""
        size = self._sizes.pop(lease_id)
        self.reserved_bytes -= size
        if lease_id in self._newcomers:
            self._newcomers.discard(lease_id)
            self._newcomers_bytes -= size
