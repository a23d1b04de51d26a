"""Somebody waits: how long until an interactive session has its first lease while bulk work has 2,000 asks standing.

    extra core     20 tokens, 2 cores, both busy: interactive work may start one CPU lease above the cores
    class reserve  3 tokens, bulk holds all it may: the one that is kept for the other class is free
    next free      2 tokens, then 1, all of them out: nothing is free, and the next token that comes back is taken,
                   at the end of the shortest unit that runs

The first two are granted in the answer to the first call. In the third the time between the end of the shortest unit
and the grant is what the desk adds; no bulk unit may be begun in between.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from engine.desk import Desk
from engine.model import Lane
from engine.ports import Grant, Return
from scheduling.figures import Figure, Part, percentile
from scheduling.rig import Ceilings, an_ask, desk_at, scheduler_place

STANDING = 2000
#: How long the bulk units take, in turn: the shortest one is never the first begun.
UNIT_SECONDS = (0.23, 0.11, 0.17)
#: One more than the desk makes a caller wait at most: whoever waits is told within it.
PATIENCE_SECONDS = 0.05
#: Many times the longest unit: then nobody will ever be served.
TOO_LATE_SECONDS = 10.0
#: How often a coordinator of which no unit ends looks what it was granted meanwhile.
LOOK_SECONDS = 0.01


def measure(quick: bool) -> Part:
    """All four."""
    broken: list[str] = []
    asks, rounds = (200, 3) if quick else (STANDING, 20)
    figures = []
    for name, words, ceilings in (
        ("extra_core", "an interactive ask, both cores busy (20 tokens, 2 cores)", Ceilings(cores=2)),
        ("class_reserve", "the same, 2 of 3 tokens out to bulk", Ceilings(total=3, cores=16)),
    ):
        taken = _at_once(ceilings, asks, rounds, words, broken)
        figures.append(Figure(name=f"{name}_calls", value=taken[1], unit="calls", words=f"{words}: calls", at_most=1.0))
        figures.append(Figure(name=f"{name}_p50_ms", value=taken[0], unit="ms", words="    time until its lease, p50"))
    for total in (2, 1):
        late = _when_one_ends(Ceilings(total=total, cores=16), asks, rounds, broken)
        words = f"MAX_TOTAL_WORKERS {total}: grant after the shortest unit's end"
        figures.append(
            Figure(name=f"total{total}_after_end_p50_ms", value=percentile(late, 50), unit="ms", words=f"{words}, p50")
        )
        figures.append(
            Figure(
                name=f"total{total}_after_end_max_ms",
                value=late[-1],
                unit="ms",
                words="    the worst",
                at_most=1000 * PATIENCE_SECONDS,
            )
        )
    return Part(figures=tuple(figures), broken=tuple(broken), checked=4 * rounds)


@dataclass(frozen=True, slots=True)
class Called:
    """One call that gave bulk units back: when it began and was answered, how many they were, and how many it began."""

    began: float
    answered: float
    returned: int
    granted: int


@dataclass(slots=True)
class Bulk:
    """A coordinator whose units take so long and no longer: it holds all the tokens it gets, and wants more."""

    desk: Desk
    running: list[tuple[float, str, Grant]] = field(default_factory=list)
    begun: int = 0
    calls: list[Called] = field(default_factory=list)

    def stand(self, asks: int) -> None:
        """One user with so many asks, as many at a time as go into a message."""
        for at in range(0, asks, 500):
            some = [an_ask(f"bulk{number}", "bulk") for number in range(at, min(asks, at + 500))]
            self.take(self.desk.exchange(asks=some).grants)

    def take(self, grants: tuple[Grant, ...]) -> None:
        """Units begin."""
        for grant in grants:
            seconds = UNIT_SECONDS[self.begun % len(UNIT_SECONDS)]
            self.begun += 1
            heapq.heappush(self.running, (time.monotonic() + seconds, grant.ask_id, grant))

    def work(self, until: threading.Event) -> None:
        """End units when they are due, and begin what is granted then."""
        while not until.is_set():
            due = self.running[0][0] if self.running else math.inf
            if until.wait(max(0.0, min(due - time.monotonic(), LOOK_SECONDS))):
                return
            returns = []
            while self.running and self.running[0][0] <= time.monotonic():
                _, _, grant = heapq.heappop(self.running)
                returns.append(Return(lease_id=grant.lease_id, cost_seconds=0.1))
            began = time.monotonic()
            grants = self.desk.exchange(returns=returns).grants
            if returns:
                self.calls.append(Called(began, time.monotonic(), len(returns), len(grants)))
            self.take(grants)


def _at_once(ceilings: Ceilings, asks: int, rounds: int, words: str, broken: list[str]) -> tuple[float, float]:
    """(milliseconds until the first lease, p50; the most calls that it took)."""
    times, most = [], 0
    with scheduler_place() as place, ExitStack() as stack:
        bulk = Bulk(stack.enter_context(desk_at(place, ceilings)))
        bulk.stand(asks)
        for number in range(rounds):
            began = time.perf_counter()
            # A session of its own each time: connecting is part of arriving, but not of the wait for a token.
            with desk_at(place, ceilings) as desk:
                began = time.perf_counter()
                calls, grants = 1, desk.exchange(asks=[an_ask(f"{number}", "ann", lane=Lane.INTERACTIVE)]).grants
                times.append(1000 * (time.perf_counter() - began))
                while not grants and calls < 100:
                    calls, grants = calls + 1, desk.exchange(patience_seconds=PATIENCE_SECONDS).grants
                most = max(most, calls)
                stats = desk.statistics()
                if stats.active_workers > ceilings.total or len(bulk.running) > ceilings.cores:
                    broken.append(f"{words}: {stats.active_workers} leases are out")
    return percentile(sorted(times), 50), float(most)


def _when_one_ends(ceilings: Ceilings, asks: int, rounds: int, broken: list[str]) -> list[float]:
    """Milliseconds from the end of the shortest running unit to the grant, sorted."""
    waited: list[tuple[float, float]] = []
    with scheduler_place() as place, ExitStack() as stack:
        bulk = Bulk(stack.enter_context(desk_at(place, ceilings)))
        ann = stack.enter_context(desk_at(place, ceilings))
        bulk.stand(asks)
        ended = threading.Event()
        worker = threading.Thread(target=bulk.work, args=(ended,), daemon=True)
        worker.start()
        try:
            for number in range(rounds):
                # From anywhere within a unit, so that its end does not come just then every time.
                time.sleep(0.013 * (number % 7))
                while len(bulk.running) < ceilings.total:
                    time.sleep(LOOK_SECONDS)
                grants = ann.exchange(asks=[an_ask(f"{number}", "ann", lane=Lane.INTERACTIVE)]).grants
                stands = time.monotonic()
                while not grants and time.monotonic() < stands + TOO_LATE_SECONDS:
                    grants = ann.exchange(patience_seconds=PATIENCE_SECONDS).grants
                if not grants:
                    broken.append(f"{ceilings.total} tokens: who waits had nothing after {TOO_LATE_SECONDS:.0f} s")
                    return [1000 * TOO_LATE_SECONDS]
                waited.append((stands, time.monotonic()))
                if ann.statistics().active_workers > ceilings.total:
                    broken.append(f"more than {ceilings.total} leases are out")
                ann.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.05) for grant in grants])
        finally:
            ended.set()
            worker.join()
    late = []
    for stands, granted in waited:
        first = next((call for call in bulk.calls if call.answered >= stands), None)
        if first is None or first.began > granted:
            # Granted in the first call: its unit's end came between two bulk units.
            late.append(0.0)
            continue
        late.append(1000 * (granted - first.began))
        # A call that was under way when the ask came may have been served before it. Of two units that end at once,
        # one token is for who waits and the other for bulk.
        if first.began >= stands and first.granted >= first.returned:
            broken.append(f"{ceilings.total} tokens: {first.granted} bulk units were begun while somebody waited")
    return sorted(late)
