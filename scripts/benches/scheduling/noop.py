"""The engine's own CPU for each item that needs none: coordinator (with supervisor, ledger, desk) and scheduler.

Two runs of the real engine over many tiny files, each in this process and counted by the kernel:

    no-op    the workers' stage does nothing and answers at once (noop_stages), so what is left is listing, tokens,
             copying, the worker's pipe, and the ledger
    text     the real stages read a line of text; the coordinator also takes in the document and its chunks, and
             publishes them in the user's index

The workers' CPU is counted apart. Both figures are whole runs divided by items: starting up and winding up are in them.
"""

from __future__ import annotations

import functools
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import coordinator
from engine.desk import stop_scheduler
from engine.model import Lane, UserId
from engine.run import open_own_ledger, run
from engine.settings import load_settings
from engine.survey import Orders
from engine.telemetry import SilentReporter
from engine.workers.supervisor import Supervisor
from scheduling.figures import Figure, Part
from scheduling.rig import cpu_seconds, scheduler_at

USERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    """CPU seconds of one run, by process."""

    coordinator: float
    scheduler: float
    workers: float
    wall: float


def measure(quick: bool) -> Part:
    """Both runs."""
    items = 400 if quick else 10_000
    broken: list[str] = []
    noop = _run(items, broken, supervisor=functools.partial(Supervisor, package="scheduling.noop_stages"))
    text = _run(items, broken, supervisor=Supervisor)
    figures = [
        Figure(
            name="noop_engine_ms",
            value=1000 * (noop.coordinator + noop.scheduler) / items,
            unit="ms",
            words="engine's CPU for a no-op item (coordinator + scheduler)",
            at_most=1.0,
        )
    ]
    for name, spent in (("noop", noop), ("text", text)):
        if name == "text":
            figures.append(
                Figure(
                    name="text_engine_ms",
                    value=1000 * (text.coordinator + text.scheduler) / items,
                    unit="ms",
                    words="engine's CPU for a text of one line, published (coord. + scheduler)",
                )
            )
        for process in ("coordinator", "scheduler", "workers"):
            figures.append(
                Figure(
                    name=f"{name}_{process}_ms",
                    value=1000 * float(getattr(spent, process)) / items,
                    unit="ms",
                    words=f"    {process}",
                )
            )
        figures.append(
            Figure(name=f"{name}_wall_ms", value=1000 * spent.wall / items, unit="ms", words="    wall time")
        )
    return Part(figures=tuple(figures), broken=tuple(broken), checked=2 * items)


def _run(items: int, broken: list[str], *, supervisor: Callable[..., Supervisor]) -> _Spent:
    place = Path(tempfile.mkdtemp(prefix="nightmill-noop-"))
    settings = load_settings(
        {"NIGHTMILL_DATA_DIR": str(place / "var"), "NIGHTMILL_EMBEDDER": "none", "NIGHTMILL_OCR": "off"}, dotenv=None
    )
    whole = coordinator.Supervisor
    try:
        with open_own_ledger(settings) as ledger:
            for number in range(USERS):
                home = place / f"user{number}"
                home.mkdir()
                for item in range(items // USERS):
                    (home / f"{item}.txt").write_text(f"Note {item} of user {number}.")
                ledger.add_user(UserId(home.name), [f"folder:{home}"])
        coordinator.Supervisor = supervisor  # type: ignore[assignment, misc]
        before, children, began = time.process_time(), _children_seconds(), time.monotonic()
        report = run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
        spent = _Spent(
            coordinator=time.process_time() - before,
            workers=_children_seconds() - children,
            wall=time.monotonic() - began,
            scheduler=cpu_seconds(scheduler_at(settings.data_dir)),
        )
        counts = report.counts
        if counts.indexed + counts.failed != items or counts.found != items:
            broken.append(f"not every item came to an end: {counts}")
        return spent
    finally:
        coordinator.Supervisor = whole  # type: ignore[misc]
        stop_scheduler(settings.data_dir)
        shutil.rmtree(place, ignore_errors=True)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
