"""Whoever is killed: nothing is lost, nothing is done twice, nobody is left running."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests import files
from tests.mill import Mill, contents_of, killed_at_the_end, wait_until

PAGES = 24


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A long scan, which keeps workers busy for some seconds, and small files beside it."""
    home = tmp_path / "home"
    home.mkdir()
    pages = (
        f"Ledger page {number}\n" + "\n".join(f"entry {number} {line}" for line in range(12)) for number in range(PAGES)
    )
    files.scanned_pdf(home / "long.pdf", *pages)
    for number in range(30):
        (home / f"note{number}.txt").write_text(f"Note number {number} about sandpipers.")
    return home


def _undisturbed(tmp_path: Path, home: Path) -> list[tuple[object, ...]]:
    """What the index holds when nobody is killed."""
    (tmp_path / "calm").mkdir()
    calm = Mill(tmp_path / "calm", NIGHTMILL_EMBEDDER="fast")
    calm.run("users", "add", "ann", f"folder:{home}")
    calm.run("init")
    calm.stop_scheduler()
    return contents_of(calm.data_dir / "indexes" / "ann")


def test_a_killed_worker_costs_one_attempt_of_one_item(mill: Mill, home: Path, tmp_path: Path) -> None:
    """kill -9 of a busy worker: at most one attempt has failed, everything is indexed, no finished unit is repeated."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init", "--json")) as run:
        worker = wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        worker.kill()
        assert run.wait(timeout=200) == 0
    failed = mill.ledger("SELECT reason, signal FROM attempts WHERE reason IS NOT NULL")
    assert failed in ([], [("killed", signal.SIGKILL)])
    assert mill.repeated_units() == []
    assert not worker.is_running()
    assert mill.workers() == []
    assert contents_of(mill.data_dir / "indexes" / "ann") == _undisturbed(tmp_path, home)


@pytest.mark.parametrize("moment", ["extract", "ocr"])
def test_a_killed_coordinator_leaves_nothing_and_loses_nothing(
    mill: Mill, home: Path, tmp_path: Path, moment: str
) -> None:
    """kill -9 of the coordinator: its workers end; the next run repeats no finished unit and gives the same index."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init")) as run:
        if moment == "ocr":
            done = "SELECT 1 FROM attempts WHERE stage = 'ocr' AND reason IS NULL"
            wait_until(lambda: mill.ledger(done), "a recognised page")
        else:
            wait_until(lambda: mill.workers(), "a worker")
        run.kill()
        run.wait()
    wait_until(lambda: not mill.workers(), "the end of all workers")
    before = mill.ledger("SELECT count(*) FROM attempts WHERE reason IS NULL")[0][0]
    mill.run("init")
    assert mill.ledger("SELECT count(*) FROM attempts WHERE reason IS NULL")[0][0] > before
    assert mill.repeated_units() == []
    assert mill.json("status", "ann")["indexed"] == 31
    assert contents_of(mill.data_dir / "indexes" / "ann") == _undisturbed(tmp_path, home)
    assert list((mill.data_dir / "spool").iterdir()) == []


def test_an_interrupted_run_can_be_taken_up_again(mill: Mill, home: Path) -> None:
    """SIGINT ends a run within seconds with code 130, leaves no process, and the next one goes on."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init")) as run:
        wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) == 130
    assert mill.workers() == []
    mill.run("init")
    assert mill.repeated_units() == []
    assert mill.json("status", "ann")["indexed"] == 31


def test_a_killed_scheduler_is_replaced(mill: Mill, home: Path) -> None:
    """kill -9 of the scheduler in the middle of a run: another one takes over, and the run ends well."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init")) as run:
        wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        scheduler = next(p for p in mill.processes() if "engine.scheduler" in p.cmdline())
        scheduler.kill()
        assert run.wait(timeout=200) == 0
    assert mill.json("status", "ann")["indexed"] == 31
    assert mill.repeated_units() == []


def test_two_runs_share_users_and_limits(mill: Mill, home: Path, tmp_path: Path) -> None:
    """Two `init` at once: both end well, each user is written by one of them, no limit is exceeded."""
    users = [f"user{number}" for number in range(6)]
    for number, user in enumerate(users):
        own = tmp_path / user
        own.mkdir()
        for note in range(12):
            (own / f"{note}.txt").write_text(f"Note {note} of {user} about dunlins number {number}.")
        files.scanned_pdf(own / "scan.pdf", f"Scan of {user}")
        mill.run("users", "add", user, f"folder:{own}")
    limits = {"MAX_TOTAL_WORKERS": "2", "MAX_WORKERS_PER_USER": "1"}
    seen: list[dict[str, object]] = []
    with (
        killed_at_the_end(mill.start("init", **limits)) as first,
        killed_at_the_end(mill.start("init", **limits)) as second,
    ):

        def both_ended() -> bool:
            table = mill.json("scheduler", "status")
            if table["statistics"]:
                seen.append(table["statistics"])
            return first.poll() is not None and second.poll() is not None

        wait_until(both_ended, "the end of both runs", seconds=250)
        assert (first.returncode, second.returncode) == (0, 0)
    assert max(table["active_workers"] for table in seen) in (1, 2)
    assert max((count for table in seen for count in table["user_workers"].values()), default=0) <= 1
    assert max(table["sessions"] for table in seen) == 2
    assert mill.repeated_units() == []
    assert all(entry["indexed"] == 13 for entry in mill.json("status")["users"])


def test_a_reindex_of_a_user_in_a_run_waits_and_sees_the_latest(mill: Mill, home: Path) -> None:
    """The user is written by one process at a time; the second one finds what changed meanwhile."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init")) as run:
        wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        (home / "late.txt").write_text("A late note about whimbrels.")
        reindex = mill.run("reindex", "ann")
        assert run.wait(timeout=200) == 0
    assert "another process is working on ann" in reindex.stderr
    assert mill.hits("ann", "whimbrels", "--mode", "keyword") == ["late.txt"]
    assert mill.repeated_units() == []


def test_a_user_in_a_run_cannot_be_erased(mill: Mill, home: Path) -> None:
    """Erasing waits for nobody: it says who is in the way, with exit code 4, and erases nothing."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init")) as run:
        wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        assert "working on ann" in mill.run("users", "erase", "ann", code=4).stderr
        assert run.wait(timeout=200) == 0
    assert mill.json("status", "ann")["indexed"] == 31
    mill.run("users", "erase", "ann")
    assert mill.run("search", "ann", "sandpipers", code=2)


def test_output_that_nobody_reads_harms_nothing(mill: Mill, home: Path) -> None:
    """A pipe that is closed early ends the command quietly."""
    mill.run("users", "add", "ann", f"folder:{home}")
    with subprocess.Popen(
        [*("bash", "-c"), 'exec "$@" | true', "bash", *_program(), "users", "list"],
        env=mill.environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        _, said = command.communicate(timeout=60)
    assert "Traceback" not in said


def _program() -> tuple[str, ...]:
    from tests.mill import PROGRAM

    return PROGRAM
