"""A real scheduler process and real desks: calls and leases by the second, memory and CPU of the scheduler.

idle       one coordinator is connected, and nobody asks
single     acquire, then release: two calls through the socket; and both in one. Measured at several schedulers one
           after the other: where the kernel puts the two processes makes a call twice as long or not, and stays as
           it is; the figure is that of the best, with the worst beside it
batched    one coordinator gives back all it holds and asks for as many, in one call
clients    1 and 8 processes at the same time
loaded     10,000 users with three asks each stand at the desk, from ten sessions
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from engine.desk import Desk
from engine.ports import Return
from scheduling.figures import Figure, Part, percentile
from scheduling.rig import Ceilings, an_ask, cpu_seconds, desk_at, scheduler_at, scheduler_place

#: As many leases in one round trip as one coordinator may hold (cores, not all tokens, bound CPU leases).
BATCHED = Ceilings(total=20, per_user=5, cores=16)
HEADS, SESSIONS, ASKS_A_MESSAGE = 3, 10, 500
MB = 1e6


def measure(quick: bool) -> Part:
    """All of it, in the order above."""
    figures: list[Figure] = []
    broken: list[str] = []
    with scheduler_place() as place, desk_at(place, BATCHED) as desk:
        figures += _idle(place, seconds=1.0 if quick else 10.0)
        figures += _batched(desk, rounds=50 if quick else 2000, broken=broken)
    figures += _single(schedulers=2 if quick else 7, rounds=200 if quick else 4000, broken=broken)
    for clients in (1, 8):
        with scheduler_place() as place, desk_at(place, Ceilings(total=20, per_user=5, cores=16)):
            figures.append(_clients(place, clients, seconds=0.5 if quick else 4.0))
    with scheduler_place() as place:
        figures += _loaded(place, users=200 if quick else 10_000, rounds=20 if quick else 300, broken=broken)
    return Part(figures=tuple(figures), broken=tuple(broken))


def _idle(place: Path, *, seconds: float) -> list[Figure]:
    scheduler = scheduler_at(place)
    before, began = cpu_seconds(scheduler), time.monotonic()
    time.sleep(seconds)
    percent = 100 * (cpu_seconds(scheduler) - before) / (time.monotonic() - began)
    rss = scheduler.memory_info().rss / MB
    return [
        Figure(name="idle_mb", value=rss, unit="MB", words="scheduler's memory, idle", at_most=40.0),
        Figure(name="idle_cpu_percent", value=percent, unit="%", words="scheduler's CPU, one session, nobody asks"),
    ]


def _single(*, schedulers: int, rounds: int, broken: list[str]) -> list[Figure]:
    at_each = []
    for _ in range(schedulers):
        with scheduler_place() as place, desk_at(place, BATCHED) as desk:
            at_each.append(_pairs_and_turnovers(desk, rounds, broken))
    at_each.sort(key=lambda both: percentile(both[0], 50))
    pairs, turnovers = at_each[0]
    return [
        Figure(
            name="acquire_release_p50_us",
            value=percentile(pairs, 50),
            unit="µs",
            words="acquire, then release (two calls), p50",
            at_most=150.0,
        ),
        Figure(name="acquire_release_p99_us", value=percentile(pairs, 99), unit="µs", words="the same, p99"),
        Figure(
            name="acquire_release_worst_p50_us",
            value=percentile(at_each[-1][0], 50),
            unit="µs",
            words="the same, p50 at the slowest of several schedulers",
        ),
        Figure(name="turnover_p50_us", value=percentile(turnovers, 50), unit="µs", words="both in one call, p50"),
        Figure(name="turnover_p99_us", value=percentile(turnovers, 99), unit="µs", words="the same, p99"),
    ]


def _pairs_and_turnovers(desk: Desk, rounds: int, broken: list[str]) -> tuple[list[float], list[float]]:
    """Microseconds of two calls, and of one, sorted."""
    pairs, turnovers = [], []
    for number in range(rounds):
        began = time.perf_counter()
        grants = desk.exchange(asks=[an_ask(f"a{number}", "ann")]).grants
        desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.001) for grant in grants])
        pairs.append(1e6 * (time.perf_counter() - began))
        if len(grants) != 1:
            broken.append(f"an ask that nothing stands against got {len(grants)} grants")
    held = desk.exchange(asks=[an_ask("first", "ann")]).grants
    for number in range(rounds):
        began = time.perf_counter()
        returns = [Return(lease_id=grant.lease_id, cost_seconds=0.001) for grant in held]
        held = desk.exchange(asks=[an_ask(f"b{number}", "ann")], returns=returns).grants
        turnovers.append(1e6 * (time.perf_counter() - began))
    desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.001) for grant in held])
    return sorted(pairs), sorted(turnovers)


def _batched(desk: Desk, *, rounds: int, broken: list[str]) -> list[Figure]:
    users = [f"user{number}" for number in range(4)]
    most = BATCHED.cores
    leases, held = 0, list(desk.exchange(asks=[an_ask(f"c{at}", users[at % 4]) for at in range(most)]).grants)
    began = time.perf_counter()
    for number in range(rounds):
        asks = [an_ask(f"d{number}-{at}", users[at % 4]) for at in range(len(held))]
        returns = [Return(lease_id=grant.lease_id, cost_seconds=0.001) for grant in held]
        held = list(desk.exchange(asks=asks, returns=returns).grants)
        leases += len(held)
        if len(held) != most:
            broken.append(f"{most} tokens were given back and {len(held)} lent")
            break
    rate = leases / (time.perf_counter() - began)
    desk.exchange(returns=[Return(lease_id=grant.lease_id, cost_seconds=0.001) for grant in held])
    words = f"leases by one coordinator, {most} in a call"
    return [Figure(name="leases_per_second", value=rate, unit="1/s", words=words, at_least=2000.0)]


def _clients(place: Path, clients: int, *, seconds: float) -> Figure:
    words = [sys.executable, "-m", "scheduling.caller", str(place), str(seconds)]
    callers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for caller in callers:
        assert caller.stdout is not None
        caller.stdout.readline()
    for caller in callers:
        assert caller.stdin is not None
        caller.stdin.write("go\n")
        caller.stdin.flush()
    total = sum(int(caller.communicate()[0]) for caller in callers)
    return Figure(
        name=f"calls_per_second_{clients}",
        value=total / seconds,
        unit="1/s",
        words=f"calls (return and ask) by {clients} client process{'es' if clients > 1 else ''}",
    )


def _loaded(place: Path, *, users: int, rounds: int, broken: list[str]) -> list[Figure]:
    with ExitStack() as stack:
        desks = [stack.enter_context(desk_at(place, BATCHED)) for _ in range(SESSIONS)]
        held = []
        for number, desk in enumerate(desks):
            names = [f"user{user:05}" for user in range(number, users, SESSIONS)]
            asks = [an_ask(f"{name}/{head}", name) for name in names for head in range(HEADS)]
            for at in range(0, len(asks), ASKS_A_MESSAGE):
                held += [(desk, grant) for grant in desk.exchange(asks=asks[at : at + ASKS_A_MESSAGE]).grants]
        times = []
        for number in range(rounds):
            desk, grant = held.pop(0)
            began = time.perf_counter()
            name = grant.ask_id.partition("/")[0]
            grants = desk.exchange(
                asks=[an_ask(f"{name}/more{number}", name)],
                returns=[Return(lease_id=grant.lease_id, cost_seconds=0.001)],
            ).grants
            times.append(1e6 * (time.perf_counter() - began))
            held += [(desk, one) for one in grants]
            # What was granted to another session lies in its tray.
            if not held:
                held += [(one, each) for one in desks for each in one.exchange().grants]
        rss = scheduler_at(place).memory_info().rss / MB
        stats = desks[0].statistics()
        standing = sum(stats.waiting.values())
        if standing + stats.active_workers != HEADS * users:
            broken.append(f"{standing} asks stand and {stats.active_workers} leases are out, of {HEADS * users} asks")
    times.sort()
    words = f"the same with {users:,} users and {standing:,} asks"
    return [
        Figure(name="loaded_mb", value=rss, unit="MB", words=f"scheduler's memory, {standing:,} asks", at_most=100.0),
        Figure(name="loaded_turnover_p50_us", value=percentile(times, 50), unit="µs", words=f"{words}, p50"),
        Figure(name="loaded_turnover_p99_us", value=percentile(times, 99), unit="µs", words="    p99"),
    ]
