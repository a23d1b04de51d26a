"""A real scheduler in a temporary place, desks at it, and what the kernel says of its process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine import rendezvous
from engine.desk import Desk, open_desk, stop_scheduler
from engine.model import Lane, TokenKind, UserId
from engine.ports import Ask

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the scheduler is started with; memory is never the obstacle here."""

    total: int = 20
    per_user: int = 5
    cores: int = 4


@contextmanager
def scheduler_place() -> Iterator[Path]:
    """A data directory whose scheduler is ended, and which is removed, afterwards."""
    place = Path(tempfile.mkdtemp(prefix="nightmill-bench-"))
    try:
        yield place
    finally:
        stop_scheduler(place)
        shutil.rmtree(place, ignore_errors=True)


def desk_at(place: Path, ceilings: Ceilings) -> Desk:
    """A session of its own; the first one starts the scheduler."""
    return open_desk(
        data_dir=place,
        max_total_workers=ceilings.total,
        max_workers_per_user=ceilings.per_user,
        cpu_limit=ceilings.cores,
        memory_limit_bytes=64 * GIB,
        # Other programs on this machine must not change what is measured.
        scaling=False,
    )


def scheduler_at(place: Path) -> psutil.Process:
    """The process of the scheduler that runs for this data directory."""
    proxy = rendezvous.DeskProxy(rendezvous.find_runtime_dir(place), timeout_seconds=10.0)
    try:
        pid, _ = proxy.call("whoami")
    finally:
        proxy.close()
    return psutil.Process(pid)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of all its threads, dead ones too, in steps of a hundredth of a second."""
    times = process.cpu_times()
    return float(times.user + times.system)


def an_ask(name: str, user: str, *, lane: Lane = Lane.BULK, cost_seconds: float = 1.0, weight: float = 1.0) -> Ask:
    """A wish for a CPU token."""
    return Ask(
        ask_id=name,
        user=UserId(user),
        lane=lane,
        kind=TokenKind.CPU,
        cost_seconds=cost_seconds,
        memory_bytes=1 << 20,
        weight=weight,
    )
