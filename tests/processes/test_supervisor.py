"""The supervisor and real workers that fail, crash, hang, leak and lie (tests/saboteurs)."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import pytest

from engine.clock import SystemClock
from engine.errors import CannotRunError, MalformedMessage
from engine.model import Failure, Stage
from engine.ports import Clock
from engine.processes import Watched, is_alive, start_time
from engine.reasons import Reason
from engine.sources import beneath
from engine.workers import results, supervisor
from engine.workers.supervisor import Bounds, Ended, Finished, Lost, Report, Supervisor, Worker
from tests.conftest import REPOSITORY

#: Nothing that a worker does may hold the supervisor for longer, on a machine that has other things to do as well.
ONE_POLL_SECONDS = 3.0
#: However busy the machine.
PATIENCE_SECONDS = 30.0
READY = ["say", {"is": "Ready"}]
DONE = {"is": "ItemDone", "unit": 1, "index": 0, "result": {}, "failure": None, "cpu_seconds": 0.5, "peak_bytes": 9}
OURS = Failure(reason=Reason.KILLED, detail="the run was stopped")

pytestmark = pytest.mark.timeout(120)


class HandClock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> float:
        return 1_700_000_000.0 + self.seconds


class Book:
    """Who was written down, and that each lived when it was, and was gone when it was struck out."""

    def __init__(self) -> None:
        self.workers: dict[int, float] = {}
        self.lines: list[tuple[str, int]] = []

    def note_worker(self, pid: int, started: float) -> None:
        assert start_time(pid) == started
        assert os.getpgid(pid) == pid
        self.workers[pid] = started
        self.lines.append(("worker", pid))

    def note_worker_gone(self, pid: int) -> None:
        assert not is_alive(pid, self.workers.pop(pid))
        self.lines.append(("gone", pid))


class Opener(Protocol):
    """Makes a supervisor of saboteurs that is closed after the test."""

    def __call__(self, *, clock: Clock | None = None, bounds: Bounds | None = None) -> Supervisor: ...


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def opened(tmp_path: Path, book: Book, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Supervisors whose stages are the saboteurs."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    made: list[Supervisor] = []

    def open_one(*, clock: Clock | None = None, bounds: Bounds | None = None) -> Supervisor:
        made.append(
            Supervisor(
                spool=tmp_path / "spool",
                book=book,
                clock=clock or SystemClock(),
                bounds=bounds,
                package="tests.saboteurs",
            )
        )
        return made[-1]

    yield open_one
    for one in made:
        one.close()
    assert book.workers == {}


def poll(one: Supervisor, timeout_seconds: float = 0.05) -> list[Report]:
    """One poll, which must come back."""
    before = monotonic()
    reports = one.poll(timeout_seconds)
    assert monotonic() - before < ONE_POLL_SECONDS + timeout_seconds, "the supervisor was held up"
    return reports


def poll_until(one: Supervisor, what: Callable[[], bool]) -> list[Report]:
    """All reports until something has come about."""
    end, reports = monotonic() + PATIENCE_SECONDS, list[Report]()
    while not what():
        assert monotonic() < end, f"it did not come about; reports: {reports}"
        reports += poll(one)
    return reports


def poll_to_the_end(one: Supervisor, worker: Worker) -> list[Report]:
    """All reports until the worker's unit is over, one way or the other."""
    end, reports = monotonic() + PATIENCE_SECONDS, list[Report]()
    while not any(isinstance(report, Finished | Lost) and report.worker is worker for report in reports):
        assert monotonic() < end, f"the unit did not end; reports: {reports}"
        reports += poll(one)
    return reports


def start_ready(one: Supervisor, stage: Stage = Stage.EXTRACT, options: Mapping[str, Any] | None = None) -> Worker:
    worker = one.start(stage, options or {})
    poll_until(one, lambda: worker.ready or worker.gone)
    return worker


def give(
    one: Supervisor,
    worker: Worker,
    *orders: Mapping[str, Any],
    unit: int = 1,
    deadline: float = 60.0,
    promised_bytes: int = 0,
    limit_bytes: int = 0,
) -> None:
    one.reserve(worker, unit, len(orders))
    one.assign(
        worker, orders, deadlines=[deadline] * len(orders), promised_bytes=promised_bytes, limit_bytes=limit_bytes
    )


def do(
    one: Supervisor, worker: Worker, *orders: Mapping[str, Any], unit: int = 1, limit_bytes: int = 0
) -> list[Report]:
    """A whole unit."""
    give(one, worker, *orders, unit=unit, limit_bytes=limit_bytes)
    return poll_to_the_end(one, worker)


def written(text: str) -> dict[str, Any]:
    return {"do": "write", "name": f"{text}.txt", "text": text}


def read(report: Report) -> str:
    assert isinstance(report, Ended)
    return results.read_bytes(report.worker.outbox, report.result, "file", 100).decode()


def failures(reports: Sequence[Report]) -> list[Reason | None]:
    """How each order ended that did."""
    ended = [report for report in reports if isinstance(report, Ended)]
    assert [report.index for report in ended] == list(range(len(ended)))
    return [report.failure and report.failure.reason for report in ended]


def lost(reports: Sequence[Report]) -> Lost:
    """The one report of a loss, which comes last."""
    assert [isinstance(report, Lost) for report in reports].count(True) == 1
    assert isinstance(reports[-1], Lost)
    assert reports[-1].worker.gone
    assert not is_alive(reports[-1].worker.process.pid, reports[-1].worker.watched.started)
    return reports[-1]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- a unit's way ---


def test_a_unit_is_done_in_order_and_its_results_lie_in_the_outbox(opened: Opener) -> None:
    """One report an order, in order, with what it cost; then the unit's end; a released worker does the next unit."""
    one = opened()
    worker = one.start(Stage.EXTRACT, {})
    one.reserve(worker, 1, 3)
    (worker.inbox / "letter").write_text("from the inbox")
    orders = [written("a"), {"do": "copy", "name": "letter"}, written("c")]
    one.assign(worker, orders, deadlines=[60.0] * 3, promised_bytes=0, limit_bytes=0)
    reports = poll_to_the_end(one, worker)
    assert failures(reports) == [None] * 3
    assert [read(report) for report in reports[:-1]] == ["a", "from the inbox", "c"]
    assert reports[-1] == Finished(worker=worker, unit=1)
    for report in reports[:-1]:
        assert isinstance(report, Ended)
        assert report.unit == 1
        assert 0 <= report.cpu_seconds < 10
        assert 1 << 20 < report.peak_bytes < 1 << 30
        assert report.seconds >= 0
    one.release(worker)
    assert list(worker.inbox.iterdir()) == list(worker.outbox.iterdir()) == []
    assert one.find_idle(Stage.EXTRACT) is worker
    assert one.find_idle(Stage.CHUNK) is None
    assert failures(do(one, worker, written("d"), unit=2)) == [None]
    assert one.workers == (worker,)


def test_the_next_unit_is_read_from_and_written_to_the_same_files(tmp_path: Path, book: Book) -> None:
    """A copy, its document and its chunks: not one byte of the unit before is left in them."""
    one = Supervisor(spool=tmp_path / "spool", book=book, clock=SystemClock())
    options = {"ocr": False, "cut": {"measure": "words", "max_tokens": 200}}
    worker = one.start(Stage.EXTRACT, options)
    order = {"file": "again0.bytes", "name": "a.txt", "prefix": "again0"}
    inodes: list[dict[str, int]] = []
    try:
        for unit, text in enumerate(("what ann wrote to ben\n" * 500, "short\n"), 1):
            one.reserve(worker, unit, 1)
            beneath.write_new(worker.inbox / "again0.bytes", iter([text.encode()]))
            one.assign(worker, [order], deadlines=[60.0], promised_bytes=0, limit_bytes=0)
            ended = poll_to_the_end(one, worker)[0]
            assert isinstance(ended, Ended)
            document = json.loads(results.read_bytes(worker.outbox, ended.result, "document", 10**6))
            assert [page["text"].strip() for page in document["pages"]] == [text.strip()]
            assert all("ann" not in line for line in (worker.outbox / "again0.chunks.json").open()) == (unit == 2)
            one.release(worker)
            left = [entry for folder in (worker.inbox, worker.outbox) for entry in os.scandir(folder)]
            assert {entry.stat().st_size for entry in left} == {0}
            inodes.append({entry.name: entry.inode() for entry in left})
        assert inodes[0] == inodes[1]
        assert set(inodes[0]) == {"again0.bytes", "again0.document.json", "again0.chunks.json"}
    finally:
        one.close()


def test_a_large_order_arrives_whole(opened: Opener) -> None:
    """Orders of a hundred thousand characters are more than any real one."""
    one = opened()
    (ended, _) = do(one, start_ready(one), {"do": "measure", "text": "x" * 100_000})
    assert isinstance(ended, Ended)
    assert ended.result == {"chars": 100_000}


def test_two_workers_work_at_the_same_time(opened: Opener) -> None:
    """What one does is nothing to the other: one sleeps for ever, the other gets on."""
    one = opened()
    asleep, awake = one.start(Stage.EXTRACT, {}), one.start(Stage.EXTRACT, {})
    give(one, asleep, {"do": "sleep"}, unit=1)
    assert one.find_idle(Stage.EXTRACT) is awake
    assert failures(do(one, awake, written("a"), unit=2)) == [None]
    assert asleep.busy
    assert not asleep.gone


def test_a_worker_of_one_owner_is_nobody_elses(opened: Opener) -> None:
    """What has read one user's files is found for that user only; a new one, or one of nobody, by anybody."""
    one = opened()
    anns, anybodys = start_ready(one), start_ready(one)
    one.reserve(anns, 1, 1, owner="ann")
    one.release(anns)
    one.reserve(anybodys, 2, 1)
    one.release(anybodys)
    assert one.find_idle(Stage.EXTRACT, "ann") is anns
    assert one.find_idle(Stage.EXTRACT, "ben") is anybodys
    one.retire(anybodys)
    assert one.find_idle(Stage.EXTRACT, "ben") is None
    assert one.find_idle(Stage.EXTRACT) is None


def test_other_descriptors_wake_the_supervisor(opened: Opener) -> None:
    """Whatever else the coordinator waits for is waited for in the same place."""
    one = opened()
    (ours, theirs), heard = os.pipe(), list[bytes]()
    one.watch(ours, lambda: heard.append(os.read(ours, 10)))
    assert one.poll(0.0) == []
    assert heard == []
    os.write(theirs, b"news")
    assert one.poll(60.0) == []
    assert heard == [b"news"]
    os.close(ours)
    os.close(theirs)


# --- failures that cost one item ---


@pytest.mark.parametrize(
    ("deed", "reason", "detail"),
    [
        ("fail", Reason.DAMAGED, "page 3 is [31m torn"),
        ("raise", Reason.EXTRACTOR_ERROR, "KeyError: 'half a \\ud800 character'"),
        ("return bytes", Reason.EXTRACTOR_ERROR, "its result cannot be sent: Object of type bytes"),
        ("return NaN", Reason.EXTRACTOR_ERROR, "its result cannot be sent"),
        ("return half a character", Reason.EXTRACTOR_ERROR, "its result cannot be sent"),
        ("return too much", Reason.EXTRACTOR_ERROR, "its result cannot be sent: a message of"),
        ("return something deep", Reason.EXTRACTOR_ERROR, "its result cannot be sent"),
    ],
)
def test_a_failure_costs_one_item(opened: Opener, deed: str, reason: Reason, detail: str) -> None:
    """What a stage states, raises, or cannot say fails the item that it was said of; the worker goes on."""
    one = opened()
    worker = start_ready(one)
    reports = do(one, worker, written("a"), {"do": deed}, written("c"))
    assert failures(reports) == [None, reason, None]
    failure = reports[1].failure
    assert failure is not None
    assert detail.replace("\x1b", " ") in " ".join(failure.detail.split())
    assert "\x1b" not in failure.detail
    assert read(reports[2]) == "c"
    assert reports[-1] == Finished(worker=worker, unit=1)


def test_memory_beyond_the_limit_costs_one_item(opened: Opener) -> None:
    """The limit makes an error of the overrun, in that unit and in no other; a modest item is not touched by it."""
    one = opened()
    worker = start_ready(one)
    much, little = {"do": "allocate", "bytes": 1 << 30}, {"do": "allocate", "bytes": 1 << 20}
    assert failures(do(one, worker, little, much, little, limit_bytes=64 << 20)) == [None, Reason.OUT_OF_MEMORY, None]
    one.release(worker)
    assert failures(do(one, worker, much, unit=2)) == [None]


def test_a_stage_knows_how_much_memory_it_may_still_take(opened: Opener) -> None:
    """The limit is for the worker in all: what it has and what is left make it up; what is taken is left no more."""
    one = opened()
    worker = start_ready(one)
    look, limit, taken = {"do": "look"}, 256 << 20, 100 << 20
    reports = do(one, worker, look, {"do": "keep", "bytes": taken}, look, limit_bytes=limit)
    before, _, after = [report.result for report in reports if isinstance(report, Ended)]
    slack = 8 << 20  # the few pages that come and go between two looks, and the stack
    assert before["left"] + before["resident"] == pytest.approx(limit, abs=slack)
    assert before["left"] - after["left"] == pytest.approx(taken, abs=slack)
    one.release(worker)
    [alone, *_] = do(one, worker, look, unit=2)
    assert isinstance(alone, Ended)
    assert alone.result["left"] == sys.maxsize
    one.release(worker)
    [grown, *_] = do(one, worker, look, unit=3, limit_bytes=1)
    assert isinstance(grown, Ended)
    assert 8 << 20 < grown.result["left"] <= 16 << 20  # one that is too large already can still report


# --- ends, and who is blamed ---


@pytest.mark.parametrize(
    ("deed", "number", "detail"),
    [
        ({"do": "read null"}, signal.SIGSEGV, "SIGSEGV"),
        ({"do": "signal", "signal": signal.SIGSEGV}, signal.SIGSEGV, "SIGSEGV"),
        ({"do": "signal", "signal": signal.SIGBUS}, signal.SIGBUS, "SIGBUS"),
        ({"do": "abort"}, signal.SIGABRT, "SIGABRT"),
        ({"do": "signal", "signal": signal.SIGRTMIN + 6}, signal.SIGRTMIN + 6, "signal 40"),
        ({"do": "exit now", "code": 0}, 0, "ended with code 0"),
        (
            {"do": "exit now", "code": 3, "words": "first\nlast \x1b[31mwords\n"},
            0,
            "ended with code 3: last  [31mwords",
        ),
        ({"do": "exit politely", "code": 4}, 0, "ended with code 4"),
    ],
)
def test_a_crash_is_blamed_on_the_item_on_the_slate(
    opened: Opener, deed: Mapping[str, Any], number: int, detail: str
) -> None:
    """Earlier items are reported, with results that can be read; later ones are untouched; all in one look."""
    one = opened()
    worker = start_ready(one)
    give(one, worker, written("a"), written("b"), deed, written("d"), written("e"))
    assert worker.watched.wait_end(PATIENCE_SECONDS)
    reports = poll(one)
    assert failures(reports) == [None, None]
    assert [read(report) for report in reports[:2]] == ["a", "b"]
    end = lost(reports)
    assert (end.blamed, end.untouched, end.unit) == (2, (3, 4), 1)
    assert (end.failure.reason, end.failure.signal) == (Reason.CRASHED, number)
    assert detail in end.failure.detail
    assert one.workers == ()
    assert poll(one, 0.0) == []
    assert not worker.home.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_kill_from_outside_names_the_item_and_is_no_crash(opened: Opener, number: int) -> None:
    """The item on the slate was hit; it is told apart from one that ended its worker itself."""
    one = opened()
    worker = start_ready(one)
    give(one, worker, written("a"), {"do": "sleep"}, written("c"))
    early = poll_until(one, (worker.outbox / "began").exists)
    os.kill(worker.process.pid, number)
    reports = early + poll_to_the_end(one, worker)
    assert failures(reports) == [None]
    end = lost(reports)
    assert (end.blamed, end.untouched) == (1, (2,))
    assert (end.failure.reason, end.failure.signal) == (Reason.KILLED, number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_end_of_an_idle_worker_is_nobodys_fault(opened: Opener, number: int) -> None:
    """Nothing is reported, and nobody is given the dead worker."""
    one = opened()
    worker = start_ready(one)
    do(one, worker, written("a"))
    one.release(worker)
    os.kill(worker.process.pid, number)
    assert poll_until(one, lambda: worker.gone) == []
    assert one.find_idle(Stage.EXTRACT) is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_end_of_a_reserved_worker_is_nobodys_fault(opened: Opener, number: int) -> None:
    """Between reserve and assign no order has been given: all of them are untouched, whatever it ended by."""
    one = opened()
    worker = start_ready(one)
    do(one, worker, written("a"), written("b"))
    one.release(worker)
    one.reserve(worker, 2, 3)
    os.kill(worker.process.pid, number)
    end = lost(poll_to_the_end(one, worker))
    assert (end.unit, end.blamed, end.untouched) == (2, None, (0, 1, 2))
    one.assign(worker, [written("a")], deadlines=[1.0], promised_bytes=0, limit_bytes=0)
    one.release(worker)
    assert poll(one) == []


def test_the_end_of_a_worker_that_is_starting_is_nobodys_fault(opened: Opener) -> None:
    """Orders that wait for a worker to be ready are untouched when it never is; such kills are no failed starts."""
    one = opened()
    for unit in range(1, supervisor.STARTS_IN_A_ROW + 2):
        worker = one.start(Stage.EMBED, {})
        give(one, worker, written("a"), written("b"), unit=unit)
        os.kill(worker.process.pid, signal.SIGKILL)
        end = lost(poll_to_the_end(one, worker))
        assert (end.blamed, end.untouched, end.failure.reason) == (None, (0, 1), Reason.KILLED)


def test_a_kill_before_the_first_item_is_nobodys_fault(opened: Opener) -> None:
    """The orders were given, but none was begun: the slate still names another unit."""
    one = opened()
    worker = start_ready(one)
    do(one, worker, written("a"), written("b"))
    one.release(worker)
    os.kill(worker.process.pid, signal.SIGSTOP)
    give(one, worker, written("a"), written("b"), unit=2)
    os.kill(worker.process.pid, signal.SIGKILL)
    end = lost(poll_to_the_end(one, worker))
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (0, 1), Reason.KILLED)


@pytest.mark.parametrize("text", ["", "fifo", "rubbish", "1 0", "1 7", "2 2", "-1 -1", "9" * 60 + " 1"])
def test_a_slate_may_hold_anything(opened: Opener, text: str) -> None:
    """Where the slate names no order that can be meant, the first that has not ended is blamed."""
    one = opened()
    worker = start_ready(one)
    end = lost(do(one, worker, written("a"), {"do": "smear slate", "text": text}, written("c")))
    assert (end.blamed, end.untouched, end.failure.reason) == (1, (2,), Reason.CRASHED)


def test_a_lost_worker_is_lost_once(opened: Opener) -> None:
    """Whoever stops a worker that is gone already hears nothing new."""
    one = opened()
    worker = start_ready(one)
    do(one, worker, {"do": "exit now", "code": 1})
    assert one.kill(worker, OURS) == []
    one.retire(worker)
    assert one.workers == ()


# --- clocks ---


@pytest.mark.parametrize("deed", ["spin", "hold"])
def test_an_endless_loop_meets_its_deadline(opened: Opener, deed: str) -> None:
    """CPU seconds are counted from outside: a loop that lets nothing else run in its process is stopped as well."""
    one = opened()
    worker = start_ready(one)
    give(one, worker, written("a"), {"do": deed}, written("c"), deadline=0.3)
    end = lost(poll_to_the_end(one, worker))
    assert (end.blamed, end.untouched, end.failure.reason) == (1, (2,), Reason.DEADLINE)
    assert "CPU seconds" in end.failure.detail


def test_each_item_has_its_own_seconds(opened: Opener) -> None:
    """What items before it have used is not counted against an item."""
    one = opened()
    worker = start_ready(one)
    give(one, worker, *[{"do": "work", "seconds": 0.4}] * 6, deadline=1.0)
    assert failures(poll_to_the_end(one, worker)) == [None] * 6


def test_standing_still_is_noticed(opened: Opener) -> None:
    """A worker that uses no time and says nothing is stopped after the time that it may be silent, not before."""
    clock = HandClock()
    one = opened(clock=clock, bounds=Bounds(stall_seconds=100.0, wall_seconds=1000.0))
    worker = start_ready(one)
    give(one, worker, written("a"), {"do": "sleep"}, written("c"))
    reports = poll_until(one, (worker.outbox / "began").exists)
    reports += poll_until(one, lambda: len(worker.done) == 1)
    clock.seconds += 99.0
    assert poll(one) == []
    clock.seconds += 2.0
    end = lost(reports + poll_to_the_end(one, worker))
    assert (end.blamed, end.untouched, end.failure.reason) == (1, (2,), Reason.NO_PROGRESS)
    assert end.failure.detail == "no word for 101 s"
    assert end.seconds == 101.0


def test_waiting_for_a_core_is_not_standing_still(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others kept it from is not held against a worker; as long on top of it is."""
    clock, waited = HandClock(), [7.0]
    monkeypatch.setattr("engine.workers.supervisor.processes.waited_seconds", lambda pid: waited[0])
    one = opened(clock=clock, bounds=Bounds(stall_seconds=100.0, wall_seconds=1000.0))
    worker = start_ready(one)
    give(one, worker, {"do": "sleep"})
    poll_until(one, (worker.outbox / "began").exists)
    clock.seconds += 1.0
    assert poll(one) == []
    clock.seconds, waited[0] = clock.seconds + 150.0, 67.0
    assert poll(one) == []
    clock.seconds += 10.0
    assert lost(poll_to_the_end(one, worker)).failure.reason is Reason.NO_PROGRESS


def test_progress_counts_until_the_wall(opened: Opener) -> None:
    """Who says that it gets on may be slow, but not for ever."""
    clock = HandClock()
    one = opened(clock=clock, bounds=Bounds(stall_seconds=100.0, wall_seconds=250.0))
    worker = start_ready(one)
    give(one, worker, {"do": "chatter"})
    for _ in range(3):
        clock.seconds += 80.0
        assert poll_until(one, lambda: worker.heard == clock.seconds) == []
    clock.seconds += 20.0
    end = lost(poll_to_the_end(one, worker))
    assert (end.blamed, end.failure.reason, end.failure.detail) == (0, Reason.DEADLINE, "stopped after 260 s")


def test_a_worker_that_is_never_ready_is_replaced(opened: Opener) -> None:
    """Loading has its own time; after it the orders go to somebody else."""
    clock = HandClock()
    one = opened(clock=clock)
    worker = one.start(Stage.EMBED, {})
    give(one, worker, written("a"))
    clock.seconds += supervisor.START_SECONDS
    assert poll(one) == []
    clock.seconds += 1.0
    end = lost(poll_to_the_end(one, worker))
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (0,), Reason.NO_PROGRESS)


def test_an_idle_worker_ends_after_a_while(opened: Opener) -> None:
    """Idle since its last unit, not since its start; one that is spoken for stays."""
    clock = HandClock()
    one = opened(clock=clock)
    idle, spoken_for = start_ready(one), start_ready(one)
    clock.seconds += 8.0
    do(one, idle, written("a"))
    clock.seconds += 8.0
    one.release(idle)
    one.reserve(spoken_for, 2, 1)
    clock.seconds += supervisor.IDLE_SECONDS
    assert poll(one) == []
    assert one.workers == (idle, spoken_for)
    clock.seconds += 1.0
    assert poll(one) == []
    assert one.workers == (spoken_for,)
    poll_until(one, lambda: not one.dying)
    assert not is_alive(idle.process.pid, idle.watched.started)


def test_a_worker_that_took_long_to_load_is_not_idle_yet(opened: Opener) -> None:
    """Its idle time begins when it is ready."""
    clock = HandClock()
    one = opened(clock=clock)
    worker = one.start(Stage.EXTRACT, {})
    clock.seconds += 30.0
    poll_until(one, lambda: worker.ready)
    clock.seconds += 1.0
    poll(one)
    assert one.workers == (worker,)


def test_a_worker_that_has_grown_is_replaced(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its unit, and only when it holds much more than when it was ready."""
    monkeypatch.setattr(supervisor, "GROWTH_BYTES", 32 << 20)
    clock = HandClock()
    one = opened(clock=clock)
    worker = start_ready(one)
    for unit, size in enumerate((1 << 20, 64 << 20), 1):
        assert one.workers == (worker,)
        assert failures(do(one, worker, {"do": "keep", "bytes": size}, unit=unit)) == [None]
        clock.seconds += 1.0
        poll(one)
        assert one.workers == (worker,)
        one.release(worker)
        clock.seconds += 1.0
        poll(one)
    assert one.workers == ()


# --- what workers leave behind ---


@pytest.mark.parametrize("helper", ["child", "orphan"])
@pytest.mark.parametrize("end", ["kill", "crash", "retire", "close"])
def test_helpers_of_a_worker_end_with_it(opened: Opener, helper: str, end: str) -> None:
    """A process that a stage started is gone when its worker is, however that ended and whoever its parent is."""
    one = opened()
    worker = start_ready(one)
    give(one, worker, {"do": helper, "then": {"kill": "sleep", "crash": "crash"}.get(end, "return")})
    if end == "kill":
        assert poll_until(one, (worker.outbox / "began").exists) == []
        told = json.loads((worker.outbox / "began").read_text())
    elif end == "crash":
        assert worker.watched.wait_end(PATIENCE_SECONDS)
        told = json.loads((worker.outbox / "began").read_text())
        assert is_alive(told["helper"], told["started"])
    else:
        told = poll_to_the_end(one, worker)[0].result
        one.release(worker)
    if end != "crash":
        assert is_alive(told["helper"], told["started"])
    match end:
        case "kill":
            assert lost(one.kill(worker, OURS) or poll_to_the_end(one, worker)).failure == OURS
        case "crash":
            lost(poll_to_the_end(one, worker))
        case "retire":
            one.retire(worker)
            poll_until(one, lambda: not one.dying)
        case "close":
            one.close()
    assert not is_alive(told["helper"], told["started"])
    assert worker.gone


def test_shouting_neither_blocks_nor_grows(opened: Opener) -> None:
    """A gigabyte on standard error is taken off and forgotten, but for its end."""
    one = opened()
    worker = start_ready(one)
    assert failures(do(one, worker, {"do": "shout", "mib": 1024}, written("b"))) == [None, None]
    assert sum(map(len, worker.stderr)) <= 5 * supervisor.STDERR_BYTES


def test_an_outbox_that_became_a_link_leads_nowhere(opened: Opener, tmp_path: Path) -> None:
    """Neither is anything read behind it, nor is it emptied there."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("not yours")
    one = opened()
    worker = start_ready(one)
    (ended, _) = do(one, worker, {"do": "swap outbox", "target": str(treasure), "name": "gold"})
    with pytest.raises(MalformedMessage, match="cannot be opened"):
        read(ended)
    one.release(worker)
    one.retire(worker)
    poll_until(one, lambda: not one.dying)
    poll(one, 0.0)
    assert (treasure / "gold").read_text() == "not yours"
    assert not worker.home.exists()


def test_a_worker_is_written_down_for_as_long_as_it_lives(opened: Opener, book: Book) -> None:
    """Before it is given anything; struck out when it is gone and waited for."""
    one = opened()
    worker = one.start(Stage.EXTRACT, {})
    pid = worker.process.pid
    assert book.lines == [("worker", pid)]
    do(one, worker, written("a"))
    assert book.lines == [("worker", pid)]
    one.release(worker)
    one.retire(worker)
    poll_until(one, lambda: not one.dying)
    assert book.lines == [("worker", pid), ("gone", pid)]
    assert worker.process.returncode is not None


def test_close_leaves_no_process_and_no_folder(opened: Opener, book: Book, tmp_path: Path) -> None:
    """Whatever the workers are doing: starting, idle, busy, stopped. A second time it does nothing."""
    one = opened()
    starting, idle, busy, stopped = one.start(Stage.EMBED, {}), start_ready(one), start_ready(one), start_ready(one)
    give(one, busy, {"do": "sleep"})
    poll_until(one, (busy.outbox / "began").exists)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    assert len(book.workers) == 4
    one.close()
    one.close()
    for worker in (starting, idle, busy, stopped):
        assert not is_alive(worker.process.pid, worker.watched.started)
        assert worker.process.returncode is not None
    assert book.workers == {}
    assert not (tmp_path / "spool").exists()


def test_a_worker_dies_with_its_coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the coordinator ends a worker in the middle of an item that would never end."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    coordinator = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from engine.clock import SystemClock
        from engine.model import Stage
        from engine.workers.supervisor import Supervisor
        from tests.processes.test_supervisor import Book

        one = Supervisor(spool=Path(sys.argv[1]), book=Book(), clock=SystemClock(), package="tests.saboteurs")
        worker = one.start(Stage.EXTRACT, {})
        one.reserve(worker, 1, 1)
        one.assign(worker, [{"do": "sleep"}], deadlines=[60.0], promised_bytes=0, limit_bytes=0)
        while not (worker.outbox / "began").exists():
            one.poll(0.05)
        print(worker.process.pid, flush=True)
        while True:
            one.poll(60.0)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", coordinator, str(tmp_path / "spool")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        pid = int(process.stdout.readline())
        watched = Watched(pid, start_time(pid))
    finally:
        process.kill()
        process.communicate()
    try:
        assert watched.wait_end(PATIENCE_SECONDS)
    finally:
        if watched.alive:
            os.killpg(pid, signal.SIGKILL)
        watched.close()


# --- starts ---


def test_a_stage_that_does_not_load_is_given_up(opened: Opener) -> None:
    """After three starts in a row; the error names the stage, the cause and what to do."""
    one = opened()
    for _ in range(supervisor.STARTS_IN_A_ROW - 1):
        worker = one.start(Stage.OCR, {})
        give(one, worker, written("a"))
        end = lost(poll_to_the_end(one, worker))
        assert (end.blamed, end.untouched, end.failure.reason) == (None, (0,), Reason.CRASHED)
    worker = one.start(Stage.OCR, {})
    with pytest.raises(CannotRunError, match=r"stage ocr .*ImportError: libtesseract.so.5.*nightmill doctor"):
        poll_until(one, lambda: worker.gone)


def test_failed_starts_count_in_a_row_only(opened: Opener) -> None:
    """One that starts well begins the count anew; another stage has a count of its own."""
    one = opened()
    for script in ([["exit", 1]], [["exit", 1]], [READY], [["exit", 1]], [["exit", 1]]):
        worker = start_ready(one, Stage.CHUNK, {"script": script})
        assert worker.ready == (script == [READY])
    assert start_ready(one).ready


def test_a_stage_is_tried_out_when_its_first_order_is_lost(opened: Opener) -> None:
    """Once: if it survives an order of ours, it was the file's fault. One that has ended an order is not in doubt."""
    one = opened()
    end = lost(do(one, start_ready(one), {"do": "exit now", "code": 1}))
    assert (end.blamed, end.failure.reason) == (0, Reason.CRASHED)
    tried = start_ready(one)
    assert (tried.rehearses, tried.ready) == (True, True)
    lost(do(one, tried, {"do": "exit now", "code": 1}, unit=2))
    assert not start_ready(one).rehearses


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (Stage.EXTRACT, {"cut": {"measure": "words", "max_tokens": 200}}),
        (Stage.OCR, {"languages": ["eng"], "backend": "tesserocr"}),
        (Stage.CHUNK, {"measure": "words", "max_tokens": 200}),
        (Stage.EMBED, {"embedder": "fast"}),
        (Stage.INDEX, {}),
    ],
)
def test_every_stage_can_do_what_it_is_tried_out_on(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, stage: Stage, options: dict[str, Any]
) -> None:
    """The order of ours is done to its end, so that what it needs has been used."""
    one = opened()
    one._doubted.add(stage)
    monkeypatch.setattr(one, "_package", "engine.workers")
    worker = start_ready(one, stage, options)
    assert worker.ready
    found = {file.name.partition(".")[2]: file.read_bytes() for file in worker.outbox.iterdir()}
    match stage:
        case Stage.EXTRACT:
            assert set(found) == {"document.json", "chunks.json"}
            assert b"heron stands on the quay" in found["document.json"]
        case Stage.OCR:
            assert b"heron stands on the quay" in found["page.json"]
        case Stage.CHUNK:
            assert b"heron stands on the quay" in found["chunks.json"]
        case Stage.EMBED:
            assert len(found["vectors.f32"]) == 256 * 4
        case _:
            assert len(found["faiss"]) > 0


# --- lies ---


def framed(data: bytes) -> list[str]:
    return ["bytes", (struct.pack("!i", len(data)) + data).hex()]


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param([["say", {**DONE, "unit": 2}]], id="a unit that is not its own"),
        pytest.param([["say", {**DONE, "unit": 0}]], id="no unit"),
        pytest.param([["say", {**DONE, "index": 1}]], id="an order before its turn"),
        pytest.param([["say", {**DONE, "index": 99}]], id="an order that there is not"),
        pytest.param([["say", {"is": "UnitDone", "unit": 1}]], id="an end too early"),
        pytest.param([READY], id="ready twice"),
        pytest.param([["say", {"is": "UnitOrder", "unit": 1, "orders": [], "memory_bytes": 0}]], id="an order to us"),
        pytest.param([["say", {**DONE, "failure": {"reason": "bored", "detail": ""}}]], id="a reason of its own"),
        pytest.param([["say", {"is": "Progress", "done": -1, "total": 1}]], id="less than nothing"),
        pytest.param(
            [["say", {**DONE, "failure": {"reason": "killed", "detail": "from outside"}}]], id="what it cannot know"
        ),
        pytest.param([["say", {"is": "Progress", "done": 1, "total": 2, "more": [0] * 400}]], id="small talk"),
        pytest.param([["bytes", "7fffffff"]], id="two gigabytes announced"),
        pytest.param([["bytes", "ffffffff"]], id="a negative length"),
        pytest.param([["bytes", b"Segmentation fault\n".hex()]], id="words of a library"),
        pytest.param([["bytes", pickle.dumps(DONE).hex()]], id="a pickle"),
        pytest.param([framed(pickle.dumps(DONE))], id="a framed pickle"),
        pytest.param([framed(b"[" * 100_000)], id="something deep"),
        pytest.param([framed(b"")], id="an empty message"),
    ],
)
def test_a_lie_ends_the_worker_that_tells_it(opened: Opener, lie: list[Any]) -> None:
    """The unit is lost as `protocol`, the first order blamed, and nothing else is touched."""
    one = opened()
    bystander = start_ready(one)
    liar = one.start(Stage.CHUNK, {"script": [READY, ["read"], *lie]})
    give(one, liar, {}, {})
    end = lost(poll_to_the_end(one, liar))
    assert (end.blamed, end.untouched, end.failure.reason) == (0, (1,), Reason.PROTOCOL)
    assert failures(do(one, bystander, written("a"))) == [None]


def test_a_pickle_is_not_opened(opened: Opener, tmp_path: Path) -> None:
    """What would run if it were unpickled does not run."""
    trap = tmp_path / "sprung"
    data = pickle.dumps(_Trap(str(trap)))
    pickle.loads(data)
    assert trap.exists()
    trap.rmdir()
    one = opened()
    for script in ([framed(data)], [["bytes", data.hex()]]):
        liar = one.start(Stage.CHUNK, {"script": [READY, ["read"], *script]})
        give(one, liar, {})
        assert lost(poll_to_the_end(one, liar)).failure.reason is Reason.PROTOCOL
    assert not trap.exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_result_twice_is_a_lie(opened: Opener) -> None:
    """The first is taken; the second is not, and the next order is left to be done."""
    one = opened()
    liar = one.start(Stage.CHUNK, {"script": [READY, ["read"], ["say", DONE], ["say", DONE]]})
    give(one, liar, {}, {}, {})
    reports = poll_to_the_end(one, liar)
    assert failures(reports) == [None]
    assert lost(reports).failure.reason is Reason.PROTOCOL
    assert 0 not in lost(reports).untouched


@pytest.mark.parametrize("after", ["a second end", "its own end"])
def test_a_unit_ends_once(opened: Opener, after: str) -> None:
    """Whatever a worker does in the moment after the end of its unit, the unit is not lost as well."""
    one = opened()
    end = {"is": "UnitDone", "unit": 1}
    twice = ["bytes", "".join(framed(json.dumps(end).encode())[1] for _ in range(2))]
    last = [twice] if after == "a second end" else [["say", end], ["exit", 1]]
    liar = start_ready(one, Stage.CHUNK, {"script": [READY, ["read"], ["say", DONE], *last]})
    give(one, liar, {})
    if after == "its own end":
        assert liar.watched.wait_end(PATIENCE_SECONDS)
    reports = poll_until(one, lambda: liar.gone)
    assert [type(report) for report in reports] == [Ended, Finished]
    one.release(liar)
    poll_until(one, lambda: not one.dying)
    assert poll(one) == []


@pytest.mark.parametrize("script", [[["say", DONE]], [["say", {"is": "Progress", "done": 1, "total": 2}], ["wait"]]])
def test_a_word_before_ready_is_a_lie(opened: Opener, script: list[Any]) -> None:
    """A result of an order that was not given is not taken, and nobody is blamed."""
    one = opened()
    liar = one.start(Stage.CHUNK, {"script": script})
    if script[0][1] is DONE:
        give(one, liar, {}, {})
        end = lost(poll_to_the_end(one, liar))
        assert (end.blamed, end.untouched, end.failure.reason) == (None, (0, 1), Reason.PROTOCOL)
    else:
        assert poll_until(one, lambda: liar.gone) == []


def test_a_result_of_an_order_that_was_not_given_is_a_lie(opened: Opener) -> None:
    """A worker that is only spoken for cannot have done anything yet."""
    one = opened()
    liar = one.start(Stage.CHUNK, {"script": [READY, ["say", DONE]]})
    one.reserve(liar, 1, 2)
    end = lost(poll_to_the_end(one, liar))
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (0, 1), Reason.PROTOCOL)


def test_half_a_message_is_not_waited_for(opened: Opener) -> None:
    """The supervisor goes on; the worker is stopped when it has been silent for too long."""
    clock = HandClock()
    one = opened(clock=clock, bounds=Bounds(stall_seconds=100.0, wall_seconds=1000.0))
    bystander = start_ready(one)
    whole = bytes.fromhex(framed(json.dumps(DONE).encode())[1])
    liar = one.start(Stage.CHUNK, {"script": [READY, ["read"], ["bytes", whole[:-1].hex()]]})
    give(one, liar, {})
    poll_until(one, lambda: bool(liar.stream._buffer))
    assert failures(do(one, bystander, written("a"), unit=2)) == [None]
    one.release(bystander)
    assert liar.busy
    clock.seconds += 101.0
    assert lost(poll_to_the_end(one, liar)).failure.reason is Reason.NO_PROGRESS


def test_half_a_message_at_the_end_is_no_lie(opened: Opener) -> None:
    """A worker that dies while it speaks has died, and of that it is said."""
    one = opened()
    worker = one.start(Stage.CHUNK, {"script": [READY, ["read"], ["bytes", "000000"], ["exit", 7]]})
    give(one, worker, {})
    end = lost(poll_to_the_end(one, worker))
    assert (end.failure.reason, end.failure.detail) == (Reason.CRASHED, "its worker ended with code 7")


def test_a_flood_of_words_does_not_hold_the_supervisor(opened: Opener) -> None:
    """Each poll takes in so much and comes back; others get on; nobody has so much to say, and it is ended."""
    one = opened()
    bystander = start_ready(one)
    flood = ["flood", {"is": "Progress", "done": 1, "total": 2}]
    liar = one.start(Stage.CHUNK, {"script": [READY, ["read"], flood]})
    give(one, liar, {})
    # On a busy machine the poll that gives it the unit may hear of its end too.
    early = poll_until(one, lambda: liar.given)
    early += do(one, bystander, written("a"), unit=2)
    assert failures([report for report in early if report.worker is bystander]) == [None]
    said = [report for report in early if report.worker is liar] or poll_to_the_end(one, liar)
    end = lost(said)
    assert (end.blamed, end.failure.reason) == (0, Reason.PROTOCOL)
    assert end.failure.detail == "Progress was not expected now"


def test_a_worker_that_reads_no_orders_does_not_hold_the_supervisor(opened: Opener) -> None:
    """It answers unit after unit without having read one: once nothing more can be said to it, it is ended."""
    one = opened()
    liar = start_ready(one, Stage.CHUNK, {"script": [READY, ["answer unread"]]})
    reports: list[Report] = []
    for unit in range(1, 10_000):
        before = monotonic()
        give(one, liar, {"padding": "x" * 10_000}, unit=unit)
        assert monotonic() - before < ONE_POLL_SECONDS
        reports = poll_to_the_end(one, liar)
        if isinstance(reports[-1], Lost):
            break
        one.release(liar)
    end = lost(reports)
    assert unit > 2
    assert (end.unit, end.failure.reason, end.failure.detail) == (unit, Reason.PROTOCOL, "it did not read its orders")


def test_a_stopped_worker_does_not_hold_the_supervisor(opened: Opener) -> None:
    """An order to a worker that was stopped waits in its pipe; the others get on; then it stands still."""
    clock = HandClock()
    one = opened(clock=clock, bounds=Bounds(stall_seconds=100.0, wall_seconds=1000.0))
    bystander, stopped = start_ready(one), start_ready(one)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    poll_until(one, lambda: state(stopped.process.pid) == "T")
    before = monotonic()
    give(one, stopped, {"do": "measure", "text": "x" * 100_000})
    assert monotonic() - before < ONE_POLL_SECONDS
    assert failures(do(one, bystander, written("a"), unit=2)) == [None]
    one.release(bystander)
    clock.seconds += 101.0
    assert lost(poll_to_the_end(one, stopped)).failure.reason is Reason.NO_PROGRESS


def test_a_stopped_worker_goes_on_when_it_is_woken(opened: Opener) -> None:
    """Nothing was lost on the way."""
    one = opened()
    worker = start_ready(one)
    os.kill(worker.process.pid, signal.SIGSTOP)
    give(one, worker, {"do": "measure", "text": "x" * 100_000})
    assert poll(one) == []
    os.kill(worker.process.pid, signal.SIGCONT)
    assert failures(poll_to_the_end(one, worker)) == [None]


def test_a_worker_that_hangs_up_and_lives_on_is_ended(opened: Opener) -> None:
    """It has the time that an honest end takes; then it was a lie, and nobody outside is said to have killed it."""
    clock = HandClock()
    one = opened(clock=clock)
    liar = one.start(Stage.CHUNK, {"script": [READY, ["read"], ["close"]]})
    give(one, liar, {}, {})
    assert poll_until(one, lambda: liar.hung_up is not None) == []
    one_more = poll(one)
    assert one_more == []
    clock.seconds += supervisor.ENDING_SECONDS + 1.0
    end = lost(poll_to_the_end(one, liar))
    assert (end.blamed, end.untouched, end.failure.reason) == (0, (1,), Reason.PROTOCOL)


def test_a_worker_that_hung_up_is_given_nothing(opened: Opener) -> None:
    """It is about to end: its stage needs another."""
    one = opened()
    liar = start_ready(one, Stage.CHUNK, {"script": [READY, ["close"]]})
    poll_until(one, lambda: liar.hung_up is not None)
    assert one.find_idle(Stage.CHUNK) is None
