"""What happened to every item: kept exactly, by several processes at once, whoever is killed."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.clock import SystemClock
from engine.errors import CannotRunError, NewerDataError, NightmillError, UsageError
from engine.ledger import SqlLedger, open_ledger
from engine.ledger.listing import Difference, Known, _Bits, judge
from engine.ledger.migrations import MIGRATIONS, SCHEMA
from engine.ledger.tables import TRIGGERS, metadata
from engine.model import (
    Counts,
    Failure,
    Fingerprint,
    ItemId,
    ItemKey,
    ItemState,
    Listed,
    PeakCount,
    PeakKey,
    RunId,
    SourceId,
    Stage,
    UserId,
)
from engine.ports import Attempt, ItemRecord, ListingOutcome, Move
from engine.reasons import Reason

ANN, BEN = UserId("ann"), UserId("ben")
RUN = RunId(1)
PENDING, INDEXED, SKIPPED = ItemState.PENDING, ItemState.INDEXED, ItemState.SKIPPED
FAILED, QUARANTINED = ItemState.FAILED, ItemState.QUARANTINED
DAMAGED = Failure(reason=Reason.DAMAGED, detail="not a PDF")
UNSUPPORTED = Failure(reason=Reason.UNSUPPORTED_TYPE, detail="a film")


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def ledger(tmp_path: Path, clock: HandClock) -> Iterator[SqlLedger]:
    """An empty ledger with one user and one source."""
    with open_ledger(tmp_path / "data" / "ledger.db", clock) as opened:
        opened.add_user(ANN, ["folder:/home/ann"])
        yield opened


def listed(name: str, fingerprint: str = "1", **more: Any) -> Listed:
    """A file called `name`."""
    return Listed(key=ItemKey(name), fingerprint=Fingerprint(fingerprint), path=f"docs/{name}", **more)


def source_of(ledger: SqlLedger, user: UserId = ANN) -> SourceId:
    return ledger.sources(user)[0].id


def take_down(
    ledger: SqlLedger,
    *pages: Sequence[Listed],
    source: SourceId | None = None,
    complete: bool = True,
    cursor: str = "",
    accept: bool = False,
) -> ListingOutcome:
    """One listing of ann's first source."""
    with ledger.listing(source_of(ledger) if source is None else source) as listing:
        for page in pages:
            listing.add(page)
        return listing.finish(complete=complete, cursor=cursor, accept_removals=accept)


def item(ledger: SqlLedger, name: str) -> ItemRecord:
    """The one item whose path ends so."""
    (found,) = [record for record in ledger.find_items(name) if record.path.endswith(name)]
    return found


def index(ledger: SqlLedger, *names: str, generation: int = 1, user: UserId = ANN) -> None:
    """Publish these items."""
    ledger.published(RUN, user, generation, [Move(item=item(ledger, name).id, state=INDEXED) for name in names])


def peak(*, kind: str = "pdf", bucket: int = 40, weight: float = 1.0, samples: int = 1) -> PeakCount:
    """So many samples of what extracting a megabyte took."""
    key = PeakKey(Stage.EXTRACT, kind, 20)
    return PeakCount(key=key, bucket=bucket, weight=weight, samples=samples)


def rows_of(ledger: SqlLedger, query: str) -> list[Any]:
    """What SQL says, past the ledger's own code."""
    with closing(sqlite3.connect(ledger._database.path)) as connection:
        return connection.execute(query).fetchall()


def writes(ledger: SqlLedger, act: Callable[[], object]) -> int:
    """How many times the file was committed to while acting, as another connection sees it."""
    with closing(sqlite3.connect(ledger._database.path)) as connection:
        before = connection.execute("PRAGMA data_version").fetchone()
        act()
        return int(connection.execute("PRAGMA data_version").fetchone() != before)


# --- the file --------------------------------------------------------------------------------------------------------


def schema(connection: sqlite3.Connection) -> dict[str, Any]:
    """All that decides how a database behaves, without how its statements were spelled."""

    def plain(sql: str) -> str:
        return "".join(sql.split())

    found: dict[str, Any] = {}
    for kind, name, table, sql in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall():
        key = f"{kind} {name}"
        if kind == "table":
            found[key] = (
                sorted(row[1:] for row in connection.execute(f"PRAGMA table_xinfo({name})")),
                sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({name})")),
                "AUTOINCREMENT" in sql,
                "WITHOUT ROWID" in sql,
            )
        elif kind == "index":
            columns = [row[2:] for row in connection.execute(f"PRAGMA index_xinfo({name})")]
            flags = [row[2:] for row in connection.execute(f"PRAGMA index_list({table})") if row[1] == name]
            found[key] = (columns, flags, plain(sql.partition("WHERE")[2]) if sql else "")
        else:
            found[key] = (table, plain(sql))
    return found


def test_migrating_an_empty_file_gives_the_tables_of_today(ledger: SqlLedger) -> None:
    """migrations.py and tables.py say the same."""
    from sqlalchemy import create_engine

    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        for trigger in TRIGGERS:
            connection.exec_driver_sql(trigger)
        declared = schema(connection.connection.driver_connection)  # type: ignore[arg-type]
    with closing(sqlite3.connect(ledger._database.path)) as migrated:
        assert schema(migrated) == declared
        assert migrated.execute("PRAGMA user_version").fetchone() == (SCHEMA,)


def test_the_file_is_private_and_its_folder_is_made(tmp_path: Path, clock: HandClock) -> None:
    """Nobody else on the machine reads who has which files."""
    path = tmp_path / "new" / "data" / "ledger.db"
    with open_ledger(path, clock) as opened:
        opened.add_user(ANN, [])
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
        assert rows_of(opened, "PRAGMA journal_mode") == [("wal",)]


def test_a_newer_ledger_is_refused(tmp_path: Path, clock: HandClock) -> None:
    """An older release does not write what it does not understand, and says what to do."""
    path = tmp_path / "ledger.db"
    open_ledger(path, clock).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(NewerDataError, match=r"newer release.*install that release"):
        open_ledger(path, clock)


def test_a_migration_that_breaks_off_leaves_the_file_as_it_was(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema and number change together or not at all, and an older ledger is brought up to date."""
    path = tmp_path / "ledger.db"
    with open_ledger(path, clock) as opened:
        opened.add_user(ANN, [])
    better = ("CREATE TABLE extra (id INTEGER)",)
    monkeypatch.setattr("engine.ledger.migrations.SCHEMA", SCHEMA + 1)
    monkeypatch.setattr("engine.ledger.migrations.MIGRATIONS", (*MIGRATIONS, (*better, "CREATE nonsense")))
    with pytest.raises(Exception, match="nonsense"):
        open_ledger(path, clock)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'extra'").fetchall()
    monkeypatch.setattr("engine.ledger.migrations.MIGRATIONS", (*MIGRATIONS, better))
    with open_ledger(path, clock) as opened:
        assert rows_of(opened, "PRAGMA user_version") == [(SCHEMA + 1,)]
        assert rows_of(opened, "SELECT * FROM extra") == []
        assert opened.find_user(ANN) is not None


def test_a_ledger_of_the_first_release_is_brought_up_to_date(tmp_path: Path, clock: HandClock) -> None:
    """Its users and items are there as they were; what it could not know is empty, and can be learned."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute("INSERT INTO users VALUES (7, 'ann', 1.0, 3, 5.0, 'stamp', 'versions', 9.0)")
        connection.execute("INSERT INTO sources VALUES (8, 7, 'folder:/home/ann', '', NULL, '', 0, NULL)")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    with open_ledger(path, clock) as opened:
        assert rows_of(opened, "PRAGMA user_version") == [(SCHEMA,)]
        assert [(user.name, user.generation, user.done) for user in opened.users()] == [(ANN, 3, 9.0)]
        assert opened.peaks() == []
        opened.settle(RUN, [], [], [peak(samples=2)])
        assert opened.peaks() == [peak(samples=2)]


def _damage(path: Path) -> None:
    path.write_bytes(b"this is no database, whatever its name says" * 100)


def _other(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE albums (title TEXT)")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.mkdir, "cannot be opened"),
        (_damage, "is not a ledger; restore it from a backup"),
        (_other, "not a ledger of Nightmill; choose another"),
        (lambda path: path.symlink_to("nowhere/at/all"), "cannot be opened"),
    ],
)
def test_what_is_no_ledger_is_refused_with_a_way_out(
    tmp_path: Path, clock: HandClock, spoil: Callable[[Path], object], words: str
) -> None:
    """The message names the file and what to do, and the file stays as it was."""
    path = tmp_path / "ledger.db"
    spoil(path)
    with pytest.raises(CannotRunError, match=words) as caught:
        open_ledger(path, clock)
    assert str(path) in str(caught.value)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path, clock: HandClock) -> None:
    """No folder can be made there."""
    (tmp_path / "data").write_text("")
    with pytest.raises(CannotRunError, match="cannot be used"):
        open_ledger(tmp_path / "data" / "ledger.db", clock)


def test_a_ledger_that_may_not_be_written_says_so(ledger: SqlLedger) -> None:
    """Reading goes on; writing names the file and the way out."""
    with ledger._database.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    assert ledger.find_user(ANN) is not None
    with pytest.raises(CannotRunError, match="may not be written; give"):
        ledger.add_user(BEN, [])


def test_damage_inside_the_file_says_so(tmp_path: Path, clock: HandClock) -> None:
    """A page that was overwritten is found and named, not shown as a defect of the program."""
    path = tmp_path / "ledger.db"
    with open_ledger(path, clock) as opened:
        opened.add_user(ANN, [f"folder:/{number}" for number in range(100)])
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(CannotRunError, match="is damaged; restore"), open_ledger(path, clock) as opened:
        opened.users()


def test_a_full_disk_says_so_and_keeps_nothing(ledger: SqlLedger) -> None:
    """The transaction is undone, and there is a way out."""
    take_down(ledger, [listed("a")])
    with ledger._database.read() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(CannotRunError, match="disk is full; free space"):
        take_down(ledger, [listed(f"f{number}" * 20) for number in range(1000)])
    assert ledger.counts(ANN).found == 1


def test_notes_that_find_no_room_say_so(ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a listing keeps beside the database meets the same full disk."""

    def full(_note: object) -> None:
        raise OSError(28, "No space left on device")

    with ledger.listing(source_of(ledger)) as listing:
        monkeypatch.setattr(listing._notes, "add", full)
        with pytest.raises(CannotRunError, match="No space left"):
            listing.add([listed("a")])


def test_a_ledger_that_stays_locked_says_so(tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait for one another, but not for ever; what has nothing to write does not wait at all."""
    monkeypatch.setattr("engine.ledger.database.BUSY_SECONDS", 0.01)
    path = tmp_path / "ledger.db"
    with (
        open_ledger(path, clock) as opened,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        opened.add_user(ANN, ["folder:/a"])
        take_down(opened, [listed("a")])
        opened.add_parts(item(opened, "a").id, [listed("a/1")])
        other.execute("BEGIN IMMEDIATE")
        assert take_down(opened, [listed("a")]).unchanged == 1
        assert take_down(opened, [listed("a")], complete=False).unchanged == 1
        assert opened.add_parts(item(opened, "docs/a").id, [listed("a/1")]).unchanged == 1
        assert opened.requeue(ANN, states=[FAILED]) == 0
        opened.touch_source(source_of(opened))
        opened.settle(RUN, [], [])
        with pytest.raises(CannotRunError, match="locked by another process"):
            opened.add_user(BEN, [])
        other.execute("ROLLBACK")
        opened.add_user(BEN, [])


def test_nobody_else_makes_or_migrates_the_ledger_meanwhile(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that switch a new file to WAL at once would fail one another, in spite of the time-out."""
    held = []

    def create(path: Path) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(path)
        finally:
            os.close(folder)

    monkeypatch.setattr("engine.ledger.database._create", create)
    open_ledger(tmp_path / "ledger.db", clock).close()
    assert held == [tmp_path / "ledger.db"]


def test_closing_twice_is_fine(ledger: SqlLedger) -> None:
    """`close` is idempotent."""
    ledger.close()
    ledger.close()


# --- users and sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "x" * 201, "a/b", "-a", ".a", "a\nb", "a\x00", "a\x7f", "a\u2028b", "\ud800"])
def test_names_that_would_do_harm_are_refused(ledger: SqlLedger, name: str) -> None:
    """A name becomes a part of folder names, command lines and messages."""
    with pytest.raises(UsageError, match="cannot be a user's name"):
        ledger.add_user(UserId(name), [])


@pytest.mark.parametrize("name", ["a", "x" * 200, "ann@example.com", "Ann Müller", "安", "a-b.c"])
def test_names_of_people_are_taken(ledger: SqlLedger, name: str) -> None:
    """Any script, and what stands in addresses."""
    ledger.add_user(UserId(name), ["folder:/x"])
    assert ledger.find_user(UserId(name)) is not None
    assert ledger.sources(UserId(name))[0].user == name


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_above_nothing(ledger: SqlLedger, weight: float) -> None:
    """A share of zero would wait for ever."""
    with pytest.raises(UsageError, match="weight"):
        ledger.add_user(BEN, [], weight=weight)
    assert ledger.find_user(BEN) is None


def test_adding_again_adds_only_what_is_new(ledger: SqlLedger) -> None:
    """Known sources keep their id, cursor and items; a weight is kept unless another is given."""
    take_down(ledger, [listed("a")], cursor="c1")
    ledger.add_user(ANN, [], weight=3.0)
    before = ledger.sources(ANN)[0]
    ledger.add_user(ANN, ["folder:/home/ann", "mbox:/mail"])
    assert ledger.sources(ANN)[0] == before
    assert [source.uri for source in ledger.sources(ANN)] == ["folder:/home/ann", "mbox:/mail"]
    assert ledger.counts(ANN).found == 1
    user = ledger.find_user(ANN)
    assert user is not None
    assert user.weight == 3.0


def test_the_unknown_is_a_usage_error(ledger: SqlLedger) -> None:
    """Words that name nobody are the caller's mistake."""
    assert ledger.find_user(BEN) is None
    assert ledger.counts(BEN) == Counts()
    assert ledger.pending(BEN, limit=10) == []
    with pytest.raises(UsageError, match="ben"):
        ledger.sources(BEN)
    with pytest.raises(UsageError, match="ben"):
        ledger.remove_user(BEN)
    with pytest.raises(UsageError, match="ben"):
        ledger.reconcile(BEN, 1, {})
    with pytest.raises(UsageError, match="source 99"), ledger.listing(SourceId(99)):
        pass


def test_a_removed_user_leaves_nothing_in_the_files(ledger: SqlLedger) -> None:
    """Not a row, and not a byte of a path: neither in the database nor in its write-ahead log."""
    ledger.add_user(BEN, ["folder:/home/ben"])
    secret = "ZQXJ-divorce-papers"
    names = [f"{secret}-{number}" for number in range(500)]
    take_down(ledger, [listed(name) for name in names], source=source_of(ledger, BEN))
    records = ledger.pending(BEN, limit=1000)
    ledger.add_parts(records[0].id, [listed(f"{secret}/part")])
    attempt = Attempt(
        item=records[0].id, stage=Stage.EXTRACT, part="", failure=Failure(reason=Reason.DAMAGED, detail=secret),
        started=1.0, seconds=1.0, cpu_seconds=1.0, peak_bytes=1,
    )  # fmt: skip
    ledger.settle(RUN, [attempt], [Move(item=record.id, state=INDEXED) for record in records])
    take_down(ledger, [listed(name) for name in names[:-1]], source=source_of(ledger, BEN))
    assert ledger.departed(BEN)
    ledger.remove_user(BEN)
    assert [user.name for user in ledger.users()] == [ANN]
    for table in ("items", "attempts", "tallies", "departed"):
        assert rows_of(ledger, f"SELECT count(*) FROM {table}") == [(0,)], table
    for file in ledger._database.path.parent.iterdir():
        assert secret.encode() not in file.read_bytes(), file.name


def test_a_removed_source_departs_from_the_index(ledger: SqlLedger) -> None:
    """Its items are forgotten, and what was indexed of them is named to the index; the others stay."""
    ledger.add_user(ANN, ["mbox:/mail"])
    files, mails = [source.id for source in ledger.sources(ANN)]
    take_down(ledger, [listed("a"), listed("b")], source=files)
    take_down(ledger, [listed("m")], source=mails)
    index(ledger, "a", "m")
    ledger.remove_source(files)
    ledger.remove_source(SourceId(99))
    assert ledger.departed(ANN) == [(files, "a")]
    assert ledger.counts(ANN) == Counts(found=1, indexed=1)
    ledger.add_user(ANN, ["folder:/home/ann"])
    assert files not in {source.id for source in ledger.sources(ANN)}, "an id was used again"


def test_users_come_stalest_first(ledger: SqlLedger, clock: HandClock) -> None:
    """Never done comes first, then the longest since."""
    for name in ("carl", "ben", "dora"):
        ledger.add_user(UserId(name), [])
    for name in ("dora", "ann", "carl"):
        clock.time += 10
        ledger.user_done(UserId(name), RUN, index_stamp=f"stamp {name}", versions="e1c1")
    assert [user.name for user in ledger.users()] == ["ben", "dora", "ann", "carl"]
    done = ledger.users()[1]
    assert (done.done, done.index_stamp, done.versions) == (1010.0, "stamp dora", "e1c1")


def test_a_source_remembers_why_it_could_not_be_listed(ledger: SqlLedger, clock: HandClock) -> None:
    """Items stay as they are; the next complete listing clears it, and so does a look that finds it unchanged."""
    source = source_of(ledger)
    take_down(ledger, [listed("a")])
    for mend in (lambda: take_down(ledger, [listed("a")]), lambda: ledger.touch_source(source)):
        ledger.source_failed(source, Failure(reason=Reason.SOURCE_MISSING, detail="x" * 3000))
        record = ledger.sources(ANN)[0]
        assert (record.reason, len(record.detail)) == (Reason.SOURCE_MISSING, 2000)
        assert ledger.counts(ANN).found == 1
        take_down(ledger, [], complete=False)
        assert ledger.sources(ANN)[0].reason is Reason.SOURCE_MISSING
        clock.time += 5
        mend()
        record = ledger.sources(ANN)[0]
        assert (record.reason, record.detail, record.listed) == (None, "", clock.time)


# --- listings --------------------------------------------------------------------------------------------------------


def test_a_listing_says_new_changed_unchanged_and_gone(ledger: SqlLedger) -> None:
    """One comparison per page with what is known."""
    first = take_down(ledger, [listed("a"), listed("b")], [listed("c"), listed("d")], cursor="c1")
    assert first == ListingOutcome(new=4, changed=0, unchanged=0, gone=(), held=0)
    index(ledger, "a", "b", "c", "d")
    second = take_down(ledger, [listed("a"), listed("b", "2"), listed("c"), listed("e")], cursor="c2")
    assert second == ListingOutcome(new=1, changed=1, unchanged=2, gone=(ItemKey("d"),), held=0)
    assert ledger.counts(ANN) == Counts(found=4, indexed=2, pending=2)
    assert ledger.sources(ANN)[0].cursor == "c2"
    assert item(ledger, "b").fingerprint == "2"


def test_an_unchanged_source_costs_no_write(ledger: SqlLedger) -> None:
    """A pass where nothing changed takes no lock and writes nothing: not even that it looked."""
    pages = [[listed(f"{page}-{number}", locator={"at": [1, 2]}) for number in range(1000)] for page in range(3)]
    take_down(ledger, *pages, cursor="c")
    outcomes = []
    assert writes(ledger, lambda: outcomes.append(take_down(ledger, *pages, cursor="c"))) == 0
    assert writes(ledger, lambda: ledger.touch_source(source_of(ledger))) == 0
    assert writes(ledger, lambda: ledger.requeue(ANN, reasons=[Reason.VANISHED], states=[FAILED])) == 0
    assert writes(ledger, lambda: ledger.settle(RUN, [], [])) == 0
    assert outcomes == [ListingOutcome(new=0, changed=0, unchanged=3000, gone=(), held=0)]
    assert writes(ledger, lambda: take_down(ledger, *pages, cursor="another")) == 1


def test_a_changed_item_starts_anew(ledger: SqlLedger) -> None:
    """Attempts, suspicion and failure belonged to the bytes that were."""
    take_down(ledger, [listed("a"), listed("b"), listed("c")])
    ids = [item(ledger, name).id for name in "abc"]
    ledger.settle(
        RUN,
        [],
        [
            Move(item=ids[0], state=QUARANTINED, failure=Failure(reason=Reason.CRASHED), attempts=2, alone=True),
            Move(item=ids[1], state=FAILED, failure=DAMAGED, attempts=1),
            Move(item=ids[2], state=SKIPPED, failure=UNSUPPORTED),
        ],
    )
    assert take_down(ledger, [listed("a"), listed("b"), listed("c")]).changed == 0
    assert ledger.counts(ANN) == Counts(found=3, failed=2, skipped=1)
    assert take_down(ledger, [listed(name, "2") for name in "abc"]).changed == 3
    for name in "abc":
        record = item(ledger, name)
        assert (record.state, record.reason, record.detail) == (PENDING, None, "")
        assert (record.attempts, record.alone) == (0, False)


def test_content_that_moved_is_followed_but_not_read_again(ledger: SqlLedger) -> None:
    """A mail's offset changes with every mail removed before it; its fingerprint does not."""
    take_down(ledger, [listed("a", locator={"offset": 100}, modified=1.0)])
    ledger.settle(RUN, [], [Move(item=item(ledger, "a").id, state=FAILED, failure=DAMAGED)])
    moved = listed("a", locator={"offset": 50}, modified=2.0, size_bytes=7)
    outcome = take_down(ledger, [replace(moved, path="elsewhere/a")])
    assert outcome == ListingOutcome(new=0, changed=0, unchanged=1, gone=(), held=0)
    record = item(ledger, "a")
    assert (record.locator, record.modified, record.size_bytes) == ({"offset": 50}, 2.0, 7)
    assert (record.path, record.state, record.detail) == ("elsewhere/a", FAILED, "not a PDF")


def test_a_rule_of_the_source_takes_an_item_out_and_lets_it_in_again(ledger: SqlLedger) -> None:
    """Skipped with that reason, unchanged as long as it holds, pending when it is lifted."""
    out = listed("a", skip=Reason.TOO_OLD, skip_detail="of 1999")
    assert take_down(ledger, [out]).new == 1
    assert (item(ledger, "a").state, item(ledger, "a").detail) == (SKIPPED, "of 1999")
    assert writes(ledger, lambda: take_down(ledger, [out])) == 0
    # Its bytes do not matter while it is left out, and what is shown follows.
    assert take_down(ledger, [listed("a", "2", skip=Reason.TOO_OLD, skip_detail="of 1998")]).unchanged == 1
    assert item(ledger, "a").detail == "of 1998"
    assert take_down(ledger, [listed("a", "2", skip=Reason.TOO_LARGE)]).changed == 1
    assert item(ledger, "a").reason is Reason.TOO_LARGE
    assert ledger.requeue(ANN, states=list(ItemState)) == 0
    assert take_down(ledger, [listed("a", "2")]).changed == 1
    assert (item(ledger, "a").state, item(ledger, "a").reason) == (PENDING, None)


def test_an_item_that_a_rule_takes_out_leaves_the_index_with_its_parts(ledger: SqlLedger) -> None:
    """What must not be searched any more departs: the mail and, all the way down, what was attached to it."""
    take_down(ledger, [listed("mail"), listed("other")])
    ledger.add_parts(item(ledger, "mail").id, [listed("mail/1")])
    ledger.add_parts(item(ledger, "mail/1").id, [listed("mail/1/1")])
    index(ledger, "docs/mail", "docs/mail/1", "docs/mail/1/1", "other")
    outcome = take_down(ledger, [listed("mail", skip=Reason.EXCLUDED), listed("other")])
    assert set(outcome.gone) == {"mail/1", "mail/1/1"}
    source = source_of(ledger)
    assert ledger.departed(ANN) == [(source, "mail"), (source, "mail/1"), (source, "mail/1/1")]
    assert ledger.counts(ANN) == Counts(found=2, indexed=1, skipped=1)


def test_nothing_of_a_listing_that_breaks_off_is_kept(ledger: SqlLedger) -> None:
    """A source that becomes unreachable in the middle leaves the ledger as it was, whatever it had said."""
    take_down(ledger, [listed("a")], cursor="c1")
    before = rows_of(ledger, "SELECT * FROM items")

    def break_off() -> None:
        with ledger.listing(source_of(ledger)) as listing:
            listing.add([listed("a", "2"), listed("b")])
            raise ConnectionError

    with pytest.raises(ConnectionError):
        break_off()
    assert rows_of(ledger, "SELECT * FROM items") == before


def test_an_incomplete_listing_removes_nothing(ledger: SqlLedger) -> None:
    """What it found counts; what it did not name may well be there."""
    take_down(ledger, [listed("a"), listed("b")], cursor="c1")
    outcome = take_down(ledger, [listed("a", "2")], complete=False, cursor="c2")
    assert (outcome.changed, outcome.gone, outcome.held) == (1, (), 0)
    assert ledger.counts(ANN).found == 2
    assert ledger.sources(ANN)[0].cursor == "c1"


def test_a_key_named_twice_is_one_item(ledger: SqlLedger) -> None:
    """In a page or in two, new or known."""
    assert take_down(ledger, [listed("a"), listed("a")], [listed("a")]).new == 1
    assert take_down(ledger, [listed("a", "2"), listed("a", "2")], [listed("a", "2")]).changed == 1
    assert take_down(ledger, [listed("a", "2"), listed("a", "2")], [listed("a", "2")]).unchanged == 1


def test_what_somebody_else_adds_meanwhile_is_not_gone(ledger: SqlLedger, clock: HandClock) -> None:
    """Items that a listing cannot have seen are no reason to remove them."""
    with open_ledger(ledger._database.path, clock) as other, ledger.listing(source_of(ledger)) as listing:
        listing.add([listed("a")])
        take_down(other, [listed("a"), listed("b")])
        outcome = listing.finish(complete=True, cursor="", accept_removals=True)
    assert outcome.gone == ()
    assert ledger.counts(ANN).found == 2


def test_a_source_removed_meanwhile_gets_nothing(ledger: SqlLedger) -> None:
    """Its listing ends quietly, with an empty outcome, and so do parts and moves of its items."""
    take_down(ledger, [listed("a")])
    record = item(ledger, "a")
    with ledger.listing(source_of(ledger)) as listing:
        listing.add([listed("b")])
        ledger.remove_source(source_of(ledger))
        outcome = listing.finish(complete=True, cursor="c", accept_removals=False)
    assert outcome == ListingOutcome(new=0, changed=0, unchanged=0, gone=(), held=0)
    assert ledger.add_parts(record.id, [listed("a/1")]).new == 0
    attempt = Attempt(
        item=record.id, stage=Stage.EXTRACT, part="", failure=None, started=1, seconds=1, cpu_seconds=1, peak_bytes=1
    )
    ledger.settle(RUN, [attempt], [Move(item=record.id, state=INDEXED)])
    ledger.remove_user(ANN)
    ledger.published(RUN, ANN, 1, [Move(item=record.id, state=INDEXED)])
    ledger.user_done(ANN, RUN, index_stamp="", versions="")
    assert ledger.counts() == Counts()


@pytest.mark.parametrize(
    ("total", "vanished", "held"),
    [(100, 10, 0), (100, 11, 11), (10, 10, 0), (110, 11, 0), (109, 11, 11), (11, 11, 11), (200, 20, 0), (200, 21, 21)],
)
def test_the_brake_holds_when_much_vanishes_at_once(ledger: SqlLedger, total: int, vanished: int, held: int) -> None:
    """More than 10 items and more than a tenth of the source, and not one less."""
    names = [f"f{number}" for number in range(total)]
    take_down(ledger, [listed(name) for name in names], cursor="c1")
    outcome = take_down(ledger, [listed(name) for name in names[vanished:]], cursor="c2")
    assert (outcome.held, len(outcome.gone)) == (held, 0 if held else vanished)
    record = ledger.sources(ANN)[0]
    assert record.held_removals == held
    assert record.reason is (Reason.REMOVALS_HELD if held else None)
    # A source that is unchanged since `c2` would never be listed again, and its removals never decided.
    assert record.cursor == ("c1" if held else "c2")
    assert ledger.counts(ANN).found == total - len(outcome.gone)


def test_held_removals_go_on_the_second_word(ledger: SqlLedger) -> None:
    """A second complete listing that says the same removes them; an incomplete one, or a look, decides nothing."""
    names = [f"f{number}" for number in range(50)]
    take_down(ledger, [listed(name) for name in names])
    rest = [listed(name) for name in names[20:]]
    assert take_down(ledger, rest).held == 20
    assert take_down(ledger, rest, complete=False).gone == ()
    ledger.touch_source(source_of(ledger))
    assert ledger.sources(ANN)[0].reason is Reason.REMOVALS_HELD
    outcome = take_down(ledger, rest, cursor="c")
    assert (len(outcome.gone), outcome.held) == (20, 0)
    assert (ledger.sources(ANN)[0].held_removals, ledger.sources(ANN)[0].reason) == (0, None)
    # Once decided, the brake is as it was before.
    assert take_down(ledger, rest[15:]).held == 15


def test_another_accident_the_night_after_is_held_too(ledger: SqlLedger) -> None:
    """A hold says nothing of what vanishes later: those that come back do not make room for others to go."""
    names = [listed(f"f{number}") for number in range(100)]
    take_down(ledger, names)
    assert take_down(ledger, names[19:]).held == 19
    outcome = take_down(ledger, names[:20])
    assert (outcome.gone, outcome.held) == ((), 80)
    assert len(take_down(ledger, names[:20]).gone) == 80


def test_what_is_asked_for_again_no_longer_departs(ledger: SqlLedger) -> None:
    """An item that failed and is tried again is on its way in: it must not be taken out by name meanwhile."""
    take_down(ledger, [listed("a"), listed("b")])
    index(ledger, "a", "b")
    take_down(ledger, [listed("a", "2"), listed("b", "2")])
    failure = Failure(reason=Reason.UNREADABLE, detail="")
    ledger.settle(RUN, [], [Move(item=item(ledger, n).id, state=ItemState.FAILED, failure=failure) for n in "ab"])
    source = source_of(ledger)
    assert ledger.departed(ANN) == [(source, "a"), (source, "b")]
    assert ledger.requeue(ANN, reasons=[Reason.UNREADABLE], states=[ItemState.FAILED]) == 2
    assert ledger.departed(ANN) == []


def test_what_the_index_holds_as_it_is_stays_there(ledger: SqlLedger) -> None:
    """An item that reconciliation takes for indexed is no longer to leave the index."""
    take_down(ledger, [listed("a")])
    index(ledger, "a")
    take_down(ledger, [listed("a", "2")])
    failure = Failure(reason=Reason.DAMAGED, detail="")
    ledger.settle(RUN, [], [Move(item=item(ledger, "a").id, state=ItemState.FAILED, failure=failure)])
    assert ledger.reconcile(ANN, 7, {(source_of(ledger), ItemKey("a")): Fingerprint("2")}) == (1, 0)
    assert ledger.departed(ANN) == []
    assert item(ledger, "a").state is INDEXED


def test_held_removals_are_forgotten_when_the_items_are_back(ledger: SqlLedger) -> None:
    """A disk that was not mounted for a night costs nothing, and the next accident is held again."""
    names = [listed(f"f{number}") for number in range(50)]
    take_down(ledger, names)
    assert take_down(ledger, []).held == 50
    assert take_down(ledger, names) == ListingOutcome(new=0, changed=0, unchanged=50, gone=(), held=0)
    assert ledger.sources(ANN)[0].held_removals == 0
    assert take_down(ledger, []).held == 50


def test_accepted_removals_go_at_once(ledger: SqlLedger) -> None:
    """`--accept-removals` is the second word."""
    take_down(ledger, [listed(f"f{number}") for number in range(2500)][:1000])
    outcome = take_down(ledger, [], accept=True)
    assert (len(outcome.gone), outcome.held) == (1000, 0)
    assert ledger.counts(ANN) == Counts()


def test_what_is_gone_takes_its_parts_along(ledger: SqlLedger) -> None:
    """Parts do not weigh in the brake, leave with their item, and are named; the index hears of what it held."""
    take_down(ledger, [listed("mail"), listed("other")])
    ledger.add_parts(item(ledger, "mail").id, [listed(f"mail/{number}") for number in range(30)])
    ledger.add_parts(item(ledger, "mail/7").id, [listed("mail/7/1")])
    index(ledger, "mail/7", "mail/7/1")
    outcome = take_down(ledger, [listed("other")])
    assert outcome.held == 0
    assert set(outcome.gone) == {"mail", "mail/7/1", *(f"mail/{number}" for number in range(30))}
    assert ledger.counts(ANN) == Counts(found=1, pending=1)
    assert [key for _, key in ledger.departed(ANN)] == ["mail/7", "mail/7/1"]


def test_departed_items_are_remembered_until_the_index_let_go(ledger: SqlLedger) -> None:
    """A coordinator killed between the listing and the index leaves nothing searchable behind for good."""
    source = source_of(ledger)
    take_down(ledger, [listed(name) for name in "abc"])
    index(ledger, "a", "b")
    take_down(ledger, [])
    assert ledger.departed(ANN) == [(source, "a"), (source, "b")]
    # What comes back is on its way into the index: it is not to be taken out by name.
    take_down(ledger, [listed("b")])
    assert ledger.departed(ANN) == [(source, "a")]
    ledger.published(RUN, ANN, 2, [], departed=[(source, ItemKey("a"))])
    assert ledger.departed(ANN) == []


def test_a_large_first_listing_is_kept_whole(ledger: SqlLedger) -> None:
    """What does not fit into memory waits in a file, and nothing is lost or left there."""
    pages = [[listed(f"{'long' * 20}-{page}-{number}") for number in range(1000)] for page in range(20)]
    with ledger.listing(source_of(ledger)) as listing:
        for page in pages:
            listing.add(page)
        assert listing._notes._file._rolled  # type: ignore[union-attr]
        assert listing.finish(complete=True, cursor="", accept_removals=False).new == 20_000
    assert ledger.counts(ANN).pending == 20_000
    assert take_down(ledger, *pages).unchanged == 20_000
    assert {file.name.partition("-")[0] for file in ledger._database.path.parent.iterdir()} == {"ledger.db"}


def test_a_page_is_bounded(ledger: SqlLedger) -> None:
    """A source that forgets its pages is told so."""
    with ledger.listing(source_of(ledger)) as listing, pytest.raises(ValueError, match="1001 items"):
        listing.add([listed(str(number)) for number in range(1001)])


@given(st.lists(st.integers(1, 2**62) | st.integers(1, 500)))
def test_bits_are_a_set(ids: list[int]) -> None:
    """Membership, and whether it was new, as a set would say."""
    bits, plain = _Bits(), set[int]()
    for id_ in ids:
        assert bits.add(id_) == (id_ not in plain)
        plain.add(id_)
    for id_ in [*ids, *(id_ + 1 for id_ in ids)]:
        assert (id_ in bits) == (id_ in plain)


def test_a_rule_is_judged_before_the_bytes() -> None:
    """An item that a pipeline moved while a rule names it is taken out again."""
    known = Known(ItemId(1), ItemKey("a"), None, "pending", "too_old", "", "1", "docs/a", "file", 0, 0.0, "{}")
    assert judge(known, listed("a", skip=Reason.TOO_OLD)) is Difference.EXCLUDED
    assert judge(known, listed("a")) is Difference.LIFTED
    plain = known._replace(listed_skip=None)
    assert judge(plain, listed("a", "2")) is Difference.CHANGED
    assert judge(plain, listed("a", locator={"at": 1})) is Difference.MOVED
    assert judge(plain, listed("a")) is Difference.SAME
    assert judge(plain._replace(locator='{"at":[1,2]}'), listed("a", locator={"at": (1, 2)})) is Difference.SAME


# --- parts -----------------------------------------------------------------------------------------------------------


def test_parts_are_compared_like_a_listing(ledger: SqlLedger) -> None:
    """New, changed, moved, unchanged and gone; nothing is written when nothing differs."""
    take_down(ledger, [listed("mail")])
    mail = item(ledger, "mail").id
    assert ledger.add_parts(mail, [listed(f"mail/{number}") for number in range(3)]).new == 3
    index(ledger, "mail/0", "mail/1", "mail/2")
    again = [listed("mail/0"), listed("mail/1", "2"), listed("mail/3", skip=Reason.TOO_LARGE)]
    outcome = ledger.add_parts(mail, again)
    assert outcome == ListingOutcome(new=1, changed=1, unchanged=1, gone=(ItemKey("mail/2"),), held=0)
    assert [key for _, key in ledger.departed(ANN)] == ["mail/2"]
    assert item(ledger, "mail/0").parent == mail
    assert writes(ledger, lambda: ledger.add_parts(mail, again)) == 0
    assert ledger.counts(ANN) == Counts(
        found=1, pending=1, attachments=3, attachments_indexed=1, attachments_pending=1, attachments_skipped=1
    )
    assert take_down(ledger, [listed("mail")]).gone == (), "parts are not the listing's to miss"


def test_keys_are_unique_in_a_source(ledger: SqlLedger) -> None:
    """Two things of one name would take each other's place in the index: refused, nothing kept."""
    take_down(ledger, [listed("mail"), listed("other")])
    ledger.add_parts(item(ledger, "mail").id, [listed("mail/1")])
    with pytest.raises(NightmillError, match="key of another item"):
        ledger.add_parts(item(ledger, "other").id, [listed("x"), listed("mail/1")])
    with pytest.raises(NightmillError, match="key of part"):
        take_down(ledger, [listed("mail"), listed("mail/1")])
    assert ledger.counts(ANN).attachments == 1


# --- work ------------------------------------------------------------------------------------------------------------


def test_pending_is_in_the_order_of_work(ledger: SqlLedger) -> None:
    """Refresh before first-time, newest first, without those in flight, and only the user's own."""
    ledger.add_user(BEN, ["folder:/home/ben"])
    take_down(ledger, [listed("theirs", modified=99.0)], source=source_of(ledger, BEN))
    take_down(ledger, [listed("old", modified=1.0), listed("seen", modified=2.0), listed("new", modified=3.0)])
    index(ledger, "seen")
    take_down(ledger, [listed("old", modified=1.0), listed("seen", "2", modified=2.0), listed("new", modified=3.0)])
    names = [record.key for record in ledger.pending(ANN, limit=10)]
    assert names == ["seen", "new", "old"]
    assert [record.key for record in ledger.pending(ANN, limit=2)] == ["seen", "new"]
    beyond = [record.id for record in ledger.pending(ANN, limit=2)]
    assert [record.key for record in ledger.pending(ANN, limit=2, beyond=beyond)] == ["old"]
    assert ledger.pending(ANN, limit=1)[0].user == ANN


def test_pending_reads_only_what_it_returns(ledger: SqlLedger) -> None:
    """The index gives the order: no sorting, and no looking at other users' items."""
    from engine.ledger.sql_ledger import _PENDING

    text = str(_PENDING.compile(dialect=ledger._database._engine.dialect))
    with closing(sqlite3.connect(ledger._database.path)) as connection:
        steps = " | ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", ("ann", "[]", 5, 0)))
    assert "INDEX items_pending" in steps
    assert "B-TREE" not in steps
    assert "SCAN items" not in steps


def test_settling_keeps_moves_and_attempts_together(ledger: SqlLedger, clock: HandClock) -> None:
    """Many items in one transaction; what a move does not say stays as it was."""
    take_down(ledger, [listed("a"), listed("b")])
    a, b = item(ledger, "a").id, item(ledger, "b").id
    tries = [
        Attempt(
            item=a, stage=Stage.EXTRACT, part="p1", failure=Failure(reason=Reason.CRASHED, detail="d", signal=11),
            started=1.0, seconds=2.0, cpu_seconds=3.0, peak_bytes=4,
        ),
        Attempt(
            item=b, stage=Stage.OCR, part="", failure=None, started=1.0, seconds=2.0, cpu_seconds=3.0, peak_bytes=4
        ),
    ]  # fmt: skip
    again = Move(item=a, state=PENDING, failure=Failure(reason=Reason.CRASHED), attempts=1, alone=True)
    done = Move(item=b, state=INDEXED, fingerprint=Fingerprint("2"), partial=True, media_type="text/plain")
    ledger.settle(RUN, tries, [again, done])
    assert ledger.attempts(a) == tries[:1]
    assert ledger.attempts(b) == tries[1:]
    record = item(ledger, "a")
    assert (record.state, record.attempts, record.alone, record.fingerprint) == (PENDING, 1, True, "1")
    ledger.settle(RUN, [], [Move(item=a, state=FAILED, failure=DAMAGED)])
    record = item(ledger, "a")
    assert (record.state, record.attempts, record.alone, record.reason) == (FAILED, 1, True, Reason.DAMAGED)
    record = item(ledger, "b")
    assert (record.fingerprint, record.partial, record.media_type) == ("2", True, "text/plain")
    assert ledger.counts(ANN) == Counts(found=2, indexed=1, failed=1, partial=1)


def test_only_the_latest_attempts_are_kept(ledger: SqlLedger) -> None:
    """Fifty of each item, in one settling or in many; other items keep theirs."""
    take_down(ledger, [listed("a"), listed("b")])
    a, b = item(ledger, "a").id, item(ledger, "b").id
    one = Attempt(
        item=a, stage=Stage.OCR, part="", failure=None, started=0.0, seconds=1.0, cpu_seconds=1.0, peak_bytes=1
    )
    ledger.settle(RUN, [replace(one, item=b, started=-1.0)], [])
    ledger.settle(RUN, [replace(one, started=float(number)) for number in range(60)], [])
    for number in range(60, 65):
        ledger.settle(RUN, [replace(one, started=float(number))], [])
    assert [attempt.started for attempt in ledger.attempts(a)] == [float(number) for number in range(15, 65)]
    assert len(ledger.attempts(b)) == 1


def test_what_processes_learn_is_added_up(ledger: SqlLedger, clock: HandClock) -> None:
    """Neither has read what the other wrote, and nothing of either is lost; huge and tiny weights keep their value."""
    ledger.settle(RUN, [], [], [peak(), peak(bucket=41, weight=2.0**900), peak(kind="docx", weight=2.0**-900)])
    with open_ledger(ledger._database.path, clock) as other:
        other.settle(RUN, [], [], [peak(weight=0.5, samples=3)])
    ledger.settle(RUN, [], [], [peak(weight=0.25)])
    assert sorted(ledger.peaks(), key=repr) == sorted(
        [
            peak(weight=1.75, samples=5),
            peak(bucket=41, weight=2.0**900),
            peak(kind="docx", weight=2.0**-900),
        ],
        key=repr,
    )
    assert writes(ledger, lambda: ledger.settle(RUN, [], [], [])) == 0


def test_what_was_learned_outlives_its_user_as_numbers(ledger: SqlLedger) -> None:
    """A table without user, item or name: stage, type and size class, and how often."""
    ledger.settle(RUN, [], [], [peak()])
    ledger.remove_user(ANN)
    assert rows_of(ledger, "SELECT * FROM peaks") == [("extract", "pdf", 20, 40, 1.0, 1)]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (INDEXED, FAILED, "cannot go from indexed to failed"),
        (FAILED, INDEXED, "cannot go from failed to indexed"),
        (SKIPPED, INDEXED, "cannot go from skipped to indexed"),
        (QUARANTINED, FAILED, "cannot go from quarantined to failed"),
    ],
)
def test_illegal_moves_are_refused_and_nothing_is_kept(
    ledger: SqlLedger, first: ItemState, second: ItemState, words: str
) -> None:
    """The item is named with both states; what came with the move is undone too."""
    take_down(ledger, [listed("a"), listed("b")])
    a, b = item(ledger, "a").id, item(ledger, "b").id
    ledger.settle(RUN, [], [Move(item=a, state=first, failure=_why(first))])
    moves = [Move(item=b, state=INDEXED), Move(item=a, state=second, failure=_why(second))]
    with pytest.raises(NightmillError, match=f"item {a} {words}"):
        ledger.settle(RUN, [], moves)
    with pytest.raises(NightmillError, match=f"item {a} {words}"):
        ledger.published(RUN, ANN, 9, moves)
    assert item(ledger, "b").state is PENDING
    user = ledger.find_user(ANN)
    assert user is not None
    assert user.generation == 0


def _why(state: ItemState) -> Failure | None:
    return {SKIPPED: UNSUPPORTED, FAILED: DAMAGED, QUARANTINED: Failure(reason=Reason.CRASHED)}.get(state)


@pytest.mark.parametrize(
    "move",
    [
        Move(item=ItemId(1), state=SKIPPED, failure=DAMAGED),
        Move(item=ItemId(1), state=SKIPPED),
        Move(item=ItemId(1), state=FAILED, failure=UNSUPPORTED),
        Move(item=ItemId(1), state=FAILED),
        Move(item=ItemId(1), state=QUARANTINED),
    ],
)
def test_no_item_is_left_out_without_a_fitting_reason(ledger: SqlLedger, move: Move) -> None:
    """A skip is by rule, a failure is not; neither goes unexplained."""
    take_down(ledger, [listed("a")])
    with pytest.raises(NightmillError, match=r"item 1 cannot be .* for the reason"):
        ledger.settle(RUN, [], [replace(move, item=item(ledger, "a").id)])


def test_two_moves_of_an_item_are_checked_one_after_the_other(ledger: SqlLedger) -> None:
    """The second starts where the first arrived."""
    take_down(ledger, [listed("a")])
    a = item(ledger, "a").id
    ledger.settle(RUN, [], [Move(item=a, state=FAILED, failure=DAMAGED), Move(item=a, state=PENDING)])
    assert (item(ledger, "a").state, item(ledger, "a").reason) == (PENDING, None)
    with pytest.raises(NightmillError):
        ledger.settle(RUN, [], [Move(item=a, state=INDEXED), Move(item=a, state=FAILED, failure=DAMAGED)])


def test_an_index_is_not_published_for_somebody_elses_item(ledger: SqlLedger) -> None:
    """A mix-up of users is stopped here too."""
    ledger.add_user(BEN, [])
    take_down(ledger, [listed("a")])
    with pytest.raises(NightmillError, match="not of the user"):
        ledger.published(RUN, BEN, 1, [Move(item=item(ledger, "a").id, state=INDEXED)])


def test_an_item_that_came_to_be_skipped_departs(ledger: SqlLedger) -> None:
    """A file whose new version is of a type that is not read is not found by its old text."""
    take_down(ledger, [listed("a")])
    index(ledger, "a")
    take_down(ledger, [listed("a", "2")])
    ledger.settle(RUN, [], [Move(item=item(ledger, "a").id, state=SKIPPED, failure=UNSUPPORTED)])
    assert ledger.departed(ANN) == [(source_of(ledger), "a")]


def test_requeue_makes_pending_what_was_asked_for(ledger: SqlLedger) -> None:
    """By user, state and reason; counts how many."""
    ledger.add_user(BEN, ["folder:/home/ben"])
    take_down(ledger, [listed(name) for name in "abcd"])
    take_down(ledger, [listed("e")], source=source_of(ledger, BEN))
    ids = {name: item(ledger, name).id for name in "abcde"}
    crashed = Failure(reason=Reason.CRASHED)
    ledger.settle(
        RUN,
        [],
        [
            Move(item=ids["a"], state=FAILED, failure=DAMAGED, attempts=3, alone=True),
            Move(item=ids["b"], state=QUARANTINED, failure=crashed),
            Move(item=ids["c"], state=INDEXED, partial=True),
            Move(item=ids["d"], state=SKIPPED, failure=UNSUPPORTED),
            Move(item=ids["e"], state=FAILED, failure=DAMAGED),
        ],
    )
    assert ledger.requeue(ANN, reasons=[Reason.VANISHED], states=[FAILED]) == 0
    assert ledger.requeue(ANN, reasons=[Reason.DAMAGED], states=[FAILED, QUARANTINED]) == 1
    assert (item(ledger, "a").state, item(ledger, "a").attempts, item(ledger, "a").alone) == (PENDING, 0, False)
    assert item(ledger, "e").state is FAILED
    assert ledger.requeue(None, states=[FAILED, QUARANTINED]) == 2
    assert ledger.requeue(ANN, states=[INDEXED, SKIPPED]) == 2
    assert ledger.counts() == Counts(found=5, pending=5)


# --- the index is the truth ------------------------------------------------------------------------------------------


def held(ledger: SqlLedger, **names: str) -> dict[tuple[SourceId, ItemKey], Fingerprint]:
    """An index that holds these at these fingerprints."""
    return {(source_of(ledger), ItemKey(name)): Fingerprint(print_) for name, print_ in names.items()}


def test_a_publish_that_the_ledger_did_not_hear_of_is_taken_over(ledger: SqlLedger) -> None:
    """Killed between the index and the ledger: what the index holds is not read again."""
    take_down(ledger, [listed(name) for name in "abc"])
    ledger.settle(RUN, [], [Move(item=item(ledger, "c").id, state=FAILED, failure=DAMAGED)])
    assert ledger.reconcile(ANN, 5, held(ledger, a="1", b="older", c="1")) == (2, 0)
    assert [item(ledger, name).state for name in "abc"] == [INDEXED, PENDING, INDEXED]
    assert item(ledger, "c").reason is None
    user = ledger.find_user(ANN)
    assert user is not None
    assert user.generation == 5


def test_a_lost_or_older_index_is_noticed(ledger: SqlLedger) -> None:
    """What it lacks, or holds at another fingerprint, is pending again; a failure stays one."""
    take_down(ledger, [listed(name) for name in "abcd"])
    index(ledger, "a", "b", "c")
    ledger.settle(RUN, [], [Move(item=item(ledger, "d").id, state=FAILED, failure=DAMAGED)])
    assert ledger.reconcile(ANN, 1, held(ledger, a="1", b="older")) == (0, 2)
    assert [item(ledger, name).state for name in "abcd"] == [INDEXED, PENDING, PENDING, FAILED]
    assert ledger.reconcile(ANN, 0, {}) == (0, 1)


def test_what_the_ledger_does_not_know_has_to_leave_the_index(ledger: SqlLedger) -> None:
    """Nothing is searchable that no source holds, nor what a rule leaves out."""
    take_down(ledger, [listed("a"), listed("b", skip=Reason.TOO_OLD)])
    index(ledger, "a")
    ledger.reconcile(ANN, 1, held(ledger, a="1", b="1", z="1"))
    assert [key for _, key in ledger.departed(ANN)] == ["b", "z"]
    assert item(ledger, "b").state is SKIPPED


def test_a_ledger_that_lags_behind_does_not_lose_parts(ledger: SqlLedger) -> None:
    """After a power cut it may know a mail and not its attachments: the mail is read again, and they come back."""
    take_down(ledger, [listed("mail")])
    assert ledger.reconcile(ANN, 2, held(ledger, mail="1", **{"mail/1": "1"})) == (0, 0)
    assert item(ledger, "mail").state is PENDING
    ledger.add_parts(item(ledger, "mail").id, [listed("mail/1")])
    assert ledger.departed(ANN) == []


def test_work_on_some_sources_leaves_the_others_as_they_are(ledger: SqlLedger, clock: HandClock) -> None:
    """Pending items and second tries of these alone; the user is not done with, and comes first in the night still."""
    ledger.add_user(ANN, ["given:mail"])
    folder, mail = (source.id for source in ledger.sources(ANN))
    take_down(ledger, [listed("a"), listed("b")], source=folder)
    take_down(ledger, [listed("c"), listed("d")], source=mail)
    busy = Failure(reason=Reason.UNREADABLE)
    ledger.settle(RUN, [], [Move(item=item(ledger, name).id, state=FAILED, failure=busy) for name in "ac"])
    assert [record.key for record in ledger.pending(ANN, limit=9, sources=[mail])] == ["d"]
    assert ledger.requeue(ANN, states=[FAILED], reasons=[Reason.UNREADABLE], sources=[mail]) == 1
    assert item(ledger, "a").state == FAILED
    assert {record.key for record in ledger.pending(ANN, limit=9, sources=[mail])} == {"c", "d"}
    assert {record.key for record in ledger.pending(ANN, limit=9)} == {"b", "c", "d"}
    ledger.user_done(ANN, RUN, index_stamp="1", versions="v", partly=True)
    (user,) = ledger.users()
    assert (user.done, user.index_stamp, user.versions) == (None, "1", "v")
    ledger.user_done(ANN, RUN, index_stamp="2", versions="v")
    clock.time += 60
    ledger.user_done(ANN, RUN, index_stamp="3", versions="v", partly=True)
    (user,) = ledger.users()
    assert (user.done, user.index_stamp) == (clock.time - 60, "3")


def test_items_are_found_by_key_with_their_attachments(ledger: SqlLedger) -> None:
    """Of one source, parents first, attachments of attachments too; a key that is not there is passed over."""
    ledger.add_user(ANN, ["given:mail"])
    folder, mail = (source.id for source in ledger.sources(ANN))
    for source in (folder, mail):
        take_down(ledger, [listed("a"), listed("b")], source=source)
    (top,) = ledger.find_trees(mail, [ItemKey("a"), ItemKey("absent")])
    ledger.add_parts(top.id, [listed("a//0")])
    (part,) = (record for record in ledger.find_trees(mail, [ItemKey("a")]) if record.parent is not None)
    ledger.add_parts(part.id, [listed("a//0//0")])
    found = ledger.find_trees(mail, [ItemKey("a")])
    assert [(record.key, record.source) for record in found] == [("a", mail), ("a//0", mail), ("a//0//0", mail)]
    assert [record.parent for record in found] == [None, top.id, part.id]


def test_what_was_asked_for_again_is_not_taken_for_done(ledger: SqlLedger) -> None:
    """`reindex --full`, then a crash: the index still holds the old reading at the same fingerprint."""
    take_down(ledger, [listed("a"), listed("b")])
    index(ledger, "a", "b")
    assert ledger.requeue(ANN, states=[INDEXED]) == 2
    index(ledger, "b", generation=2)
    assert ledger.reconcile(ANN, 3, held(ledger, a="1", b="1")) == (0, 0)
    assert [item(ledger, name).state for name in "ab"] == [PENDING, INDEXED]
    # Once it was done again, it is an item like any other.
    assert ledger.reconcile(ANN, 3, held(ledger, a="1")) == (0, 1)
    assert ledger.reconcile(ANN, 4, held(ledger, a="1", b="1")) == (1, 0)


# --- questions -------------------------------------------------------------------------------------------------------


def test_runs_are_kept_with_their_report(ledger: SqlLedger, clock: HandClock) -> None:
    """Newest first; one that was killed has no end."""
    first = ledger.begin_run("init", 3)
    clock.time += 60
    ledger.end_run(first, 3, {"indexed": 7, "users": ["ann"]})
    second = ledger.begin_run("reindex", 1)
    late, early = ledger.last_runs(5)
    assert (early.id, early.kind, early.began, early.ended, early.exit_code) == (first, "init", 1000.0, 1060.0, 3)
    assert early.report == {"indexed": 7, "users": ["ann"]}
    assert (late.id, late.ended, late.exit_code, late.report) == (second, None, None, {})
    assert len(ledger.last_runs(1)) == 1


def test_failures_come_worst_first(ledger: SqlLedger, clock: HandClock) -> None:
    """Failed, quarantined, skipped; within each the latest first; by user, reason, time and state."""
    ledger.add_user(BEN, ["folder:/home/ben"])
    take_down(ledger, [listed(name) for name in ("q", "k", "f1", "f2", "fine")])
    take_down(ledger, [listed("theirs")], source=source_of(ledger, BEN))
    for name, state in {"q": QUARANTINED, "k": SKIPPED, "f1": FAILED, "f2": FAILED, "theirs": FAILED}.items():
        clock.time += 10
        ledger.settle(RUN, [], [Move(item=item(ledger, name).id, state=state, failure=_why(state))])

    def keys(**asked: Any) -> list[str]:
        return [record.key for record in ledger.failures(**asked)]

    assert keys() == ["theirs", "f2", "f1", "q", "k"]
    assert keys(user=ANN) == ["f2", "f1", "q", "k"]
    assert keys(user=ANN, reason=Reason.DAMAGED) == ["f2", "f1"]
    assert keys(since=1040.0) == ["theirs", "f2"]
    assert keys(states=[SKIPPED, QUARANTINED]) == ["q", "k"]
    assert keys(states=[PENDING]) == []
    assert keys(limit=2) == ["theirs", "f2"]


def test_items_are_found_by_id_or_by_a_part_of_their_path(ledger: SqlLedger) -> None:
    """The id's own first; signs of SQL mean themselves."""
    ledger.add_user(BEN, ["folder:/home/ben"])
    take_down(ledger, [listed(name) for name in ("100%_sure.txt", "1000.txt", "report 1")])
    take_down(ledger, [listed("Report 2")], source=source_of(ledger, BEN))
    first = item(ledger, "100%_sure.txt")
    assert [record.key for record in ledger.find_items("100%_")] == ["100%_sure.txt"]
    assert ledger.find_items(str(first.id))[0] == first
    assert len(ledger.find_items(str(first.id))) > 1
    assert {record.key for record in ledger.find_items("report")} == {"report 1", "Report 2"}
    assert [record.key for record in ledger.find_items("report", user=BEN)] == ["Report 2"]
    assert ledger.find_items("9" * 40) == ledger.find_items("") == []
    take_down(ledger, [listed(f"many {number}") for number in range(150)], complete=False)
    assert len(ledger.find_items("many")) == 100


def test_every_user_has_counts(ledger: SqlLedger) -> None:
    """One who has nothing yet too; quarantined counts as failed; found is the sum."""
    ledger.add_user(BEN, [])
    take_down(ledger, [listed(name) for name in "abcde"])
    index(ledger, "a")
    for name, state in (("b", SKIPPED), ("c", FAILED), ("d", QUARANTINED)):
        ledger.settle(RUN, [], [Move(item=item(ledger, name).id, state=state, failure=_why(state))])
    ann = Counts(found=5, indexed=1, skipped=1, failed=2, pending=1)
    assert ledger.counts_by_user() == {ANN: ann, BEN: Counts()}
    assert ledger.counts(ANN) == ledger.counts() == ann


#: name of the operation, and two numbers that it makes of what it needs.
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["list", "exclude", "parts", "settle", "requeue", "reconcile", "source", "user"]),
        st.integers(0, 9),
        st.integers(0, 2**32),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_tallies_are_exact(tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int]]) -> None:
    """Whatever happens, cascades included, the tallies equal a count over the items; `found` is the sum."""
    with open_ledger(tmp_path_factory.mktemp("tallies") / "ledger.db", HandClock()) as ledger:
        for operation, number, luck in operations:
            _operate(ledger, operation, number, random.Random(luck))
        counted = rows_of(
            ledger,
            "SELECT user_id, state, parent_id IS NOT NULL, partial, count(*) FROM items"
            " GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        )
        kept = rows_of(ledger, "SELECT * FROM tallies WHERE number <> 0 ORDER BY 1, 2, 3, 4")
        assert kept == counted
        assert not rows_of(ledger, "SELECT 1 FROM items WHERE parent_id NOT IN (SELECT id FROM items)")
        everybody = ledger.counts_by_user().values()
        for counts in (*everybody, ledger.counts()):
            assert counts.found == counts.indexed + counts.skipped + counts.failed + counts.pending
        assert sum(counts.found for counts in everybody) == ledger.counts().found


def _operate(ledger: SqlLedger, operation: str, number: int, luck: random.Random) -> None:
    user = UserId(f"user{number % 3}")
    ledger.add_user(user, ["folder:/a"])
    source = source_of(ledger, user)
    chosen = [record for record in ledger.find_items("docs", user=user) if luck.random() < 0.5]
    match operation:
        case "list" | "exclude":
            skips = [None, Reason.TOO_OLD] if operation == "exclude" else [None]
            files = [
                listed(f"f{luck.randrange(15)}", str(luck.randrange(2)), skip=luck.choice(skips)) for _ in range(9)
            ]
            take_down(ledger, files, source=source, complete=luck.random() < 0.7, accept=luck.random() < 0.5)
        case "parts":
            for record in chosen[:3]:
                if record.key.count("/") < 3:
                    ledger.add_parts(record.id, [listed(f"{record.key}/{part}") for part in range(luck.randrange(4))])
        case "settle":
            waiting = [record for record in chosen if record.state is PENDING]
            states = [luck.choice(list(ItemState)) for _ in waiting]
            moves = [
                Move(item=record.id, state=state, failure=_why(state), partial=luck.choice([None, True, False]))
                for record, state in zip(waiting, states, strict=True)
            ]
            ledger.published(RUN, user, number, moves)
        case "requeue":
            ledger.requeue(luck.choice([user, None]), states=luck.sample(list(ItemState), 2))
        case "reconcile":
            ledger.reconcile(user, number, {(record.source, record.key): record.fingerprint for record in chosen})
        case "source":
            ledger.remove_source(source)
        case "user":
            ledger.remove_user(user)


# --- several processes -----------------------------------------------------------------------------------------------

PRELUDE = """
import sys
from pathlib import Path
from engine.clock import SystemClock
from engine.ledger import open_ledger
from engine.model import *
from engine.ports import *
from engine.reasons import Reason

path, word = Path(sys.argv[1]), sys.argv[2]
ready = lambda: (print("ready", flush=True), sys.stdin.readline())

def listed(name, fingerprint="1"):
    return Listed(key=ItemKey(name), fingerprint=Fingerprint(fingerprint), path=f"docs/{name}")
"""

OPENING = """
ready()
with open_ledger(path, SystemClock()) as ledger:
    ledger.add_user(UserId(word), ["folder:/x"])
"""

WORKING = """
with open_ledger(path, SystemClock()) as ledger:
    user = UserId(word)
    ready()
    for round in range(20):
        ledger.add_user(user, [f"folder:/{round}"])
        source = ledger.sources(user)[-1].id
        with ledger.listing(source) as listing:
            listing.add([listed(f"{round}-{number}") for number in range(50)])
            listing.finish(complete=True, cursor="", accept_removals=False)
        waiting = ledger.pending(user, limit=100)
        moves = [Move(item=record.id, state=ItemState.INDEXED) for record in waiting[:40]]
        ledger.published(RunId(1), user, round, moves)
        ledger.counts_by_user()
"""

#: Sets `bomb`: called with a ledger, it kills the process before the statement of that number, or the COMMIT.
BOMB = """
import os, signal
_, _, fuse = word.partition(" ")

def bomb(ledger):
    done = 0
    def on_statement(sql):
        nonlocal done
        done += sql.startswith(("INSERT", "UPDATE"))
        if sql == "COMMIT" and fuse == "commit" or fuse.isdigit() and done > int(fuse):
            os.kill(os.getpid(), signal.SIGKILL)
    if fuse:
        ledger._database._engine.raw_connection().driver_connection.set_trace_callback(on_statement)
"""

FINISHING = (
    BOMB
    + """
with open_ledger(path, SystemClock()) as ledger:
    with ledger.listing(ledger.sources(UserId("ann"))[0].id) as listing:
        for page in range(10):
            listing.add([listed(f"{page}-{number}", "2") for number in range(1000)])
        bomb(ledger)
        ready()
        listing.finish(complete=True, cursor="2", accept_removals=True)
"""
)

SETTLING = (
    BOMB
    + """
with open_ledger(path, SystemClock()) as ledger:
    waiting = ledger.pending(UserId("ann"), limit=20000)
    attempts = [
        Attempt(item=record.id, stage=Stage.EXTRACT, part="", failure=None,
                started=1.0, seconds=1.0, cpu_seconds=1.0, peak_bytes=1)
        for record in waiting
    ]
    moves = [Move(item=record.id, state=ItemState.INDEXED) for record in waiting]
    bomb(ledger)
    ready()
    ledger.settle(RunId(1), attempts, moves)
"""
)

#: What `snapshot` says before either of them, and after.
BEFORE = ([("pending", "1", 10_000)], [("pending", 10_000)], [(0,)], [("1",)])
FINISHED = ([("pending", "2", 10_000)], [("pending", 10_000)], [(0,)], [("2",)])
SETTLED = ([("indexed", "1", 10_000)], [("indexed", 10_000)], [(10_000,)], [("1",)])


def child(script: str, path: Path, word: str) -> subprocess.Popen[str]:
    """A process that says "ready" and waits for a line before it does what matters."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(path), word],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def start(children: Sequence[subprocess.Popen[str]]) -> None:
    """Let all of them go at once."""
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in children:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_many_processes_may_open_a_new_ledger_at_once(tmp_path: Path, clock: HandClock) -> None:
    """One makes it, the others find it made; none fails."""
    path = tmp_path / "data" / "ledger.db"
    children = [child(OPENING, path, f"user{number}") for number in range(6)]
    start(children)
    assert [process.wait(60) for process in children] == [0] * 6
    with open_ledger(path, clock) as ledger:
        assert len(ledger.users()) == 6


def test_many_processes_work_at_once(tmp_path: Path, clock: HandClock) -> None:
    """Each finds its own items, and all of them are counted."""
    path = tmp_path / "ledger.db"
    open_ledger(path, clock).close()
    children = [child(WORKING, path, f"user{number}") for number in range(4)]
    start(children)
    assert [process.wait(120) for process in children] == [0] * 4
    with open_ledger(path, clock) as ledger:
        assert ledger.counts() == Counts(found=4000, indexed=3200, pending=800)
        assert {counts.found for counts in ledger.counts_by_user().values()} == {1000}


def snapshot(ledger: SqlLedger) -> tuple[Any, ...]:
    """What a crash might tear apart."""
    return (
        rows_of(ledger, "SELECT state, fingerprint, count(*) FROM items GROUP BY 1, 2"),
        rows_of(ledger, "SELECT state, number FROM tallies WHERE number <> 0"),
        rows_of(ledger, "SELECT count(*) FROM attempts"),
        rows_of(ledger, "SELECT cursor FROM sources"),
    )


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A ledger of 10,000 items, closed."""
    path = tmp_path / "ledger.db"
    with open_ledger(path, SystemClock()) as ledger:
        ledger.add_user(ANN, ["folder:/a"])
        take_down(ledger, *([listed(f"{page}-{number}") for number in range(1000)] for page in range(10)), cursor="1")
        assert snapshot(ledger) == BEFORE
    # The last one to close it folded the log in: that it is there again says that somebody writes.
    assert not path.with_name("ledger.db-wal").exists()
    return path


@pytest.mark.parametrize("script", [FINISHING, SETTLING])
@pytest.mark.parametrize("fuse", ["0", "1", "5000", "9999", "commit"])
def test_a_kill_before_the_commit_leaves_the_ledger_as_it_was(large: Path, script: str, fuse: str) -> None:
    """SIGKILL in the middle of a large transaction, at any statement of it, changes nothing at all."""
    process = child(script, large, f"2 {fuse}")
    start([process])
    assert process.wait(60) == -signal.SIGKILL
    with open_ledger(large, SystemClock()) as ledger:
        assert rows_of(ledger, "PRAGMA integrity_check") == [("ok",)]
        assert snapshot(ledger) == BEFORE


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(("script", "after"), [(FINISHING, FINISHED), (SETTLING, SETTLED)])
@pytest.mark.parametrize("bytes_written", [1, 500_000, 1_500_000])
def test_a_kill_during_the_commit_leaves_before_or_after(
    large: Path, script: str, after: tuple[Any, ...], bytes_written: int
) -> None:
    """SIGKILL while the pages go to the disk: the ledger is as it was, or wholly as it was to become."""
    wal = large.with_name("ledger.db-wal")
    process = child(script, large, "2")
    start([process])
    while process.poll() is None and _size(wal) < bytes_written:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    with open_ledger(large, SystemClock()) as ledger:
        assert rows_of(ledger, "PRAGMA integrity_check") == [("ok",)]
        assert snapshot(ledger) in (BEFORE, after)


def test_without_a_kill_both_come_through(large: Path) -> None:
    """The scripts of the two tests above do what these take for granted."""
    for script, after in ((SETTLING, SETTLED), (FINISHING, None)):
        process = child(script, large, "2")
        start([process])
        assert process.wait(60) == 0
        with open_ledger(large, SystemClock()) as ledger:
            assert after is None or snapshot(ledger) == after
    with open_ledger(large, SystemClock()) as ledger:
        assert ledger.sources(ANN)[0].cursor == "2"
        assert ledger.counts().pending == 10_000
