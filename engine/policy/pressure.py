"""How near memory is to its end: is anything to start, which lease is to be stopped, and when is it ended by force?

Rule: readings and the time are arguments; what it answers is for others to do. Two marks under each ceiling:

    used   0 ............. reopened .... soft ........ hard ....... limit
                           nothing starts from soft    one lease is stopped; nothing else is stopped before it is
                           on, until below reopened    gone and a reading was taken after that

What is promised to units ends at the hard mark, so that nobody is stopped for what it was promised unless others took
it. The marks are shares of the limit, and from 20 GiB on so many bytes: what goes wrong between two readings is as
much on a large machine as on one of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.model import Lane, LeaseId

#: Left under a ceiling at each mark, in hundredths of it, and the most of that in bytes. At 95 % Dask ends its workers
#: and Ray a process; 5 % of 1 GiB is what a process touches in the 100 ms between two readings (0.5 to 2 GB/s), and
#: 1 GiB is that of ten to twenty. Soft is twice as far away, so that what has begun may still grow into its promise.
#: Reopened is 5 points below it: what one unit gives back does not carry it to and fro.
HARD_PERCENT, HARD_MOST_BYTES = 5, 1024**3
SOFT_PERCENT, SOFT_MOST_BYTES = 10, 2 * 1024**3
REOPENED_PERCENT, REOPENED_MOST_BYTES = 15, 3 * 1024**3
#: From here on the marks are so many bytes.
_LAST_BYTES: Final = HARD_MOST_BYTES * 100 // HARD_PERCENT
#: So long a coordinator may take to end a worker that is to be stopped. It looks at its bell at once and kills within
#: milliseconds; one that has not done it by then hangs, or is stopped itself.
PATIENCE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A limit of memory and what is in use under it, in bytes, without cache that can be dropped.

    source  where the limit comes from, in words
    """

    limit_bytes: int
    used_bytes: int
    source: str

    @property
    def available_bytes(self) -> int:
        """What may still be used; below 0 when more is in use than may be."""
        return self.limit_bytes - self.used_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What the process that works on a lease uses.

    promised_bytes  to the lease
    used_bytes      by it and its helpers; None: it is gone
    """

    lease_id: LeaseId
    lane: Lane
    promised_bytes: int
    used_bytes: int | None

    @property
    def over_bytes(self) -> int:
        """What it uses beyond its promise."""
        return max(0, (self.used_bytes or 0) - self.promised_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from a reading.

    closed  nothing may start
    stop    the lease to be stopped from now on, and why, in words
    end     the lease to be ended by force: it was to be stopped, and is not
    """

    closed: bool
    stop: tuple[LeaseId, str] | None = None
    end: LeaseId | None = None


def narrowest(ceilings: Sequence[Ceiling]) -> Ceiling:
    """The ceiling that leaves least. Raises ValueError for none at all."""
    return min(ceilings, key=lambda ceiling: ceiling.available_bytes)


def used_share(ceilings: Sequence[Ceiling]) -> float:
    """What is used of what may be, by the fullest ceiling, 0 to 1, and more when more is in use. Of a large limit the
    last 20 GiB count, so that each mark is the same share of all."""
    return max(max(0.0, 1 - one.available_bytes / max(1, min(one.limit_bytes, _LAST_BYTES))) for one in ceilings)


def room_bytes(ceilings: Sequence[Ceiling]) -> int:
    """What may still be used before a hard mark is reached; below 0 beyond it."""
    return min(one.available_bytes - _margin(one, HARD_PERCENT, HARD_MOST_BYTES) for one in ceilings)


class Pressure:
    """Remembers whether memory is closed, and the one lease that is being stopped."""

    def __init__(self) -> None:
        self.closed = False
        #: Leases stopped so far.
        self.stopped = 0
        self._stopping: LeaseId | None = None
        self._since = 0.0

    def observe(self, now_seconds: float, ceilings: Sequence[Ceiling], uses: Sequence[Use]) -> Verdict:
        """One reading. uses: of all leases with a process, the oldest first, looked up before the ceilings were read:
        a lease that is not among them had ended by then.
        """
        percent, most = (REOPENED_PERCENT, REOPENED_MOST_BYTES) if self.closed else (SOFT_PERCENT, SOFT_MOST_BYTES)
        self.closed = _reaches(ceilings, percent, most)
        if self._stopping is not None:
            if any(use.lease_id == self._stopping and use.used_bytes is not None for use in uses):
                is_overdue = now_seconds - self._since >= PATIENCE_SECONDS
                if is_overdue:
                    # Said again after as long: what hangs in the kernel is not gone at once.
                    self._since = now_seconds
                return Verdict(closed=self.closed, end=self._stopping if is_overdue else None)
            self._stopping = None
        running = [use for use in uses if use.used_bytes]
        if not running or not _reaches(ceilings, HARD_PERCENT, HARD_MOST_BYTES):
            return Verdict(closed=self.closed)
        chosen = running[_furthest(running)]
        self._stopping, self._since = chosen.lease_id, now_seconds
        self.stopped += 1
        return Verdict(closed=self.closed, stop=(chosen.lease_id, _why(narrowest(ceilings), chosen)))


def _reaches(ceilings: Sequence[Ceiling], percent: int, most: int) -> bool:
    return any(ceiling.available_bytes <= _margin(ceiling, percent, most) for ceiling in ceilings)


def _margin(ceiling: Ceiling, percent: int, most: int) -> int:
    return min(ceiling.limit_bytes * percent // 100, most)


def _furthest(running: Sequence[Use]) -> int:
    """Who is to go: furthest over its promise. If nobody is, bulk before interactive, then who frees most, then the
    youngest, which has done least."""
    return max(
        range(len(running)),
        key=lambda at: (running[at].over_bytes, running[at].lane is Lane.BULK, running[at].used_bytes or 0, at),
    )


def _why(ceiling: Ceiling, use: Use) -> str:
    return (
        f"memory runs out: {_mb(ceiling.used_bytes)} of {_mb(ceiling.limit_bytes)} MB are in use ({ceiling.source}); "
        f"this unit uses {_mb(use.used_bytes or 0)} MB, and {_mb(use.promised_bytes)} were promised to it"
    )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 10**6:,.0f}"
