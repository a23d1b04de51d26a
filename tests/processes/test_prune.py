"""What may go, goes; what anybody may still ask for or use stays. The scheduler's log keeps within its bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import logfile, processes, rendezvous
from engine.ledger import SqlLedger
from engine.model import Failure, Fingerprint, ItemKey, ItemState, Kind, Listed, Stage, UserId
from engine.ports import Attempt, Move
from engine.prune import DAY_SECONDS
from engine.reasons import Reason
from tests.mill import Mill, wait_until

ANN = UserId("ann")


class _Clock:
    now_is = 0.0

    def now(self) -> float:
        return self.now_is

    def monotonic(self) -> float:
        return self.now_is


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: _Clock) -> Iterator[SqlLedger]:
    """Three items: one indexed, one failed, one pending. Each was tried on each of ten days, in a run of its own."""
    with SqlLedger(tmp_path / "ledger.db", clock) as made:
        made.add_user(ANN, ["folder:/home"])
        (source,) = made.sources(ANN)
        with made.listing(source.id) as listing:
            listing.add([_listed("well"), _listed("bad"), _listed("waits")])
            listing.finish(complete=True, cursor="", accept_removals=False)
        damaged = Failure(reason=Reason.DAMAGED, detail="no PDF")
        for day in range(10):
            clock.now_is = day * DAY_SECONDS
            run = made.begin_run("init", 1)
            tried = [
                Attempt(
                    item=item.id,
                    stage=Stage.EXTRACT,
                    part="",
                    failure=damaged if item.path == "bad" else None,
                    started=clock.now_is + 1,
                    seconds=1.0,
                    cpu_seconds=1.0,
                    peak_bytes=1,
                )
                for item in made.find_items("a") + made.find_items("well")
            ]
            made.settle(run, tried, [])
            made.end_run(run, 0, {})
        for item in made.pending(ANN, limit=10):
            if item.path == "well":
                made.published(run, ANN, 1, [Move(item=item.id, state=ItemState.INDEXED)], [])
            if item.path == "bad":
                made.settle(run, [], [Move(item=item.id, state=ItemState.FAILED, failure=damaged)])
        yield made


def _listed(name: str) -> Listed:
    return Listed(
        key=ItemKey(name),
        fingerprint=Fingerprint("1"),
        path=name,
        size_bytes=1,
        modified=0.0,
        kind=Kind.FILE,
        locator={},
    )


def _history(ledger: SqlLedger) -> dict[str, int]:
    return {
        name: len(ledger.attempts(item.id)) for name in ("well", "bad", "waits") for item in ledger.find_items(name)
    }


def test_history_past_its_days_is_forgotten_where_all_is_well(ledger: SqlLedger) -> None:
    """To the day; what failed or waits keeps its own, and so does the last run, whenever that was."""
    assert _history(ledger) == {"well": 10, "bad": 10, "waits": 10}
    assert ledger.count_old(0.0) == ledger.forget_old(0.0, limit=100) == (0, 0)
    before = 4 * DAY_SECONDS
    assert ledger.count_old(before) == (4, 4)
    assert ledger.forget_old(before, limit=3) == (3, 4)
    assert ledger.forget_old(before, limit=3) == (1, 0)
    assert ledger.forget_old(before, limit=3) == (0, 0)
    assert _history(ledger) == {"well": 6, "bad": 10, "waits": 10}
    assert ledger.count_old(1e12) == ledger.forget_old(1e12, limit=100) == (6, 5)
    assert [run.began for run in ledger.last_runs(10)] == [9 * DAY_SECONDS]
    assert ledger.size_bytes()[0] > 0
    ledger.shrink()
    assert (ledger.size_bytes()[1], _history(ledger)["bad"]) == (0, 10)


def test_prune_gives_back_what_the_dead_have_left(tmp_path: Path) -> None:
    """Folders of dead processes and their client files go, those of the living stay, and a rehearsal removes nothing.
    The scheduler's log is begun anew when it is large, by a scheduler as by `prune`.
    """
    mill = Mill(tmp_path, NIGHTMILL_EMBEDDER="none")
    (tmp_path / "note.txt").write_text("About grebes.")
    mill.run("users", "add", "ann", f"folder:{tmp_path}")
    place = rendezvous.make_runtime_dir(mill.data_dir)
    log = place / logfile.LOG_FILE
    log.touch()
    os.truncate(log, logfile.LOG_BYTES + 1)
    mill.run("init")
    # The scheduler that the run has started looked at once.
    assert (place / logfile.OLD_LOG_FILE).stat().st_size > logfile.LOG_BYTES
    assert log.stat().st_size < 1_000_000
    mill.stop_scheduler()
    wait_until(lambda: not mill.processes(), "the end of all processes")

    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        dead = gone.pid
    alive = f"{os.getpid()}-{processes.start_time(os.getpid()):.0f}"
    for name in (f"{dead}-1-a", f"{alive}-a", "notes"):
        (mill.data_dir / "spool" / name / "workers").mkdir(parents=True)
        (mill.data_dir / "spool" / name / "workers" / "copy").write_bytes(b"x" * 100_000)
    for session in (f"{dead}-1-a", f"{dead}-1-b"):
        (place / "clients" / f"{session}.json").touch()
        os.mkfifo(place / "clients" / f"{session}.bell")
    # One of them left a worker, which is somebody else's to end.
    (place / "clients" / f"{dead}-1-b.json").write_text(
        f'{{"worker": {os.getpid()}, "started": {processes.start_time(os.getpid())}}}'
    )
    os.truncate(log, logfile.LOG_BYTES + 1)
    before = sorted(str(path) for path in mill.data_dir.rglob("*"))
    would = mill.json("prune", "--dry-run")
    assert sorted(str(path) for path in mill.data_dir.rglob("*")) == before
    done = mill.json("prune")
    assert would == {**done, "dry_run": True, "ledger_bytes": would["ledger_bytes"]}
    assert (done["spools"], done["sessions"], done["attempts"], done["runs"]) == (1, 1, 0, 0)
    assert done["spool_bytes"] >= 100_000
    assert done["log_bytes"] > logfile.LOG_BYTES
    assert sorted(os.listdir(mill.data_dir / "spool")) == sorted([f"{alive}-a", "notes"])
    assert sorted(os.listdir(place / "clients")) == [f"{dead}-1-b.bell", f"{dead}-1-b.json"]
    assert log.stat().st_size == 0
    said = mill.run("prune").stdout
    assert "0 attempts and 0 runs went" in said


_WRITER = """
import sys
from pathlib import Path
from engine import logfile

place, number, holds_lock = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
for line in range(400):
    print(f"{number} {line} " + "x" * 80, file=sys.stderr, flush=True)
    if holds_lock:
        logfile.turn_over(place, 30_000)
"""


def test_a_log_that_several_write_to_keeps_within_its_bounds(tmp_path: Path) -> None:
    """The one that holds the lock begins it anew, and others go on; each file stays near the bound, and the end of what
    everybody wrote is there.
    """
    log = logfile.find_log(tmp_path)
    writers = []
    for number in range(3):
        with log.open("ab") as stream:
            words = [sys.executable, "-c", _WRITER, str(tmp_path), str(number), str(int(number == 0))]
            writers.append(subprocess.Popen(words, stderr=stream))
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert 0 < log.stat().st_size <= 31_000
    # Those who do not know of the new one have gone on with the one that was there when they began.
    assert {path.name for path in tmp_path.iterdir()} == {logfile.LOG_FILE, logfile.OLD_LOG_FILE}
    assert "0 399 x" in log.read_text() + (tmp_path / logfile.OLD_LOG_FILE).read_text()
    assert logfile.turn_over_unwatched(tmp_path, 30_000) is False
