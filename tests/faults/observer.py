"""The observer: a program of its own that looks at what really runs and says whether a limit was ever exceeded.

Rule: it believes nobody. It imports nothing of the engine, asks no scheduler and no coordinator, and has its limits
from the test. What runs is what holds a lock: each unit is a process with an flock on a file of its own in one folder,
and the kernel drops that lock when the last process that holds it dies, whoever killed it.

    units/<user>+<lane>+<kind>+<id>      there from the moment the unit begins; locked until it has ended

Why it gives no false alarm: a file gets its name here only after it was locked, and is locked once in its life. So a
file that two consecutive looks find locked was locked all the time between, and all files of which that is true were
locked together at the instant between the two looks. "One ended, then another began" between two looks is never
counted as both. It may miss an excess that is shorter than two looks (some milliseconds); it never invents one.

Limits may change while units run. An excess then counts only if a unit that was first seen after the change is part of
it: what ran before may run on.

    stdin    {"total": 2, "per_user": 1, "cores": 2} as often as wanted; its end ends the observer
    stdout   a line when it looks for the first time and after each change; at the end what it saw, as JSON
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import select
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: Between two looks. A look takes some 50 µs; without a pause it would take a core away from what it looks at.
PAUSE_MILLISECONDS = 1
#: So many violations tell enough; a broken scheduler makes thousands.
MOST_VIOLATIONS = 20


def locked_units(folder: Path, ended: set[str]) -> set[str]:
    """The names of the units that run now. Those that have ended are added to `ended` and not looked at again."""
    found = set()
    for name in os.listdir(folder):
        if name in ended:
            continue
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            # Shared, so that two who look do not take each other for a unit.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            ended.add(name)
        except BlockingIOError:
            found.add(name)
        finally:
            os.close(descriptor)
    return found


@dataclass(slots=True)
class Sight:
    """What was seen: how often was looked, how many units ever, the most at once of each count, what was too many."""

    looks: int = 0
    units: int = 0
    most: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def judge(running: set[str], fresh: set[str], limits: dict[str, int], sight: Sight) -> None:
    """Count what ran at one instant. fresh: units first seen under the present limits.

    A unit of lane `either` was promoted on its way; it counts in both lanes' sum alone.
    """
    counts: Counter[str] = Counter()
    members: dict[str, set[str]] = {}
    for name in running:
        user, lane, kind, _ = name.split("+")
        for count in ("total", f"user {user}", *(("cpu", f"cpu {lane}") if kind == "cpu" else ())):
            counts[count] += 1
            members.setdefault(count, set()).add(name)
    cores = limits["cores"]
    ceilings = {"total": limits["total"], "cpu bulk": cores, "cpu": cores + 1}
    for count, number in counts.items():
        sight.most[count] = max(number, sight.most.get(count, 0))
        ceiling = limits["per_user"] if count.startswith("user ") else ceilings.get(count)
        if ceiling is not None and number > ceiling and members[count] & fresh:
            sight.violations.append(f"{count}: {number} of {ceiling}: {sorted(members[count])}")


def main() -> None:
    """Look until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    sight, ended, before = Sight(), set[str](), set[str]()
    limits: dict[str, int] = {}
    known: set[str] = set()
    old: set[str] = set()
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while True:
        if not limits or poller.poll(PAUSE_MILLISECONDS):
            line = sys.stdin.readline()
            if not line:
                break
            limits = json.loads(line)
            # All that run now, and may have begun under the limits of before.
            old = known | locked_units(folder, ended)
            print("looking", flush=True)
        now = locked_units(folder, ended)
        known |= now
        sight.looks += 1
        if len(sight.violations) < MOST_VIOLATIONS:
            judge(before & now, known - old, limits, sight)
        before = now
    sight.units = len(known)
    print(json.dumps(asdict(sight)), flush=True)


if __name__ == "__main__":
    main()
