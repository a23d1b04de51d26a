"""Files that do to their worker whatever can be done: it costs that file, and nothing else.

Real workers under a real supervisor, and whole runs whose extraction is a saboteur. What a worker may say and how it is
blamed is in tests/processes/test_supervisor.py.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic

import pytest

from engine.clock import SystemClock
from engine.coordinator import Supervisor
from engine.desk import stop_scheduler
from engine.document import Page, merge_page
from engine.errors import CannotRunError
from engine.model import Failure, ItemState, Lane, LeaseId, Stage, UserId
from engine.plan import make_plan
from engine.policy.estimates import indexing
from engine.policy.retries import KILLS_ALLOWED
from engine.policy.tokens import Limits
from engine.ports import Answer
from engine.processes import is_alive
from engine.promises import Promises
from engine.reasons import Reason
from engine.run import open_own_ledger, run
from engine.settings import Settings, load_settings
from engine.survey import Orders
from engine.telemetry import SilentReporter
from engine.workers import supervisor, watch
from engine.workers.messages import EXIT_FULL
from engine.workers.supervisor import Ended, Report, Swollen, Worker
from tests import files
from tests.mill import wait_until
from tests.processes.test_supervisor import (
    DONE,
    OURS,
    PATIENCE_SECONDS,
    READY,
    HandClock,
    Opener,
    do,
    failures,
    give,
    lost,
    poll,
    poll_to_the_end,
    poll_until,
    start_ready,
    written,
)
from tests.processes.test_supervisor import book as book
from tests.processes.test_supervisor import opened as opened
from tests.saboteurs.endless.ocr import WORD, WORDS

MIB = 1 << 20
TOO_MUCH = Failure(reason=Reason.OUT_OF_MEMORY, detail="there is no more")

pytestmark = pytest.mark.timeout(120)


def swollen(reports: list[Report]) -> list[Swollen]:
    return [report for report in reports if isinstance(report, Swollen)]


def rest(reports: list[Report]) -> list[Report]:
    """Without what is said again and again."""
    return [report for report in reports if not isinstance(report, Swollen)]


def start_grown(one: Supervisor) -> Worker:
    """An idle worker that has kept 80 MiB of its second unit."""
    worker = start_ready(one)
    for unit, deed in enumerate((written("a"), {"do": "keep", "bytes": 80 * MIB}), 1):
        assert failures(rest(do(one, worker, deed, unit=unit))) == [None]
        one.release(worker)
    assert worker.grown_bytes > 70 * MIB
    return worker


# --- memory that was promised ---


def test_who_is_far_over_its_promise_is_stopped_while_nobody_listens(opened: Opener) -> None:
    """The loop may be busy: the worker is ended all the same, its order is blamed, and what it took is known."""
    one = opened()
    worker, bystander = start_ready(one), start_ready(one)
    promised = worker.base_bytes + 64 * MIB
    give(one, bystander, {"do": "sleep"}, unit=2, promised_bytes=promised)
    give(one, worker, written("a"), {"do": "grow"}, written("c"), promised_bytes=promised)
    assert worker.watched.wait_end(PATIENCE_SECONDS)
    reports = rest(poll_to_the_end(one, worker))
    assert failures(reports) == [None]
    end = lost(reports)
    assert (end.blamed, end.untouched, end.failure.reason) == (1, (2,), Reason.OUT_OF_MEMORY)
    assert end.failure.detail.startswith("its worker held ")
    assert end.failure.detail.endswith(f"{promised // 10**6:,} MB were promised")
    assert end.peak_bytes > watch.FAR * promised
    assert 0.0 < end.cpu_seconds < PATIENCE_SECONDS
    assert not bystander.gone


def test_who_is_a_little_over_its_promise_is_said_to_be_until_more_is_promised(opened: Opener) -> None:
    """It is not stopped for it. Whoever has no more to give stops it, and its order is blamed."""
    one = opened()
    worker = start_ready(one)
    held = worker.base_bytes + 100 * MIB
    give(one, worker, written("a"), {"do": "stay", "bytes": 100 * MIB}, promised_bytes=int(held / 1.1))
    said = poll_until(one, (worker.outbox / "began").exists)
    for _ in range(100):
        said += poll(one, 0.2)
        if len(swollen(said)) >= 4:
            break
    assert len(swollen(said)) >= 4
    assert failures(rest(said)) == [None]
    assert all(report.unit == 1 and held / 1.1 < report.resident_bytes < 1.1 * held for report in swollen(said))
    one.allow(worker, promised_bytes=2 * held, limit_bytes=0)
    weighed = worker.weighed
    assert weighed is not None
    weighed.resident_bytes = 0
    assert poll_until(one, lambda: weighed.resident_bytes > 0) == []
    end = lost(one.stop(worker, TOO_MUCH) or poll_to_the_end(one, worker))
    assert (end.blamed, end.untouched, end.failure) == (1, (), TOO_MUCH)
    assert held / 1.1 < end.peak_bytes < 1.1 * held


def test_a_promise_that_grows_raises_the_worker_s_own_limit(opened: Opener) -> None:
    """In the middle of an order; the next unit has its own again."""
    one = opened()
    worker = start_ready(one)
    much = {"do": "ask first", "bytes": 200 * MIB}
    for unit, (allowed, outcome) in enumerate(((False, Reason.OUT_OF_MEMORY), (True, None), (False, None)), 1):
        give(one, worker, much, unit=unit, limit_bytes=0 if unit == 3 else 64 * MIB)
        assert poll_until(one, (worker.outbox / "began").exists) == []
        if allowed:
            one.allow(worker, promised_bytes=600 * MIB, limit_bytes=600 * MIB)
        (worker.inbox / "go").touch()
        assert failures(poll_to_the_end(one, worker)) == [outcome]
        one.release(worker)


def test_a_raised_limit_counts_what_is_mapped_and_not_in_use_yet(opened: Opener) -> None:
    """A buffer that fills while its unit is promised more does not let it hold more than that, however often it is."""
    one = opened()
    worker = start_ready(one)
    for unit, (more, outcome) in enumerate(((20, Reason.OUT_OF_MEMORY), (200, None)), 1):
        limit = worker.base_bytes + 120 * MIB
        give(one, worker, {"do": "fill late", "bytes": 100 * MIB}, unit=unit, limit_bytes=limit)
        assert poll_until(one, (worker.outbox / "began").exists) == []
        for part in range(1, 11):
            limit = worker.base_bytes + (120 + more * part // 10) * MIB
            one.allow(worker, promised_bytes=limit, limit_bytes=limit)
        (worker.inbox / "go").touch()
        assert failures(rest(poll_to_the_end(one, worker))) == [outcome]
        one.release(worker)


def test_what_a_worker_holds_too_much_is_not_added_to_what_others_leave(opened: Opener) -> None:
    """Its unit is given it where there is room; where less is there than was promised, there is none."""
    one = opened()
    worker = start_grown(one)
    limit = worker.resting_bytes + 60 * MIB
    for unit, (promised, outcome) in enumerate(((limit, None), (2 * limit, Reason.OUT_OF_MEMORY)), 3):
        give(one, worker, {"do": "burst", "bytes": 100 * MIB}, unit=unit, promised_bytes=promised, limit_bytes=limit)
        assert failures(rest(poll_to_the_end(one, worker))) == [outcome]
        one.release(worker)


def test_what_others_give_back_goes_to_the_unit_that_lacks_it(opened: Opener) -> None:
    """It was promised the whole budget, and begins with what is there; more comes while its worker loads, and while it
    works. What it fails of is its own doing only where others do not have what it was promised."""
    one = opened()
    limits = Limits(max_total_workers=4, max_workers_per_user=4, cpu_limit=2, memory_limit_bytes=600 * MIB)
    promises = Promises(one, SystemClock(), lambda: limits)
    worker = one.start(Stage.EXTRACT, {})
    lease, much = LeaseId("alone"), {"do": "ask first", "bytes": 200 * MIB}
    for unit, (before, at_once, later, outcome, reason) in enumerate(
        (
            (-560, -100, -100, None, None),
            (-560, -560, -560, Reason.OUT_OF_MEMORY, Reason.KILLED),
            (-560, -560, -100, None, None),
            (-200, -200, -200, None, None),
        ),
        1,
    ):
        promises.heed([], Answer(room_bytes=before * MIB))
        assert promises.is_overdrawn
        one.reserve(worker, unit, 1)
        limit = promises.begin(lease, worker, promised_bytes=600 * MIB, ceiling_bytes=600 * MIB)
        assert limit == (600 + before) * MIB
        one.assign(worker, [much], deadlines=[60.0], promised_bytes=600 * MIB, limit_bytes=limit)
        promises.heed([], Answer(room_bytes=at_once * MIB))
        assert poll_until(one, (worker.outbox / "began").exists) == []
        assert wait_until(lambda: promises.are_due, "the desk to be asked again")
        promises.heed([], Answer(room_bytes=later * MIB))
        (worker.inbox / "go").touch()
        reports = poll_to_the_end(one, worker)
        assert failures(reports) == [outcome]
        if outcome is not None:
            failure = Failure(reason=outcome, detail="")
            assert promises.judged(lease, failure, own_bytes=lambda: 0).reason is reason
            assert promises.judged(lease, replace(failure, reason=Reason.CRASHED), own_bytes=lambda: 0).reason is reason
            deadline = replace(failure, reason=Reason.DEADLINE)
            assert promises.judged(lease, deadline, own_bytes=lambda: 0) == deadline
            assert promises.judged(lease, failure, own_bytes=lambda: 600 * MIB).reason is outcome
        promises.note_given_back(-later * MIB // 2)
        assert promises.is_overdrawn
        promises.note_given_back(-later * MIB)
        assert not promises.is_overdrawn
        promises.end(lease)
        one.release(worker)


def test_a_faiss_file_is_built_within_its_promise(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the libraries map and never use is not counted: they are loaded before there is a limit."""
    one = opened()
    monkeypatch.setattr(one, "_package", "engine.workers")
    worker = one.start(Stage.INDEX, {})
    (worker.inbox / "vectors").write_bytes(bytes(100 * 384 * 4))
    (worker.inbox / "ids").write_bytes(array("q", range(100)).tobytes())
    order = {"file": "vectors", "ids": "ids", "dim": 384, "prefix": "p"}
    promised = indexing(vectors=100, dim=384).memory_bytes
    give(one, worker, order, promised_bytes=promised, limit_bytes=promised)
    assert failures(poll_to_the_end(one, worker)) == [None]


def test_a_library_that_finds_no_room_is_out_of_memory(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a mistake of the reader; and its worker, which has loaded a part of it, makes way."""
    one = opened()
    monkeypatch.setattr(one, "_package", "engine.workers")
    options = make_plan(load_settings({"NIGHTMILL_EMBEDDER": "none"}, dotenv=None)).options[Stage.EXTRACT]
    order = {"file": "in", "name": "in.pdf", "kind": "file", "prefix": "p"}

    def read(limit_bytes: int, *orders: dict[str, str]) -> list[Report]:
        worker = one.start(Stage.EXTRACT, options)
        files.text_pdf(worker.inbox / "in", "The dunlin")
        give(one, worker, *orders, promised_bytes=1 << 30, limit_bytes=limit_bytes)
        return rest(poll_to_the_end(one, worker))

    reports = read(1, order, order)
    assert failures(reports[:-1]) == [Reason.OUT_OF_MEMORY]
    end = lost(reports)
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (1,), Reason.KILLED)
    assert failures(read(1 << 30, order)) == [None]


def test_a_burst_between_two_looks_meets_the_worker_s_own_limit(opened: Opener) -> None:
    """Nobody outside sees it: the limit makes an error of it, which costs one order. Without one it goes unpunished."""
    one = opened()
    worker = start_ready(one)
    promised = worker.base_bytes + 50 * MIB
    burst = {"do": "burst", "bytes": 300 * MIB}
    give(one, worker, written("a"), burst, written("c"), promised_bytes=promised, limit_bytes=promised)
    reports = rest(poll_to_the_end(one, worker))
    assert failures(reports) == [None, Reason.OUT_OF_MEMORY, None]
    one.release(worker)
    (ended, _) = rest(do(one, worker, burst, unit=2))
    assert isinstance(ended, Ended)
    assert ended.peak_bytes > 300 * MIB


def test_what_a_worker_says_of_itself_is_held_against_what_was_seen(opened: Opener) -> None:
    """It cannot have had more memory than it could have had, nor more time than the kernel gave it."""
    one = opened()
    boasts = [["say", {**DONE, "index": index, "peak_bytes": 2**62, "cpu_seconds": 1e8}] for index in range(3)]
    liar = start_ready(one, Stage.CHUNK, {"script": [READY, ["read"], *boasts]})
    promised = liar.base_bytes + 100 * MIB
    give(one, liar, {}, {}, {}, promised_bytes=promised, limit_bytes=promised)
    reports = poll_until(one, lambda: len(liar.done) == 3)
    assert failures(reports) == [None] * 3
    for report in reports:
        assert isinstance(report, Ended)
        assert report.peak_bytes == int(watch.FAR * promised)
        assert report.cpu_seconds < 10.0


def test_a_unit_is_not_blamed_for_what_its_worker_held_before(opened: Opener) -> None:
    """Its worker is stopped for what an earlier unit has left in it; the unit is as it was."""
    one = opened()
    worker = start_grown(one)
    give(one, worker, {"do": "sleep"}, written("b"), unit=3, promised_bytes=worker.base_bytes + 20 * MIB)
    end = lost(rest(poll_to_the_end(one, worker)))
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (0, 1), Reason.OUT_OF_MEMORY)


def test_what_a_worker_has_started_counts_as_its_own(opened: Opener) -> None:
    """A program that takes the memory for it is stopped with it."""
    one = opened()
    worker = start_ready(one)
    promised = worker.base_bytes + 50 * MIB
    give(one, worker, {"do": "glutton", "bytes": 200 * MIB}, promised_bytes=promised)
    end = lost(rest(poll_to_the_end(one, worker)))
    assert (end.blamed, end.failure.reason) == (0, Reason.OUT_OF_MEMORY)
    # It may be seen, and stopped, on its way there.
    assert end.peak_bytes > watch.FAR * promised


def test_a_worker_of_many_threads_is_stopped(opened: Opener) -> None:
    """Each takes one of the places for processes, which are the whole machine's. Its order is blamed."""
    one = opened()
    end = lost(rest(do(one, start_ready(one), written("a"), {"do": "many threads"}, written("c"))))
    assert (end.blamed, end.untouched, end.failure.reason) == (1, (2,), Reason.PROTOCOL)
    assert re.fullmatch(r"its worker ran [\d,]+ threads", end.failure.detail)


def test_a_worker_of_many_processes_is_stopped(opened: Opener) -> None:
    """So do they, though they hold less memory than was promised."""
    one = opened()
    worker = start_ready(one)
    give(one, worker, written("a"), {"do": "many processes", "count": 200}, written("c"), promised_bytes=1 << 40)
    end = lost(rest(poll_to_the_end(one, worker)))
    assert (end.blamed, end.untouched, end.failure.reason) == (1, (2,), Reason.PROTOCOL)
    assert re.fullmatch(r"its worker ran \d+ processes", end.failure.detail)


def test_a_worker_that_grows_while_it_has_nothing_to_do_is_ended(opened: Opener) -> None:
    """Whoever has taken it over waits until nobody weighs it. It is no unit's fault."""
    one = opened()
    worker = start_ready(one)
    one.reserve(worker, 1, 1)
    (worker.inbox / "go").touch()
    one.assign(worker, [{"do": "later", "bytes": 200 * MIB}], deadlines=[60.0], promised_bytes=0, limit_bytes=0)
    assert failures(poll_to_the_end(one, worker)) == [None]
    one.release(worker)
    began = monotonic()
    assert poll_until(one, lambda: worker.gone) == []
    assert monotonic() - began < supervisor.IDLE_SECONDS / 2


@pytest.mark.parametrize("helper", ["child", "orphan"])
def test_a_worker_that_has_processes_while_it_has_nothing_to_do_is_ended(opened: Opener, helper: str) -> None:
    """Nobody weighs what it has left running then. It goes with it, and is no unit's fault."""
    one = opened()
    worker = start_ready(one)
    (ended, _) = do(one, worker, {"do": helper, "then": "return"})
    assert isinstance(ended, Ended)
    one.release(worker)
    began = monotonic()
    assert poll_until(one, lambda: worker.gone and not one.dying) == []
    assert monotonic() - began < supervisor.IDLE_SECONDS / 2
    assert not is_alive(ended.result["helper"], ended.result["started"])


def test_a_leak_of_five_megabytes_a_unit_is_stopped_without_any_loss(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that always has the next unit is never idle: it is replaced between two of them."""
    monkeypatch.setattr(supervisor, "GROWTH_BYTES", 32 * MIB)
    one = opened()
    used: dict[int, int] = {}
    for unit in range(1, 19):
        worker = one.find_idle(Stage.EXTRACT) or one.start(Stage.EXTRACT, {})
        assert failures(do(one, worker, {"do": "keep", "bytes": 5 * MIB}, unit=unit)) == [None]
        used[worker.number] = used.get(worker.number, 0) + 1
        one.release(worker)
    assert len(used) >= 2
    assert max(used.values()) <= 9
    assert len(one.workers) <= 1


# --- processes that a worker leaves behind ---


@pytest.fixture
def register(tmp_path: Path) -> Path:
    """A folder in which processes sign that nobody else knows of."""
    (tmp_path / "register").mkdir()
    return tmp_path / "register"


def signed(register: Path) -> list[tuple[int, float]]:
    return [tuple(json.loads(file.read_text())) for file in register.glob("*.json")]


@pytest.mark.parametrize(
    ("deed", "count", "end"),
    [
        pytest.param({"do": "daemons", "count": 3, "bare": True}, 3, "kill", id="daemons, killed"),
        pytest.param({"do": "daemons", "count": 3, "bare": False}, 3, "crash", id="daemons, crashed"),
        pytest.param({"do": "daemons", "count": 3, "bare": True}, 3, "crash", id="daemons of nobody, crashed"),
        pytest.param({"do": "daemons", "count": 3, "bare": True}, 3, "retire", id="daemons, retired"),
        pytest.param({"do": "multiply", "generations": 5}, 63, "kill", id="fork bomb, killed"),
        pytest.param({"do": "multiply", "generations": 5}, 63, "crash", id="fork bomb, crashed"),
    ],
)
def test_no_process_outlives_its_worker_wherever_it_went(
    opened: Opener, register: Path, deed: dict[str, object], count: int, end: str
) -> None:
    """Other sessions, other parents, an empty environment, while others multiply: all are gone when the worker is."""
    # While no time passes nobody looks what an idle worker is up to.
    one = opened(clock=HandClock())
    worker, bystander = start_ready(one), start_ready(one)
    then = {"kill": "sleep", "crash": "crash", "retire": "return"}[end]
    give(one, worker, {**deed, "register": str(register), "then": then, "expected": count})
    if end == "kill":
        poll_until(one, lambda: len(signed(register)) == count)
        one.kill(worker, OURS)
    else:
        poll_to_the_end(one, worker)
    if end == "retire":
        one.release(worker)
        wait_until(lambda: len(signed(register)) == count, "all of them to have begun")
        assert all(is_alive(*who) for who in signed(register))
        one.retire(worker)
    poll_until(one, lambda: not one.dying)
    assert len(signed(register)) == count
    assert [who for who in signed(register) if is_alive(*who)] == []
    assert failures(do(one, bystander, written("a"), unit=2)) == [None]


@pytest.fixture
def freezer() -> Iterator[Callable[[Worker, bool], None]]:
    """Makes a process hang in the kernel, where no signal reaches it, or lets it go again."""
    group = Path("/sys/fs/cgroup/freezer") / f"nightmill-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of the first version can be made to hang a process in the kernel: {error}")

    def freeze(worker: Worker, frozen: bool) -> None:
        (group / "cgroup.procs").write_text(str(worker.process.pid))
        (group / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    yield freeze
    (group / "freezer.state").write_text("THAWED")
    group.rmdir()


def test_a_worker_that_hangs_in_the_kernel_holds_nobody(
    opened: Opener, freezer: Callable[[Worker, bool], None]
) -> None:
    """It is killed, and does not die: its unit is lost when it is gone and not before, and others get on meanwhile."""
    one = opened()
    worker, bystander = start_ready(one), start_ready(one)
    give(one, worker, {"do": "sleep"}, written("b"), promised_bytes=1 << 40)
    poll_until(one, (worker.outbox / "began").exists)
    freezer(worker, True)
    try:
        assert one.stop(worker, TOO_MUCH) == []
        assert worker.gone
        assert one.dying == (worker,)
        assert worker not in one.workers
        assert failures(do(one, bystander, written("a"), unit=2)) == [None]
        assert is_alive(worker.process.pid, worker.watched.started)
    finally:
        freezer(worker, False)
    end = lost(poll_to_the_end(one, worker))
    assert (end.blamed, end.untouched, end.failure) == (0, (1,), TOO_MUCH)
    assert one.dying == ()


# --- whole runs ---

BAD = {
    "segv": Reason.CRASHED,
    "exit": Reason.CRASHED,
    "shout and die": Reason.CRASHED,
    "half a word": Reason.CRASHED,
    "devour": Reason.OUT_OF_MEMORY,
    "link": Reason.PROTOCOL,
    "half a gigabyte": Reason.PROTOCOL,
    "somebody else": Reason.PROTOCOL,
    "unseen kill": Reason.KILLED,
}
GOOD = 8


def settings_of(place: Path) -> Settings:
    (place / "home").mkdir()
    for number in range(GOOD):
        (place / "home" / f"good {number}.txt").write_text(f"The avocet number {number}.")
    made = load_settings(
        {
            "NIGHTMILL_DATA_DIR": str(place / "var"),
            "NIGHTMILL_EMBEDDER": "none",
            "NIGHTMILL_MEMORY_LIMIT": "600MB",
            # What it forbids could not be tried: what is done about it is for machines without it.
            "NIGHTMILL_SANDBOX": "off",
        },
        dotenv=None,
    )
    with open_own_ledger(made) as ledger:
        ledger.add_user(UserId("ann"), [f"folder:{place / 'home'}"])
    return made


def test_bad_files_cost_themselves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is tried again alone, then set aside for the reason that it gave; the ledger says what it did; all others
    are indexed; no process is left."""
    settings = settings_of(tmp_path)
    for deed in BAD:
        (tmp_path / "home" / f"{deed}.txt").write_text(f"DO {deed}\n")
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.bad_files"))
    report = run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
    assert (report.exit_code, report.counts.indexed, report.counts.pending) == (3, GOOD, 0)
    assert os.listdir(settings.data_dir / "spool") == []
    with open_own_ledger(settings) as ledger:
        items = ledger.failures()
        assert {item.path.removesuffix(".txt"): item.reason for item in items} == BAD
        for item in items:
            attempts = ledger.attempts(item.id)
            # What seems to have been killed from outside is never set aside; but it is not tried for ever.
            killed = item.reason is Reason.KILLED
            assert item.state is (ItemState.FAILED if killed else ItemState.QUARANTINED)
            assert len(attempts) == KILLS_ALLOWED if killed else 2 <= len(attempts) <= 3
            assert {attempt.failure.reason for attempt in attempts if attempt.failure} == {item.reason}
            signals = {attempt.failure.signal for attempt in attempts if attempt.failure}
            assert signals == {{"segv.txt": 11, "unseen kill.txt": 9}.get(item.path, 0)}
    stop_scheduler(settings.data_dir)


def test_more_than_a_document_may_hold_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither all that OCR claims to have read on many pages, nor millions of empty chunks: it would be our memory."""
    settings = replace(settings_of(tmp_path), max_text_bytes=200_000)
    (tmp_path / "home" / "crumbs.txt").write_text("The avocet in crumbs.")
    files.scanned_pdf(tmp_path / "home" / "scan.pdf", *("A page of the heron",) * 8)
    held: list[int] = []

    def merge(page: Page, recognised: Page | None) -> Page:
        held.append(len(recognised.text) if recognised is not None else 0)
        return merge_page(page, recognised)

    monkeypatch.setattr("engine.pipeline.merge_page", merge)
    monkeypatch.setattr("engine.pipeline.MAX_TEXT_BYTES", 200_000)
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.endless"))
    report = run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
    assert (report.counts.indexed, report.counts.partial, report.counts.failed) == (GOOD + 1, 1, 1)
    page_chars = len(WORD) * WORDS
    assert sorted(held) == [0] * 6 + [page_chars] * 2
    with open_own_ledger(settings) as ledger:
        (failed,) = ledger.failures()
        assert (failed.path, failed.state, failed.reason) == ("crumbs.txt", ItemState.QUARANTINED, Reason.PROTOCOL)
        assert failed.detail == "there are more than 60000 chunks of 21 characters"
    stop_scheduler(settings.data_dir)


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("no_start", r"no worker for stage extract can be started: .*libstages\.so\.7.*nightmill doctor"),
        ("no_use", r"no worker for stage extract survives even a file of our own: .*SIGILL.*nightmill doctor"),
    ],
)
def test_stages_that_do_not_work_end_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, said: str
) -> None:
    """Not a start for each file: the cause is said, exit code 4, and every file waits for the next run."""
    settings = settings_of(tmp_path)
    numbers: list[int] = []

    class Counted(Supervisor):
        """Counts starts."""

        def start(self, stage: Stage, options: object) -> Worker:
            worker = super().start(stage, options)  # type: ignore[arg-type]
            numbers.append(worker.number)
            return worker

    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Counted, package=f"tests.saboteurs.{package}"))
    with pytest.raises(CannotRunError, match=said) as caught:
        run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
    assert caught.value.exit_code == 4
    assert len(numbers) <= 2 * supervisor.STARTS_IN_A_ROW
    with open_own_ledger(settings) as ledger:
        assert (ledger.counts().pending, ledger.counts().failed) == (GOOD, 0)
    stop_scheduler(settings.data_dir)


def test_what_an_order_keeps_when_it_runs_out_is_not_the_next_ones_fault(opened: Opener) -> None:
    """The worker makes way, and the rest of the unit is as it was; where nothing is left of it, it need not."""
    one = opened()
    worker = start_ready(one)
    hoard = {"do": "hoard", "bytes": 100 * MIB}
    reports = rest(do(one, worker, written("a"), hoard, written("c")))
    assert failures(reports[:-1]) == [None, Reason.OUT_OF_MEMORY]
    end = lost(reports)
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (2,), Reason.KILLED)
    other = start_ready(one)
    assert failures(rest(do(one, other, hoard))) == [Reason.OUT_OF_MEMORY]


def test_files_that_an_order_leaves_open_are_not_the_next_ones_fault(opened: Opener) -> None:
    """The worker makes way before there are none left; so it does where nothing is left of its unit."""
    one = opened()
    leave_open = {"do": "leave open"}
    reports = rest(do(one, start_ready(one), written("a"), leave_open, written("c")))
    assert failures(reports[:-1]) == [None, None]
    end = lost(reports)
    assert (end.blamed, end.untouched, end.failure.reason) == (None, (2,), Reason.KILLED)
    reports = rest(do(one, start_ready(one), leave_open))
    assert failures(reports[:-1]) == [None]
    assert (lost(reports).blamed, lost(reports).untouched) == (None, ())


@pytest.mark.parametrize("slate", [None, "1 -1", "2 0", ""])
def test_a_worker_that_ends_in_the_middle_of_an_order_is_blamed_whatever_it_says(
    opened: Opener, slate: str | None
) -> None:
    """The code that means making way says nothing while an order is being done, and a slate that is made to say that
    none was begun does not help: it would be given out again for ever."""
    one = opened()
    deed = {"do": "exit now"} if slate is None else {"do": "smear slate", "text": slate}
    end = lost(rest(do(one, start_ready(one), {**deed, "code": EXIT_FULL}, written("b"))))
    assert (end.blamed, end.untouched, end.failure.reason) == (0, (1,), Reason.CRASHED)


def test_no_worker_is_given_our_keys(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads may take it over: what it does not know it cannot tell."""
    for name in ("OPENAI_API_KEY", "AWS_SESSION_TOKEN", "NIGHTMILL_SOME_SECRET", "DATABASE_URL"):
        monkeypatch.setenv(name, "swordfish")
    monkeypatch.setenv("TESSDATA_PREFIX", "/tess")
    worker = start_ready(opened())
    environ = Path(f"/proc/{worker.process.pid}/environ").read_bytes()
    assert b"swordfish" not in environ
    assert b"TESSDATA_PREFIX=/tess\0" in environ
