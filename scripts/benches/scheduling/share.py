"""The small user beside the large one: when it is done, against the moment an exact fair share would give it.

The desk is real, units are not: a lease is given back when the unit's time has passed. Two users are there from the
start, one with a hundred times the items of the other; estimates are wrong by a factor of two either way. What else
runs:

    quiet         nobody
    a third       another session with a user who always has work
    interactive   the same, and for a while somebody who waits, whose one unit at a time goes first and takes a core
    apart         the small and the large user are in sessions of their own as well

The exact share is that of a fluid (fluid.py): cores shared out at every instant by weight, nobody above its cap.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from engine.desk import Desk
from engine.model import Lane
from engine.ports import Ask, Grant, Return
from scheduling.figures import Figure, Part
from scheduling.fluid import Load, finishing_times
from scheduling.rig import Ceilings, an_ask, desk_at, scheduler_place

CEILINGS = Ceilings(total=20, per_user=5, cores=4)
RATIO = 100
#: Asks that stand at the desk for each user; the rest is a count.
HEADS = 5
#: Units in simulated time; longer than a round trip by so much that the bench's own work is lost in it.
LEAST_SECONDS, MOST_SECONDS = 0.03, 0.09
#: When the one who waits comes and goes, as shares of the time that the small user would take.
COMES, GOES = 0.2, 0.7
#: The longest that the loop sleeps: a token may have come to a session of which nothing has ended.
LOOK_SECONDS = 0.002


@dataclass(slots=True)
class Person:
    """A user with so many units still to ask for; None: without end."""

    name: str
    left: int | None
    lane: Lane = Lane.BULK
    heads: int = HEADS
    standing: int = 0
    running: int = 0
    begun: float | None = None
    done_at: float | None = None


@dataclass(slots=True)
class Place:
    """One session and those who ask in it."""

    desk: Desk
    people: list[Person]
    returns: list[Return] = field(default_factory=list)


def measure(quick: bool) -> Part:
    """Every company, with its own scheduler."""
    units = 16 if quick else 100
    broken: list[str] = []
    figures = []
    for company, words in (
        ("quiet", "alone with the large user"),
        ("third", "and a third user in another session"),
        ("interactive", "and somebody who waits, for half of the time"),
        ("apart", "the same, every user in a session of its own"),
    ):
        found, exact = _one(company, units, broken)
        figures.append(
            Figure(
                name=f"{company}_ratio",
                value=found / exact,
                unit="of exact",
                words=f"small user done after {found:.2f} s: {words}",
                at_most=1.10,
                at_least=0.90,
            )
        )
    return Part(figures=tuple(figures), broken=tuple(broken), checked=len(figures))


def _one(company: str, units: int, broken: list[str]) -> tuple[float, float]:
    """(seconds until the small user was done, seconds that the exact share gives it)."""
    luck = random.Random(f"{company} {units}")
    seconds = [luck.uniform(LEAST_SECONDS, MOST_SECONDS) for _ in range(units)]
    small, large = Person("small", units), Person("large", RATIO * units)
    third = Person("third", None)
    waiting = Person("waiting", None, lane=Lane.INTERACTIVE, heads=1)
    work = sum(seconds)
    others = 1 if company == "quiet" else 2
    rough = work * (1 + others) / CEILINGS.cores
    window = (COMES * rough, GOES * rough) if company in ("interactive", "apart") else None
    with scheduler_place() as place, ExitStack() as stack:
        groups: list[list[Person]] = [[small, large]] if company != "apart" else [[small], [large]]
        if company != "quiet":
            groups.append([third])
        if window is not None:
            groups.append([waiting])
        places = [Place(stack.enter_context(desk_at(place, CEILINGS)), people) for people in groups]
        found = _play(places, small, waiting, window, seconds, luck, broken)
    cores = [(0.0, float(CEILINGS.cores))]
    if window is not None:
        cores += [(window[0], CEILINGS.cores - 1.0), (window[1], float(CEILINGS.cores))]
    loads = {"small": Load(work_seconds=work), "large": Load(work_seconds=RATIO * work)}
    if company != "quiet":
        loads["third"] = Load(work_seconds=RATIO * work)
    return found, finishing_times(loads, cores, float(CEILINGS.per_user))["small"]


def _play(
    places: Sequence[Place],
    small: Person,
    waiting: Person,
    window: tuple[float, float] | None,
    own_seconds: list[float],
    luck: random.Random,
    broken: list[str],
) -> float:
    """Run until the small user is done."""
    running: list[tuple[float, str, Place, Person, Grant]] = []
    durations: dict[str, float] = {}
    began = time.monotonic()

    def new_asks(each: Place, now: float) -> list[Ask]:
        made = []
        for person in each.people:
            if person is waiting and (window is None or not window[0] <= now < window[1]):
                continue
            in_all = person.running if person.lane is Lane.INTERACTIVE else 0
            while person.standing + in_all < person.heads and person.left != 0:
                name = f"{person.name}/{len(durations)}"
                took = own_seconds.pop() if person is small else luck.uniform(LEAST_SECONDS, MOST_SECONDS)
                durations[name] = took
                if person.left is not None:
                    person.left -= 1
                person.standing += 1
                guess = took * 2 ** luck.uniform(-1, 1)
                made.append(an_ask(name, person.name, lane=person.lane, cost_seconds=guess))
        return made

    def visit(each: Place) -> None:
        now = time.monotonic() - began
        asks = new_asks(each, now)
        returns, each.returns = each.returns, []
        answer = each.desk.exchange(asks=asks, returns=returns)
        for grant in answer.grants:
            person = next(one for one in each.people if grant.ask_id.startswith(f"{one.name}/"))
            person.standing -= 1
            person.running += 1
            if person.running > CEILINGS.per_user:
                broken.append(f"{person.name} holds {person.running} leases")
            entry = (time.monotonic() - began + durations[grant.ask_id], grant.ask_id, each, person, grant)
            heapq.heappush(running, entry)
        if len(running) > CEILINGS.cores + 1:
            broken.append(f"{len(running)} CPU leases are out")

    for each in places:
        visit(each)
    while small.left or small.standing or small.running:
        now = time.monotonic() - began
        until = min(running[0][0] if running else now + LOOK_SECONDS, now + LOOK_SECONDS)
        time.sleep(max(0.0, until - now))
        now = time.monotonic() - began
        while running and running[0][0] <= now:
            _, name, each, person, grant = heapq.heappop(running)
            person.running -= 1
            each.returns.append(Return(lease_id=grant.lease_id, cost_seconds=durations[name]))
        for each in sorted(places, key=lambda each: not each.returns):
            visit(each)
    return time.monotonic() - began
