"""Who holds which token: the counters behind every cap, and the word that says why a token cannot be lent now.

Rule: a lease is counted once when it is lent and once when it ends; every number here is a sum over `leases`.
Knows nothing of turns (fairness.py), of memory (admission.py), or of time.

How the caps fit together (T = max_total_workers, C = cpu_limit):

    all leases of all users                 <= T
    all leases of one user                  <= max_workers_per_user
    T >= 3: leases of either lane           <= T - 1     one token is kept for each class
    bulk CPU leases                         <= C         or the scaled target, where that is lower (scaling.py)
    CPU leases of both lanes                <= C + 1     the one above is for who waits, or for a bulk that has none
    T >= 3: interactive CPU leases          <= C         so that bulk always finds its kept token usable
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.model import Lane, LeaseId, TokenKind, UserId


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The ceilings of one scheduler. All counts are at least 1; memory in bytes.

    max_total_workers     leases of all users, sessions and kinds together
    max_workers_per_user  leases of one user
    cpu_limit             cores that this machine really lets us use
    memory_limit_bytes    what the memory of all leases may add up to
    """

    max_total_workers: int
    max_workers_per_user: int
    cpu_limit: int
    memory_limit_bytes: int

    def __post_init__(self) -> None:
        for name in ("max_total_workers", "max_workers_per_user", "cpu_limit", "memory_limit_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} = {value!r}; must be a whole number of at least 1")

    @classmethod
    def strictest(cls, of: Sequence[Limits]) -> Limits:
        """Each ceiling as the lowest of them has it. Raises ValueError for none at all."""
        return cls(**{name: min(getattr(limits, name) for limits in of) for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A token that is out. `lane` is the one it was lent in; a later promotion does not change it."""

    lease_id: LeaseId
    session: str
    ask_id: str
    user: UserId
    lane: Lane
    kind: TokenKind
    cost_seconds: float
    memory_bytes: int
    weight: float


class Tokens:
    """The leases that are out, and the counts over them."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        #: Bulk CPU leases that may be out while the machine is loaded; None: as many as there are cores.
        self.scaled_to: int | None = None
        self.leases: dict[LeaseId, Lease] = {}
        self.by_user: Counter[UserId] = Counter()
        self._by_lane: Counter[Lane] = Counter()
        self._cpu: Counter[Lane] = Counter()
        self._by_session: dict[str, set[LeaseId]] = {}

    @property
    def cpu_target(self) -> int:
        """Bulk CPU leases that may be out now: between 1 and the cores."""
        cores = self.limits.cpu_limit
        return cores if self.scaled_to is None else max(1, min(self.scaled_to, cores))

    def obstacle(self, lane: Lane, kind: TokenKind) -> str | None:
        """Why no user at all could be lent such a token now: "total_cap" or "cpu_cap"; None: nothing does."""
        total, cores = self.limits.max_total_workers, self.limits.cpu_limit
        keeps_one = total >= 3
        if len(self.leases) >= total or (keeps_one and self._by_lane[lane] >= total - 1):
            return "total_cap"
        if kind is not TokenKind.CPU:
            return None
        bulk, interactive = self._cpu[Lane.BULK], self._cpu[Lane.INTERACTIVE]
        if lane is Lane.INTERACTIVE:
            has_room = bulk + interactive <= cores and not (keeps_one and interactive >= cores)
        else:
            # Bulk goes above the cores only for the one token that is kept for it.
            keeps_its_own = keeps_one and bulk == 0 and interactive <= cores
            has_room = bulk < self.cpu_target and (bulk + interactive < cores or keeps_its_own)
        return None if has_room else "cpu_cap"

    def at_cap(self, user: UserId) -> bool:
        """The user holds all the tokens that one user may hold."""
        return self.by_user[user] >= self.limits.max_workers_per_user

    def lend(self, lease: Lease) -> None:
        """Count a lease as out. The caller has asked `obstacle` and `at_cap` (or adopts what is out already)."""
        if lease.lease_id in self.leases:
            raise ValueError(f"lease {lease.lease_id} is out already")
        self.leases[lease.lease_id] = lease
        self._by_session.setdefault(lease.session, set()).add(lease.lease_id)
        self._count(lease, +1)

    def end(self, lease_id: LeaseId, session: str) -> Lease | None:
        """End a lease of this session. None, and no change, when it is not out or is somebody else's."""
        lease = self.leases.get(lease_id)
        if lease is None or lease.session != session:
            return None
        del self.leases[lease_id]
        held = self._by_session[session]
        held.discard(lease_id)
        if not held:
            del self._by_session[session]
        self._count(lease, -1)
        return lease

    def of_session(self, session: str) -> frozenset[LeaseId]:
        """The leases that this session holds."""
        return frozenset(self._by_session.get(session, ()))

    def _count(self, lease: Lease, by: int) -> None:
        self.by_user[lease.user] += by
        if not self.by_user[lease.user]:
            del self.by_user[lease.user]
        self._by_lane[lease.lane] += by
        if lease.kind is TokenKind.CPU:
            self._cpu[lease.lane] += by
