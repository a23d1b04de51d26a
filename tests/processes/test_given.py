"""The public functions that take what a product has in hand: real runs, in threads and in processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from engine.desk import stop_scheduler
from engine.errors import CannotRunError, UsageError
from engine.given import GivenReport, create_email_embeddings, create_file_embeddings, create_schedule_embeddings
from engine.leaving import erase_user, remove_sources
from engine.manager import get_thread_pool_manager
from engine.model import Lane, UserId
from engine.run import open_own_ledger, run
from engine.search import search
from engine.settings import INDEXES_FOLDER, Settings, load_settings
from engine.sources.given import folder_of
from engine.survey import Orders
from engine.telemetry import SilentReporter
from indexes import lock, paths
from tests import files
from tests.mill import Mill, killed_at_the_end, wait_until

ANN, BEN = UserId("ann"), UserId("ben")


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A data directory of its own; keyword search only."""
    made = load_settings({"NIGHTMILL_DATA_DIR": str(tmp_path / "var"), "NIGHTMILL_EMBEDDER": "none"}, dotenv=None)
    yield made
    stop_scheduler(made.data_dir)


def mails(*words: str, first: int = 0) -> list[dict[str, object]]:
    """A mail about each word."""
    return [
        {"id": f"m{number}", "subject": f"About the {word}", "from": "ann@example.com", "body": f"A {word} was seen."}
        for number, word in enumerate(words, start=first)
    ]


def hits(settings: Settings, user: str, words: str) -> list[tuple[str, str]]:
    """(path, title) of the hits."""
    answer = search(settings.data_dir / INDEXES_FOLDER, UserId(user), words, mode="keyword")
    return [(hit.path, hit.title) for hit in answer.hits]


def runs(settings: Settings) -> dict[str, int]:
    """What the last run has really done."""
    with open_own_ledger(settings) as ledger:
        work: dict[str, int] = ledger.last_runs(1)[0].report["work"]
        return work


def nightly(settings: Settings) -> int:
    """`nightmill init`."""
    return run(settings, None, kind="init", lane=Lane.BULK, orders=Orders(), reporter=SilentReporter()).exit_code


def test_mails_are_found_by_their_subject_and_again_cost_nothing(settings: Settings) -> None:
    """An unknown user is registered; the same mails again are unchanged; another content takes the old one's place."""
    report = create_email_embeddings("ann", mails("avocet", "bittern"), settings=settings)
    assert report == GivenReport(user_id="ann", given=2, indexed=2, skipped=0, failed=0)
    assert hits(settings, "ann", "bittern") == [("m1", "About the bittern")]
    again = create_email_embeddings("ann", mails("avocet", "bittern"), settings=settings)
    assert again == replace(report, unchanged=2)
    assert not any(runs(settings).values())
    changed = create_email_embeddings("ann", mails("avocet", "curlew"), settings=settings)
    assert changed == replace(report, unchanged=1)
    assert runs(settings)["extracted"] == 1
    assert hits(settings, "ann", "bittern") == []
    assert hits(settings, "ann", "curlew") == [("m1", "About the curlew")]
    assert nightly(settings) == 0
    assert not runs(settings)["extracted"]
    assert hits(settings, "ann", "curlew") == [("m1", "About the curlew")]


def test_nobody_finds_what_was_given_to_somebody_else(settings: Settings) -> None:
    """Two users, the same ids."""
    create_email_embeddings("ann", mails("avocet"), settings=settings)
    create_email_embeddings("ben", mails("bittern"), settings=settings)
    assert hits(settings, "ann", "bittern") == hits(settings, "ben", "avocet") == []
    assert hits(settings, "ben", "bittern") == [("m0", "About the bittern")]


def test_one_bad_item_costs_itself_alone(settings: Settings) -> None:
    """It is named by its place and its id, with the reason; attachments that fail are named too, and not counted."""
    sick = {"id": "m9", "subject": "Annex", "attachments": [{"name": "a.pdf", "content": b"%PDF-1.4 nonsense"}]}
    given = [
        *mails("avocet"),
        5,
        {"id": "m2", "body": 7},
        b"Subject: The knot\r\nMessage-ID: <k@x>\r\n\r\nKnots.",
        sick,
    ]
    report = create_email_embeddings("ann", given, settings=settings)
    assert (report.given, report.indexed, report.failed) == (5, 3, 2)
    assert [(each.index, each.id, each.attachment, each.reason) for each in report.failures] == [
        (1, "", "", "malformed"),
        (2, "m2", "", "malformed"),
        (4, "m9", "a.pdf", "damaged"),
    ]
    assert hits(settings, "ann", "knots") == [("<k@x>", "The knot")]


def test_events_and_files_of_every_form(settings: Settings, tmp_path: Path) -> None:
    """iCalendar and mappings; paths, names with content, ids; the path given is copied and may go."""
    events = [files.CALENDAR, {"id": "e1", "summary": "Tide table", "start": {"date": "2025-02-03"}}]
    report = create_schedule_embeddings("ann", events, settings=settings)
    assert (report.indexed, report.failed) == (2, 0)
    assert hits(settings, "ann", "lighthouse standup") == [("standup@example", "Standup of the lighthouse team")]
    assert hits(settings, "ann", "tide") == [("e1", "Tide table")]
    note = tmp_path / "note.txt"
    note.write_text("The dunlin.")
    handed = [
        note,
        {"name": "list.csv", "content": "bird,number\ngodwit,3\n"},
        {"id": "7", "name": "seven.txt", "content": b"The jacana."},
        {"id": "8", "path": str(files.text_pdf(tmp_path / "eight.pdf", "The phalarope."))},
        tmp_path / "absent.txt",
        tmp_path,
        settings.data_dir / "ledger.db",
    ]
    report = create_file_embeddings("ann", handed, None, settings=settings)
    assert (report.indexed, report.skipped, report.failed) == (4, 1, 2)
    assert [(each.index, each.reason) for each in report.failures] == [(4, "vanished"), (6, "unreadable")]
    assert [(each.index, each.reason) for each in report.skips] == [(5, "not_a_file")]
    note.unlink()
    assert hits(settings, "ann", "dunlin") == [(str(note), "note.txt")]
    assert hits(settings, "ann", "godwit")[0][0] == "list.csv"
    assert hits(settings, "ann", "jacana") == [("7/seven.txt", "seven.txt")]
    assert hits(settings, "ann", "phalarope")[0][0] == "8/eight.pdf"


def test_what_makes_no_sense_as_a_whole_is_refused_before_anything_is_kept(settings: Settings) -> None:
    """Wrong types, impossible percent, an impossible name, and files of Google Drive, with the way out."""
    for wrong in ("mail", b"mail", {"id": 1}, 5):
        with pytest.raises(UsageError, match=r"emails is of type .*; give a list"):
            create_email_embeddings("ann", wrong, settings=settings)  # type: ignore[arg-type]
    for start, end in ((60, 10), (-1, 10), (0, 101), (float("nan"), 10)):
        with pytest.raises(UsageError, match=r"percent|<="):
            create_email_embeddings("ann", [], start, end, settings=settings)
    for name in ("", "../ben", 5):
        with pytest.raises(UsageError):
            create_email_embeddings(name, mails("avocet"), settings=settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"files\[1\] has only an id \('1aB'\).*later release; download the file"):
        create_file_embeddings("ann", [{"name": "a.txt", "content": b"a"}, {"id": "1aB"}], settings=settings)
    assert not (settings.data_dir / INDEXES_FOLDER).exists()


def test_progress_rises_from_start_to_end_in_the_callers_thread(settings: Settings) -> None:
    """Also where there is nothing to do; a callback that raises ends nothing."""
    heard: list[float] = []
    threads: set[int] = set()

    def listen(percent: float, text: str) -> None:
        heard.append(percent)
        threads.add(threading.get_ident())
        assert text

    words = [f"avocet{number}" for number in range(40)]
    create_email_embeddings("ann", mails(*words), 10, 60, settings=settings, on_progress=listen)
    assert heard[0] == 10
    assert heard[-1] == 60
    assert heard == sorted(set(heard))
    assert threads == {threading.get_ident()}
    for given in (mails(*words), []):
        heard.clear()
        create_email_embeddings("ann", given, 60, 100, settings=settings, on_progress=listen)
        assert (heard[0], heard[-1]) == (60, 100)

    def fail(percent: float, text: str) -> None:
        raise RuntimeError("the status table is gone")

    assert create_email_embeddings("ann", mails("bittern"), settings=settings, on_progress=fail).indexed == 1


def test_a_callback_that_raises_keeps_nobody_else_from_the_progress(settings: Settings) -> None:
    """It is called again, and the status that everybody sees comes to its end."""
    heard: list[float] = []

    def fail(percent: float, text: str) -> None:
        heard.append(percent)
        raise RuntimeError("the status table is gone")

    create_email_embeddings("ann", mails("avocet"), settings=settings, on_progress=fail)
    assert (heard[0], heard[-1]) == (0, 100)
    status = get_thread_pool_manager(settings).get_stats()["user_status"]["ann"]
    assert (status["status"], status["progress"]) == ("done", 100)


def test_a_callback_cannot_wait_for_the_call_that_it_belongs_to(settings: Settings) -> None:
    """A call for the same user within `on_progress` would never get the user: it is refused, the first ends."""
    refused: list[UsageError] = []

    def nest(percent: float, text: str) -> None:
        try:
            create_email_embeddings("ann", mails("bittern", first=1), settings=settings)
        except UsageError as error:
            refused.append(error)

    assert create_email_embeddings("ann", mails("avocet"), settings=settings, on_progress=nest).indexed == 1
    assert refused
    assert create_email_embeddings("ann", mails("bittern", first=1), settings=settings).indexed == 1
    assert hits(settings, "ann", "bittern") == [("m1", "About the bittern")]


def test_what_an_item_is_made_of_costs_nobody_but_it(settings: Settings) -> None:
    """Lists without end, and values of the caller's that raise when they are asked: malformed, each by itself."""

    class Nowhere(tzinfo):
        """Says nothing."""

    class Broken(dict[str, object]):
        def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
            if name == "subject":
                raise KeyError(name)
            return super().get(name, default)

    endless: list[object] = []
    endless.append(endless)
    given = [
        {"id": "a", "subject": "Endless", "to": endless},
        {"id": "b", "subject": "Nowhere", "date": datetime(2025, 1, 1, tzinfo=Nowhere())},
        Broken(id="c"),
        {"id": "d", "subject": "The avocet"},
        {"id": 10**5000, "subject": "More digits than Python writes"},
    ]
    report = create_email_embeddings("ann", given, settings=settings)
    assert (report.indexed, report.failed) == (1, 4)
    assert [(each.id, each.reason) for each in report.failures] == [(id_, "malformed") for id_ in ("a", "b", "c", "")]
    assert hits(settings, "ann", "avocet") == [("d", "The avocet")]


def test_only_what_was_given_is_worked_on(settings: Settings, tmp_path: Path) -> None:
    """The user's other sources are not listed, their backlog is not taken up, the night still owes a visit."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "old.txt").write_text("The dunlin.")
    with open_own_ledger(settings) as ledger:
        ledger.add_user(ANN, [f"folder:{home}"])
    create_email_embeddings("ann", mails("avocet"), settings=settings, interactive=True)
    assert hits(settings, "ann", "dunlin") == []
    with open_own_ledger(settings) as ledger:
        record = ledger.find_user(ANN)
        assert record is not None
        assert record.done is None
        assert ledger.counts(ANN).found == 1
    assert nightly(settings) == 0
    assert hits(settings, "ann", "dunlin") == [("old.txt", "old.txt")]
    with open_own_ledger(settings) as ledger:
        done = [user.done for user in ledger.users()]
    # What the night has begun and not done stays its own: pending, and not taken up by a call for something else.
    (home / "new.txt").write_text("The knot.")
    _list_only(settings, home)
    create_email_embeddings("ann", mails("bittern"), settings=settings)
    with open_own_ledger(settings) as ledger:
        assert [user.done for user in ledger.users()] == done
        assert ledger.counts(ANN).pending == 1
    assert hits(settings, "ann", "knot") == []
    assert nightly(settings) == 0
    assert hits(settings, "ann", "knot") != []


def _list_only(settings: Settings, home: Path) -> None:
    """As a run that was killed right after it had listed the folder."""
    from engine.sources.uri import open_source

    with open_own_ledger(settings) as ledger:
        (source,) = (known for known in ledger.sources(ANN) if known.uri.startswith("folder:"))
        with ledger.listing(source.id) as listing:
            for page in open_source(source.uri).list(""):
                listing.add(page)
            listing.finish(complete=True, cursor="", accept_removals=False)


def test_another_model_is_brought_to_the_whole_index(settings: Settings) -> None:
    """An index has one model: the first call after a change does all of the user, and mixes nothing."""
    create_email_embeddings("ann", mails("avocet", "bittern"), settings=settings)
    create_file_embeddings("ann", [{"name": "dunlin.txt", "content": "A dunlin was seen."}], settings=settings)
    fast = replace(settings, embedder="fast")
    report = create_email_embeddings("ann", mails("curlew", first=2), settings=fast)
    assert report.indexed == 1
    assert runs(settings)["published"] == 4
    answer = search(settings.data_dir / INDEXES_FOLDER, ANN, "a bittern", mode="vector")
    assert {hit.path for hit in answer.hits} == {"m0", "m1", "m2", "dunlin.txt"}


def test_whoever_writes_the_index_is_waited_for(settings: Settings) -> None:
    """As `reindex` does; what is given meanwhile is not lost."""
    folder = paths.make_user_dir(settings.data_dir / INDEXES_FOLDER, "ann")
    held = lock.take(folder)
    reports: list[GivenReport] = []
    call = threading.Thread(
        target=lambda: reports.append(create_email_embeddings("ann", mails("avocet"), settings=settings))
    )
    call.start()
    try:
        wait_until(lambda: _began(settings), "the run to begin")
        assert not reports
        assert not (folder / "given").exists(), "nothing is written beside whoever holds the lock"
    finally:
        os.close(held)
        call.join()
    assert [report.indexed for report in reports] == [1]


def _began(settings: Settings) -> bool:
    if not (settings.data_dir / "ledger.db").exists():
        return False
    with open_own_ledger(settings) as ledger:
        return bool(ledger.last_runs(1))


def test_a_user_who_is_erased_meanwhile_leaves_nothing(settings: Settings) -> None:
    """Whoever waited for the lock finds nobody, and writes nothing."""
    with open_own_ledger(settings) as ledger:
        ledger.add_user(ANN, [])
    folder = paths.make_user_dir(settings.data_dir / INDEXES_FOLDER, "ann")
    held = lock.take(folder)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            create_email_embeddings("ann", mails("avocet"), settings=settings)
        except CannotRunError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        wait_until(lambda: _began(settings), "the run to begin")
        with open_own_ledger(settings) as ledger:
            ledger.remove_user(ANN)
        paths.erase(folder, lock_fd=held)
    finally:
        os.close(held)
        thread.join()
    assert [str(error) for error in errors] == ["ann was removed meanwhile; nothing of what was given is kept"]
    status = get_thread_pool_manager(settings).get_stats()["user_status"]["ann"]
    assert (status["status"], status["progress"]) == ("failed", None)
    assert not list((settings.data_dir / INDEXES_FOLDER).rglob("given"))


def test_threads_work_for_several_users_at_once(settings: Settings) -> None:
    """Calls from several threads, two of them for the same user, all end well."""
    reports: list[GivenReport] = []
    calls: list[tuple[str, Sequence[object]]] = [
        ("ann", mails("avocet", "bittern")),
        ("ben", mails("curlew")),
        ("ann", mails("dunlin", first=2)),
    ]
    threads = [
        threading.Thread(target=lambda call=call: reports.append(create_email_embeddings(*call, settings=settings)))  # type: ignore[misc]
        for call in calls
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((report.user_id, report.indexed, report.failed) for report in reports) == [
        ("ann", 1, 0),
        ("ann", 2, 0),
        ("ben", 1, 0),
    ]
    assert hits(settings, "ann", "dunlin") == [("m2", "About the dunlin")]
    assert hits(settings, "ann", "curlew") == []


def test_the_signals_of_the_program_around_us_stay_its_own(settings: Settings) -> None:
    """A server that calls us keeps what it has decided about SIGTERM, while we work too."""
    mine = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        seen: list[object] = []
        create_email_embeddings(
            "ann",
            mails("avocet"),
            settings=settings,
            on_progress=lambda percent, text: seen.append(signal.getsignal(signal.SIGTERM)),
        )
        assert set(seen) == {signal.SIG_IGN}
    finally:
        signal.signal(signal.SIGTERM, mine)


def test_erased_and_taken_away_leave_no_byte(settings: Settings) -> None:
    """`users remove NAME given:mail` destroys what was kept of it too, `users erase` all of it."""
    root = settings.data_dir / INDEXES_FOLDER
    for user in ("ann", "ben"):
        create_email_embeddings(user, mails("avocetword"), settings=settings)
        create_file_embeddings(user, [{"name": "a.txt", "content": "The bitternword."}], settings=settings)
    with open_own_ledger(settings) as ledger:
        remove_sources(ANN, ["given:mail"], ledger=ledger, root=root)
        erase_user(BEN, ledger=ledger, root=root)
    assert hits(settings, "ann", "avocetword") == []
    assert hits(settings, "ann", "bitternword") == [("a.txt", "a.txt")]
    assert nightly(settings) == 0
    kept = [file.read_bytes() for file in (root / "ann").rglob("*") if file.is_file()]
    assert not any(b"avocetword" in content for content in kept)
    assert os.listdir(root) == ["ann"]
    assert create_email_embeddings("ann", mails("avocetword"), settings=settings).unchanged == 0


SCRIPT = textwrap.dedent(
    """
    from engine.given import create_email_embeddings
    mails = [
        {"id": f"m{n}", "subject": f"Mail {n}", "body": f"The avocet{n} was seen.",
         "attachments": [{"name": "a.txt", "content": b"annex %d" % n}]}
        for n in range(60)
    ]
    report = create_email_embeddings("ann", mails)
    print(report.given, report.indexed, len(report.failures))
    """
)


def test_killed_in_the_middle_and_called_again_it_is_complete(tmp_path: Path) -> None:
    """kill -9 while workers read: the same call again ends all of it, settings from the environment, nothing twice."""
    mill = Mill(tmp_path, NIGHTMILL_EMBEDDER="fast")
    command = [sys.executable, "-P", "-c", SCRIPT]
    first = subprocess.Popen(
        command, cwd=tmp_path, env=mill.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with killed_at_the_end(first):

        def some_are_read() -> bool:
            # A spool is made when the ledger has its tables.
            return (mill.data_dir / "spool").exists() and len(mill.ledger("SELECT 1 FROM attempts")) > 10

        wait_until(some_are_read, "some mails to be read")
        assert first.poll() is None, "all was over before it could be killed"
    wait_until(lambda: not mill.workers(), "the end of its workers")
    assert mill.ledger("SELECT count(*) FROM items WHERE parent_id IS NULL") == [(60,)]
    assert mill.ledger("SELECT count(*) FROM items WHERE state = 'pending'") != [(0,)]
    second = subprocess.run(command, cwd=tmp_path, env=mill.environ, capture_output=True, text=True, timeout=120)
    assert (second.returncode, second.stdout.split()) == (0, ["60", "60", "0"]), second.stderr
    assert mill.repeated_units() == []
    assert mill.ledger("SELECT count(*) FROM items WHERE state = 'indexed'") == [(120,)]
    mill.stop_scheduler()
    wait_until(lambda: not mill.processes(), "the end of every process of this data directory")


def test_the_import_is_light() -> None:
    """A product that only hands something over loads no library that could take it down."""
    code = "import sys, engine.given; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"pymupdf", "fitz", "docx", "PIL", "tesserocr", "pytesseract", "onnxruntime", "tokenizers", "wordllama"}
    assert not heavy & set(done.stdout.split())


def test_a_call_that_was_interrupted_writes_into_no_file_of_its_caller(settings: Settings, tmp_path: Path) -> None:
    """An item that takes its time outlives the call; when it has come, nothing is written to what was opened since."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(dict[str, object]):
        def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
            begun.set()
            go_on.wait(60)
            return super().get(name, default)

    def interrupt(percent: float, text: str) -> None:
        if percent > 0:
            begun.wait(60)
            raise KeyboardInterrupt

    given = [*mails(*["avocet"] * 20), Slow(id="slow", subject="Late")]
    with pytest.raises(KeyboardInterrupt):
        create_email_embeddings("ann", given, settings=settings, on_progress=interrupt)
    (late,) = [thread for thread in threading.enumerate() if thread.name == "surveyor"]
    # So many that every number that was closed is in use again.
    opened = [(tmp_path / f"own{number}").open("w") for number in range(64)]
    try:
        go_on.set()
        late.join()
        assert not any(os.fstat(file.fileno()).st_size for file in opened)
    finally:
        for file in opened:
            file.close()


def test_what_was_given_and_cannot_be_removed_is_said(settings: Settings) -> None:
    """The source stays, to be removed again; no crash."""
    create_email_embeddings("ann", mails("avocet"), settings=settings)
    root = settings.data_dir / INDEXES_FOLDER
    place = folder_of(paths.user_dir(root, "ann"), "mail")
    # A folder in the place of which something else was put cannot be removed as one, whoever asks.
    place.rename(place.with_name("elsewhere"))
    place.write_text("not a folder")
    with open_own_ledger(settings) as ledger:
        with pytest.raises(CannotRunError, match=r"given/mail could not be removed: .*; mend that"):
            remove_sources(ANN, ["given:mail"], ledger=ledger, root=root)
        place.unlink()
        place.with_name("elsewhere").rename(place)
        assert remove_sources(ANN, ["given:mail"], ledger=ledger, root=root) == 1
    assert not place.exists()
