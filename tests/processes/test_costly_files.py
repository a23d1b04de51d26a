"""A run over files that cost their worker its life or its memory: what of them can be had is kept, and what all of
them took is learned."""

from __future__ import annotations

import logging
import re
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from engine.coordinator import Supervisor
from engine.desk import stop_scheduler
from engine.model import ItemState, Lane, Stage, UserId
from engine.policy import estimates
from engine.policy.estimates import MIB
from engine.policy.peaks import Peaks
from engine.policy.retries import KILLS_ALLOWED, worth_another_run
from engine.reasons import Reason
from engine.run import open_own_ledger, run
from engine.settings import Settings, load_settings
from engine.survey import Orders
from engine.telemetry import Event, Progressed, SilentReporter
from tests import files
from tests.mill import contents_of

ANN = UserId("ann")
#: The least that may be set: no unit is far below it, and a large mail is above.
BUDGET = 256 * MIB


def settings_in(data_dir: Path, *sources: str) -> Settings:
    """Of a data directory where ann has these sources."""
    made = load_settings(
        {"NIGHTMILL_DATA_DIR": str(data_dir), "NIGHTMILL_EMBEDDER": "none", "NIGHTMILL_MEMORY_LIMIT": str(BUDGET)},
        dotenv=None,
    )
    with open_own_ledger(made) as ledger:
        ledger.add_user(ANN, list(sources))
    return made


def test_costly_files_cost_no_more_than_they_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is tried twice, the second time alone with the whole budget promised; pages that were read stay, and the
    document is partial; what always runs out of memory is quarantined, and what can never fit is not even tried; what
    others kill is left to another run; all others are indexed. The next run promises what this one has seen."""
    caplog.set_level(logging.DEBUG, "engine.coordinator")
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.costly"))
    home = tmp_path / "home"
    home.mkdir()
    files.text_pdf(home / "deadly.pdf", *(f"Page {number} of the whimbrel" for number in range(1, 5)))
    files.scanned_pdf(home / "scan.pdf", "First of the dotterel", "Second", "Third of the dotterel")
    (home / "greedy.txt").write_text("The knot.")
    (home / "unlucky.txt").write_text("The ruff.")
    files.picture("The turnstone").save(home / "hunted.png")
    files.picture("The godwit").save(home / "fatal.jpg")
    (tmp_path / "mail" / "new").mkdir(parents=True)
    (tmp_path / "mail" / "cur").mkdir()
    with open(tmp_path / "mail" / "cur" / "huge", "wb") as file:
        file.truncate(300 * MIB)
    for number in range(12):
        (home / f"{number}.txt").write_text(f"The sanderling number {number}.")
    settings = settings_in(tmp_path / "var", f"folder:{home}", f"maildir:{tmp_path / 'mail'}")
    try:
        report = run(
            settings,
            [ANN],
            kind="reindex",
            lane=Lane.INTERACTIVE,
            orders=Orders(),
            reporter=SilentReporter(),
            until=None,
        )
    finally:
        stop_scheduler(settings.data_dir)
    assert (report.counts.found, report.counts.indexed, report.counts.partial, report.counts.failed) == (19, 14, 2, 5)
    with open_own_ledger(settings) as ledger:
        failed_items = {Path(item.path).name: item for item in ledger.failures()}
        greedy, huge, hunted = (failed_items[name] for name in ("greedy.txt", "huge", "hunted.png"))
        assert (greedy.state, greedy.reason) == (ItemState.QUARANTINED, Reason.OUT_OF_MEMORY)
        assert (huge.state, huge.reason) == (ItemState.FAILED, Reason.OUT_OF_MEMORY)
        assert "at least 272 MiB of memory; all that the workers may use together is 256 MiB" in huge.detail
        assert [one.seconds for one in ledger.attempts(huge.id)] == [0.0]
        assert re.fullmatch(r"it wanted more than the 2\d\d MB of memory that its worker could have", greedy.detail)
        # Not its own doing: the next run tries it again, and has not lost its page.
        assert (hunted.state, hunted.reason) == (ItemState.FAILED, Reason.KILLED)
        assert worth_another_run(hunted.reason)
        # A picture has one page: what that dies of is what the item dies of.
        assert (failed_items["fatal.jpg"].state, failed_items["fatal.jpg"].reason) == (
            ItemState.QUARANTINED,
            Reason.CRASHED,
        )
        tries = {
            name: ledger.attempts(ledger.find_items(name)[0].id)
            for name in ("greedy.txt", "unlucky.txt", "deadly.pdf", "scan.pdf")
        }
        counts = ledger.peaks()
    failed = {
        name: [(one.stage, one.part, one.failure.reason, one.failure.signal) for one in found if one.failure]
        for name, found in tries.items()
    }
    assert failed["greedy.txt"] == [(Stage.EXTRACT, "", Reason.OUT_OF_MEMORY, 0)] * 2
    # Nothing is set aside for having been killed: that it crashed is seen twice.
    died = [(Reason.KILLED, signal.SIGKILL), *[(Reason.CRASHED, signal.SIGSEGV)] * 2]
    assert failed["unlucky.txt"] == [(Stage.EXTRACT, "", *how) for how in died]
    # Without the third page it ends in the same way: it was not the page.
    deadly = [(Stage.EXTRACT, part, Reason.CRASHED, signal.SIGSEGV) for part in ("", "page 3", "")]
    assert failed["deadly.pdf"] == deadly
    # Alone the second time, if the first time it was not.
    assert failed["scan.pdf"] in ([(Stage.OCR, "page 2", Reason.CRASHED, signal.SIGSEGV)] * n for n in (2, 3))
    well = [one.part for one in tries["scan.pdf"] if one.stage is Stage.OCR and one.failure is None]
    assert sorted(well) == ["page 1", "page 3"]
    index = contents_of(settings.data_dir / "indexes" / "ann")
    said = {name: "\n".join(row[7] for row in index if row[3] == name) for name in ("deadly.pdf", "scan.pdf")}
    assert [f"Page {number}" in said["deadly.pdf"] for number in (1, 2, 3, 4)] == [True, True, False, False]
    assert [word in said["scan.pdf"] for word in ("First", "Second", "Third")] == [True, False, True]

    promised = [int(found) for found in re.findall(r"(\d+) bytes promised", caplog.text)]
    # Greedy, deadly and the page: each once, and what is left of an item that was suspect.
    assert promised.count(BUDGET) >= 3
    assert all(found < 0.9 * BUDGET for found in promised if found != BUDGET)
    text = estimates.extraction(size_bytes=100, ending=".txt")
    assert text.key is not None
    peaks = [count for count in counts if count.key == text.key]
    assert sum(count.samples for count in peaks) == 13  # one of them is the first of the greedy one
    next_time = estimates.fitted(text, peaks=Peaks(counts), budget_bytes=BUDGET)
    assert next_time.memory_bytes != text.memory_bytes


def test_what_lacks_the_memory_of_others_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tries are not all made in one moment. Others of the user go on, and the wait is said."""
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.costly"))
    monkeypatch.setattr("engine.promises.growth.is_deprived", lambda **sizes: True)
    monkeypatch.setattr("engine.promises.DEPRIVED_SECONDS", 0.3)
    home = tmp_path / "home"
    home.mkdir()
    for name in ("greedy", "knot", "ruff"):
        (home / f"{name}.txt").write_text(f"The {name}.")
    settings = settings_in(tmp_path / "var", f"folder:{home}")
    said: list[Event] = []
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "say", said.append)
    try:
        run(settings, [ANN], kind="init", lane=Lane.BULK, orders=Orders(), reporter=reporter, until=None)
    finally:
        stop_scheduler(settings.data_dir)
    with open_own_ledger(settings) as ledger:
        (item,) = ledger.failures()
        began = [one.started for one in ledger.attempts(item.id)]
    assert (item.path, item.reason, len(began)) == ("greedy.txt", Reason.KILLED, KILLS_ALLOWED)
    assert min(later - earlier for earlier, later in pairwise(sorted(began))) >= 0.25
    assert any(event.waits["memory"] for event in said if isinstance(event, Progressed))
