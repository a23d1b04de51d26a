"""Workers: what one costs the run that a file kills, and what containment and messages cost each unit.

    lost   a run over honest files with and without some that kill their worker (SIGSEGV; twice each, then they are set
           aside): the wall time that they add, in seconds of one slot for each worker that died
    unit   a unit of one order in a confined worker, from the orders to its end and until the worker is free again: one
           that does nothing, and one that reads a small text; and the same without the sandbox

Everything is measured in turn in each round, and the median counts. It ends with exit code 1 when something that must
be indexed is not, or (with --check) a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from scheduling.figures import Figure, Part  # noqa: E402

import engine.coordinator  # noqa: E402 - found beside this file
from engine.clock import SystemClock  # noqa: E402
from engine.desk import stop_scheduler  # noqa: E402
from engine.guards import cpu_limit  # noqa: E402
from engine.model import Lane, Stage, UserId  # noqa: E402
from engine.plan import make_plan  # noqa: E402
from engine.run import open_own_ledger, run  # noqa: E402
from engine.settings import load_settings  # noqa: E402
from engine.survey import Orders  # noqa: E402
from engine.telemetry import SilentReporter  # noqa: E402
from engine.workers.supervisor import Finished, Lost, Report, Supervisor  # noqa: E402

MOST_LOST_SECONDS, MOST_UNIT_SECONDS = 0.5, 0.001
#: Of a worker, as the coordinator promises it to small files.
PROMISED_BYTES = 128 << 20
DEADLY = "DO segv\n"
TEXT = "The redshank keeps to the edge of the water, and calls when anybody comes near.\n" * 20


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code."""
    given = _parse(words)
    # Workers have to find the saboteurs.
    os.environ["PYTHONPATH"] = str(ROOT)
    place = Path(tempfile.mkdtemp(prefix="nightmill-workers-", dir=given.place))
    broken: list[str] = []
    try:
        figures = [*_lost(place, given, broken), *_units(place, given)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    part = Part(figures=tuple(figures), broken=tuple(broken))
    if given.json != "-":
        print(*(figure.line() for figure in part.figures), sep="\n")
        print(*(f"BROKEN: {words}" for words in part.broken), sep="\n", end="")
    if given.json is not None:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
        text = json.dumps({"schema_version": 1, "machine": machine, **part.to_json()}, indent=2)
        if given.json == "-":
            print(text)
        else:
            Path(given.json).write_text(text + "\n", encoding="utf-8")
    if broken:
        return 1
    return 1 if given.check and any(figure.missed for figure in figures) else 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench workers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--files", type=int, default=400, help="honest ones in each run (default: %(default)s)")
    parser.add_argument("--deadly", type=int, default=10, help="that kill their worker (default: %(default)s)")
    parser.add_argument("--units", type=int, default=1000, help="of each kind in each round (default: %(default)s)")
    parser.add_argument("--place", type=Path, help="work in this folder")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="also write JSON; alone: only JSON")
    return parser.parse_args(words)


# --- the loss of a worker ---


def _lost(place: Path, given: argparse.Namespace, broken: list[str]) -> list[Figure]:
    usual = engine.coordinator.Supervisor
    engine.coordinator.Supervisor = partial(Supervisor, package="tests.saboteurs.bad_files")
    calm: list[float] = []
    added: list[float] = []
    deaths = 0
    try:
        for number in range(given.rounds):
            calm.append(_run(place / f"calm{number}", given.files, 0, broken)[0])
            seconds, died = _run(place / f"deadly{number}", given.files, given.deadly, broken)
            deaths += died
            added.append((seconds - calm[-1]) * cpu_limit() / max(1, died))
    finally:
        engine.coordinator.Supervisor = usual
    return [
        Figure(name="deaths", value=deaths, unit="", words="workers that a file killed"),
        Figure(name="calm", value=statistics.median(calm), unit="s", words=f"a run of {given.files} honest files"),
        Figure(
            name="lost",
            value=statistics.median(added),
            unit="s",
            words="of one slot for each worker that died",
            at_most=MOST_LOST_SECONDS,
        ),
        Figure(name="lost_most", value=max(added), unit="s", words="the same in the worst round"),
    ]


def _run(place: Path, honest: int, deadly: int, broken: list[str]) -> tuple[float, int]:
    """(wall seconds, workers that died) of a run over new files in a data directory of its own."""
    home = place / "home"
    home.mkdir(parents=True)
    for number in range(honest):
        (home / f"honest {number:04}.txt").write_text(f"{TEXT}{number}\n")
    for number in range(deadly):
        (home / f"honest {number * honest // deadly:04} deadly.txt").write_text(DEADLY)
    settings = load_settings({"NIGHTMILL_DATA_DIR": str(place / "var"), "NIGHTMILL_EMBEDDER": "none"}, dotenv=None)
    with open_own_ledger(settings) as ledger:
        ledger.add_user(UserId("ann"), [f"folder:{home}"])
    # The scheduler is started before the clock.
    run(settings, [], kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
    began = time.monotonic()
    report = run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
    seconds = time.monotonic() - began
    stop_scheduler(settings.data_dir)
    counts = report.counts
    if (counts.indexed, counts.failed, counts.pending) != (honest, deadly, 0):
        broken.append(f"{counts} of {honest} honest and {deadly} deadly files")
    with open_own_ledger(settings) as ledger:
        died = sum(
            attempt.failure is not None and attempt.failure.signal != 0
            for item in ledger.failures()
            for attempt in ledger.attempts(item.id)
        )
    return seconds, died


# --- what a unit costs ---


class _NoBook:
    """Nobody ends these workers but we."""

    def note_worker(self, pid: int, started: float) -> None:
        pass

    def note_worker_gone(self, pid: int) -> None:
        pass


def _units(place: Path, given: argparse.Namespace) -> list[Figure]:
    settings = load_settings({"NIGHTMILL_DATA_DIR": str(place / "none"), "NIGHTMILL_EMBEDDER": "none"}, dotenv=None)
    options = make_plan(settings).options[Stage.EXTRACT]
    text = {"file": "in.txt", "name": "in.txt", "kind": "file", "prefix": "one"}
    kinds: dict[tuple[str, str], tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
        (what, sandbox): (package, stage_options, order)
        for what, package, stage_options, order in (
            ("nothing", "tests.saboteurs", {}, {"do": "measure", "text": ""}),
            ("text", "engine.workers", options, text),
        )
        for sandbox in ("auto", "off")
    }
    found: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
    for number in range(given.rounds):
        for kind, (package, stage_options, order) in kinds.items():
            spool = place / f"{'-'.join(kind)}-{number}"
            found[kind].append(_unit_seconds(spool, package, kind[1], stage_options, order, given.units))
    seconds = {kind: statistics.median(several) for kind, several in found.items()}
    words = {
        ("nothing", "auto"): "a unit that does nothing, in a confined worker",
        ("nothing", "off"): "the same without the sandbox",
        ("text", "auto"): "a unit of one small text, in a confined worker",
        ("text", "off"): "the same without the sandbox",
    }
    return [
        Figure(
            name=f"unit_{'_'.join(kind)}",
            value=round(1000 * value, 3),
            unit="ms",
            words=words[kind],
            at_most=1000 * MOST_UNIT_SECONDS if kind == ("nothing", "auto") else None,
        )
        for kind, value in seconds.items()
    ]


def _unit_seconds(
    spool: Path, package: str, sandbox: str, options: Mapping[str, Any], order: Mapping[str, Any], units: int
) -> float:
    """The median over so many units of one worker, the first ten aside."""
    one = Supervisor(spool=spool, book=_NoBook(), clock=SystemClock(), package=package, sandbox=sandbox)
    try:
        worker = one.start(Stage.EXTRACT, options)
        taken = []
        for unit in range(1, units + 11):
            began = time.monotonic()
            one.reserve(worker, unit, 1)
            (worker.inbox / "in.txt").write_text(TEXT)
            one.assign(
                worker, [order], deadlines=[60.0], promised_bytes=PROMISED_BYTES, limit_bytes=PROMISED_BYTES + (8 << 20)
            )
            reports: list[Report] = []
            while not any(isinstance(report, Finished) for report in reports):
                reports = one.poll(1.0)
                if any(isinstance(report, Lost) for report in reports):
                    raise SystemExit(f"the worker was lost: {reports}")
            one.release(worker)
            taken.append(time.monotonic() - began)
        return statistics.median(taken[10:])
    finally:
        one.close()


if __name__ == "__main__":
    sys.exit(main())
