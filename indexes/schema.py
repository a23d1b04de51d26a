"""The database of one user's index: its tables, how it is opened, and what its errors mean.

Rule: the number of a schema is the number of migrations that made it (`PRAGMA user_version`). A migration that was
released is never changed. A database with a higher number is refused: nobody here knows what it means.

    reads ------ content ------ documents, pages          what was read, not yet or already published
    items --< chunks --- words                            what is published
                 \\-- text_hash -- vectors                 by model and text: shared, and kept over a new reading
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from indexes.errors import IndexBusy, IndexDamaged, IndexFault, IndexFull, NewerIndex, NoIndex
from indexes.records import FaissFile

#: Long enough for another's checkpoint on a slow disk; a lock held longer means that something is wrong.
BUSY_SECONDS: Final = 10.0
#: Vectors have 1 to 1.5 KB: 5 or 7 of them fill a page of 8 KiB to nine tenths, one of 4 KiB only to three quarters.
PAGE_BYTES: Final = 8192
#: A few thousand rows of a publish stay in memory. More is no faster; a coordinator has several indexes open.
CACHE_KIB: Final = 8000

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE faiss_file (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            name TEXT NOT NULL, count INTEGER NOT NULL, last_chunk INTEGER NOT NULL, bytes INTEGER NOT NULL,
            generation INTEGER NOT NULL)""",
        # The blob comes last: what is asked most is found without walking through it.
        """CREATE TABLE reads (
            source INTEGER NOT NULL, key TEXT NOT NULL,
            fingerprint TEXT NOT NULL, content TEXT NOT NULL, chunking TEXT, chunks BLOB,
            PRIMARY KEY (source, key))""",
        "CREATE TABLE documents (content TEXT PRIMARY KEY, extract TEXT NOT NULL, document BLOB NOT NULL)",
        "CREATE TABLE pages (content TEXT, page INTEGER, body BLOB NOT NULL, PRIMARY KEY (content, page))",
        """CREATE TABLE items (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            source INTEGER NOT NULL, key TEXT NOT NULL,
            fingerprint TEXT NOT NULL, content TEXT NOT NULL,
            extract TEXT NOT NULL, chunking TEXT NOT NULL, model TEXT NOT NULL,
            kind TEXT NOT NULL, media_type TEXT NOT NULL, title TEXT NOT NULL, path TEXT NOT NULL,
            date REAL, facts TEXT NOT NULL, partial INTEGER NOT NULL, generation INTEGER NOT NULL,
            UNIQUE (source, key))""",
        # AUTOINCREMENT: an id that a FAISS file still holds is never given to another chunk.
        """CREATE TABLE chunks (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            item INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
            kind TEXT NOT NULL, page INTEGER NOT NULL, text_hash BLOB NOT NULL, text TEXT NOT NULL)""",
        "CREATE INDEX chunks_by_item ON chunks (item)",
        "CREATE INDEX chunks_by_text_hash ON chunks (text_hash)",
        # A table with its own content: SQLite 3.40 deletes from a contentless one only who still knows the old words.
        # `ascii` takes every character beyond ASCII for a letter, and so leaves the tokens of any script whole.
        "CREATE VIRTUAL TABLE words USING fts5 (keywords, tokenize = 'ascii')",
        # With a rowid: in a WITHOUT ROWID table rows of more than a quarter page waste most of an overflow page each.
        """CREATE TABLE vectors (
            id INTEGER PRIMARY KEY,
            model TEXT NOT NULL, text_hash BLOB NOT NULL, vector BLOB NOT NULL,
            UNIQUE (model, text_hash))""",
    ),
)
SCHEMA: Final = len(MIGRATIONS)
#: The second: there is no room for the index of the write-ahead log.
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})

#: From chunks to their published vectors; needs the parameter :model.
WITH_VECTORS: Final = "JOIN vectors v ON v.model = :model AND v.text_hash = c.text_hash"


def open_for_writing(file: Path) -> sqlite3.Connection:
    """Open or create, and migrate. The caller holds the lock. Raises NewerIndex, IndexDamaged, IndexFault."""
    with faults(file):
        connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            if refuse_newer(connection, file) == 0:
                # These two must come before anything is written. In an old database the second would write a page.
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise IndexFault(f"{file} cannot have a write-ahead log here ({mode}); use a local disk")
            connection.execute("PRAGMA synchronous = NORMAL")
            # Nothing of a user's is written to a shared temporary folder.
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(file: Path) -> sqlite3.Connection:
    """Open what is there, without any right to change it. Raises NoIndex, NewerIndex, IndexDamaged, IndexFault."""
    if not file.is_file():
        raise NoIndex(f"there is no index in {file.parent}; index this user first")
    with faults(file):
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        try:
            connection.isolation_level = None
            connection.execute("PRAGMA temp_store = MEMORY")
            number = refuse_newer(connection, file)
            if number == 0:
                raise NoIndex(f"the index in {file.parent} is only just being made; ask again later")
            if number < SCHEMA:
                raise IndexFault(f"{file} was written by an older release; index this user once to bring it up to date")
        except BaseException:
            connection.close()
            raise
    return connection


def refuse_newer(connection: sqlite3.Connection, file: Path) -> int:
    """The schema number of the database. Raises NewerIndex when it is higher than this release knows."""
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    if number > SCHEMA:
        raise NewerIndex(
            f"{file} has schema {number}, this release knows {SCHEMA}; install the release that wrote it, "
            "or erase the index and index this user anew"
        )
    return int(number)


@contextlib.contextmanager
def faults(file: Path) -> Iterator[None]:
    """Say what SQLite's errors mean for the index. Errors that are defects of ours pass as they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _FULL:
            raise IndexFull(f"{file} has no room to grow ({error}); free some disk space") from error
        # The low byte is the class of the error; some errors of the Python module carry no code at all.
        match code & 0xFF:
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise IndexDamaged(f"{file} is damaged ({error}); erase it and index this user anew") from error
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise IndexBusy(f"{file} is kept busy by another process ({error}); find and stop it") from error
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                raise IndexFault(f"{file} cannot be used ({error}); mind the disk and the permissions") from error
        raise


def generation_of(connection: sqlite3.Connection) -> int:
    """Number of the published state; 0 before the first."""
    return int(_meta(connection, "generation", 0))


def model_of(connection: sqlite3.Connection) -> str:
    """The embedding model of the published vectors; "" for none."""
    return str(_meta(connection, "model", ""))


def find_faiss(connection: sqlite3.Connection) -> FaissFile | None:
    """The FAISS file of the published state, if there is one."""
    row = connection.execute("SELECT name, count, last_chunk, bytes, generation FROM faiss_file").fetchone()
    if row is None:
        return None
    name, count, last_chunk, size, generation = row
    return FaissFile(name=name, count=count, last_chunk=last_chunk, bytes=size, generation=generation)


def count_vectors(connection: sqlite3.Connection, model: str, last_chunk: int | None = None) -> int:
    """Published chunks that have a vector of `model`; with `last_chunk` only those up to that id."""
    (count,) = connection.execute(
        f"SELECT count(*) FROM chunks c {WITH_VECTORS} WHERE :last IS NULL OR c.id <= :last",  # noqa: S608 - a constant
        {"model": model, "last": last_chunk},
    ).fetchone()
    return int(count)


def _meta(connection: sqlite3.Connection, name: str, default: int | str) -> int | str:
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return default if row is None else row[0]


def _migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations that are missing, each in a transaction with its number: a crash leaves whole ones behind."""
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    for done, statements in enumerate(MIGRATIONS[number:], start=number + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {done}")
            connection.execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
