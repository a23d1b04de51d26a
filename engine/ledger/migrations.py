"""The way from any older ledger, or an empty file, to the tables of today.

Rule: a migration that was ever released is never changed; a change of tables.py is one more entry at the end. The
number of entries that a file has been through stands in its PRAGMA user_version, and is written in the same
transaction: a process killed in the middle leaves the file as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from engine.errors import CannotRunError, NewerDataError

_FIRST: Final = (
    """CREATE TABLE users (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        weight REAL NOT NULL,
        generation INTEGER NOT NULL,
        created REAL NOT NULL,
        index_stamp TEXT NOT NULL,
        versions TEXT NOT NULL,
        done REAL,
        UNIQUE (name)
    )""",
    """CREATE TABLE sources (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        user_id INTEGER NOT NULL,
        uri TEXT NOT NULL,
        cursor TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        held_removals INTEGER NOT NULL,
        listed REAL,
        UNIQUE (user_id, uri),
        FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
    )""",
    """CREATE TABLE items (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        source_id INTEGER NOT NULL,
        user_id INTEGER NOT NULL,
        parent_id INTEGER,
        "key" TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        path TEXT NOT NULL,
        kind TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        modified REAL NOT NULL,
        locator TEXT NOT NULL,
        listed_skip TEXT,
        state TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        alone INTEGER NOT NULL,
        partial INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        indexed_before INTEGER NOT NULL,
        redo INTEGER NOT NULL,
        moved REAL NOT NULL,
        UNIQUE (source_id, "key"),
        FOREIGN KEY (source_id) REFERENCES sources (id) ON DELETE CASCADE,
        FOREIGN KEY (parent_id) REFERENCES items (id) ON DELETE CASCADE
    )""",
    "CREATE INDEX items_parent ON items (parent_id) WHERE parent_id IS NOT NULL",
    "CREATE INDEX items_pending ON items (user_id, indexed_before DESC, modified DESC) WHERE state = 'pending'",
    "CREATE INDEX items_with_reason ON items (state, user_id) WHERE reason IS NOT NULL",
    """CREATE TABLE attempts (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        item_id INTEGER NOT NULL,
        run_id INTEGER NOT NULL,
        stage TEXT NOT NULL,
        part TEXT NOT NULL,
        reason TEXT,
        detail TEXT NOT NULL,
        signal INTEGER NOT NULL,
        started REAL NOT NULL,
        seconds REAL NOT NULL,
        cpu_seconds REAL NOT NULL,
        peak_bytes INTEGER NOT NULL,
        FOREIGN KEY (item_id) REFERENCES items (id) ON DELETE CASCADE
    )""",
    "CREATE INDEX attempts_item ON attempts (item_id)",
    """CREATE TABLE runs (
        id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        users INTEGER NOT NULL,
        began REAL NOT NULL,
        ended REAL,
        exit_code INTEGER,
        report TEXT NOT NULL
    )""",
    """CREATE TABLE tallies (
        user_id INTEGER NOT NULL,
        state TEXT NOT NULL,
        is_part INTEGER NOT NULL,
        partial INTEGER NOT NULL,
        number INTEGER NOT NULL,
        PRIMARY KEY (user_id, state, is_part, partial),
        FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
    ) WITHOUT ROWID""",
    """CREATE TABLE departed (
        user_id INTEGER NOT NULL,
        source_id INTEGER NOT NULL,
        "key" TEXT NOT NULL,
        PRIMARY KEY (user_id, source_id, "key"),
        FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
    ) WITHOUT ROWID""",
    """CREATE TRIGGER items_counted AFTER INSERT ON items BEGIN
        INSERT INTO tallies (user_id, state, is_part, partial, number)
        VALUES (NEW.user_id, NEW.state, NEW.parent_id IS NOT NULL, NEW.partial, 1)
        ON CONFLICT (user_id, state, is_part, partial) DO UPDATE SET number = number + 1;
    END""",
    """CREATE TRIGGER items_uncounted AFTER DELETE ON items BEGIN
        UPDATE tallies SET number = number - 1
        WHERE user_id = OLD.user_id AND state = OLD.state
        AND is_part = (OLD.parent_id IS NOT NULL) AND partial = OLD.partial;
    END""",
    """CREATE TRIGGER items_recounted AFTER UPDATE OF state, partial ON items
    WHEN OLD.state <> NEW.state OR OLD.partial <> NEW.partial BEGIN
        UPDATE tallies SET number = number - 1
        WHERE user_id = OLD.user_id AND state = OLD.state
        AND is_part = (OLD.parent_id IS NOT NULL) AND partial = OLD.partial;
        INSERT INTO tallies (user_id, state, is_part, partial, number)
        VALUES (NEW.user_id, NEW.state, NEW.parent_id IS NOT NULL, NEW.partial, 1)
        ON CONFLICT (user_id, state, is_part, partial) DO UPDATE SET number = number + 1;
    END""",
)

_PEAKS: Final = (
    """CREATE TABLE peaks (
        stage TEXT NOT NULL,
        kind TEXT NOT NULL,
        octave INTEGER NOT NULL,
        bucket INTEGER NOT NULL,
        weight REAL NOT NULL,
        samples INTEGER NOT NULL,
        PRIMARY KEY (stage, kind, octave, bucket)
    ) WITHOUT ROWID""",
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_FIRST, _PEAKS)
#: The number of the schema that this release writes.
SCHEMA: Final = len(MIGRATIONS)


def is_current(connection: Connection, path: Path) -> bool:
    """True when nothing is to be migrated. Raises NewerDataError when a newer release wrote the file.

    path: of the ledger, for the message only.
    """
    found = _number(connection)
    if found > SCHEMA:
        raise NewerDataError(
            f"the ledger {path} was written by a newer release (its schema is number {found}, this release knows"
            f" {SCHEMA}); install that release, or restore a backup made before it"
        )
    return found == SCHEMA


def migrate(connection: Connection, path: Path) -> None:
    """Bring the ledger to today's schema. The caller has begun a transaction that excludes other writers, and commits.

    Raises NewerDataError, and CannotRunError when the file is a database of something else.
    """
    if is_current(connection, path):
        return
    found = _number(connection)
    if found == 0 and connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").first():
        raise CannotRunError(f"{path} is a database, but not a ledger of Nightmill; choose another data directory")
    for statements in MIGRATIONS[found:]:
        for statement in statements:
            connection.exec_driver_sql(statement)
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")


def _number(connection: Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
