"""Look at one user after the other: what has changed in the sources, and is there anything to do?

    users --> try_survey: lock, list, compare --> Surveyed --> the coordinator's loop
                 |
                 +-- another process has the lock: come back later, again and again

Rule: runs on its own thread with its own ledger, so that workers never wait for a listing. Takes the user's lock first
and hands it on; reads no content and opens no index: what an index looks like from outside (its stamp) is enough to
know that nothing has happened to it.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from engine.errors import SourceUnavailable, UsageError
from engine.model import Counts, Failure, ItemState, SourceId, UserId
from engine.policy.retries import worth_another_run
from engine.ports import Ledger, Source, UserRecord
from engine.reasons import Reason
from engine.settings import INDEXES_FOLDER
from engine.sources.uri import open_source
from engine.telemetry import Notice
from indexes import lock, paths
from indexes.errors import IndexBusy, IndexFault
from indexes.records import ItemKey

#: Users whose work is under way at once. Enough that there is always somebody to take a free core, few enough that
#: their indexes and queues stay small.
MOST_USERS = 8
#: How long an interrupted run waits for the listing that is under way.
STOP_SECONDS = 2.0
#: How often a user that another process works on is tried again.
RETRY_SECONDS = 0.25
#: Removals are names only; all of them are taken up at once.
_ALL = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the command line asked for, beyond the settings.

    full             read and embed everything again
    accept_removals  remove what is gone, however much it is
    remove_nothing   a trial: only add
    only             URIs of the sources to look at and work on; empty: all. After new stage versions, or with another
                     model, it is all of them: an index changes as a whole
    prepare          called with the user's folder once its lock is held, before anything is listed
    """

    full: bool = False
    accept_removals: bool = False
    remove_nothing: bool = False
    only: frozenset[str] = frozenset()
    prepare: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A user that has been looked at.

    lock_fd      holds the user's lock; whoever has this record closes it; -1: let go of, there was nothing to do
    removed      keys that left the ledger, and that the index may still hold
    must_look    the ledger may disagree with the index: compare them before anything else
    counts       by the ledger, after the listing
    new, changed, held   over all sources
    troubles     sources that could not be listed: a line each
    only         the sources that this run is about, "for all of them" being empty
    pending      something of these waits to be worked on
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
    only: tuple[SourceId, ...] = ()
    pending: bool = False

    @property
    def to_do(self) -> bool:
        """Something has to be done about this user."""
        return self.must_look or bool(self.removed) or self.pending


def try_survey(
    user: UserId, *, ledger: Ledger, data_dir: Path, versions: str, extracts: tuple[str, str], orders: Orders
) -> Surveyed:
    """Lock, list, compare. Raises IndexBusy when another process writes this user; UsageError for no such user."""
    record = ledger.find_user(user)
    if record is None:
        raise UsageError(f"there is no user {user!r}; `nightmill users list` names them")
    folder = paths.make_user_dir(data_dir / INDEXES_FOLDER, user)
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
    chosen = ledger.sources(record.name)
    partly = bool(orders.only) and record.versions in ("", versions)
    if orders.only and orders.only.isdisjoint(known.uri for known in chosen):
        raise UsageError(f"{record.name} has none of the sources {', '.join(sorted(orders.only))} any more")
    if partly:
        chosen = [known for known in chosen if known.uri in orders.only]
    if orders.prepare is not None:
        orders.prepare(folder)
    for known in chosen:
        try:
            source = sources[known.id] = open_source(known.uri, own_folder=str(data_dir), user_folder=folder)
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
    only = tuple(known.id for known in chosen) if partly else ()
    _make_pending(ledger, record, versions, extracts, orders, only)
    counts = ledger.counts(record.name)
    stamp = paths.stamp(folder)
    has_index = bool(stamp) or record.generation != 0
    return Surveyed(
        user=record,
        folder=folder,
        lock_fd=lock_fd,
        sources=sources,
        removed=tuple((int(source), str(key)) for source, key in ledger.departed(record.name, limit=_ALL)),
        must_look=stamp != record.index_stamp or (has_index and (record.versions != versions or orders.full)),
        counts=counts,
        new=new,
        changed=changed,
        held=held,
        troubles=tuple(troubles),
        only=only,
        pending=bool(counts.pending or counts.attachments_pending)
        and (not only or bool(ledger.pending(record.name, limit=1, sources=only))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would find of a user: items over all sources, and the sources that cannot be listed."""

    user: UserId
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    held: int = 0
    troubles: tuple[str, ...] = ()


def preview(user: UserId, *, ledger: Ledger, data_dir: Path, orders: Orders) -> Preview:
    """List and compare, and write nothing. Raises UsageError for no such user."""
    found = Preview(user=user)
    folder = paths.user_dir(data_dir / INDEXES_FOLDER, user)
    for known in ledger.sources(user):
        try:
            source = open_source(known.uri, own_folder=str(data_dir), user_folder=folder)
            with ledger.listing(known.id) as listing:
                complete = not orders.remove_nothing
                try:
                    for page in source.list(known.cursor):
                        listing.add(page)
                except SourceUnavailable as error:
                    complete = False
                    found = replace(found, troubles=(*found.troubles, str(error)))
                outcome = listing.outlook(complete=complete, accept_removals=orders.accept_removals)
            found = replace(
                found,
                new=found.new + outcome.new,
                changed=found.changed + outcome.changed,
                unchanged=found.unchanged + outcome.unchanged,
                gone=found.gone + len(outcome.gone),
                held=found.held + outcome.held,
            )
        except UsageError as error:
            found = replace(found, troubles=(*found.troubles, str(error)))
    return found


def _make_pending(
    ledger: Ledger,
    record: UserRecord,
    versions: str,
    extracts: tuple[str, str],
    orders: Orders,
    only: tuple[SourceId, ...],
) -> None:
    """Items that are tried again though they have not changed."""
    other_reader = bool(record.versions) and not record.versions.startswith("|".join(extracts))
    if orders.full or other_reader:
        states = (ItemState.FAILED, ItemState.QUARANTINED)
        ledger.requeue(record.name, states=(*states, ItemState.INDEXED) if orders.full else states)
        ledger.requeue(record.name, states=(ItemState.SKIPPED,), reasons=(Reason.UNSUPPORTED_TYPE,))
    else:
        again = tuple(filter(worth_another_run, Reason))
        ledger.requeue(record.name, states=(ItemState.FAILED,), reasons=again, sources=only)


def _source_failed(ledger: Ledger, source: SourceId, error: SourceUnavailable, troubles: list[str]) -> None:
    ledger.source_failed(source, Failure(reason=Reason(error.reason), detail=str(error)))
    troubles.append(str(error))


@dataclass(frozen=True, slots=True)
class Trouble:
    """A user that could not be looked at, and why. The others go on."""

    user: UserId
    text: str


class Client(Protocol):
    """What the surveyor's thread needs of the coordinator. Each method may be called from that thread."""

    def open_ledger(self) -> Ledger:
        """A ledger of the caller's own."""
        ...

    def survey(self, user: UserId, ledger: Ledger) -> Surveyed:
        """Lock and look at one user. Raises IndexBusy."""
        ...

    def nothing_to_do(self, surveyed: Surveyed, ledger: Ledger) -> Surveyed:
        """Note in the ledger that the user is up to date, and let go of the lock."""
        ...

    def ask_for_promotion(self, user: UserId) -> None:
        """Somebody else works on a user that we wait for."""
        ...

    def wake(self) -> None:
        """There is news for the loop."""
        ...


class Surveyor:
    """Looks at one user after the other, on a thread of its own, a few ahead of the loop.

    Users that another process is writing come last, again and again, until they are free.
    """

    def __init__(self, client: Client, users: Sequence[UserId]) -> None:
        self.total = len(users)
        self._client = client
        self._users = deque(users)
        self._ready: queue.SimpleQueue[Surveyed | Notice | Trouble | BaseException] = queue.SimpleQueue()
        self._waited_for: set[UserId] = set()
        self._is_waiting = False
        self._room = threading.Semaphore(MOST_USERS)
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="surveyor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Every user has been handed over."""
        return self._ended.is_set() and self._ready.empty()

    def waiting_for(self) -> Sequence[UserId]:
        """The users that are left, when others are writing all of them."""
        return tuple(self._users) if self._is_waiting else ()

    def next_ready(self) -> Surveyed | Notice | Trouble | None:
        """A user that was looked at, or something to say; None: nothing now. Raises what ended the thread."""
        try:
            found = self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def release(self) -> None:
        """One of the users handed over is finished."""
        self._room.release()

    def stop(self) -> None:
        """Look at no more users; those that were handed over and not taken are let go of."""
        self._stopped.set()
        self._room.release()
        # A listing of a slow network folder is not waited for: it writes nothing before it is complete.
        self._thread.join(STOP_SECONDS)
        while True:
            try:
                left = self._ready.get_nowait()
            except queue.Empty:
                return
            if isinstance(left, Surveyed) and left.lock_fd >= 0:
                os.close(left.lock_fd)

    def _work(self) -> None:
        try:
            ledger = self._client.open_ledger()
            try:
                while self._users and not self._stopped.is_set():
                    self._next(ledger)
            finally:
                ledger.close()
        except BaseException as error:  # noqa: BLE001 - raised again by the loop, which can act on it
            self._ready.put(error)
        finally:
            self._ended.set()
            self._client.wake()

    def _next(self, ledger: Ledger) -> None:
        self._room.acquire()
        if self._stopped.is_set():
            return
        busy = 0
        while self._users and not self._stopped.is_set():
            user = self._users.popleft()
            try:
                surveyed = self._client.survey(user, ledger)
            except IndexBusy:
                self._users.append(user)
                self._client.ask_for_promotion(user)
                busy += 1
                if busy >= len(self._users):
                    self._is_waiting = True
                    self._say_waiting()
                    # All that are left are being written by others: look again in a while.
                    self._stopped.wait(RETRY_SECONDS)
                    busy = 0
                continue
            except (IndexFault, OSError) as error:
                self._ready.put(Trouble(user, str(error)))
                self._client.wake()
                continue
            except UsageError:
                self._ready.put(Notice(f"{user} was removed while the run went on"))
                continue
            busy, self._is_waiting = 0, False
            self._ready.put(surveyed if surveyed.to_do else self._client.nothing_to_do(surveyed, ledger))
            self._client.wake()
            if surveyed.to_do:
                return
        self._room.release()

    def _say_waiting(self) -> None:
        news = [user for user in self._users if user not in self._waited_for]
        self._waited_for.update(news)
        if news:
            names = ", ".join(news[:5]) + (f" and {len(news) - 5} more" if len(news) > 5 else "")
            self._ready.put(Notice(f"another process is working on {names}; waiting for it"))
            self._client.wake()
