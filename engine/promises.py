"""What the workers of one coordinator were promised of the memory, from the grant to the end of each unit.

Rule: the middle between desk and supervisor, and nothing else: which worker works on which lease is told to the desk
(claims), what a worker needs beyond its promise is asked for there, and what the desk answers is passed on. Never talks
to the desk by itself: claims go with the loop's next words to it.

    supervisor --Swollen--> Promises --claims--> desk
    supervisor <--allow, stop-- Promises <--denied, stops, room-- desk
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.model import Failure, LeaseId
from engine.policy import growth
from engine.policy.tokens import Limits
from engine.ports import Answer, Claim, Clock
from engine.reasons import Reason
from engine.workers.supervisor import Report, Supervisor, Swollen, Worker

#: The longest that the desk is not told who works on a lease: its guard looks as often.
TELL_SECONDS = 0.1


@dataclass(slots=True, eq=False, kw_only=True)
class _Promise:
    """Of one lease. asked: more was asked for, and not answered yet; told: the desk knows the worker."""

    lease: LeaseId
    worker: Worker
    unit: int
    promised_bytes: int
    ceiling_bytes: int
    since: float
    asked_bytes: int = 0
    told: bool = False


class Promises:
    """All that are out."""

    def __init__(self, supervisor: Supervisor, clock: Clock, limits: Callable[[], Limits]) -> None:
        """limits: that are in force now."""
        self._supervisor, self._clock, self._limits = supervisor, clock, limits
        self._by_lease: dict[LeaseId, _Promise] = {}
        self._room_bytes = 0

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
        return self._limit_of(promise)

    def end(self, lease: LeaseId) -> None:
        """The unit is over. One that had not begun is passed over."""
        self._by_lease.pop(lease, None)

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
        return any(
            promise.asked_bytes or (not promise.told and now - promise.since >= TELL_SECONDS)
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
        self._room_bytes = answer.room_bytes
        for claim in claims:
            promise = self._by_lease.get(claim.lease_id)
            if promise is None:
                continue
            promise.told = True
            asked, promise.asked_bytes = promise.asked_bytes, 0
            # Denied, it keeps what it has, and is stopped when it is far over that; it asks again while it is not.
            if asked and claim.lease_id not in answer.denied:
                promise.promised_bytes = asked
                self._supervisor.allow(promise.worker, promised_bytes=asked, limit_bytes=self._limit_of(promise))
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

    def _stop(self, promise: _Promise, why: str) -> list[Report]:
        """Whoever holds no more than it was promised gives way to others: for its item that is a kill from outside."""
        weighed = promise.worker.weighed
        is_over = weighed is not None and weighed.resident_bytes > promise.promised_bytes
        reason = Reason.OUT_OF_MEMORY if is_over else Reason.KILLED
        return self._supervisor.stop(promise.worker, Failure(reason=reason, detail=why))

    def _limit_of(self, promise: _Promise) -> int:
        return growth.limit_of(
            promise.promised_bytes,
            ceiling_bytes=promise.ceiling_bytes,
            room_bytes=self._room_bytes,
            cores=self._limits().cpu_limit,
        )
