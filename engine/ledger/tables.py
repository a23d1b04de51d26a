"""The ledger's tables, as SQLAlchemy Core knows them.

    users --< sources --< items --< attempts          runs
      |                     |  ^
      |                     +--+ parent: a part found inside another item
      +--< tallies   items by state, kept exact by the triggers below
      +--< departed  what left the ledger and the index may still hold

    peaks   what units of a kind have taken of the memory (policy/peaks.py); of no user, no item and no name

Rule: this is today's schema; `migrations.py` is the way to it, and a test compares the two. Ids are never used again
(AUTOINCREMENT): an index may still speak of a source that is gone. Text and numbers only; JSON where there are many.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import REAL, Column, ForeignKey, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("weight", REAL, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created", REAL, nullable=False),
    Column("index_stamp", Text, nullable=False),
    Column("versions", Text, nullable=False),
    Column("done", REAL),
    sqlite_autoincrement=True,
)

sources = Table(
    "sources",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", Integer, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("uri", Text, nullable=False),
    Column("cursor", Text, nullable=False),
    Column("reason", Text),
    Column("detail", Text, nullable=False),
    Column("held_removals", Integer, nullable=False),
    Column("listed", REAL),
    UniqueConstraint("user_id", "uri"),
    sqlite_autoincrement=True,
)

# user_id        the source's user, copied for the indexes below; it goes when the source goes
# locator        JSON
# listed_skip    the reason for which the source's own rules leave the item out; NULL: they do not
# indexed_before 1: the index may hold a version of it
# redo           1: asked for again though nothing changed, so that an index that holds it proves nothing
# moved          when the state was last set, seconds since the epoch
items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source_id", Integer, ForeignKey("sources.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Integer, nullable=False),
    Column("parent_id", Integer, ForeignKey("items.id", ondelete="CASCADE")),
    Column("key", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("modified", REAL, nullable=False),
    Column("locator", Text, nullable=False),
    Column("listed_skip", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("detail", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("alone", Integer, nullable=False),
    Column("partial", Integer, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("indexed_before", Integer, nullable=False),
    Column("redo", Integer, nullable=False),
    Column("moved", REAL, nullable=False),
    UniqueConstraint("source_id", "key"),
    sqlite_autoincrement=True,
)
Index("items_parent", items.c.parent_id, sqlite_where=text("parent_id IS NOT NULL"))
Index(
    "items_pending",
    items.c.user_id,
    items.c.indexed_before.desc(),
    items.c.modified.desc(),
    sqlite_where=text("state = 'pending'"),
)
Index("items_with_reason", items.c.state, items.c.user_id, sqlite_where=text("reason IS NOT NULL"))

attempts = Table(
    "attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", Integer, ForeignKey("items.id", ondelete="CASCADE"), nullable=False),
    Column("run_id", Integer, nullable=False),
    Column("stage", Text, nullable=False),
    Column("part", Text, nullable=False),
    Column("reason", Text),
    Column("detail", Text, nullable=False),
    Column("signal", Integer, nullable=False),
    Column("started", REAL, nullable=False),
    Column("seconds", REAL, nullable=False),
    Column("cpu_seconds", REAL, nullable=False),
    Column("peak_bytes", Integer, nullable=False),
    sqlite_autoincrement=True,
)
Index("attempts_item", attempts.c.item_id)

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("users", Integer, nullable=False),
    Column("began", REAL, nullable=False),
    Column("ended", REAL),
    Column("exit_code", Integer),
    Column("report", Text, nullable=False),
    sqlite_autoincrement=True,
)

tallies = Table(
    "tallies",
    metadata,
    Column("user_id", Integer, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("state", Text, primary_key=True),
    Column("is_part", Integer, primary_key=True),
    Column("partial", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
    sqlite_with_rowid=False,
)

departed = Table(
    "departed",
    metadata,
    Column("user_id", Integer, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("source_id", Integer, primary_key=True),
    Column("key", Text, primary_key=True),
    sqlite_with_rowid=False,
)

# Adding is all that is done to a row, so that several processes add to the same ones. When a user is erased, what its
# files have taught stays: numbers by stage, type of file from a closed list, and size within a factor of two.
peaks = Table(
    "peaks",
    metadata,
    Column("stage", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("octave", Integer, primary_key=True),
    Column("bucket", Integer, primary_key=True),
    Column("weight", REAL, nullable=False),
    Column("samples", Integer, nullable=False),
    sqlite_with_rowid=False,
)

_COUNT_NEW = (
    "INSERT INTO tallies (user_id, state, is_part, partial, number)"
    " VALUES (NEW.user_id, NEW.state, NEW.parent_id IS NOT NULL, NEW.partial, 1)"
    " ON CONFLICT (user_id, state, is_part, partial) DO UPDATE SET number = number + 1;"
)
_UNCOUNT_OLD = (
    "UPDATE tallies SET number = number - 1 WHERE user_id = OLD.user_id AND state = OLD.state"
    " AND is_part = (OLD.parent_id IS NOT NULL) AND partial = OLD.partial;"
)

#: Counting 1,000,000 items takes a second, reading the tallies of 10,000 users some tens of milliseconds. Deletions
#: that cascade fire these triggers too.
TRIGGERS: Final = (
    f"CREATE TRIGGER items_counted AFTER INSERT ON items BEGIN {_COUNT_NEW} END",
    f"CREATE TRIGGER items_uncounted AFTER DELETE ON items BEGIN {_UNCOUNT_OLD} END",
    "CREATE TRIGGER items_recounted AFTER UPDATE OF state, partial ON items"
    " WHEN OLD.state <> NEW.state OR OLD.partial <> NEW.partial"
    f" BEGIN {_UNCOUNT_OLD} {_COUNT_NEW} END",
)
