"""Fault points: one scenario, and a process in it that is killed just before the n-th line that it comes to.

Rule: what must be true afterwards is the same for every n. All work is done, no unit ran beyond a limit, no lease is
counted that nobody holds, every token can be borrowed, no process and no client file is left.

    start, work, death   the scheduler, counted from its start, from the first units on, from a borrower's death on
    recovery             the scheduler that takes over from a killed one
    client               a borrower that starts the scheduler, works, loses it, comes back, and leaves

How a process dies at a line: tests/saboteurs/dying.py. `strike` with at = 0 kills nobody and tells how many points
there are. As a program (scripts/fault_points) it strikes at every one of them.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine import rendezvous
from engine.errors import NightmillError
from engine.processes import is_alive
from tests.faults.world import Borrower, World, a_world, borrow_all, client_files, stop
from tests.mill import wait_until

PHASES = ("start", "work", "death", "recovery", "client")
#: Two lanes, so that one token is kept for each; a user alone cannot have them all.
_LIMITS = {"total": 3, "per_user": 2, "cores": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened at one point.

    where    "died engine.scheduler:230 greet, visit 1", or "survived 512": the scenario has so many points and this is
             none of them
    problem  what was not as it must be; "" when all was
    """

    phase: str
    at: int
    where: str
    problem: str
    seconds: float

    @property
    def hit(self) -> bool:
        """The process died there."""
        return self.where.startswith("died")

    @property
    def points(self) -> int:
        """How many points a scenario has in which nobody died."""
        return int(self.where.split()[1])


def strike(place: Path, phase: str, at: int, *, visits: int) -> Outcome:
    """Play the scenario of this phase, with a death at point `at`, in a folder of its own."""
    report = place / "report"
    began = time.monotonic()
    how: dict[str, Any] = {"at": at, "visits": visits, "report": str(report)}
    problem = ""
    try:
        with a_world(place, **_LIMITS) as world:
            match phase:
                case "recovery":
                    _recovered(world, how)
                case "client":
                    _with_a_dying_client(world, how)
                case _:
                    _served(world, how, phase)
            _all_is_well(world)
    except (AssertionError, NightmillError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    where = report.read_text() if report.exists() else "ended without a word"
    if not where.startswith(("died", "survived")):
        problem = problem or where
    return Outcome(phase=phase, at=at, where=where, problem=problem, seconds=time.monotonic() - began)


def _served(world: World, how: dict[str, Any], phase: str) -> None:
    """Registration, asks, grants, returns, promotion, the death of one borrower, another that leaves."""
    moments = {name: world.place / name for name in ("work", "death")}
    if phase in moments:
        how["trigger"] = str(moments[phase])
    world.scheduler(how=how)
    one, two = world.borrower("one", wait=False), world.borrower("two", wait=False)
    one.wait_for("here")
    two.wait_for("here")
    two.work("cleo", milliseconds=None)
    one.work("ann", count=2, milliseconds=10)
    two.wait_for("begun")
    one.wait_for("done", 2)
    moments["work"].touch()
    one.work("ann", count=2, milliseconds=10)
    one.work("ben", count=2, milliseconds=10)
    one.work("eve", count=1, milliseconds=10, lane="interactive", kind="api")
    one.tell("promote", user="ben")
    one.wait_for("done", 7)
    moments["death"].touch()
    two.kill()
    one.work("ann", count=2, milliseconds=10)
    one.wait_for("done", 9)
    one.leave()
    wait_until(lambda: world.running() == 0, "the end of the dead borrower's unit")
    assert world.done() == {f"one-{number}" for number in range(1, 10)}


def _recovered(world: World, how: dict[str, Any]) -> None:
    """Three borrowers hold a token each; scheduler and one borrower are killed; the next scheduler takes over."""
    first = world.scheduler()
    borrowers = [world.borrower(name, wait=False) for name in ("one", "two", "dead")]
    one, two, dead = borrowers
    for borrower in borrowers:
        borrower.wait_for("here")
    one.work("ann", milliseconds=None)
    two.work("cleo", milliseconds=None)
    dead.work("dora", milliseconds=None, lane="interactive")
    for borrower in borrowers:
        borrower.wait_for("begun")
    one.work("ben", count=3, milliseconds=10)
    wait_until(lambda: world.statistics().waiting.get("ben"), "asks that stand")
    # Stopped, so that it is the dying one that wins the election, and finds everything as it was left.
    for pausing in (one, two):
        stop(psutil.Process(pausing.pid))
    stop(psutil.Process(first.pid))
    dead.kill()
    first.kill()
    first.wait()
    second = world.scheduler(how=how, wait=False)

    def is_on_its_way() -> bool:
        holder = world.scheduler_process()
        return second.poll() is not None or (holder is not None and holder.pid == second.pid)

    wait_until(is_on_its_way, "the second scheduler's start or end")
    for pausing in (one, two):
        pausing.signal(signal.SIGCONT)
    two.tell("end", count=1)
    two.wait_for("done")
    one.wait_for("done", 3)
    assert world.running("dora") == 0
    two.leave()
    one.leave()
    assert world.done() == {"one-1", "one-2", "one-3", "one-4", "two-1"}


def _with_a_dying_client(world: World, how: dict[str, Any]) -> None:
    """The victim comes first and starts the scheduler; whatever becomes of it, the survivor gets its work done."""
    victim = world.borrower("victim", wait=False, dying=how)
    _wait_or_end(victim, "here")
    survivor = world.borrower("survivor")
    victim.work("ann", count=3, milliseconds=10)
    victim.work("ben", milliseconds=None)
    survivor.work("cleo", count=3, milliseconds=10)
    _wait_or_end(victim, "begun", 4)
    survivor.wait_for("done", 3)
    world.kill_scheduler()
    victim.work("ann", count=2, milliseconds=10)
    survivor.work("cleo", count=2, milliseconds=10)
    victim.tell("promote", user="ben")
    _wait_or_end(victim, "promoted")
    _wait_or_end(victim, "done", 5)
    victim.tell("end", count=1)
    _wait_or_end(victim, "done", 6)
    victim.tell("leave")
    victim.wait_end()
    survivor.wait_for("done", 5)
    survivor.leave()
    wait_until(lambda: world.running() == 0, "the end of the victim's units")
    assert {f"survivor-{number}" for number in range(1, 6)} <= world.done()


def _wait_or_end(victim: Borrower, said: str, count: int = 1) -> None:
    wait_until(lambda: victim.ended or len(victim.heard(said)) >= count, f"the victim to say {said!r}, or its end")


def _all_is_well(world: World) -> None:
    """Everybody has left: nothing is out, and everything can be had."""
    desk = world.desk()
    wait_until(lambda: desk.statistics().sessions == 1, "the end of all other sessions")
    stats = desk.statistics()
    assert (stats.active_workers, dict(stats.waiting)) == (0, {}), stats
    borrow_all(desk, desk.limits)
    assert desk.statistics().active_workers == _LIMITS["total"]
    # A borrower that dies between saying goodbye and removing its file leaves the file for a moment.
    for path in client_files(world):
        alive = [pid for pid, started in rendezvous.read_client_file(path).items() if is_alive(pid, started)]
        assert alive == [], f"{path} lists workers that live: {alive}"


def strike_many(place: Path, points: Iterable[tuple[str, int]], *, visits: int, at_once: int) -> Iterator[Outcome]:
    """Strike at many points, some at a time, in folders below `place`; the outcomes in order."""

    def one(point: tuple[str, int]) -> Outcome:
        with tempfile.TemporaryDirectory(dir=place, prefix="point-") as folder:
            return strike(Path(folder), *point, visits=visits)

    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(one, points)


def strike_all(place: Path, phase: str, *, visits: int, at_once: int, every: int = 1) -> Iterator[Outcome]:
    """Every point of a phase, until none is hit any more: in the last dozen nobody died.

    A dozen, because how many points there are varies a little with what the threads do.
    """
    (calm,) = strike_many(place, [(phase, 0)], visits=visits, at_once=1)
    yield calm
    begin, step = 1, max(12, calm.points)
    unhit = 0
    while unhit < 12:
        for outcome in strike_many(
            place, [(phase, at) for at in range(begin, begin + step, every)], visits=visits, at_once=at_once
        ):
            unhit = 0 if outcome.hit else unhit + 1
            yield outcome
        begin, step = begin + step, 12 * every


def main() -> int:
    """Strike everywhere and say what happened."""
    parser = argparse.ArgumentParser(prog="scripts/fault_points", description="Kill at every step; see what it does.")
    parser.add_argument("phases", nargs="*", default=list(PHASES), help=f"of {', '.join(PHASES)} (default: all)")
    parser.add_argument("--visits", type=int, default=3, help="how often one line counts as a point (3)")
    parser.add_argument("--every", type=int, default=1, help="strike at every n-th point only")
    parser.add_argument("--at-once", type=int, default=4, help="how many scenarios play at a time (4)")
    parser.add_argument("--quiet", action="store_true", help="print sums and problems only")
    given = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="nightmill-points-") as folder:
        for phase in given.phases:
            began = time.monotonic()
            places: Counter[str] = Counter()
            for outcome in strike_all(
                Path(folder), phase, visits=given.visits, at_once=given.at_once, every=given.every
            ):
                bad += bool(outcome.problem)
                if outcome.hit:
                    places[outcome.where.split(",")[0]] += 1
                if outcome.problem or not given.quiet:
                    verdict = f"PROBLEM: {outcome.problem}" if outcome.problem else "well"
                    print(f"{phase} {outcome.at:5d} {outcome.seconds:5.1f} s  {outcome.where}: {verdict}", flush=True)
            print(
                f"{phase}: killed at {places.total()} points in {len(places)} lines, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    print(f"{bad} problems" if bad else "no problem anywhere")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
