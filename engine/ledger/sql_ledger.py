"""What happened to every item, in one SQLite file: the verbs of ports.Ledger.

Rule: each verb is one transaction, and begins none when there is nothing to write. States change in three places only:
`settle` and `published` (moves, checked against policy/lifecycle.py), listings, and `requeue`/`reconcile`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from engine.errors import NightmillError, UsageError
from engine.ledger.database import open_database
from engine.ledger.listing import Change, SqlListing, clean, compare_parts, depart
from engine.ledger.tables import attempts, departed, items, peaks, runs, sources, tallies, users
from engine.model import (
    Counts,
    Failure,
    Fingerprint,
    ItemId,
    ItemKey,
    ItemState,
    Kind,
    Listed,
    PeakCount,
    PeakKey,
    RunId,
    SourceId,
    Stage,
    UserId,
)
from engine.policy.lifecycle import check_move
from engine.policy.retries import keeps_published
from engine.ports import Attempt, Clock, ItemRecord, ListingOutcome, Move, RunRecord, SourceRecord, UserRecord
from engine.reasons import CATALOGUE, Reason

#: Enough to see how an item came to its end; a document of 500 pages makes hundreds, each night that it fails.
ATTEMPTS_KEPT: Final = 50
#: Names become part of folder names, messages and command lines.
USER_NAME_CHARACTERS: Final = 200
#: How many rows one statement of a large reconciliation takes.
_BATCH: Final = 1000
_NOTHING: Final = ListingOutcome(new=0, changed=0, unchanged=0, gone=(), held=0)
_SETTLED_BADLY: Final = (ItemState.FAILED, ItemState.QUARANTINED, ItemState.SKIPPED)


#: What is past its days; :border is a bound of the ids, :before of the time.
_OLD_ATTEMPTS: Final = (
    # CROSS: the attempts come first, or SQLite looks at every item that is well.
    "SELECT a.id FROM attempts a CROSS JOIN items i ON i.id = a.item_id"
    " WHERE a.id < :border AND a.started < :before AND i.state IN ('indexed', 'skipped')"
)
_OLD_RUNS: Final = "FROM runs WHERE began < :before AND id < (SELECT max(id) FROM runs)"


class SqlLedger:
    """The ledger in the file `path` (ports.Ledger). Also a context manager that closes itself.

    One instance belongs to one thread at a time; any number of processes may have the same file open. Every method
    raises CannotRunError, with the path and the way out, when the file or the disk does not play along.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open it, or make it with its folder. Raises CannotRunError and NewerDataError."""
        self._database = open_database(path)
        self._clock = clock

    def __enter__(self) -> SqlLedger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the database. Idempotent."""
        self._database.close()

    # --- users and sources ---------------------------------------------------------------------------------------

    def add_user(self, user: UserId, uris: Sequence[str], *, weight: float = 1.0) -> None:
        """Register a user, or add sources to one. Known sources are left as they are.

        weight: the user's share, above 0; for a known user 1.0 leaves the present one. Raises UsageError for a name
        or a weight that cannot be.
        """
        check_user_name(user)
        if not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"the weight of user {user!r} is {weight}; it must be a number above 0")
        fresh = {"generation": 0, "created": self._clock.now(), "index_stamp": "", "versions": ""}
        with self._database.write() as connection:
            connection.execute(sqlite_insert(users).values(name=user, weight=weight, **fresh).on_conflict_do_nothing())
            if weight != 1.0:
                connection.execute(update(users).where(users.c.name == user).values(weight=weight))
            row = _user_row(connection, user)
            for uri in uris:
                connection.execute(
                    sqlite_insert(sources)
                    .values(user_id=row, uri=uri, cursor="", detail="", held_removals=0)
                    .on_conflict_do_nothing()
                )

    def remove_user(self, user: UserId) -> None:
        """Forget the user, its sources, items and attempts; nothing of them stays in the file.

        Raises UsageError when unknown.
        """
        with self._database.write() as connection:
            if not connection.execute(delete(users).where(users.c.name == user)).rowcount:
                raise _unknown_user(user)
        self._database.shed_old_pages()

    def remove_source(self, source: SourceId) -> None:
        """Forget a source and its items; what the index may hold of them has departed. Unknown: nothing happens."""
        with self._database.write() as connection:
            connection.exec_driver_sql(depart("source_id = ?"), (source,))
            connection.execute(delete(sources).where(sources.c.id == source))
        self._database.shed_old_pages()

    def find_user(self, user: UserId) -> UserRecord | None:
        """The user of that name."""
        with self._database.read() as connection:
            row = connection.execute(_USERS.where(users.c.name == user)).first()
        return None if row is None else _user(row)

    def users(self) -> list[UserRecord]:
        """All users, the stalest first: those that were never done, then the longest since; by name among equals."""
        with self._database.read() as connection:
            return [_user(row) for row in connection.execute(_USERS_BY_AGE)]

    def sources(self, user: UserId) -> list[SourceRecord]:
        """The user's sources, oldest first. Raises UsageError when the user is unknown."""
        with self._database.read() as connection:
            rows = connection.execute(_SOURCES, {"user": user}).all()
            if not rows and _user_row(connection, user) is None:
                raise _unknown_user(user)
        return [_source(row, user) for row in rows]

    # --- listings ------------------------------------------------------------------------------------------------

    @contextmanager
    def listing(self, source: SourceId) -> Iterator[SqlListing]:
        """Begin a listing; left without `finish`, nothing of it is kept. Raises UsageError when unknown."""
        listing = SqlListing(self._database, self._clock, source)
        try:
            yield listing
        finally:
            listing.close()

    def touch_source(self, source: SourceId) -> None:
        """The source was looked at and is wholly unchanged. Writes only where its last listing had failed."""
        well = update(sources).where(sources.c.id == source, sources.c.reason.is_not(None))
        well = well.where(sources.c.reason != Reason.REMOVALS_HELD.value)
        with self._database.read() as connection:
            row = connection.execute(select(sources.c.reason).where(sources.c.id == source)).first()
        if row is not None and row.reason is not None:
            with self._database.write() as connection:
                connection.execute(well.values(reason=None, detail="", listed=self._clock.now()))

    def source_failed(self, source: SourceId, failure: Failure) -> None:
        """The source could not be listed. Its items stay as they are."""
        with self._database.write() as connection:
            connection.execute(
                update(sources)
                .where(sources.c.id == source)
                .values(reason=failure.reason.value, detail=clean(failure.detail))
            )

    def add_parts(self, parent: ItemId, parts: Sequence[Listed]) -> ListingOutcome:
        """The attachments found in an item, compared with those known from before; the missing ones are gone.

        Their keys are unique in the whole source, listed items included; else NightmillError. A parent that was
        removed meanwhile gets none, and the outcome is empty. Nothing is written when nothing differs.
        """
        with self._database.read() as connection:
            unchanged, notes, missing = compare_parts(connection, parent, parts)
        if not notes and not missing:
            return ListingOutcome(new=0, changed=0, unchanged=unchanged, gone=(), held=0)
        with self._database.write() as connection:
            row = connection.execute(select(items.c.source_id, items.c.user_id).where(items.c.id == parent)).first()
            if row is None:
                return _NOTHING
            unchanged, notes, missing = compare_parts(connection, parent, parts)
            change = Change(connection, SourceId(row.source_id), row.user_id, parent, self._clock.now())
            change.remove(missing)
            change.apply(notes)
        unchanged += change.moved
        return ListingOutcome(
            new=change.new, changed=change.changed, unchanged=unchanged, gone=tuple(change.gone), held=0
        )

    def with_parts(self, found: Sequence[ItemId]) -> set[ItemId]:
        """Those of these items of which attachments are known."""
        with self._database.read() as connection:
            return {ItemId(parent) for (parent,) in connection.exec_driver_sql(_WITH_PARTS, (json.dumps(found),))}

    # --- work ----------------------------------------------------------------------------------------------------

    def pending(
        self, user: UserId, *, limit: int, beyond: Sequence[ItemId] = (), sources: Collection[SourceId] = ()
    ) -> list[ItemRecord]:
        """The next items to work on, refresh before first-time, newest first, without those in `beyond`.

        sources: only items of these; empty for all.
        """
        found = _PENDING.where(items.c.source_id.in_(sources)) if sources else _PENDING
        with self._database.read() as connection:
            rows = connection.execute(found, {"user": user, "beyond": json.dumps(beyond), "limit": limit})
            return [_item(row) for row in rows]

    def find_trees(self, source: SourceId, keys: Sequence[ItemKey]) -> list[ItemRecord]:
        """The items of these keys, as far as there are any, with their attachments; parents before their parts."""
        with self._database.read() as connection:
            rows = connection.execute(_TREES_OF_KEYS, {"source": source, "keys": json.dumps(keys)})
            return [_item(row) for row in rows]

    def settle(
        self, run: RunId, attempts: Sequence[Attempt], moves: Sequence[Move], peaks: Sequence[PeakCount] = ()
    ) -> None:
        """Attempts and state moves of many items, in one transaction. Unknown (since removed) items are passed over.

        peaks: what was learned meanwhile of the memory that units take, added to what is there. It is of nobody:
        removing a user, or items, leaves it as it is.

        Raises NightmillError, and keeps nothing, for a move that lifecycle.py does not list, or whose failure does
        not fit its state: a skip for SKIPPED, a failure for FAILED and QUARANTINED.
        """
        if attempts or moves or peaks:
            with self._database.write() as connection:
                self._settle(connection, run, attempts, moves, None)
                _execute_many(connection, _ADD_PEAK, [_peak_row(count) for count in peaks])

    def peaks(self) -> list[PeakCount]:
        """All that was learned of the memory that units take, in any run of any process.

        Nothing in it is a user's: stage, type of file from a closed list, and sizes within a factor of two. After
        `users erase` these numbers are all that is left of what a user's files have taught.
        """
        with self._database.read() as connection:
            return [_peak(row) for row in connection.execute(select(peaks))]

    def published(
        self,
        run: RunId,
        user: UserId,
        generation: int,
        moves: Sequence[Move],
        departed: Sequence[tuple[SourceId, ItemKey]] = (),
    ) -> None:
        """The user's index has committed `generation`; the same facts are copied here, in one transaction.

        departed: what the index has let go of. Raises like `settle`, and for an item of another user. A user removed
        meanwhile is passed over.
        """
        with self._database.write() as connection:
            row = _user_row(connection, user)
            if row is None:
                return
            connection.execute(update(users).where(users.c.id == row).values(generation=generation))
            self._settle(connection, run, (), moves, row)
            if departed:
                connection.exec_driver_sql(_FORGET_DEPARTED, [(row, source, key) for source, key in departed])

    def departed(self, user: UserId, *, limit: int = 10_000) -> list[tuple[SourceId, ItemKey]]:
        """What left the ledger, or is skipped now, and the index may still hold. Kept until `published` names it."""
        with self._database.read() as connection:
            rows = connection.execute(_DEPARTED, {"user": user, "limit": limit})
            return [(SourceId(row.source_id), ItemKey(row.key)) for row in rows]

    def reconcile(
        self, user: UserId, generation: int, indexed: Mapping[tuple[SourceId, ItemKey], Fingerprint]
    ) -> tuple[int, int]:
        """Make the ledger agree with the index, which is the truth: items it holds at their present fingerprint are
        indexed, items it lacks are pending again. Returns (newly indexed, newly pending).

        What the index holds and the ledger does not know, or skips by a rule of the source, has departed. In a source
        with such unknown items the ledger lags behind the index, and may not know the parts of an item that it would
        call indexed: there, what is not yet called indexed is read again. So is what was asked for again.
        Raises UsageError when the user is unknown.
        """
        with self._database.write() as connection:
            row = _user_row(connection, user)
            if row is None:
                raise _unknown_user(user)
            found = connection.execute(_FOR_RECONCILIATION, {"user": row}).all()
            unknown = indexed.keys() - {(SourceId(item.source_id), ItemKey(item.key)) for item in found}
            behind = {source for source, _ in unknown}
            excluded = []
            newly_indexed: list[int] = []
            newly_pending: list[int] = []
            for item in found:
                place = (SourceId(item.source_id), ItemKey(item.key))
                held = indexed.get(place)
                if item.listed_skip is not None:
                    excluded.extend([place] if held is not None else [])
                elif item.state == ItemState.INDEXED:
                    newly_pending.extend([item.id] if held != item.fingerprint else [])
                elif held == item.fingerprint and not item.redo and item.source_id not in behind:
                    newly_indexed.append(item.id)
            now = self._clock.now()
            _execute_many(connection, _TAKE_OVER, [(now, id_) for id_ in newly_indexed])
            _execute_many(connection, _STAYS, [(id_,) for id_ in newly_indexed])
            _execute_many(connection, _READ_AGAIN, [(now, id_) for id_ in newly_pending])
            _execute_many(connection, _ADD_DEPARTED, [(row, *place) for place in [*sorted(unknown), *excluded]])
            connection.execute(update(users).where(users.c.id == row).values(generation=generation))
        return len(newly_indexed), len(newly_pending)

    def requeue(
        self,
        user: UserId | None,
        *,
        reasons: Sequence[Reason] = (),
        states: Sequence[ItemState],
        sources: Collection[SourceId] = (),
    ) -> int:
        """Make items pending again (`failures retry`, `reindex --full`, new stage versions); returns how many.

        user: None for all. reasons: only items that have one of them; empty for any. sources: only items of these;
        empty for all. What a rule of its source leaves out stays skipped. Nothing is written when there is no such
        item.
        """
        chosen: list[ColumnElement[bool]] = [items.c.listed_skip.is_(None), items.c.state.in_(states)]
        if user is not None:
            chosen.append(items.c.source_id.in_(_sources_of(user)))
        if sources:
            chosen.append(items.c.source_id.in_(sources))
        if reasons:
            chosen += [items.c.reason.is_not(None), items.c.reason.in_(reasons)]
        elif set(states) <= set(_SETTLED_BADLY):
            chosen.append(items.c.reason.is_not(None))
        with self._database.read() as connection:
            if connection.execute(select(items.c.id).where(*chosen).limit(1)).first() is None:
                return 0
        again = update(items).where(*chosen)
        # What is on its way into the index again must not be taken out of it by name.
        places = select(items.c.user_id, items.c.source_id, items.c.key).where(*chosen)
        with self._database.write() as connection:
            connection.execute(
                delete(departed).where(tuple_(departed.c.user_id, departed.c.source_id, departed.c.key).in_(places))
            )
            result = connection.execute(
                again.values(
                    redo=case((items.c.state == ItemState.INDEXED.value, 1), else_=items.c.redo),
                    state=ItemState.PENDING.value,
                    reason=None,
                    detail="",
                    attempts=0,
                    alone=0,
                    partial=0,
                    moved=self._clock.now(),
                )
            )
            return result.rowcount

    # --- runs ----------------------------------------------------------------------------------------------------

    def begin_run(self, kind: str, users: int) -> RunId:
        """Open a run. users: how many it is for."""
        with self._database.write() as connection:
            result = connection.execute(
                insert(runs).values(kind=kind, users=users, began=self._clock.now(), report="{}")
            )
            (run,) = result.inserted_primary_key or (0,)
            return RunId(run)

    def end_run(self, run: RunId, exit_code: int, report: Mapping[str, Any]) -> None:
        """Close it, with its report (JSON-able)."""
        ended = {"ended": self._clock.now(), "exit_code": exit_code, "report": json.dumps(report)}
        with self._database.write() as connection:
            connection.execute(update(runs).where(runs.c.id == run).values(**ended))

    def user_done(self, user: UserId, run: RunId, *, index_stamp: str, versions: str, partly: bool = False) -> None:
        """Everything of this user that could be done in this run is done (orders the next night).

        partly: some of the sources only; when the user was last done stays as it was, or whoever is given something
        every day would come last every night.
        """
        reached = {"user": user, "stamp": index_stamp, "reached": versions}
        with self._database.write() as connection:
            if partly:
                connection.execute(_USER_PARTLY_DONE, reached)
            else:
                connection.execute(_USER_DONE, {**reached, "done": self._clock.now()})

    def last_runs(self, limit: int) -> list[RunRecord]:
        """The latest runs, newest first."""
        with self._database.read() as connection:
            return [_run(row) for row in connection.execute(select(runs).order_by(runs.c.id.desc()).limit(limit))]

    # --- what is past its days -----------------------------------------------------------------------------------

    def count_old(self, before: float) -> tuple[int, int]:
        """(attempts, runs) that `forget_old` would forget. before: seconds since the epoch."""
        with self._database.read() as connection:
            border = {"before": before, "border": _border(connection, before)}
            tried = connection.exec_driver_sql(f"SELECT count(*) FROM ({_OLD_ATTEMPTS})", border).scalar_one()  # noqa: S608
            return int(tried), int(connection.exec_driver_sql(f"SELECT count(*) {_OLD_RUNS}", border).scalar_one())

    def forget_old(self, before: float, *, limit: int) -> tuple[int, int]:
        """Forget what was tried until then with items that are well by now, so many attempts at most, and the runs of
        that time; answers with the numbers of both. The last run, and what is not well, keep their history."""
        with self._database.read() as connection:
            border = {"before": before, "border": _border(connection, before), "limit": limit}
            some = connection.exec_driver_sql(f"{_OLD_ATTEMPTS} LIMIT 1", border).first()
            if some is None and connection.exec_driver_sql(f"SELECT 1 {_OLD_RUNS} LIMIT 1", border).first() is None:
                return 0, 0
        with self._database.write() as connection:
            tried = connection.exec_driver_sql(
                f"DELETE FROM attempts WHERE id IN ({_OLD_ATTEMPTS} LIMIT :limit)",  # noqa: S608
                border,
            )
            return tried.rowcount, connection.exec_driver_sql(f"DELETE {_OLD_RUNS}", border).rowcount

    def size_bytes(self) -> tuple[int, int]:
        """Bytes of the file, and of it those that hold nothing any more."""
        return self._database.size_bytes()

    def shrink(self) -> None:
        """Write the file anew without what is empty in it. Others who write wait as long."""
        self._database.shrink()

    # --- questions -----------------------------------------------------------------------------------------------

    def counts(self, user: UserId | None = None) -> Counts:
        """Items by state, of a user (unknown: nothing found) or of all."""
        with self._database.read() as connection:
            rows = connection.execute(_COUNTS) if user is None else connection.execute(_COUNTS_OF, {"user": user})
            return _counts([tuple(row) for row in rows])

    def counts_by_user(self) -> Mapping[UserId, Counts]:
        """The same for every user, in one query; by name."""
        gathered: dict[UserId, list[tuple[Any, ...]]] = {}
        with self._database.read() as connection:
            for name, *tally in connection.execute(_COUNTS_BY_USER):
                gathered.setdefault(UserId(name), []).append(tuple(tally))
        return {user: _counts(tallied) for user, tallied in gathered.items()}

    def failures(
        self,
        *,
        user: UserId | None = None,
        reason: Reason | None = None,
        since: float | None = None,
        states: Sequence[ItemState] = (),
        limit: int = 10_000,
    ) -> list[ItemRecord]:
        """Items that failed, are quarantined or were skipped, in this order, the latest first. Sources: see `sources`.

        since: only those that came to it then or later, seconds since the epoch. states: only these.
        """
        asked = [state.value for state in _SETTLED_BADLY if not states or state in states]
        order = case({state: rank for rank, state in enumerate(asked)}, value=items.c.state) if asked else items.c.id
        query = _ITEMS.where(items.c.reason.is_not(None), items.c.state.in_(asked))
        if user is not None:
            query = query.where(users.c.name == user)
        if reason is not None:
            query = query.where(items.c.reason == reason.value)
        if since is not None:
            query = query.where(items.c.moved >= since)
        return self._items(query.order_by(order, items.c.moved.desc(), items.c.id).limit(limit))

    def find_items(self, words: str, user: UserId | None = None) -> list[ItemRecord]:
        """Items by id (digits) or by a part of their path (capitals of ASCII aside), at most 100; the id's first."""
        if not words:
            return []
        by_path = items.c.path.contains(words, autoescape=True)
        # Numbers that no id can be are too large for SQLite.
        id_ = int(words) if words.isdecimal() and len(words) <= 18 else -1
        query = _ITEMS.where(or_(items.c.id == id_, by_path))
        if user is not None:
            query = query.where(items.c.source_id.in_(_sources_of(user)))
        return self._items(query.order_by(items.c.id != id_, items.c.path, items.c.id).limit(100))

    def find_item(self, item: ItemId) -> ItemRecord | None:
        """The item of that id."""
        return next(iter(self._items(_ITEMS.where(items.c.id == item))), None)

    def attempts(self, item: ItemId) -> list[Attempt]:
        """The latest 50 attempts of an item, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(_ATTEMPTS, {"item": item})
            return [_attempt(row) for row in rows]

    def _items(self, query: Select[Any]) -> list[ItemRecord]:
        with self._database.read() as connection:
            return [_item(row) for row in connection.execute(query)]

    def _settle(
        self, connection: Connection, run: RunId, tries: Sequence[Attempt], moves: Sequence[Move], owner: int | None
    ) -> None:
        named = {attempt.item for attempt in tries} | {move.item for move in moves}
        rows = connection.exec_driver_sql(_STANDING, (json.dumps(sorted(named)),))
        standing = {ItemId(row.id): (ItemState(row.state), row.user_id) for row in rows}
        known = [attempt for attempt in tries if attempt.item in standing]
        _execute_many(connection, _ADD_ATTEMPT, [_attempt_row(run, attempt) for attempt in known])
        _execute_many(connection, _TRIM_ATTEMPTS, [(item, item) for item in {attempt.item for attempt in known}])
        changes, leaving = [], []
        for move in moves:
            if move.item not in standing:
                continue
            state, user_row = standing[move.item]
            if owner is not None and user_row != owner:
                raise NightmillError(f"item {move.item} is not of the user whose index was published")
            check_move(state, move.state, move.item)
            _check_failure(move)
            standing[move.item] = (move.state, user_row)
            changes.append(_move_row(move, self._clock.now()))
            if move.failure is not None and not keeps_published(move.failure.reason):
                leaving.append(move.item)
        _execute_many(connection, _MOVE, changes)
        if leaving:
            these = json.dumps(leaving)
            connection.exec_driver_sql(depart("id IN (SELECT value FROM json_each(?))"), (these,))


_WITH_PARTS: Final = "SELECT DISTINCT parent_id FROM items WHERE parent_id IN (SELECT value FROM json_each(?))"


def check_user_name(user: str) -> None:
    """Raises UsageError unless it has 1 to 200 printable characters, no '/', and begins with neither '-' nor '.'."""
    problem = None
    if not 1 <= len(user) <= USER_NAME_CHARACTERS:
        problem = f"has {len(user)} characters; a name has 1 to {USER_NAME_CHARACTERS}"
    elif not user.isprintable():
        problem = "has characters that cannot be printed"
    elif "/" in user:
        problem = "has a '/'"
    elif user[0] in "-.":
        problem = f"begins with {user[0]!r}"
    if problem is not None:
        raise UsageError(f"{user[:USER_NAME_CHARACTERS]!r} cannot be a user's name: it {problem}")


def _check_failure(move: Move) -> None:
    if move.state not in _SETTLED_BADLY:
        return
    skip = move.state is ItemState.SKIPPED
    if move.failure is None or CATALOGUE[move.failure.reason].skip != skip:
        said = "none" if move.failure is None else move.failure.reason.value
        raise NightmillError(f"item {move.item} cannot be {move.state} for the reason {said}")


def _execute_many(connection: Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    for start in range(0, len(rows), _BATCH):
        connection.exec_driver_sql(statement, list(rows[start : start + _BATCH]))


def _border(connection: Connection, before: float) -> int:
    """The attempts that began before that moment have smaller ids, but for those of work that went on then.

    They are written down in the order of time, so that some twenty rows are looked at, however many there are.
    """
    # Each by itself: SQLite finds one of them in the index, and both together by looking at all.
    low, high = (
        connection.exec_driver_sql(f"SELECT {end}(id) FROM attempts").scalar_one()  # noqa: S608
        for end in ("min", "max")
    )
    low, high = low or 0, (high or 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.exec_driver_sql(
            "SELECT id, started FROM attempts WHERE id >= ? ORDER BY id LIMIT 1", (middle,)
        ).first()
        if row is not None and row.started < before:
            low = row.id + 1
        else:
            high = middle
    return int(low)


def _unknown_user(user: UserId) -> UsageError:
    return UsageError(f"there is no user {user!r}; `nightmill users list` shows those there are")


def _user_row(connection: Connection, user: UserId) -> int | None:
    return connection.execute(_USER_ROW, {"user": user}).scalar()


def _sources_of(user: UserId) -> Select[tuple[int]]:
    return select(sources.c.id).join(users, users.c.id == sources.c.user_id).where(users.c.name == user)


def _user(row: Row[Any]) -> UserRecord:
    return UserRecord(
        name=UserId(row.name),
        weight=row.weight,
        generation=row.generation,
        created=row.created,
        index_stamp=row.index_stamp,
        versions=row.versions,
        done=row.done,
    )


def _source(row: Row[Any], user: UserId) -> SourceRecord:
    return SourceRecord(
        id=SourceId(row.id),
        user=user,
        uri=row.uri,
        cursor=row.cursor,
        reason=None if row.reason is None else Reason(row.reason),
        detail=row.detail,
        held_removals=row.held_removals,
        listed=row.listed,
    )


def _item(row: Row[Any]) -> ItemRecord:
    return ItemRecord(
        id=ItemId(row.id),
        source=SourceId(row.source_id),
        user=UserId(row.name),
        key=ItemKey(row.key),
        parent=None if row.parent_id is None else ItemId(row.parent_id),
        fingerprint=Fingerprint(row.fingerprint),
        path=row.path,
        kind=Kind(row.kind),
        size_bytes=row.size_bytes,
        modified=row.modified,
        locator=json.loads(row.locator),
        state=ItemState(row.state),
        reason=None if row.reason is None else Reason(row.reason),
        detail=row.detail,
        attempts=row.attempts,
        alone=bool(row.alone),
        partial=bool(row.partial),
        media_type=row.media_type,
    )


def _run(row: Row[Any]) -> RunRecord:
    return RunRecord(
        id=RunId(row.id),
        kind=row.kind,
        began=row.began,
        ended=row.ended,
        exit_code=row.exit_code,
        report=json.loads(row.report),
    )


def _attempt(row: Row[Any]) -> Attempt:
    failed = row.reason is not None
    return Attempt(
        item=ItemId(row.item_id),
        stage=Stage(row.stage),
        part=row.part,
        failure=Failure(reason=Reason(row.reason), detail=row.detail, signal=row.signal) if failed else None,
        started=row.started,
        seconds=row.seconds,
        cpu_seconds=row.cpu_seconds,
        peak_bytes=row.peak_bytes,
    )


def _peak(row: Row[Any]) -> PeakCount:
    key = PeakKey(Stage(row.stage), row.kind, row.octave)
    return PeakCount(key=key, bucket=row.bucket, weight=row.weight, samples=row.samples)


def _peak_row(count: PeakCount) -> tuple[Any, ...]:
    key = count.key
    return key.stage.value, key.kind, key.octave, count.bucket, count.weight, count.samples


def _attempt_row(run: RunId, attempt: Attempt) -> tuple[Any, ...]:
    failure = attempt.failure
    return (
        attempt.item,
        run,
        attempt.stage.value,
        attempt.part,
        None if failure is None else failure.reason.value,
        "" if failure is None else clean(failure.detail),
        0 if failure is None else failure.signal,
        attempt.started,
        attempt.seconds,
        attempt.cpu_seconds,
        attempt.peak_bytes,
    )


def _move_row(move: Move, now: float) -> tuple[Any, ...]:
    indexed = move.state is ItemState.INDEXED
    return (
        move.state.value,
        None if move.failure is None else move.failure.reason.value,
        "" if move.failure is None else clean(move.failure.detail),
        move.fingerprint,
        move.attempts,
        move.alone,
        move.partial,
        move.media_type,
        indexed,
        indexed,
        now,
        move.item,
    )


def _counts(tallied: Sequence[tuple[Any, ...]]) -> Counts:
    """From rows of (state, is_part, partial, number); what is None is a user without any."""
    tops: dict[str, int] = {}
    parts: dict[str, int] = {}
    partial = 0
    for state, is_part, is_partial, number in tallied:
        if state is None:
            continue
        # Quarantined items have failed too.
        shown = ItemState.FAILED.value if state == ItemState.QUARANTINED else state
        side = parts if is_part else tops
        side[shown] = side.get(shown, 0) + number
        if is_partial and not is_part and state == ItemState.INDEXED:
            partial += number
    return Counts(
        found=sum(tops.values()),
        indexed=tops.get("indexed", 0),
        skipped=tops.get("skipped", 0),
        failed=tops.get("failed", 0),
        pending=tops.get("pending", 0),
        partial=partial,
        attachments=sum(parts.values()),
        attachments_indexed=parts.get("indexed", 0),
        attachments_skipped=parts.get("skipped", 0),
        attachments_failed=parts.get("failed", 0),
        attachments_pending=parts.get("pending", 0),
    )


_USERS = select(users)
_USERS_BY_AGE = _USERS.order_by(users.c.done.is_not(None), users.c.done, users.c.name)
_USER_ROW = select(users.c.id).where(users.c.name == bindparam("user"))
_USER_DONE = (
    update(users)
    .where(users.c.name == bindparam("user"))
    .values(done=bindparam("done"), index_stamp=bindparam("stamp"), versions=bindparam("reached"))
)
_USER_PARTLY_DONE = (
    update(users)
    .where(users.c.name == bindparam("user"))
    .values(index_stamp=bindparam("stamp"), versions=bindparam("reached"))
)
_SOURCES = select(sources).join(users).where(users.c.name == bindparam("user")).order_by(sources.c.id)
_ITEMS = select(items, users.c.name).join(users, users.c.id == items.c.user_id)
#: The state stands in the text, not in a variable, so that SQLite sees that the partial index applies.
_PENDING = (
    _ITEMS.where(
        items.c.user_id == _USER_ROW.scalar_subquery(),
        items.c.state == literal_column("'pending'"),
        items.c.id.not_in(select(func.json_each(bindparam("beyond")).table_valued("value").c.value)),
    )
    .order_by(items.c.indexed_before.desc(), items.c.modified.desc(), items.c.id)
    .limit(bindparam("limit"))
)
_roots = (
    select(items.c.id)
    .where(
        items.c.source_id == bindparam("source"),
        items.c.key.in_(select(func.json_each(bindparam("keys")).table_valued("value").c.value)),
    )
    .cte("trees", recursive=True)
)
_trees = _roots.union_all(select(items.c.id).where(items.c.parent_id == _roots.c.id))
_TREES_OF_KEYS = _ITEMS.where(items.c.id.in_(select(_trees.c.id))).order_by(items.c.id)
_DEPARTED = (
    select(departed.c.source_id, departed.c.key)
    .where(departed.c.user_id == _USER_ROW.scalar_subquery())
    .order_by(departed.c.source_id, departed.c.key)
    .limit(bindparam("limit"))
)
_FOR_RECONCILIATION = (
    select(
        items.c.id,
        items.c.source_id,
        items.c.key,
        items.c.fingerprint,
        items.c.state,
        items.c.listed_skip,
        items.c.redo,
    )
    .where(items.c.source_id.in_(select(sources.c.id).where(sources.c.user_id == bindparam("user"))))
    .order_by(items.c.id)
)
_TALLY = (tallies.c.state, tallies.c.is_part, tallies.c.partial)
_COUNTS = select(*_TALLY, func.sum(tallies.c.number)).group_by(*_TALLY)
_COUNTS_OF = select(*_TALLY, tallies.c.number).where(tallies.c.user_id == _USER_ROW.scalar_subquery())
_COUNTS_BY_USER = (
    select(users.c.name, *_TALLY, tallies.c.number)
    .join(tallies, tallies.c.user_id == users.c.id, isouter=True)
    .order_by(users.c.name)
)
_ATTEMPTS = select(attempts).where(attempts.c.item_id == bindparam("item")).order_by(attempts.c.id)

_STANDING: Final = "SELECT id, state, user_id FROM items WHERE id IN (SELECT value FROM json_each(?))"
#: What a move does not say stays as it is.
_MOVE: Final = (
    "UPDATE items SET state = ?, reason = ?, detail = ?, fingerprint = coalesce(?, fingerprint),"
    " attempts = coalesce(?, attempts), alone = coalesce(?, alone), partial = coalesce(?, partial),"
    " media_type = coalesce(?, media_type), indexed_before = indexed_before OR ?, redo = redo AND NOT ?, moved = ?"
    " WHERE id = ?"
)
_TAKE_OVER: Final = (
    "UPDATE items SET state = 'indexed', reason = NULL, detail = '', indexed_before = 1, moved = ? WHERE id = ?"
)
_STAYS: Final = (
    "DELETE FROM departed WHERE (user_id, source_id, key) IN (SELECT user_id, source_id, key FROM items WHERE id = ?)"
)
_READ_AGAIN: Final = (
    "UPDATE items SET state = 'pending', reason = NULL, detail = '', attempts = 0, alone = 0, partial = 0, moved = ?"
    " WHERE id = ?"
)
_ADD_ATTEMPT: Final = (
    "INSERT INTO attempts"
    " (item_id, run_id, stage, part, reason, detail, signal, started, seconds, cpu_seconds, peak_bytes)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
#: Nothing is read before: another process may add to the same row between two of our own additions.
_ADD_PEAK: Final = (
    "INSERT INTO peaks (stage, kind, octave, bucket, weight, samples) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (stage, kind, octave, bucket) DO UPDATE"
    " SET weight = weight + excluded.weight, samples = samples + excluded.samples"
)
_TRIM_ATTEMPTS: Final = (
    "DELETE FROM attempts WHERE item_id = ? AND id <="  # noqa: S608 - a number of ours
    f" (SELECT id FROM attempts WHERE item_id = ? ORDER BY id DESC LIMIT 1 OFFSET {ATTEMPTS_KEPT})"
)
_ADD_DEPARTED: Final = "INSERT INTO departed (user_id, source_id, key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_FORGET_DEPARTED: Final = "DELETE FROM departed WHERE user_id = ? AND source_id = ? AND key = ?"
