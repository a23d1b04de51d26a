"""The real policy code in simulated time: 10,000 users, 1,000,000 items, a window of asks for each user.

A discrete-event simulation of the desk (policy/book.py) without socket and processes: the only events are the ends of
units. At each, one exchange is made as a coordinator makes it: the lease is given back, the asks that are owed take the
place of those that were granted, and the book says what is granted now. That exchange, divided by the leases that it
led to, is a grant decision. Its target is for one core that it has to itself, so it is held against the time that the
kernel counts for the thread; the clock on the wall, which also counts whoever takes the core away, stands beside it.
The watch on limits counts by itself and asks the book nothing.

Item counts are skewed (Zipf), costs are log-normal, estimates wrong by a factor of up to four either way, weights
from a half to four; one user in thirty waits for a provider instead of a core, one unit in two hundred of some users
needs more than half of the memory; interactive users arrive all along, and one bulk user in ten comes later than the
others. Everything but the clock follows from the seed.
"""

from __future__ import annotations

import gc
import heapq
import json
import math
import random
import subprocess
import sys
import time
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.model import Lane, LeaseId, TokenKind, UserId
from engine.policy.book import Book, Granted
from engine.policy.tokens import Limits
from engine.ports import Ask
from scheduling.fairness import JainWatch, LagWatch
from scheduling.figures import Figure, Part, percentile

MIB = 1024**2
#: Mean of the log-normal costs: exp(mu + sigma^2 / 2).
MU, SIGMA = math.log(0.3), 1.0
MEAN_SECONDS = math.exp(MU + SIGMA**2 / 2)
#: The estimate is wrong by a factor between one over this and this.
WRONG = 4.0
WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 0.5)
#: A budget in which twenty small units always fit beside one large one, and two large ones never do.
MEMORY_LIMIT, SMALL, LARGE = 8192 * MIB, (64 * MIB, 160 * MIB), 4600 * MIB
#: The lag of every pair of so many of the users is followed (a matrix of that size squared).
WATCHED = 160
#: How often, in units ended, the reasons of waiting are asked for and the lag is noted for the drawing.
LOOKS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is simulated."""

    users: int
    items: int
    cores: int
    total: int = 20
    per_user: int = 5
    heads: int = 3
    sessions: int = 4
    seed: int = 20260


def measure(quick: bool) -> Part:
    """One world for each number of cores, in a process each; the figures of the slowest decide."""
    base = World(users=300, items=6000, cores=2) if quick else World(users=10_000, items=1_000_000, cores=2)
    runs = {cores: _in_process_of_its_own(replace(base, cores=cores)) for cores in (2, 16)}
    figures = []
    for cores, run in runs.items():
        for figure in _figures(run):
            figures.append(
                replace(figure, name=f"cores{cores}_{figure.name}", words=f"{cores:>2} cores: {figure.words}")
            )
    return Part(
        figures=tuple(figures),
        broken=tuple(f"{cores} cores: {broken}" for cores, run in runs.items() for broken in run["broken"]),
        checked=sum(run["checked"] for run in runs.values()),
        series={f"{name}, {cores} cores": run["series"][name] for name in SERIES for cores, run in runs.items()},
    )


#: What is drawn, by the names in `series`.
SERIES = ("grant time", "lag", "jain")


def _figures(run: dict[str, Any]) -> list[Figure]:
    lag, bound = run["worst_lag"]
    return [
        Figure(name="grant_p50_us", value=run["p50_us"], unit="µs", words="grant decision, p50"),
        Figure(name="grant_p99_us", value=run["p99_us"], unit="µs", words="grant decision, p99", at_most=150.0),
        Figure(name="grant_max_us", value=run["max_us"], unit="µs", words="grant decision, worst of all"),
        Figure(
            name="grant_wall_p50_us", value=run["wall_p50_us"], unit="µs", words="    by the clock on the wall, p50"
        ),
        Figure(
            name="grant_wall_p99_us", value=run["wall_p99_us"], unit="µs", words="    by the clock on the wall, p99"
        ),
        Figure(name="waits_p50_us", value=run["waits_us"], unit="µs", words="why a session's users wait, p50"),
        Figure(name="book_mb", value=run["book_mb"], unit="MB", words="memory of the book at its peak", at_most=100.0),
        Figure(
            name="lag_of_bound",
            value=lag / bound,
            unit="of bound",
            words=f"worst lag ({lag:.1f} s, bound {bound:.1f} s), {run['pairs']:,} pairs",
            at_most=1.0,
        ),
        Figure(name="jain_least", value=run["jain_least"], unit="", words="Jain index, the least of all windows"),
        Figure(name="jain_median", value=run["jain_median"], unit="", words="Jain index, median of windows"),
        Figure(name="busy_percent", value=run["busy_percent"], unit="%", words="cores busy while units wait"),
        Figure(
            name="seconds", value=run["seconds"], unit="s", words=f"the whole simulation of {run['leases']:,} units"
        ),
    ]


def _in_process_of_its_own(world: World) -> dict[str, Any]:
    """So that what is measured as the book's memory is nobody else's."""
    words = [sys.executable, "-m", "scheduling.simulation", json.dumps(asdict(world))]
    found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert isinstance(found, dict)
    return found


class Simulation:
    """One world from its first ask to its last unit."""

    def __init__(self, world: World) -> None:
        self.world = world
        luck = self._luck = random.Random(world.seed)
        count = world.users
        self.interactive = {user for user in range(count) if user % 50 == 49}
        self.of_provider = {user for user in range(count) if user % 30 == 29} - self.interactive
        self.of_large = {user for user in range(count) if user % 7 == 3} - self.interactive - self.of_provider
        self.late = {user for user in range(count) if user % 10 == 7} - self.interactive
        self.left = _zipf(count, world.items, self.interactive, luck)
        self.weights = [luck.choice(WEIGHTS) for _ in range(count)]
        self.names = [UserId(f"user{user:05}") for user in range(count)]
        self.sessions = [f"session{number}" for number in range(world.sessions)]
        # Kept apart from the book, in blocks of a fixed size: what grows afterwards is the book.
        size = sum(self.left)
        self.costs, self.guesses = array("d", bytes(8 * size)), array("d", bytes(8 * size))
        self.owners, self.needs = array("i", bytes(4 * size)), array("q", bytes(8 * size))
        self.core_ns = array("q", bytes(8 * (size + count + 64)))
        self.wall_ns = array("q", bytes(8 * (size + count + 64)))
        self.decisions = 0
        self.waits_ns: list[int] = []
        self.asked = 0
        self.standing, self.out = [0] * count, [0] * count
        #: Asks for a core that stand.
        self.standing_cpu = 0
        self.now = 0.0
        self.running: list[tuple[float, int, LeaseId]] = []
        self.arrivals: list[tuple[float, int]] = []
        self.owed: list[int] = []
        self.limits = Limits(
            max_total_workers=world.total,
            max_workers_per_user=world.per_user,
            cpu_limit=world.cores,
            memory_limit_bytes=MEMORY_LIMIT,
        )
        self.watch = LimitWatch(self.limits)
        watched = [
            user
            for user in range(count)
            if user not in self.interactive | self.of_provider | self.of_large and self.left[user] > world.heads
        ]
        # Those with the most items and some from all over: the former are backlogged for longest.
        chosen = watched[: WATCHED // 2] + watched[WATCHED // 2 :: max(1, 2 * len(watched) // WATCHED)]
        self.watched = {user: place for place, user in enumerate(chosen[:WATCHED])}
        self.lag = LagWatch([self.weights[user] for user in self.watched], world.cores)
        self.jain = JainWatch(self.weights, self._counts)
        self.lag_series: list[tuple[float, float]] = []
        self.busy_seconds = self.short_seconds = 0.0
        self.ended = 0

    def run(self) -> dict[str, Any]:
        """Everything, and what was found."""
        began = time.perf_counter()
        expected = sum(self.left) * MEAN_SECONDS / self.world.cores
        self.arrivals = [(self._luck.uniform(0, 0.8 * expected), user) for user in sorted(self.interactive)]
        self.arrivals += [(self._luck.uniform(0, 0.5 * expected), user) for user in sorted(self.late)]
        heapq.heapify(self.arrivals)
        gc.collect()
        before = _rss_bytes()
        self.book = Book(self.limits, epoch="simulated")
        for session in self.sessions:
            self.book.begin_session(session)
        for user in range(self.world.users):
            if user not in self.interactive | self.late:
                self._arrive(user)
        self._take(self.book.grants())
        _reset_peak()
        while self.running or self.owed or self.arrivals:
            self._step()
        peak = _peak_bytes()
        return self._report(began, peak - before)

    # --- events ---

    def _step(self) -> None:
        """One unit ends (or a user arrives), and one exchange is made."""
        session, lease_id, cost, came = "", LeaseId(""), 0.0, None
        if self.arrivals and (not self.running or self.arrivals[0][0] <= self.running[0][0]):
            self._pass(max(self.now, self.arrivals[0][0]))
            came = heapq.heappop(self.arrivals)[1]
            self._owe(came, self.world.heads)
        elif self.running:
            until, unit, lease_id = heapq.heappop(self.running)
            self._pass(until)
            session, cost = self._session_of(self.owners[unit]), self.costs[unit]
            self._end(unit)
        asks = [self._new_ask(user) for user in self.owed]
        self.owed.clear()
        book = self.book
        wall, core = time.perf_counter_ns(), time.thread_time_ns()
        if lease_id:
            book.give_back(session, lease_id, cost)
        for owner, ask in asks:
            book.ask(owner, ask)
        granted = book.grants()
        core, wall = time.thread_time_ns() - core, time.perf_counter_ns() - wall
        self.core_ns[self.decisions] = core // max(1, len(granted))
        self.wall_ns[self.decisions] = wall // max(1, len(granted))
        self.decisions += 1
        if came is not None:
            self._place(came)
        self._take(granted)

    def _pass(self, until: float) -> None:
        """Time goes by."""
        passed = until - self.now
        if self.watch.cpu_waits(self.standing_cpu):
            self.short_seconds += passed * self.world.cores
            self.busy_seconds += passed * min(self.world.cores, self.watch.cpu)
        self.now = until

    def _end(self, unit: int) -> None:
        user, seconds = self.owners[unit], self.costs[unit]
        self.watch.ended(user, *self._sort(user), self.needs[unit])
        self.out[user] -= 1
        self.ended += 1
        self.jain.served(user, seconds, self.now)
        place = self.watched.get(user)
        if place is not None:
            self.lag.served(place, seconds)
            self._place(user)
        if self.ended % LOOKS == 0:
            self.lag_series.append((self.now, self.lag.recent()))
            started = time.perf_counter_ns()
            self.book.waits(self.sessions[0])
            self.waits_ns.append(time.perf_counter_ns() - started)

    def _take(self, granted: list[Granted]) -> None:
        """Units begin; whoever was served is owed its next ask, in the next exchange."""
        for grant in granted:
            unit = int(grant.ask_id)
            user = self.owners[unit]
            self.watch.begun(user, *self._sort(user), self.needs[unit])
            self.standing[user] -= 1
            self.out[user] += 1
            if user not in self.of_provider:
                self.standing_cpu -= 1
            heapq.heappush(self.running, (self.now + self.costs[unit], unit, grant.lease_id))
            self._owe(user, 1)
            self._place(user)

    def _arrive(self, user: int) -> None:
        self._owe(user, self.world.heads)
        for each in self.owed:
            self.book.ask(*self._new_ask(each))
        self.owed.clear()
        self._place(user)

    def _owe(self, user: int, asks: int) -> None:
        asks = min(asks, self.left[user])
        self.left[user] -= asks
        self.owed += [user] * asks

    def _new_ask(self, user: int) -> tuple[str, Ask]:
        unit = self.asked
        self.asked += 1
        luck = self._luck
        self.owners[unit] = user
        self.costs[unit] = luck.lognormvariate(MU, SIGMA)
        self.guesses[unit] = self.costs[unit] * WRONG ** luck.uniform(-1, 1)
        large = user in self.of_large and luck.random() < 0.005
        self.needs[unit] = LARGE if large else luck.randint(*SMALL)
        self.standing[user] += 1
        place = self.watched.get(user)
        if place is not None:
            self.lag.asked(place, max(self.guesses[unit], self.costs[unit]))
        lane, kind = self._sort(user)
        if kind is TokenKind.CPU:
            self.standing_cpu += 1
        return self._session_of(user), Ask(
            ask_id=str(unit),
            user=self.names[user],
            lane=lane,
            kind=kind,
            cost_seconds=self.guesses[unit],
            memory_bytes=self.needs[unit],
            weight=self.weights[user],
        )

    # --- who is who ---

    def _sort(self, user: int) -> tuple[Lane, TokenKind]:
        lane = Lane.INTERACTIVE if user in self.interactive else Lane.BULK
        return lane, TokenKind.API if user in self.of_provider else TokenKind.CPU

    def _session_of(self, user: int) -> str:
        return self.sessions[user % len(self.sessions)]

    def _counts(self, user: int) -> bool:
        """Bulk, for a core, something waits, and the cap allows one more."""
        ordinary = user not in self.interactive and user not in self.of_provider
        return ordinary and self.standing[user] > 0 and self.out[user] < self.world.per_user

    def _place(self, user: int) -> None:
        """Tell the watches whether the user counts now."""
        counts = self._counts(user)
        place = self.watched.get(user)
        if place is not None and counts:
            self.lag.enter(place)
        elif place is not None:
            self.lag.leave(place)
        if not counts:
            self.jain.out(user)

    # --- what was found ---

    def _report(self, began: float, book_bytes: int) -> dict[str, Any]:
        times = sorted(taken / 1000 for taken in self.core_ns[: self.decisions])
        walls = sorted(taken / 1000 for taken in self.wall_ns[: self.decisions])
        indexes = sorted(index for _, index, _ in self.jain.windows) or [1.0]
        broken = list(self.watch.broken)
        if any(self.left) or any(self.standing) or any(self.out) or self.ended != self.asked:
            broken.append(f"not every unit was done: {self.asked} asked, {self.ended} ended")
        stride = max(1, len(self.lag_series) // 300)
        lags = [
            (self.lag_series[at][0] / self.now, max(share for _, share in self.lag_series[at : at + stride]))
            for at in range(0, len(self.lag_series), stride)
        ]
        return {
            "p50_us": percentile(times, 50),
            "p99_us": percentile(times, 99),
            "max_us": times[-1],
            "wall_p50_us": percentile(walls, 50),
            "wall_p99_us": percentile(walls, 99),
            "waits_us": percentile(sorted(self.waits_ns), 50) / 1000 if self.waits_ns else 0.0,
            "book_mb": book_bytes / 1e6,
            "worst_lag": self.lag.worst,
            "pairs": self.lag.pairs_seen,
            "jain_least": indexes[0],
            "jain_median": percentile(indexes, 50),
            "busy_percent": 100 * self.busy_seconds / self.short_seconds if self.short_seconds else 100.0,
            "leases": self.ended,
            "seconds": time.perf_counter() - began,
            "checked": self.watch.checked,
            "broken": broken,
            "series": {
                "grant time": [(percentile(times, share), 100 - share) for share in _SHARES],
                "lag": lags,
                "jain": [(now / self.now, index) for now, index, _ in self.jain.windows],
            },
        }


#: Percents of the decisions for the drawing, closer and closer to all of them.
_SHARES = [100 * (1 - 10 ** (-step / 20)) for step in range(101)]


class LimitWatch:
    """Counts what is out, by itself, and notes every limit that is exceeded."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.total = self.cpu = self.memory = self.checked = 0
        self._by_user: Counter[int] = Counter()
        self._lanes: Counter[Lane] = Counter()
        self._cpu: Counter[Lane] = Counter()
        self.broken: list[str] = []

    def begun(self, user: int, lane: Lane, kind: TokenKind, need_bytes: int) -> None:
        """A lease went out: every limit is looked at."""
        self._count(user, lane, kind, need_bytes, +1)
        total, cores = self.limits.max_total_workers, self.limits.cpu_limit
        sums = (
            ("all leases", self.total, total),
            ("leases of one user", self._by_user[user], self.limits.max_workers_per_user),
            (f"leases of lane {lane}", self._lanes[lane], total - 1 if total >= 3 else total),
            ("bulk CPU leases", self._cpu[Lane.BULK], cores),
            ("CPU leases", self.cpu, cores + 1),
            ("bytes", self.memory, self.limits.memory_limit_bytes),
        )
        self.checked += len(sums)
        for what, found, most in sums:
            if found > most:
                self.broken.append(f"{found} {what}, {most} are allowed")

    def ended(self, user: int, lane: Lane, kind: TokenKind, need_bytes: int) -> None:
        """A lease came back."""
        self._count(user, lane, kind, need_bytes, -1)

    def cpu_waits(self, standing: int) -> bool:
        """More units ask for a core than the caps of a handful of users could explain."""
        return standing > 64

    def _count(self, user: int, lane: Lane, kind: TokenKind, need_bytes: int, by: int) -> None:
        self.total += by
        self.memory += by * need_bytes
        self._by_user[user] += by
        self._lanes[lane] += by
        if kind is TokenKind.CPU:
            self._cpu[lane] += by
            self.cpu += by


def _zipf(users: int, items: int, few: set[int], luck: random.Random) -> list[int]:
    """Items by user: the n-th has about 1/n of the first, everybody has some, those in `few` a handful."""
    harmonic = sum(1 / rank for rank in range(1, users + 1))
    counts = [max(1, round(items / (harmonic * rank))) for rank in range(1, users + 1)]
    for user in few:
        counts[user] = luck.randint(1, 20)
    counts[0] += max(0, items - sum(counts))
    return counts


def _rss_bytes() -> int:
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _reset_peak() -> None:
    """Begin a new measurement of VmHWM (proc(5), clear_refs 5); where that is not allowed the peak is only higher."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    print(json.dumps(Simulation(World(**json.loads(sys.argv[1]))).run()))
