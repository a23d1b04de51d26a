"""One SQLite file, opened so that several processes can use it at once, and what its troubles mean in words.

Rule: every transaction that writes begins with BEGIN IMMEDIATE. A deferred one that turns into a writer after somebody
else has written fails at once, whatever the time-out.

    WAL, synchronous=NORMAL   a killed process loses nothing; a power cut leaves a state that once was
    secure_delete             what is deleted is overwritten: paths and names of a removed user are gone from the file
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from engine.errors import CannotRunError
from engine.ledger.migrations import is_current, migrate

#: Longer than the largest transaction: the first listing of a source of a million items takes some 15 s to write.
BUSY_SECONDS: Final = 30.0
#: A WAL file that one large transaction blew up shrinks to this again.
_WAL_BYTES: Final = 64 * 2**20
#: Pages kept in memory, in KiB: the inner pages of the indexes of a ledger of a million items fit.
_CACHE_KIB: Final = 8 * 1024

_TROUBLES: Final = {
    sqlite3.SQLITE_READONLY: "may not be written; give the engine's account the right to write it and its folder",
    sqlite3.SQLITE_PERM: "may not be opened; give the engine's account the right to read and write it",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; see that it is a file, and that its folder may be written",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a backup, or move it away and add the users again",
    sqlite3.SQLITE_NOTADB: "is not a ledger; restore it from a backup, or move it away and add the users again",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free space, then start again",
    # Of the index of the write-ahead log.
    sqlite3.SQLITE_IOERR_SHMSIZE: "cannot grow: the disk is full; free space, then start again",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error; see the kernel's log",
    sqlite3.SQLITE_BUSY: f"was locked by another process for {BUSY_SECONDS:.0f} s; end what holds it, then start again",
    sqlite3.SQLITE_LOCKED: "is locked by this process itself; start again",
}


class Database:
    """A connection to one file. Belongs to one thread at a time; blocks of `read` and `write` do not nest."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path = path
        self._engine = engine
        self._writing = engine.execution_options(nightmill_begin="BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the file for the length of the block. Raises CannotRunError."""
        with explained(self.path), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, undone when it raises. Raises CannotRunError."""
        with explained(self.path), self._writing.begin() as connection:
            yield connection

    def shed_old_pages(self) -> None:
        """Fold the write-ahead log into the file and empty it, so that it holds no deleted text either.

        Readers in other processes may delay that; then the next one who closes the ledger does it.
        """
        with explained(self.path):
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    def size_bytes(self) -> tuple[int, int]:
        """Bytes of the file, and of it those that hold nothing any more."""
        with self.read() as connection:
            page, pages, empty = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_size", "page_count", "freelist_count")
            )
        return page * pages, page * empty

    def shrink(self) -> None:
        """Write the file anew without what is empty in it. Others who write wait as long. Raises CannotRunError."""
        with explained(self.path):
            connection = self._engine.raw_connection()
            try:
                connection.cursor().execute("VACUUM")
            finally:
                connection.close()
        self.shed_old_pages()

    def close(self) -> None:
        """Release the file. Idempotent."""
        self._engine.dispose()


def open_database(path: Path) -> Database:
    """Open the file, or make it (mode 0600, its folder 0700) with today's schema. Safe when several processes begin.

    Raises CannotRunError with the path and the way out, NewerDataError when a newer release wrote it.
    """
    path = Path(os.path.abspath(path))
    with explained(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(path.parent):
            _create(path)
            database = Database(path, _engine(path))
            try:
                _bring_up_to_date(database)
            except BaseException:
                database.close()
                raise
    return database


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the surroundings do to the file into CannotRunError; what is our own defect goes through as it is."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", None)
        trouble = None if code is None else _TROUBLES.get(code, _TROUBLES.get(code & 0xFF))
        if trouble is None:
            raise
        raise CannotRunError(f"the ledger {path} {trouble} ({cause})") from error
    except OSError as error:
        raise CannotRunError(f"the ledger {path} cannot be used: {error}; mend that, then start again") from error


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=str(path)),
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        poolclass=StaticPool,
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # The sqlite3 module begins no transactions; _on_begin does.
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("nightmill_begin", "BEGIN"))


def _bring_up_to_date(database: Database) -> None:
    _use_wal(database)
    with database.read() as connection:
        if is_current(connection, database.path):
            return
    with database.write() as connection:
        migrate(connection, database.path)


def _use_wal(database: Database) -> None:
    # Not inside a transaction. Kept in the file, so that this writes once in its life.
    raw = database._engine.raw_connection()
    try:
        if raw.cursor().execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            raw.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else creates or migrates a ledger in this folder meanwhile. A killed process lets go by itself.

    The lock is on the folder, because closing any descriptor of the file itself would drop SQLite's own locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(path: Path) -> None:
    # SQLite gives the files beside it (-wal, -shm) the same mode.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
