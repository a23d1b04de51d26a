"""Users that take turns: everybody ends with what an undisturbed run gives, nothing is done twice, nobody is forgotten.

The places are few and the slices tiny, so that each user rests again and again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.coordinator import RunReport, Supervisor
from engine.desk import stop_scheduler
from engine.model import ItemState, Lane, Stage, UserId
from engine.policy import units
from engine.policy.turns import Rules
from engine.reasons import Reason
from engine.run import open_own_ledger, run
from engine.settings import DEBUG_FILES, Settings, load_settings
from engine.survey import Orders
from engine.telemetry import Event, ItemSettled, Progressed, SilentReporter, UserBegan
from indexes.lock import is_locked
from tests import files
from tests.mill import Mill, contents_of, wait_until

#: After each unit that has ended, whoever is open rests if somebody waits.
HASTE = Rules(places=2, slice_seconds=0.0)
USERS = [UserId(name) for name in ("ann", "ben", "cleo", "dan", "eve", "finn")]


class Listener(SilentReporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[Event] = []

    def say(self, event: Event) -> None:
        self.said.append(event)

    def users(self) -> list[UserId]:
        return [message.user for message in self.said if isinstance(message, UserBegan)]

    def last(self) -> Progressed:
        return [message for message in self.said if isinstance(message, Progressed)][-1]


@pytest.fixture
def place(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for all of it. Units are small: a hundred notes would otherwise be two of them."""
    monkeypatch.setitem(units.UNIT_ORDERS, Stage.EXTRACT, 16)
    caplog.set_level(logging.DEBUG, "engine.coordinator")
    yield tmp_path
    for data_dir in tmp_path.glob("var*"):
        stop_scheduler(data_dir)


def settings_in(data_dir: Path, **more: str) -> Settings:
    return load_settings({"NIGHTMILL_DATA_DIR": str(data_dir), "NIGHTMILL_EMBEDDER": "fast", **more}, dotenv=None)


def add(settings: Settings, user: UserId, *uris: str, weight: float = 1.0) -> None:
    with open_own_ledger(settings) as ledger:
        ledger.add_user(user, uris, weight=weight)


def texts(folder: Path, count: int, about: str) -> str:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Note {number} about {about}.\n\n" + f"The {about} {number}. " * 20)
    return f"folder:{folder}"


def go(settings: Settings, turns: Rules | None, *, listener: Listener | None = None, full: bool = False) -> RunReport:
    return run(
        settings,
        None,
        kind="init",
        lane=Lane.BULK,
        orders=Orders(full=full),
        reporter=listener or Listener(),
        turns=turns,
    )


def rests(caplog: pytest.LogCaptureFixture, user: UserId) -> int:
    return sum(record.message.startswith(f"{user} rests") for record in caplog.records)


def mill_of(settings: Settings, place: Path) -> Mill:
    mill = Mill(place, NIGHTMILL_EMBEDDER=settings.embedder)
    mill.data_dir = settings.data_dir
    mill.environ["NIGHTMILL_DATA_DIR"] = str(settings.data_dir)
    return mill


def order_of_completion(settings: Settings) -> list[UserId]:
    with open_own_ledger(settings) as ledger:
        return [record.name for record in sorted(ledger.users(), key=lambda record: record.done or 0.0)]


def test_users_that_take_turns_end_as_if_each_had_been_alone(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Six users, two places, turns of a unit each: the same indexes and sums as without, and no unit done twice."""
    mine, calm = settings_in(place / "var"), settings_in(place / "var-calm")
    for number, user in enumerate(USERS):
        uris = [texts(place / user / "notes", 20 + number, f"godwits of {user}")]
        letters = [
            files.mail(f"Letter {n}", "See below.", (f"{n}.txt", b"Knot %d" % n, "text/plain")) for n in range(8)
        ]
        uris.append(f"mbox:{files.mbox(place / user / 'post.mbox', *letters)}")
        if number % 3 == 0:
            files.scanned_pdf(place / user / "notes" / "scan.pdf", f"First page of {user}", "Second page")
        for settings in (mine, calm):
            add(settings, user, *uris)
    listener = Listener()
    report = go(mine, HASTE, listener=listener)
    wanted = go(calm, None)
    assert report.exit_code == wanted.exit_code == 0
    assert (report.counts, report.work) == (wanted.counts, wanted.work)
    assert min(rests(caplog, user) for user in USERS) >= 2
    assert mill_of(mine, place).repeated_units() == []
    for user in USERS:
        assert contents_of(mine.data_dir / "indexes" / user) == contents_of(calm.data_dir / "indexes" / user)
    # Each is said to begin once, and the progress adds up at the end.
    assert sorted(listener.users()) == USERS
    last = listener.last()
    assert (last.indexed, last.pending, last.users_done) == (report.counts.indexed, 0, len(USERS))
    assert go(mine, HASTE).work == go(calm, None).work


def test_a_small_user_behind_giants_is_done_first(place: Path) -> None:
    """Whoever has little to do is done before those that came earlier and have much."""
    settings = settings_in(place / "var", NIGHTMILL_EMBEDDER="none")
    for number in range(3):
        add(settings, UserId(f"giant{number}"), texts(place / f"giant{number}", 60, "curlews"))
    add(settings, UserId("small"), texts(place / "small", 1, "snipes"))
    assert go(settings, Rules(places=2, slice_seconds=0.0)).exit_code == 0
    assert order_of_completion(settings)[0] == "small"


def test_a_rebuild_reads_everything_once_more_and_ends(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`--full` with turns: what was read before is forgotten once, not with each turn."""
    settings = settings_in(place / "var", NIGHTMILL_EMBEDDER="none")
    for user in USERS[:3]:
        add(settings, user, texts(place / user, 100, "terns"))
    assert go(settings, None).exit_code == 0
    caplog.clear()
    assert go(settings, Rules(places=1, slice_seconds=0.0), full=True).exit_code == 0
    assert min(rests(caplog, user) for user in USERS[:3]) >= 2
    extracted = mill_of(settings, place).ledger(
        "SELECT count(*) FROM attempts WHERE stage = 'extract' GROUP BY item_id ORDER BY 1"
    )
    assert extracted == [(2,)] * 300


def test_a_trial_reads_no_more_for_having_turns(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In debug mode each user's latest items are read, and no others, however often the user rests."""
    settings = settings_in(place / "var", NIGHTMILL_EMBEDDER="none", DEBUG_MODE="true")
    for user in USERS[:2]:
        add(settings, user, texts(place / user, DEBUG_FILES + 30, "plovers"))
    report = go(settings, Rules(places=1, slice_seconds=0.0))
    assert rests(caplog, USERS[0]) >= 2
    assert (report.counts.indexed, report.counts.pending) == (2 * DEBUG_FILES, 2 * 30)


def test_a_change_of_model_waits_for_the_end_of_all_turns(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No turn publishes half a user in the new model: each index has one generation more, and all of it."""
    settings = settings_in(place / "var")
    for user in USERS[:2]:
        add(settings, user, texts(place / user, 100, "stints"))
    assert go(settings, None).exit_code == 0
    with open_own_ledger(settings) as ledger:
        before = {record.name: record.generation for record in ledger.users()}
    caplog.clear()
    other = settings_in(place / "var", NIGHTMILL_EMBEDDER="none")
    assert go(other, Rules(places=1, slice_seconds=0.0)).exit_code == 0
    assert min(rests(caplog, user) for user in USERS[:2]) >= 2
    with open_own_ledger(settings) as ledger:
        assert {record.name: record.generation for record in ledger.users()} == {
            user: generation + 1 for user, generation in before.items()
        }
        assert ledger.counts().indexed == 200


def test_resting_gives_a_deadly_page_no_further_try(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that kills its worker each time is given up after as many tries as in a run without turns."""
    monkeypatch.setattr("engine.coordinator.Supervisor", partial(Supervisor, package="tests.saboteurs.pages"))
    settings = settings_in(place / "var", NIGHTMILL_EMBEDDER="none")
    for user in USERS[:2]:
        (place / user).mkdir()
        files.scanned_pdf(place / user / "scan.pdf", "A deadly page", "Another")
        add(settings, user, f"folder:{place / user}")
    report = go(settings, Rules(places=1, slice_seconds=0.0))
    assert report.counts.failed == 2
    assert rests(caplog, USERS[0]) >= 2
    with open_own_ledger(settings) as ledger:
        for item in ledger.failures(states=(ItemState.FAILED,)):
            tries = [attempt for attempt in ledger.attempts(item.id) if attempt.stage is Stage.OCR]
            assert item.reason is Reason.OCR_FAILED
            assert "crashed: its worker was ended by SIGSEGV" in item.detail
            assert all(attempt.failure and attempt.failure.reason is Reason.CRASHED for attempt in tries)
            # Two pages; see policy/retries.py.
            assert len(tries) <= 2 * 3


def test_a_user_in_line_is_free_for_others(place: Path) -> None:
    """While a user waits behind a giant, a `reindex` by another process does it at once; the run then finds it done."""
    settings = settings_in(place / "var")
    pages = (f"Page {number}\n" + "entry about dunlins\n" * 25 for number in range(10))
    (place / "giant").mkdir()
    files.scanned_pdf(place / "giant" / "long.pdf", *pages)
    add(settings, UserId("giant"), f"folder:{place / 'giant'}")
    add(settings, UserId("small"), texts(place / "small", 5, "dunlins"))
    mill, listener, reports = mill_of(settings, place), Listener(), []
    bulk = threading.Thread(target=lambda: reports.append(go(settings, Rules(places=1), listener=listener)))
    bulk.start()
    try:
        wait_until(lambda: mill.ledger("SELECT 1 FROM attempts WHERE stage = 'ocr'"), "a page of the giant")
        mill.run("reindex", "small")
        assert mill.ledger("SELECT name FROM users WHERE done IS NOT NULL") == [("small",)]
    finally:
        bulk.join()
    (report,) = reports
    assert (report.exit_code, report.counts.indexed, report.work.items_indexed) == (0, 6, 1)
    assert mill.repeated_units() == []
    kinds = "SELECT DISTINCT r.kind FROM attempts a JOIN runs r ON r.id = a.run_id JOIN items i ON i.id = a.item_id"
    assert mill.ledger(f"{kinds} WHERE i.path LIKE '%.txt'") == [("reindex",)]
    last = listener.last()
    assert (last.indexed, last.pending, last.users_done) == (6, 0, 2)


def test_what_happens_to_an_index_while_its_user_rests_is_noticed(place: Path) -> None:
    """An index that is lost between two turns is made again, although the ledger calls its items indexed."""
    settings = settings_in(place / "var", NIGHTMILL_EMBEDDER="none")
    for user in USERS[:2]:
        add(settings, user, texts(place / user, 100, "ruffs"))
    folder = settings.data_dir / "indexes" / USERS[0]

    class Vandal(Listener):
        """Removes the first user's index when the second has its turn, and something of both is published."""

        gone = 0

        def say(self, event: Event) -> None:
            super().say(event)
            if isinstance(event, ItemSettled) and event.user == USERS[1] and not self.gone:
                assert not is_locked(folder)
                self.gone = len(contents_of(folder))
                for file in folder.glob("index.db*"):
                    file.unlink()

    vandal = Vandal()
    assert go(settings, Rules(places=1, slice_seconds=0.0), listener=vandal).exit_code == 0
    assert 0 < vandal.gone < len(contents_of(folder))
    assert {row[3] for row in contents_of(folder)} == {f"{number}.txt" for number in range(100)}
