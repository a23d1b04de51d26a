"""What an exact fair share would give: units as a fluid, cores shared out at every instant by weight.

Rule: pure arithmetic, no desk. Nobody gets more than its cap, and what somebody cannot use is shared out among the
others (progressive filling; Bertsekas, Gallager, "Data Networks", 6.5.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One user's work: core seconds, from when on it is there, and its weight."""

    work_seconds: float
    arrives: float = 0.0
    weight: float = 1.0


def shares(weights: Mapping[str, float], cores: float, cap: float) -> dict[str, float]:
    """Cores for each of the users that have work now, at most `cap` each."""
    given: dict[str, float] = {}
    left, rest = cores, dict(weights)
    while rest:
        level = left / sum(rest.values())
        full = [user for user, weight in rest.items() if level * weight >= cap]
        if not full:
            given.update({user: level * weight for user, weight in rest.items()})
            return given
        for user in full:
            given[user] = cap
            left -= cap
            del rest[user]
        left = max(0.0, left)
    return given


def finishing_times(loads: Mapping[str, Load], cores: Sequence[tuple[float, float]], cap: float) -> dict[str, float]:
    """When each user's work is done. cores: (from when on, how many) in order of time, the first from 0.0 on."""
    left = {user: load.work_seconds for user, load in loads.items()}
    ends: dict[str, float] = {}
    now = 0.0
    while len(ends) < len(loads):
        here = {user: loads[user].weight for user in loads if user not in ends and loads[user].arrives <= now}
        many = [count for since, count in cores if since <= now][-1]
        given = shares(here, many, cap)
        changes = [since for since, _ in cores if since > now]
        changes += [load.arrives for load in loads.values() if load.arrives > now]
        changes += [now + left[user] / rate for user, rate in given.items() if rate > 0]
        if not changes:
            raise ValueError("no cores are left for the work that is")
        until = min(changes)
        for user, rate in given.items():
            left[user] -= rate * (until - now)
            if left[user] <= 1e-9 * loads[user].work_seconds:
                ends[user] = until
        now = until
    return ends
