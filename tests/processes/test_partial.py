"""Pages that end their workers: each costs itself, and the document that it stands in is found all the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pymupdf
import pytest

from engine.coordinator import RunReport, Supervisor
from engine.desk import stop_scheduler
from engine.model import ItemState, Lane, Stage, UserId
from engine.ports import Attempt
from engine.reasons import Reason
from engine.run import open_own_ledger, run
from engine.settings import Settings, load_settings
from engine.survey import Orders
from engine.telemetry import SilentReporter
from tests import files
from tests.mill import Mill, contents_of

SEGV, MEMORY = "segmentation fault", "runs out of memory"
BIRDS = ("avocet", "bittern", "curlew", "dunlin", "egret", "fulmar")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """One user and a home for its files; keyword search only."""
    (tmp_path / "home").mkdir()
    made = load_settings({"NIGHTMILL_DATA_DIR": str(tmp_path / "var"), "NIGHTMILL_EMBEDDER": "none"}, dotenv=None)
    with open_own_ledger(made) as ledger:
        ledger.add_user(UserId("ann"), [f"folder:{tmp_path / 'home'}"])
    yield made
    stop_scheduler(made.data_dir)


def _book(path: Path, **deadly: str) -> Path:
    """A PDF of six pages, each about a bird; those named here do something else to whoever reads them."""
    return files.text_pdf(path, *(f"{bird} {deadly.get(bird, 'on the mudflats')}" for bird in BIRDS))


def _with_attachment(path: Path) -> None:
    with pymupdf.open(path) as pdf:
        pdf.embfile_add("data", b"numbers", filename="numbers.txt")
        pdf.saveIncr()


def test_a_page_that_ends_its_worker_costs_that_page(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes and memory, one page, too many, all of them, and what comes after the pages."""
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.deadly_pages"))
    home = tmp_path / "home"
    _book(home / "one.pdf", curlew=SEGV)
    _book(home / "greedy.pdf", fulmar=MEMORY, avocet=MEMORY)
    _book(home / "many.pdf", bittern=MEMORY, curlew=MEMORY, dunlin=MEMORY, egret=SEGV)
    files.text_pdf(home / "all.pdf", MEMORY, MEMORY)
    files.text_pdf(home / "single.pdf", MEMORY)
    _with_attachment(_book(home / "attached.pdf"))
    _book(home / "well.pdf")

    report = _run(settings)

    # Two of which nothing could be read are listed: that is what exit code 3 says.
    assert report.exit_code == 3
    assert (report.counts.indexed, report.counts.partial, report.counts.failed) == (5, 4, 2)
    with open_own_ledger(settings) as ledger:
        condemned = {item.path: item for item in ledger.failures(states=(ItemState.QUARANTINED,))}
        assert {path: item.reason for path, item in condemned.items()} == {
            "all.pdf": Reason.OUT_OF_MEMORY,
            "single.pdf": Reason.OUT_OF_MEMORY,
        }
        tried = {path: _told(ledger.attempts(ledger.find_items(path)[0].id)) for path in ("one.pdf", "many.pdf")}
        tried["single.pdf"] = _told(ledger.attempts(condemned["single.pdf"].id))
    crashed, greedy = Reason.CRASHED, Reason.OUT_OF_MEMORY
    assert tried["one.pdf"] == [("", crashed), ("page 3", crashed), ("", None)]
    assert tried["many.pdf"] == [
        *(("", greedy), ("page 2", greedy), ("page 3", greedy), ("page 4", greedy), ("page 5", crashed)),
    ]
    assert tried["single.pdf"] == [("", greedy), ("", greedy)]
    assert _found(settings) == {
        "one.pdf": (True, {"avocet", "bittern", "dunlin", "egret", "fulmar"}),
        "greedy.pdf": (True, {"bittern", "curlew", "dunlin", "egret"}),
        "many.pdf": (True, {"avocet"}),
        "attached.pdf": (True, set(BIRDS)),
        "well.pdf": (False, set(BIRDS)),
    }
    mill = Mill(tmp_path)
    assert mill.json("status", "ann")["partial"] == 4
    assert set(mill.hits("ann", "fulmar")) == {"one.pdf", "attached.pdf", "well.pdf"}

    # What was left out is as it is until the file changes.
    again = _run(settings)
    assert (again.counts.partial, again.work.extracted, again.work.attempts_failed) == (4, 0, 0)


def _run(settings: Settings) -> RunReport:
    return run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter(), until=None)


def _told(attempts: list[Attempt]) -> list[tuple[str, Reason | None]]:
    """What was tried at reading an item, first try first: of which part, and why it failed."""
    reading = sorted((a for a in attempts if a.stage is Stage.EXTRACT), key=lambda attempt: attempt.started)
    return [(attempt.part, attempt.failure.reason if attempt.failure else None) for attempt in reading]


def _found(settings: Settings) -> dict[str, tuple[bool, set[str]]]:
    """Path -> whether it is partial, and which birds can be found in it."""
    found: dict[str, tuple[bool, set[str]]] = {}
    for _, _, _, path, is_partial, _, _, text in contents_of(settings.data_dir / "indexes" / "ann"):
        _, birds = found.setdefault(path, (bool(is_partial), set()))
        birds.update(bird for bird in BIRDS if bird in text)
    return found
