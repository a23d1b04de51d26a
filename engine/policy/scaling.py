"""How many bulk CPU leases may be out now, between 1 and the budget: fewer while others need the cores or the memory.

Rule: the number in use is the smaller of two levels that know nothing of each other. Both come down sooner than they
come up again, and between the marks that bring them down and up nothing changes, so that neither ever flutters.

    load     one step a look ahead     down: others keep more than a worker's core busy, on average of some ten seconds
             each STEP_SECONDS         up:   there was room for one more at every moment of the last CALM_STEPS steps
    memory   halved at once            down: the high mark is reached
             and again while it lasts  up:   one, each time that use stayed under the low mark for MEMORY_CALM_SECONDS

Short bursts of others cost nothing: our bulk workers run at a lower priority and step aside by themselves. What this is
for is the load that stays. Interactive work is not scaled. Knows no clock and no machine: readings are arguments.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from engine.policy.pressure import REOPENED_PERCENT, SOFT_PERCENT

#: Time constant of the average of other people's load. A full core for 12 s has to pass before 2 become 1; a compiler
#: or a page view that takes a few seconds never does it.
SMOOTHING_SECONDS: Final = 10.0
#: A step changes the level by one (by an eighth where that is more: 64 cores would take five minutes to halve). Units
#: last some seconds, so that a step shows before the next one is taken.
STEP_SECONDS: Final = 5.0
#: Steps of calm before one goes up: what comes and goes with a period of less than 20 s is met once, not each time.
CALM_STEPS: Final = 4
#: Others may keep so much of a core busy that we count on: more, and the worker on it has to go. A test runner or a
#: monitor (a third of a core) never costs a worker; a program that keeps one core busy beside niced workers gets 0.9.
CORE_TAKEN: Final = 0.7
#: Others may keep so much of a core busy that a worker comes back to. Between the two nothing changes.
CORE_FREE: Final = 0.4

#: Shares of the memory limit: where memory is closed and where it is open again (pressure.py). Lower ones would undo
#: what admission has weighed: memory that is promised is there to be used, and two large units fill 80 % of 1 GiB.
MEMORY_HIGH, MEMORY_LOW = 1 - SOFT_PERCENT / 100, 1 - REOPENED_PERCENT / 100
#: Shares of the time in which some process waited for memory: a tenth is where systemd asks services to let go of
#: theirs (200 ms in 2 s). Low is half of that.
PRESSURE_HIGH, PRESSURE_LOW = 0.10, 0.05
#: A halving takes effect as units end and give their memory back; only then can it be seen whether it was enough.
MEMORY_HOLD_SECONDS: Final = 10.0
#: More cores than any one machine has: the count of a look that was not made by a machine.
MAX_CORES: Final = 2**16
#: Each worker that comes back has to have shown what it uses before the next one does.
MEMORY_CALM_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A look at the machine. None: not known this time; what depends on it stays as it is.

    now_seconds         when, by a clock that only goes forward
    cores               cores that we could use if nobody else did, at least 1; None exactly when foreign_cores is
    foreign_cores       cores that processes which are not ours kept busy since the look before
    memory_used_share   of the memory that we and all others may use, 0 to 1
    memory_pressure     share of the last seconds in which some process waited for memory, 0 to 1
    """

    now_seconds: float
    cores: int | None = None
    foreign_cores: float | None = None
    memory_used_share: float | None = None
    memory_pressure: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleStatistics:
    """A frozen look. `why` says what keeps the target below the budget: "load", "memory", or "" when nothing does."""

    budget: int
    target: int
    why: str
    foreign_cores: float


class Scale:
    """The number of bulk CPU leases that may be out; leases that are out already stay.

    budget: the most, at least 1. Raises ValueError for anything else.
    """

    def __init__(self, budget: int) -> None:
        self._budget = _checked(budget)
        self._by_load = self._by_memory = self._budget
        #: The average of foreign cores, its peak since the last step, and the peaks of the steps before.
        self._foreign = self._peak = 0.0
        self._peaks: deque[float] = deque(maxlen=CALM_STEPS)
        self._seen: float | None = None
        self._averaged: float | None = None
        self._stepped: float | None = None
        self._halved = -math.inf
        self._calm_since: float | None = None

    @property
    def target(self) -> int:
        """How many may be out, as of the last look."""
        return min(self._by_load, self._by_memory)

    @property
    def why(self) -> str:
        """What keeps the target below the budget: "load", "memory" (also when both do the same), or ""."""
        if self.target == self._budget:
            return ""
        return "memory" if self._by_memory <= self._by_load else "load"

    def statistics(self) -> ScaleStatistics:
        """The numbers now."""
        return ScaleStatistics(
            budget=self._budget, target=self.target, why=self.why, foreign_cores=round(self._foreign, 2)
        )

    def set_budget(self, budget: int) -> int:
        """Another ceiling from now on; answers with the new target. Raises ValueError when it is not at least 1.

        A level that was not scaled down goes with the budget; one that was stays where it is, as far as it may.
        """
        old, self._budget = self._budget, _checked(budget)
        self._by_load = budget if self._by_load == old else min(self._by_load, budget)
        self._by_memory = budget if self._by_memory == old else min(self._by_memory, budget)
        return self.target

    def observe(self, load: Load) -> int:
        """The target after one more look. A look that makes no sense, or is older than the last, changes nothing."""
        if not _makes_sense(load) or (self._seen is not None and load.now_seconds < self._seen):
            return self.target
        self._seen = load.now_seconds
        if load.cores is not None and load.foreign_cores is not None:
            self._follow_load(load.now_seconds, load.cores, load.foreign_cores)
        self._follow_memory(load)
        return self.target

    def _follow_load(self, now: float, cores: int, foreign: float) -> None:
        if self._averaged is None or self._stepped is None:
            # Nothing is known of the time before: it counts as calm, and this look for as long as it covers: nothing.
            self._averaged = self._stepped = now
            return
        weight = 1 - math.exp((self._averaged - now) / SMOOTHING_SECONDS)
        self._averaged = now
        # Nobody keeps more cores busy than there are: a look that says so is rounded, and must not be felt for minutes.
        self._foreign += weight * (min(foreign, cores) - self._foreign)
        self._peak = max(self._peak, self._foreign)
        if now - self._stepped < STEP_SECONDS:
            return
        self._stepped = now
        self._peaks.append(self._peak)
        self._peak = 0.0
        # A budget above the cores is the operator's own wish; only what others take from it counts.
        room = max(cores, self._budget)
        most = _within(room - self._foreign + CORE_TAKEN, self._budget)
        # `least` never exceeds `most`, and both fall as load rises: more load never gives a higher level.
        least = _within(room - max(self._peaks) + CORE_FREE, self._budget)
        level = self._by_load
        step = max(1, level // 8)
        if level > most:
            self._by_load = max(most, level - step)
        elif level < least:
            self._by_load = min(least, level + step)

    def _follow_memory(self, load: Load) -> None:
        now = load.now_seconds
        known = [
            (value, high, low)
            for value, high, low in (
                (load.memory_used_share, MEMORY_HIGH, MEMORY_LOW),
                (load.memory_pressure, PRESSURE_HIGH, PRESSURE_LOW),
            )
            if value is not None
        ]
        if any(value >= high for value, high, _ in known) and now - self._halved >= MEMORY_HOLD_SECONDS:
            self._by_memory = max(1, self.target // 2)
            self._halved = now
        if any(value >= low for value, _, low in known):
            self._calm_since = None
        elif known and self._calm_since is None:
            self._calm_since = now
        elif known and self._calm_since is not None and now - self._calm_since >= MEMORY_CALM_SECONDS:
            self._by_memory = min(self._budget, self._by_memory + 1)
            self._calm_since = now


def _checked(budget: int) -> int:
    if type(budget) is not int or budget < 1:
        raise ValueError(f"budget = {budget!r}; must be a whole number of at least 1")
    return budget


def _within(wanted: float, budget: int) -> int:
    """Rounded down, between 1 and the budget."""
    return max(1, min(budget, math.floor(wanted)))


def _makes_sense(load: Load) -> bool:
    if (load.cores is None) != (load.foreign_cores is None) or (
        load.cores is not None and not 1 <= load.cores <= MAX_CORES
    ):
        return False
    readings = (load.foreign_cores, load.memory_used_share, load.memory_pressure)
    return math.isfinite(load.now_seconds) and all(
        value is None or (math.isfinite(value) and value >= 0) for value in readings
    )
