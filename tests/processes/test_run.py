"""A run as its own process sees it: deadlines, and what is left behind when it ends early."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engine.coordinator import Supervisor
from engine.desk import stop_scheduler
from engine.errors import CannotRunError, UsageError
from engine.guards import disk_free_bytes
from engine.model import ItemState, Lane, UserId
from engine.policy.spool import Need
from engine.processes import private_bytes
from engine.reasons import Reason
from engine.run import open_own_ledger, run, seconds_until
from engine.settings import Settings, load_settings
from engine.spool import SpoolRoom
from engine.survey import Orders
from engine.telemetry import SilentReporter
from tests import files
from tests.mill import wait_until


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data directory with one user of a few files; keyword search only."""
    home = tmp_path / "home"
    home.mkdir()
    for number in range(5):
        (home / f"{number}.txt").write_text(f"The sanderling number {number}.")
    made = load_settings({"NIGHTMILL_DATA_DIR": str(tmp_path / "var"), "NIGHTMILL_EMBEDDER": "none"}, dotenv=None)
    with open_own_ledger(made) as ledger:
        ledger.add_user(UserId("ann"), [f"folder:{home}"])
    return made


def _run(settings: Settings, until: float | None) -> int:
    report = run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter(), until=until)
    assert report.counts.found in (0, 5)
    return report.exit_code


def test_a_unit_that_was_promised_all_has_what_the_run_itself_does_not_need(settings: Settings) -> None:
    """What its own process has freed, and the C library keeps, goes back to the system before the unit begins."""
    settings = replace(settings, memory_limit_bytes=256 << 20)
    (settings.data_dir.parent / "home" / "4.txt").unlink()
    # By its name and size it takes the whole budget.
    (settings.data_dir.parent / "home" / "4.tif").write_bytes(bytes(2 << 20))
    blocks = [bytearray(2_000) for _ in range(50_000)]
    last = bytearray(2_000)
    held = private_bytes(os.getpid())
    blocks.clear()
    assert private_bytes(os.getpid()) > held - (20 << 20), "the block behind them keeps them from the system"
    _run(settings, until=None)
    assert private_bytes(os.getpid()) < held - (50 << 20)
    del last


@pytest.mark.parametrize("leave", [False, True])
def test_attachments_may_be_left_as_they_are(settings: Settings, leave: bool) -> None:
    """They are listed with their mail, and then nothing more is done with them."""
    (settings.data_dir.parent / "home" / "a.eml").write_bytes(
        files.mail("Terns", "Two.", ("b.csv", b"a,b\n", "text/csv"))
    )
    run(
        settings,
        None,
        kind="init",
        lane=Lane.INTERACTIVE,
        orders=Orders(leave_parts=leave),
        reporter=SilentReporter(),
    )
    with open_own_ledger(settings) as ledger:
        counts = ledger.counts()
    assert (counts.indexed, counts.attachments) == (6, 0 if leave else 1)


def test_a_deadline_ends_a_run_and_the_next_one_goes_on(settings: Settings) -> None:
    """After the deadline nothing is begun: exit code 5, nothing left behind; the next run does all of it."""
    assert _run(settings, time.time() - 1.0) == 5
    assert os.listdir(settings.data_dir / "spool") == []
    with open_own_ledger(settings) as ledger:
        assert ledger.counts().indexed == 0
        assert ledger.last_runs(1)[0].exit_code == 5
    assert _run(settings, time.time() + 3600) == 0
    with open_own_ledger(settings) as ledger:
        assert ledger.counts().indexed == 5
    stop_scheduler(settings.data_dir)


def test_runs_leave_no_descriptor_open(settings: Settings) -> None:
    """A process that makes one run after another holds no more files afterwards."""
    stop_scheduler(settings.data_dir)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert _run(settings, None) == 0
    # The desk's watch thread looks up within a second.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no more open files than before")
    stop_scheduler(settings.data_dir)


def test_what_found_no_room_on_the_disk_is_read_by_the_next_run(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot write says so; no page is given up for it, and the next run reads all of them. Said again
    and again it does not end the run, for we find room: it may be a lie."""
    home = tmp_path / "home"
    (home / "0.txt").unlink()
    files.scanned_pdf(home / "scan.pdf", "The first page of the heron", "The second page", "A third", "The last")
    with monkeypatch.context() as patch:
        patch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.full_disk"))
        assert _run(settings, None) == 3
    with open_own_ledger(settings) as ledger:
        assert [item.reason for item in ledger.failures()] == [Reason.DISK_FULL]
    assert _run(settings, None) == 0
    with open_own_ledger(settings) as ledger:
        counts = ledger.counts()
    assert (counts.indexed, counts.partial, counts.failed) == (5, 0, 0)
    stop_scheduler(settings.data_dir)


def test_copies_start_only_when_the_spool_has_room(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that fit into the spool one by one are worked on one by one; one too large for the disk fails alone, with
    the numbers, and is not copied.
    """
    home = tmp_path / "home"
    for number in range(1, 5):
        (home / f"{number}.txt").unlink()
        (home / f"{number}.notes").write_text(f"The sanderling number {number}. " * 16_000)
    os.truncate(home / "0.txt", 1_800_000_000)
    reserve = disk_free_bytes(tmp_path) - 3_000_000_000
    settings = replace(settings, spool_limit_bytes=1_000_000, disk_reserve_bytes=reserve)
    seen = []

    class Watched(SpoolRoom):
        def take(self, unit: Hashable, asker: UserId, need: Need) -> None:
            super().take(unit, asker, need)
            seen.append((len(self._budget._taken), self._budget.spool_bytes))

    monkeypatch.setattr("engine.spool.SpoolRoom", Watched)
    assert _run(settings, None) == 3
    assert sum(taken > 500_000 for _, taken in seen) >= 4
    assert all(count == 1 or taken <= 1_000_000 for count, taken in seen)
    with open_own_ledger(settings) as ledger:
        (failed,) = ledger.failures()
        assert (failed.path, failed.reason) == ("0.txt", Reason.DISK_FULL)
        assert "it takes 5,400 MB of the disk" in failed.detail
        assert ledger.counts().indexed == 4
    stop_scheduler(settings.data_dir)


def test_a_worker_that_never_ends_writing_is_stopped_and_its_file_set_aside(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outbox is looked at while it works: what no honest one could have written is a lie, and the others go on."""
    (tmp_path / "home" / "0.txt").rename(tmp_path / "home" / "endless.txt")
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.endless"))
    # So that it takes no second of writing.
    monkeypatch.setattr("engine.policy.spool.DOCUMENT_JSON_BYTES", 10_000_000)
    monkeypatch.setattr("engine.policy.spool.MAX_PARTS_BYTES", 10_000_000)
    assert _run(settings, None) == 3
    with open_own_ledger(settings) as ledger:
        (failed,) = ledger.failures()
        assert (failed.path, failed.state, failed.reason) == ("endless.txt", ItemState.QUARANTINED, Reason.PROTOCOL)
        assert re.fullmatch(r"it wrote \d+ MB, and may write 20 MB", failed.detail)
        assert ledger.counts().indexed == 4
    assert os.listdir(settings.data_dir / "spool") == []
    stop_scheduler(settings.data_dir)


_INTERRUPTED_WHILE_IT_CLOSES = """
import os, signal, sys
from pathlib import Path
from engine.coordinator import Supervisor
from engine.model import Lane
from engine.run import run
from engine.settings import load_settings
from engine.survey import Orders
from engine.telemetry import SilentReporter

close = Supervisor.close

def interrupted(self):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    close(self)

Supervisor.close = interrupted
settings = load_settings({"NIGHTMILL_DATA_DIR": sys.argv[1], "NIGHTMILL_EMBEDDER": "none"}, dotenv=None)
report = run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter())
sys.exit(report.exit_code)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_run_ends_leaves_nothing_behind(settings: Settings, name: str) -> None:
    """All is done already, and only workers are to be stopped: the run ends as it would have."""
    words = [sys.executable, "-c", _INTERRUPTED_WHILE_IT_CLOSES, str(settings.data_dir), name]
    assert subprocess.run(words, check=False, timeout=120).returncode == 0
    assert os.listdir(settings.data_dir / "spool") == []
    with open_own_ledger(settings) as ledger:
        assert (ledger.last_runs(1)[0].exit_code, ledger.counts().indexed) == (0, 5)
    stop_scheduler(settings.data_dir)


def test_a_spool_that_cannot_be_used_ends_a_run_before_it_begins(settings: Settings) -> None:
    """It is said which folder it is; nothing crashes."""
    (settings.data_dir / "spool").write_text("not a folder")
    with pytest.raises(CannotRunError, match=r"spool cannot be used: File exists; give"):
        _run(settings, None)
    with open_own_ledger(settings) as ledger:
        assert not ledger.last_runs(1)


def test_a_time_of_day_is_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """06:00 is this morning before six, and tomorrow's after; anything else is refused."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    midnight = 1_750_032_000.0  # 2025-06-16 00:00 UTC
    assert seconds_until("06:00", midnight + 5 * 3600) == midnight + 6 * 3600
    assert seconds_until("06:00", midnight + 7 * 3600) == midnight + 30 * 3600
    for wrong in ("6", "25:00", "soon", ""):
        with pytest.raises(UsageError, match="06:00"):
            seconds_until(wrong, midnight)
