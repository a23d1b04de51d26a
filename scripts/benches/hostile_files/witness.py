"""See what workers take, from outside, and hold it against what the run's own log says that they were promised.

Rule: what is seen comes from the kernel alone; imports nothing of the engine, and asks no process anything. Linux only.
"""

from __future__ import annotations

import os
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
#: Between two looks: five within the 100 ms that the engine's own guard takes between two of its own.
LOOK_SECONDS = 0.02
#: So far over its promise a worker may be for a moment.
FAR = 1.25
_STAMP = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) DEBUG engine\.(?:promises|coordinator): "
_PROMISED = re.compile(_STAMP + r"lease (\S+): process (\d+) is promised (\d+) bytes")
_ALLOWED = re.compile(_STAMP + r"lease (\S+): unit \d+ of .*, (\d+) CPU seconds allowed$")
_OVER = re.compile(_STAMP + r"lease (\S+) is over$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One worker at one moment (seconds since the epoch), with all that it has started."""

    at: float
    resident_bytes: int
    cpu_seconds: float


@dataclass(slots=True, kw_only=True)
class Lease:
    """What one worker was promised for one unit. promised: (from when, bytes), in order; ended: None: never said."""

    pid: int
    promised: list[tuple[float, int]] = field(default_factory=list)
    allowed_seconds: float = 0.0
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was seen of all units.

    leases            units that a worker was seen to work on
    looks             at workers with a unit
    longest_over      the longest that one was more than FAR over its promise without a break, seconds
    most_share        the most that one held of its promise
    longest_overtime  CPU seconds beyond what its unit may take, the most of all
    """

    leases: int
    looks: int
    longest_over: float
    most_share: float
    longest_overtime: float


class Witness:
    """Looks at the workers below one process until it is closed, in a thread of its own."""

    def __init__(self, coordinator: int) -> None:
        self.looks: dict[int, list[Look]] = {}
        self._coordinator = coordinator
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No look is taken after this."""
        self._closed.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            for pid in _children(self._coordinator):
                with suppress(OSError):
                    resident, cpu = _use(pid)
                    look = Look(at=time.time(), resident_bytes=resident, cpu_seconds=cpu)
                    self.looks.setdefault(pid, []).append(look)


def leases_of(log: Iterable[str]) -> dict[str, Lease]:
    """What a log of level debug says of leases."""
    found: dict[str, Lease] = {}
    allowed: dict[str, float] = {}
    for line in log:
        if said := _ALLOWED.match(line):
            allowed[said[2]] = float(said[3])
        elif said := _PROMISED.match(line):
            lease = found.setdefault(said[2], Lease(pid=int(said[3]), allowed_seconds=allowed.get(said[2], 0.0)))
            lease.promised.append((_moment(said[1]), int(said[4])))
        elif (said := _OVER.match(line)) and said[2] in found:
            found[said[2]].ended = _moment(said[1])
    return found


def judge(looks: Mapping[int, Sequence[Look]], leases: Iterable[Lease]) -> Verdict:
    """Each worker against what it was promised, while it had a unit."""
    counted, seen, longest, share, overtime = 0, 0, 0.0, 0.0, 0.0
    for lease in leases:
        began = lease.promised[0][0]
        mine = [one for one in looks.get(lease.pid, ()) if began <= one.at and one.at <= (lease.ended or one.at)]
        if not mine:
            continue
        counted += 1
        seen += len(mine)
        over_since: float | None = None
        moments = [moment for moment, _ in lease.promised]
        for one in mine:
            promised = lease.promised[bisect_right(moments, one.at) - 1][1]
            share = max(share, one.resident_bytes / promised)
            if one.resident_bytes <= FAR * promised:
                over_since = None
                continue
            over_since = one.at if over_since is None else over_since
            # It may have been there since the look before, and until the one after.
            longest = max(longest, one.at - over_since + LOOK_SECONDS)
        used = mine[-1].cpu_seconds - mine[0].cpu_seconds
        overtime = max(overtime, used - lease.allowed_seconds)
    return Verdict(leases=counted, looks=seen, longest_over=longest, most_share=share, longest_overtime=overtime)


def _moment(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _children(pid: int) -> list[int]:
    """Started by any of its threads, and not waited for."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(_PROC / str(pid) / "task"):
            with suppress(OSError):
                found += map(int, (_PROC / str(pid) / "task" / thread / "children").read_bytes().split())
    return found


def _use(pid: int) -> tuple[int, float]:
    """(bytes in RAM, CPU seconds) of a process and all below it."""
    fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    resident = int(fields[21]) * _PAGE_BYTES
    cpu = sum(map(int, fields[11:15])) / _TICKS
    for child in _children(pid):
        with suppress(OSError):
            more, used = _use(child)
            resident, cpu = resident + more, cpu + used
    return resident, cpu
