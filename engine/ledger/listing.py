"""A listing of one source, or the parts of one item, compared with what the ledger knows.

    page --> one SELECT --> judge() each --> what differs is noted --> finish(): one transaction, or none

Rule: nothing is written before `finish`, so that a listing of hours holds no lock and leaves nothing behind when it
breaks off; and what is unchanged is never written at all. Memory stays small for a million items: what differs is
noted in a file without a name, and which items were seen in a set of bits.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from sqlalchemy import Connection, Select, bindparam, func, select
from sqlalchemy.exc import IntegrityError

from engine.errors import NightmillError, UsageError
from engine.ledger.database import Database, explained
from engine.ledger.tables import items, sources
from engine.model import ItemId, ItemKey, Listed, SourceId
from engine.ports import Clock, ListingOutcome
from engine.reasons import Reason

#: As engine/ports.py has it, and well below the number of variables that SQLite takes (32,766).
PAGE_LIMIT: Final = 1000
#: More items than this, and more than one in ten of the source, do not vanish at once without being asked about.
BRAKE_ITEMS: Final = 10
BRAKE_FRACTION: Final = 0.1
#: Notes beyond this go to the disk: some 10,000 items.
_NOTES_IN_MEMORY: Final = 4 * 2**20

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Known(NamedTuple):
    """What of an item a listing is compared with. `locator` is JSON text."""

    id: ItemId
    key: ItemKey
    parent: int | None
    state: str
    listed_skip: str | None
    detail: str
    fingerprint: str
    path: str
    kind: str
    size_bytes: int
    modified: float
    locator: str


class Difference(StrEnum):
    """What a listing means for one item: NEW and CHANGED count as such, the others as unchanged.

    MOVED: the same content in another place (a mail's offset in its mailbox): the row follows, the state stays.
    EXCLUDED, LIFTED: a rule of the source names it now, or no longer.
    """

    SAME = "same"
    NEW = "new"
    CHANGED = "changed"
    MOVED = "moved"
    EXCLUDED = "excluded"
    LIFTED = "lifted"


class Note(NamedTuple):
    """One difference, as it waits for `finish`. `id` 0: new."""

    difference: str
    id: int
    key: str
    fingerprint: str
    path: str
    kind: str
    size_bytes: int
    modified: float
    locator: str
    skip: str | None
    detail: str


def judge(known: Known, listed: Listed) -> Difference:
    """Compare one item with its row."""
    if listed.skip is not None and (known.state != "skipped" or known.listed_skip != listed.skip):
        return Difference.EXCLUDED
    if listed.skip is None and known.listed_skip is not None:
        return Difference.LIFTED
    if listed.skip is None and known.fingerprint != listed.fingerprint:
        return Difference.CHANGED
    # From here on the state stays; for an item that a rule leaves out, the fingerprint says nothing.
    same = (
        known.fingerprint == listed.fingerprint
        and known.path == listed.path
        and known.modified == listed.modified
        and known.size_bytes == listed.size_bytes
        and known.kind == listed.kind
        # Reading JSON is three times as fast as writing it; only what differs then is written, to be sure.
        and (json.loads(known.locator) == listed.locator or known.locator == _encode(listed.locator))
        and (listed.skip is None or known.detail == clean(listed.skip_detail))
    )
    return Difference.SAME if same else Difference.MOVED


def clean(detail: str) -> str:
    """A detail as it is kept: one that can be stored, of at most 2,000 characters."""
    return detail[:2000].encode("utf-8", "replace").decode()


class SqlListing:
    """One listing of one source (ports.Listing). Made by SqlLedger.listing, which closes it.

    Raises UsageError when there is no such source.
    """

    def __init__(self, database: Database, clock: Clock, source: SourceId) -> None:
        self._database = database
        self._clock = clock
        self._source = source
        self._seen = _Bits()
        self._notes = _Notes(database.path.parent)
        self._unchanged = 0
        with database.read() as connection:
            row = connection.exec_driver_sql(_BEGIN, (source,)).first()
        if row is None:
            raise UsageError(f"there is no source {source}; `nightmill users list` shows those there are")
        #: Items that somebody else adds meanwhile have higher ids, and are not taken for gone.
        self._horizon = int(row[0])

    def add(self, page: Sequence[Listed]) -> None:
        """Compare at most 1,000 items with the ledger; what differs is kept for `finish`. Writes nothing.

        An item that was listed before in this listing is passed over. Raises NightmillError when a key of the source
        is one that a part has: part keys must be such that no source says them.
        """
        if len(page) > PAGE_LIMIT:
            raise ValueError(f"a page of {len(page)} items; at most {PAGE_LIMIT}")
        with self._database.read() as connection:
            rows = connection.execute(_KNOWN_KEYS, {"source": self._source, "keys": [item.key for item in page]})
            known = {row[1]: Known._make(row) for row in rows.all()}
        with explained(self._database.path):
            for listed in page:
                self._compare(known.get(listed.key), listed)

    def finish(self, *, complete: bool, cursor: str, accept_removals: bool) -> ListingOutcome:
        """Commit all of it in one transaction; none is begun when nothing differs and nothing is to be said anew.

        complete: every item of the source was listed: what was not is gone, within the brake. The outcome is empty
        when the source was removed meanwhile. Call once.
        """
        if not self._notes and self._says_the_same(complete, cursor):
            return ListingOutcome(new=0, changed=0, unchanged=self._unchanged, gone=(), held=0)
        with self._database.write() as connection:
            source = connection.execute(_SOURCE, {"source": self._source}).first()
            if source is None:
                return ListingOutcome(new=0, changed=0, unchanged=0, gone=(), held=0)
            total, missing = self._missing(connection) if complete else (0, [])
            change = Change(connection, self._source, source.user_id, None, self._clock.now())
            for batch in self._notes.batches():
                change.apply(batch)
            held = 0
            if not accept_removals and _is_braked(len(missing) - source.held_removals, total):
                held, missing = len(missing), []
            change.remove(missing)
            if complete:
                self._say(connection, source.cursor if held else cursor, held, total)
        unchanged = self._unchanged + change.moved
        return ListingOutcome(
            new=change.new, changed=change.changed, unchanged=unchanged, gone=tuple(change.gone), held=held
        )

    def outlook(self, *, complete: bool, accept_removals: bool) -> ListingOutcome:
        """What `finish` would find; nothing is written. No page may be added afterwards."""
        kinds = Counter(note.difference for batch in self._notes.batches() for note in batch)
        new, changed = kinds[Difference.NEW], kinds[Difference.CHANGED] + kinds[Difference.LIFTED]
        with self._database.read() as connection:
            source = connection.execute(_SOURCE, {"source": self._source}).first()
            total, missing = self._missing(connection) if complete and source is not None else (0, [])
            held = 0
            if source is not None and not accept_removals:
                held = len(missing) if _is_braked(len(missing) - source.held_removals, total) else 0
            named = [] if held else missing
            gone = connection.execute(select(items.c.key).where(items.c.id.in_(_ids(named)))).scalars()
            unchanged = self._unchanged + kinds[Difference.MOVED]
            return ListingOutcome(
                new=new, changed=changed, unchanged=unchanged, gone=tuple(ItemKey(key) for key in gone), held=held
            )

    def close(self) -> None:
        """Let go of what was noted. Idempotent."""
        self._notes.close()

    def _compare(self, row: Known | None, listed: Listed) -> None:
        if row is not None and row.parent is not None:
            raise NightmillError(f"source {self._source} lists an item by the key of part {row.id}")
        if row is not None and not self._seen.add(row.id):
            return
        note = _note(row, listed)
        if note is None:
            self._unchanged += 1
        else:
            self._notes.add(note)

    def _says_the_same(self, complete: bool, cursor: str) -> bool:
        if not complete:
            return True
        with self._database.read() as connection:
            source = connection.execute(_SOURCE, {"source": self._source}).first()
            if source is None:
                return True
            told = (source.cursor, source.reason, source.held_removals) == (cursor, None, 0)
            return told and source.listed is not None and not self._missing(connection)[1]

    def _missing(self, connection: Connection) -> tuple[int, list[int]]:
        """How many top-level items the source had when the listing began, and the ids of those it did not name."""
        total = 0
        missing: list[int] = []
        found = connection.execute(_TOP_LEVEL, {"source": self._source, "horizon": self._horizon})
        for rows in found.partitions(PAGE_LIMIT):
            total += len(rows)
            missing.extend(id_ for (id_,) in rows if id_ not in self._seen)
        return total, missing

    def _say(self, connection: Connection, cursor: str, held: int, total: int) -> None:
        # While removals are held the old cursor stays: else the source would pass for unchanged, and they for decided.
        connection.execute(
            sources.update().where(sources.c.id == self._source),
            {
                "cursor": cursor,
                "reason": Reason.REMOVALS_HELD.value if held else None,
                "detail": f"{held} of {total} items vanished at once" if held else "",
                "held_removals": held,
                "listed": self._clock.now(),
            },
        )


def compare_parts(connection: Connection, parent: ItemId, parts: Sequence[Listed]) -> tuple[int, list[Note], list[int]]:
    """Of the parts found in an item: how many are unchanged, what differs, and the ids of those no longer there."""
    known = {row[1]: Known._make(row) for row in connection.execute(_KNOWN_PARTS, {"parent": parent})}
    notes = []
    found = {listed.key: listed for listed in parts}
    for key, listed in found.items():
        note = _note(known.pop(key, None), listed)
        if note is not None:
            notes.append(note)
    return len(found) - len(notes), notes, [row.id for row in known.values()]


class Change:
    """Differences being written, inside the caller's transaction, and the count of them."""

    def __init__(self, connection: Connection, source: SourceId, user_row: int, parent: int | None, now: float) -> None:
        self.new = 0
        self.changed = 0
        self.moved = 0
        self.gone: list[ItemKey] = []
        self._connection = connection
        self._source = source
        self._user_row = user_row
        self._parent = parent
        self._now = now
        #: Mostly there is none, and then nothing has to be looked for, for each of a million new items.
        self._any_departed = bool(connection.exec_driver_sql(_ANY_DEPARTED, (user_row, source)).first())

    def apply(self, notes: Sequence[Note]) -> None:
        """Write a batch."""
        kinds: dict[str, list[Note]] = {}
        for note in notes:
            kinds.setdefault(note.difference, []).append(note)
        self._insert(kinds.pop(Difference.NEW, []))
        self._make_pending(kinds.pop(Difference.CHANGED, []) + kinds.pop(Difference.LIFTED, []))
        self._exclude(kinds.pop(Difference.EXCLUDED, []))
        self._follow(kinds.pop(Difference.MOVED, []))

    def remove(self, ids: Sequence[int]) -> None:
        """Remove items, their parts and attempts; what the index may hold of them is written down as departed."""
        self._remove(_TREES, ids)

    def _insert(self, notes: Sequence[Note]) -> None:
        if not notes:
            return
        rows = [
            (
                self._source,
                self._user_row,
                self._parent,
                note.key,
                note.fingerprint,
                note.path,
                note.kind,
                note.size_bytes,
                note.modified,
                note.locator,
                note.skip,
                "skipped" if note.skip else "pending",
                note.skip,
                note.detail,
                self._now,
            )
            for note in notes
        ]
        try:
            result = self._connection.exec_driver_sql(_INSERT if self._parent is None else _INSERT_PART, rows)
        except IntegrityError as error:
            raise NightmillError(f"a part of item {self._parent} has the key of another item: {error.orig}") from error
        self.new += result.rowcount
        self._return(notes)

    def _make_pending(self, notes: Sequence[Note]) -> None:
        if notes:
            self._connection.exec_driver_sql(_PENDING, [(*_place(note), self._now, note.id) for note in notes])
            self.changed += len(notes)
            self._return(notes)

    def _exclude(self, notes: Sequence[Note]) -> None:
        if notes:
            rows = [(*_place(note), note.skip, note.skip, note.detail, self._now, note.id) for note in notes]
            self._connection.exec_driver_sql(_EXCLUDE, rows)
            self.changed += len(notes)
            ids = [note.id for note in notes]
            self._connection.exec_driver_sql(depart("items.id IN (SELECT value FROM json_each(?))"), (json.dumps(ids),))
            self._remove(_TREES_BELOW, ids)

    def _follow(self, notes: Sequence[Note]) -> None:
        if notes:
            self._connection.exec_driver_sql(_FOLLOW, [(*_place(note), note.detail, note.id) for note in notes])
            self.moved += len(notes)

    def _return(self, notes: Iterable[Note]) -> None:
        """What is on its way into the index again must not be taken out of it by name."""
        if self._any_departed:
            self._connection.exec_driver_sql(
                "DELETE FROM departed WHERE user_id = ? AND source_id = ? AND key = ?",
                [(self._user_row, self._source, note.key) for note in notes],
            )

    def _remove(self, trees: str, ids: Sequence[int]) -> None:
        for batch in _batches(iter(ids)):
            roots = (json.dumps(batch),)
            rows = self._connection.exec_driver_sql(
                f"{trees} SELECT items.id, items.key FROM items JOIN tree USING (id)",  # noqa: S608 - ours
                roots,
            )
            doomed = [(row[0], row[1]) for row in rows]
            if not doomed:
                continue
            self.gone.extend(ItemKey(key) for _, key in doomed)
            these = (json.dumps([id_ for id_, _ in doomed]),)
            self._connection.exec_driver_sql(depart("items.id IN (SELECT value FROM json_each(?))"), these)
            self._connection.exec_driver_sql("DELETE FROM items WHERE id IN (SELECT value FROM json_each(?))", these)


def depart(where: str) -> str:
    """The statement that writes down, as departed, the items of `where` that the index may hold."""
    return (
        "INSERT INTO departed (user_id, source_id, key) SELECT user_id, source_id, key FROM items"  # noqa: S608
        f" WHERE indexed_before AND {where} ON CONFLICT DO NOTHING"
    )


class _Bits:
    """A set of item ids: ids of one source lie close together, so a word for each 64 of them is small.

    A million neighbours take some 2 MB, where a set of ints takes 60.
    """

    def __init__(self) -> None:
        self._words: dict[int, int] = {}

    def add(self, id_: int) -> bool:
        """False when it was there before."""
        word, bit = self._words.get(id_ >> 6, 0), 1 << (id_ & 63)
        self._words[id_ >> 6] = word | bit
        return not word & bit

    def __contains__(self, id_: int) -> bool:
        return bool(self._words.get(id_ >> 6, 0) >> (id_ & 63) & 1)


class _Notes:
    """What differs, in the order it was found: in memory, and beyond some megabytes in a file that has no name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def __bool__(self) -> bool:
        return self._file is not None

    def add(self, note: Note) -> None:
        """Keep one. Raises OSError when the disk is full."""
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - see close
                _NOTES_IN_MEMORY, "w+", encoding="utf-8", newline="\n", dir=str(self._folder)
            )
        self._file.write(_encode(note) + "\n")

    def batches(self) -> Iterator[list[Note]]:
        """All of them, in batches."""
        if self._file is not None:
            self._file.seek(0)
            yield from _batches(Note._make(json.loads(line)) for line in self._file)

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()


def _note(row: Known | None, listed: Listed) -> Note | None:
    difference = Difference.NEW if row is None else judge(row, listed)
    if difference is Difference.SAME:
        return None
    return Note(
        difference.value,
        0 if row is None else row.id,
        listed.key,
        listed.fingerprint,
        listed.path,
        listed.kind.value,
        listed.size_bytes,
        listed.modified,
        _encode(listed.locator),
        None if listed.skip is None else listed.skip.value,
        clean(listed.skip_detail),
    )


def _place(note: Note) -> tuple[Any, ...]:
    return note.fingerprint, note.path, note.kind, note.size_bytes, note.modified, note.locator


def _ids(these: Sequence[int]) -> Select[Any]:
    """Any number of ids, as a query: SQLite takes only so many variables."""
    return select(func.json_each(json.dumps(list(these))).table_valued("value").c.value)


def _is_braked(missing: int, total: int) -> bool:
    """missing: beyond those that were missing the last time already."""
    return missing > BRAKE_ITEMS and missing > BRAKE_FRACTION * total


def _batches(things: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(things, PAGE_LIMIT)):
        yield batch


_KNOWN = select(
    items.c.id,
    items.c.key,
    items.c.parent_id,
    items.c.state,
    items.c.listed_skip,
    items.c.detail,
    items.c.fingerprint,
    items.c.path,
    items.c.kind,
    items.c.size_bytes,
    items.c.modified,
    items.c.locator,
)
_KNOWN_KEYS = _KNOWN.where(items.c.source_id == bindparam("source"), items.c.key.in_(bindparam("keys", expanding=True)))
_KNOWN_PARTS = _KNOWN.where(items.c.parent_id == bindparam("parent"))
_SOURCE = select(sources).where(sources.c.id == bindparam("source"))
_TOP_LEVEL = select(items.c.id).where(
    items.c.source_id == bindparam("source"), items.c.parent_id.is_(None), items.c.id <= bindparam("horizon")
)

_BEGIN: Final = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'items'), 0) FROM sources WHERE id = ?"
_INSERT_PART: Final = (
    "INSERT INTO items (source_id, user_id, parent_id, key, fingerprint, path, kind, size_bytes, modified, locator,"
    " listed_skip, state, reason, detail, attempts, alone, partial, media_type, indexed_before, redo, moved)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, '', 0, 0, ?)"
)
#: A source that names a key twice means the same item.
_INSERT: Final = _INSERT_PART + " ON CONFLICT (source_id, key) DO NOTHING"
_PLACE: Final = "UPDATE items SET fingerprint = ?, path = ?, kind = ?, size_bytes = ?, modified = ?, locator = ?"
_PENDING: Final = (
    _PLACE + ", state = 'pending', reason = NULL, detail = '', listed_skip = NULL, attempts = 0, alone = 0,"
    " partial = 0, redo = 0, moved = ? WHERE id = ?"
)
_EXCLUDE: Final = (
    _PLACE + ", state = 'skipped', listed_skip = ?, reason = ?, detail = ?, attempts = 0, alone = 0,"
    " partial = 0, redo = 0, moved = ? WHERE id = ?"
)
_FOLLOW: Final = _PLACE + ", detail = CASE WHEN listed_skip IS NULL THEN detail ELSE ? END WHERE id = ?"

_ANY_DEPARTED: Final = "SELECT 1 FROM departed WHERE user_id = ? AND source_id = ? LIMIT 1"
#: An item and all that was found inside it.
_TREES: Final = (
    "WITH RECURSIVE tree (id) AS (SELECT value FROM json_each(?)"
    " UNION SELECT items.id FROM items JOIN tree ON items.parent_id = tree.id)"
)
#: Only what was found inside.
_TREES_BELOW: Final = (
    "WITH RECURSIVE tree (id) AS (SELECT items.id FROM items WHERE parent_id IN (SELECT value FROM json_each(?))"
    " UNION SELECT items.id FROM items JOIN tree ON items.parent_id = tree.id)"
)
