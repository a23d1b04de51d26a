"""What the workers of one coordinator were promised of the memory, from the grant to the end of each unit.

Rule: the middle between desk and supervisor, and nothing else: which worker works on which lease is told to the desk
(claims), what a worker needs beyond its promise is asked for there, and what the desk answers is passed on. Never talks
to the desk by itself: claims go with the loop's next words to it.

    supervisor --Swollen--> Promises --claims--> desk
    supervisor <--allow, stop-- Promises <--denied, stops, room-- desk
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from engine.model import Failure, LeaseId
from engine.policy import growth
from engine.policy.tokens import Limits
from engine.ports import Answer, Claim, Clock
from engine.reasons import Reason
from engine.workers.supervisor import Report, Supervisor, Swollen, Worker

_log = logging.getLogger(__name__)

#: The longest that the desk is not told who works on a lease: its guard looks as often.
TELL_SECONDS = 0.1
#: After a unit has lacked what others had, nothing begins for so long that was promised all: what others take for a
#: moment comes back within a second or two, and five tries at once are over in fifty milliseconds.
DEPRIVED_SECONDS = 2.0


@dataclass(slots=True, eq=False, kw_only=True)
class _Promise:
    """Of one lease. asked: more was asked for, and not answered yet; told: the desk knows the worker; limit: what the
    worker may hold before it meets an error."""

    lease: LeaseId
    worker: Worker
    unit: int
    promised_bytes: int
    ceiling_bytes: int
    since: float
    limit_bytes: int = 0
    asked_bytes: int = 0
    told: bool = False

    @property
    def lacking_bytes(self) -> int:
        """What was promised and is not there: of the whole budget others always have a part."""
        return max(0, self.promised_bytes - self.limit_bytes)


class Promises:
    """All that are out."""

    def __init__(self, supervisor: Supervisor, clock: Clock, limits: Callable[[], Limits]) -> None:
        """limits: that are in force now."""
        self._supervisor, self._clock, self._limits = supervisor, clock, limits
        self._by_lease: dict[LeaseId, _Promise] = {}
        self._room_bytes = 0
        self._heeded = 0.0
        self._deprived = -math.inf

    def begin(self, lease: LeaseId, worker: Worker, *, promised_bytes: int, ceiling_bytes: int) -> int:
        """The worker has the unit of this lease from now on. Answers with what it may hold before it meets an error."""
        promise = _Promise(
            lease=lease,
            worker=worker,
            unit=worker.unit,
            promised_bytes=promised_bytes,
            ceiling_bytes=ceiling_bytes,
            since=self._clock.monotonic(),
        )
        self._by_lease[lease] = promise
        promise.limit_bytes = self._limit_of(promise)
        _log_promise(promise)
        return promise.limit_bytes

    def end(self, lease: LeaseId) -> None:
        """The unit is over. One that had not begun is passed over."""
        if self._by_lease.pop(lease, None) is not None:
            _log.debug("lease %s is over", lease)

    def note_swollen(self, report: Swollen) -> None:
        """More is asked for, with the next words to the desk; or nothing, and the worker stays with what it has."""
        for promise in self._by_lease.values():
            if promise.worker is report.worker and promise.unit == report.unit and not promise.asked_bytes:
                wish = growth.wish_of(
                    report.resident_bytes,
                    promised_bytes=promise.promised_bytes,
                    ceiling_bytes=promise.ceiling_bytes,
                )
                promise.asked_bytes = wish or 0

    @property
    def are_due(self) -> bool:
        """The desk has to be told something now."""
        now = self._clock.monotonic()
        is_long_ago = now - self._heeded >= TELL_SECONDS
        return any(
            promise.asked_bytes
            or (not promise.told and now - promise.since >= TELL_SECONDS)
            # What others give back meanwhile is what it lacks.
            or (promise.lacking_bytes and is_long_ago)
            for promise in self._by_lease.values()
        )

    def claims(self) -> list[Claim]:
        """What the desk is to be told; `heed` takes the answer."""
        return [
            Claim(
                lease_id=promise.lease,
                pid=promise.worker.watched.pid,
                started=promise.worker.watched.started,
                memory_bytes=promise.asked_bytes or promise.promised_bytes,
            )
            for promise in self._by_lease.values()
            if promise.asked_bytes or not promise.told
        ]

    def heed(self, claims: list[Claim], answer: Answer) -> list[Report]:
        """Do as the desk says. Answers with what became of the units of workers that were stopped."""
        self._room_bytes, self._heeded = answer.room_bytes, self._clock.monotonic()
        for claim in claims:
            promise = self._by_lease.get(claim.lease_id)
            if promise is None:
                continue
            promise.told = True
            asked, promise.asked_bytes = promise.asked_bytes, 0
            # Denied, it keeps what it has, and is stopped when it is far over that; it asks again while it is not.
            if asked and claim.lease_id not in answer.denied:
                promise.promised_bytes = asked
                self._allow(promise)
        for promise in self._by_lease.values():
            if promise.lacking_bytes and self._limit_of(promise) > promise.limit_bytes:
                self._allow(promise)
        reports: list[Report] = []
        for lease, why in answer.stops.items():
            promise = self._by_lease.get(lease)
            if promise is not None:
                reports += self._stop(promise, why)
        return reports

    @property
    def is_short(self) -> bool:
        """So little is free that idle workers are in the way."""
        return self._room_bytes < self._limits().memory_limit_bytes // 16

    @property
    def is_overdrawn(self) -> bool:
        """Less is there than was promised: whoever was promised the whole budget has what others leave of it."""
        return self._room_bytes < 0

    def must_wait(self, need_bytes: int) -> bool:
        """Others have had what such a unit was promised, just now: it is to be asked for a moment later."""
        is_all = need_bytes >= self._limits().memory_limit_bytes
        return is_all and self._clock.monotonic() - self._deprived < DEPRIVED_SECONDS

    def judged(self, lease: LeaseId, failure: Failure, *, own_bytes: Callable[[], int]) -> Failure:
        """What the unit of a lease failed of. Out of memory where others had what it was promised, or crashed, as
        libraries do that get none: that is a kill from outside. own_bytes: held by this process."""
        promise = self._by_lease.get(lease)
        if promise is None or failure.reason not in (Reason.OUT_OF_MEMORY, Reason.CRASHED):
            return failure
        if not growth.is_deprived(
            promised_bytes=promise.promised_bytes,
            lacking_bytes=promise.lacking_bytes,
            budget_bytes=self._limits().memory_limit_bytes,
            own_bytes=own_bytes(),
        ):
            return failure
        self._deprived = self._clock.monotonic()
        had, promised = promise.limit_bytes // 10**6, promise.promised_bytes // 10**6
        detail = f"others use the memory: it could have {had:,} of the {promised:,} MB that it was promised"
        return Failure(reason=Reason.KILLED, detail=f"{detail} ({failure.detail})")

    def note_given_back(self, size_bytes: int) -> None:
        """So much of what counts as taken is free by now; the desk will say so with its next look."""
        if self._room_bytes < 0:
            self._room_bytes = min(0, self._room_bytes + size_bytes)

    def _stop(self, promise: _Promise, why: str) -> list[Report]:
        """Whoever holds no more than it was promised gives way to others: for its item that is a kill from outside."""
        weighed = promise.worker.weighed
        is_over = weighed is not None and weighed.resident_bytes > promise.promised_bytes
        reason = Reason.OUT_OF_MEMORY if is_over else Reason.KILLED
        if not is_over:
            self._deprived = self._clock.monotonic()
        return self._supervisor.stop(promise.worker, Failure(reason=reason, detail=why))

    def _allow(self, promise: _Promise) -> None:
        promise.limit_bytes = max(promise.limit_bytes, self._limit_of(promise))
        _log_promise(promise)
        self._supervisor.allow(promise.worker, promised_bytes=promise.promised_bytes, limit_bytes=promise.limit_bytes)

    def _limit_of(self, promise: _Promise) -> int:
        return growth.limit_of(
            promise.promised_bytes,
            ceiling_bytes=promise.ceiling_bytes,
            room_bytes=self._room_bytes,
            cores=self._limits().cpu_limit,
        )


def _log_promise(promise: _Promise) -> None:
    # scripts/bench hostile reads it.
    _log.debug(
        "lease %s: process %s is promised %s bytes, and meets an error at %s",
        *(promise.lease, promise.worker.watched.pid, promise.promised_bytes, promise.limit_bytes),
    )
