"""Look at one user: what has changed in the sources, and is there anything to do?

Rule: runs on its own thread with its own ledger, so that workers never wait for a listing. Takes the user's lock first
and hands it on; reads no content and opens no index: what an index looks like from outside (its stamp) is enough to
know that nothing has happened to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import SourceUnavailable, UsageError
from engine.model import Counts, Failure, ItemState, SourceId, UserId
from engine.policy.retries import PASSING
from engine.ports import Ledger, Source, UserRecord
from engine.reasons import Reason
from engine.sources.uri import open_source
from indexes import lock, paths
from indexes.records import ItemKey

#: Removals are names only; all of them are taken up at once.
_ALL = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the command line asked for, beyond the settings.

    full             read and embed everything again
    accept_removals  remove what is gone, however much it is
    remove_nothing   a trial: only add
    """

    full: bool = False
    accept_removals: bool = False
    remove_nothing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A user that has been looked at.

    lock_fd      holds the user's lock; whoever has this record closes it; -1: let go of, there was nothing to do
    removed      keys that left the ledger, and that the index may still hold
    must_look    the ledger may disagree with the index: compare them before anything else
    counts       by the ledger, after the listing
    new, changed, held   over all sources
    troubles     sources that could not be listed: a line each
    """

    user: UserRecord
    folder: Path
    lock_fd: int
    sources: Mapping[SourceId, Source] = field(default_factory=dict)
    removed: tuple[ItemKey, ...] = ()
    must_look: bool = False
    counts: Counts = field(default_factory=Counts)
    new: int = 0
    changed: int = 0
    held: int = 0
    troubles: tuple[str, ...] = ()

    @property
    def to_do(self) -> bool:
        """Something has to be done about this user."""
        return self.must_look or bool(self.removed) or self.counts.pending > 0 or self.counts.attachments_pending > 0


def try_survey(
    user: UserId, *, ledger: Ledger, data_dir: Path, versions: str, extracts: tuple[str, str], orders: Orders
) -> Surveyed:
    """Lock, list, compare. Raises IndexBusy when another process writes this user; UsageError for no such user."""
    record = ledger.find_user(user)
    if record is None:
        raise UsageError(f"there is no user {user!r}; `nightmill users list` names them")
    folder = paths.make_user_dir(data_dir / "indexes", user)
    lock_fd = lock.take(folder)
    try:
        return _survey(record, folder, lock_fd, ledger, data_dir, versions, extracts, orders)
    except BaseException:
        os.close(lock_fd)
        raise


def _survey(
    record: UserRecord,
    folder: Path,
    lock_fd: int,
    ledger: Ledger,
    data_dir: Path,
    versions: str,
    extracts: tuple[str, str],
    orders: Orders,
) -> Surveyed:
    sources: dict[SourceId, Source] = {}
    troubles: list[str] = []
    new = changed = held = 0
    for known in ledger.sources(record.name):
        try:
            source = sources[known.id] = open_source(known.uri, own_folder=str(data_dir))
        except UsageError as error:
            _source_failed(ledger, known.id, SourceUnavailable(Reason.SOURCE_UNREADABLE, str(error)), troubles)
            continue
        if known.reason is None and not known.held_removals and source.unchanged_since(known.cursor):
            ledger.touch_source(known.id)
            continue
        try:
            with ledger.listing(known.id) as listing:
                trouble: SourceUnavailable | None = None
                try:
                    for page in source.list(known.cursor):
                        listing.add(page)
                except SourceUnavailable as error:
                    if error.reason != Reason.SOURCE_INCOMPLETE:
                        raise
                    trouble = error
                outcome = listing.finish(
                    complete=trouble is None and not orders.remove_nothing,
                    cursor=source.cursor(),
                    accept_removals=orders.accept_removals,
                )
            new, changed, held = new + outcome.new, changed + outcome.changed, held + outcome.held
            if trouble is not None:
                raise trouble
        except SourceUnavailable as error:
            _source_failed(ledger, known.id, error, troubles)
    _make_pending(ledger, record, versions, extracts, orders)
    stamp = paths.stamp(folder)
    has_index = bool(stamp) or record.generation != 0
    return Surveyed(
        user=record,
        folder=folder,
        lock_fd=lock_fd,
        sources=sources,
        removed=tuple((int(source), str(key)) for source, key in ledger.departed(record.name, limit=_ALL)),
        must_look=stamp != record.index_stamp or (has_index and (record.versions != versions or orders.full)),
        counts=ledger.counts(record.name),
        new=new,
        changed=changed,
        held=held,
        troubles=tuple(troubles),
    )


def _make_pending(ledger: Ledger, record: UserRecord, versions: str, extracts: tuple[str, str], orders: Orders) -> None:
    """Items that are tried again though they have not changed."""
    other_reader = bool(record.versions) and not record.versions.startswith("|".join(extracts))
    if orders.full or other_reader:
        ledger.requeue(record.name, states=(ItemState.FAILED, ItemState.QUARANTINED))
        ledger.requeue(record.name, states=(ItemState.SKIPPED,), reasons=(Reason.UNSUPPORTED_TYPE,))
    else:
        ledger.requeue(record.name, states=(ItemState.FAILED,), reasons=tuple(PASSING))


def _source_failed(ledger: Ledger, source: SourceId, error: SourceUnavailable, troubles: list[str]) -> None:
    ledger.source_failed(source, Failure(reason=Reason(error.reason), detail=str(error)))
    troubles.append(str(error))
