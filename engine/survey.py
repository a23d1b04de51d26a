"""Look at one user after the other: what has changed in the sources, and is there anything to do?

    users --> try_survey: lock, list, compare, let go --> Surveyed --> the coordinator's loop
                 |
                 +-- another process has the lock: come back later, again and again

Rule: runs on its own thread with its own ledger, so that workers never wait for a listing, and goes through all users
without waiting for any: what there is to do is known as early as it can be. Holds the user's lock while it looks and no
longer; reads no content and opens no index: what an index looks like from outside (its stamp) is enough to know that
nothing has happened to it.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from engine.errors import SourceUnavailable, UsageError
from engine.model import Counts, Failure, ItemState, RunId, SourceId, UserId
from engine.policy.retries import worth_another_run
from engine.ports import Ledger, UserRecord
from engine.reasons import Reason
from engine.settings import INDEXES_FOLDER
from engine.sources.uri import open_source
from engine.telemetry import Notice
from indexes import lock, paths
from indexes.errors import IndexBusy, IndexFault

#: How long an interrupted run waits for the listing that is under way.
STOP_SECONDS = 2.0
#: How often a user that another process works on is tried again.
RETRY_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the command line asked for, beyond the settings.

    full             read and embed everything again
    accept_removals  remove what is gone, however much it is
    remove_nothing   a trial: only add
    only             URIs of the sources to look at and work on; empty: all. After new stage versions, or with another
                     model, it is all of them: an index changes as a whole
    leave_parts      attachments are listed with what they are attached to, and not read
    prepare          called with the user's folder once its lock is held, before anything is listed
    """

    full: bool = False
    accept_removals: bool = False
    remove_nothing: bool = False
    only: frozenset[str] = frozenset()
    leave_parts: bool = False
    prepare: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A user that has been looked at. Its lock has been let go of: others may have written since.

    stamp        of the index, as it was looked at (indexes.paths.stamp)
    departed     there are keys that left the ledger, and that the index may still hold
    must_look    the ledger may disagree with the index: compare them before anything else
    counts       by the ledger, after the listing
    new, changed, held   over all sources
    troubles     sources that could not be listed: a line each
    only         the sources that this run is about, "for all of them" being empty
    pending      something of these waits to be worked on
    """

    user: UserRecord
    folder: Path
    stamp: str = ""
    departed: bool = False
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
        return self.must_look or self.departed or self.pending


def try_survey(
    user: UserId,
    *,
    run: RunId,
    ledger: Ledger,
    data_dir: Path,
    versions: str,
    extracts: tuple[str, str],
    orders: Orders,
) -> Surveyed:
    """Lock, list, compare; a user with nothing to do is done. Raises IndexBusy when another process writes this user;
    UsageError for no such user."""
    record = ledger.find_user(user)
    if record is None:
        raise UsageError(f"there is no user {user!r}; `nightmill users list` names them")
    folder = paths.make_user_dir(data_dir / INDEXES_FOLDER, user)
    lock_fd = lock.take(folder)
    try:
        surveyed = _survey(record, folder, ledger, data_dir, versions, extracts, orders)
        if not surveyed.to_do:
            partly = bool(surveyed.only)
            ledger.user_done(user, run, index_stamp=surveyed.stamp, versions=versions, partly=partly)
        return surveyed
    finally:
        os.close(lock_fd)


def _survey(
    record: UserRecord,
    folder: Path,
    ledger: Ledger,
    data_dir: Path,
    versions: str,
    extracts: tuple[str, str],
    orders: Orders,
) -> Surveyed:
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
            source = open_source(known.uri, own_folder=str(data_dir), user_folder=folder)
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
    make_pending(ledger, record, versions, extracts, orders, only)
    counts = ledger.counts(record.name)
    stamp = paths.stamp(folder)
    has_index = bool(stamp) or record.generation != 0
    return Surveyed(
        user=record,
        folder=folder,
        stamp=stamp,
        departed=bool(ledger.departed(record.name, limit=1)),
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


def make_pending(
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


@dataclass(frozen=True, slots=True)
class Removed:
    """A user that is registered no longer."""

    user: UserId


@dataclass(frozen=True, slots=True)
class Freed:
    """A user that others were writing when its turn came (`Surveyor.wait_for`), and that they write no longer."""

    user: UserId


class Client(Protocol):
    """What the surveyor's thread needs of the coordinator. Each method may be called from that thread."""

    def open_ledger(self) -> Ledger:
        """A ledger of the caller's own."""
        ...

    def survey(self, user: UserId, ledger: Ledger) -> Surveyed:
        """Lock and look at one user. Raises IndexBusy."""
        ...

    def is_busy(self, user: UserId) -> bool:
        """Somebody is writing the user's index."""
        ...

    def ask_for_promotion(self, user: UserId) -> None:
        """Somebody else works on a user that we wait for."""
        ...

    def wake(self) -> None:
        """There is news for the loop."""
        ...


class Surveyor:
    """Looks at one user after the other, on a thread of its own, and tells the loop of each: one word for each user.

    Users that another process is writing come last, again and again, until they are free.
    """

    def __init__(self, client: Client, users: Sequence[UserId]) -> None:
        self._client = client
        self._left = deque(users)
        self._ready: queue.SimpleQueue[Surveyed | Trouble | Removed | Freed | Notice | BaseException] = (
            queue.SimpleQueue()
        )
        self._handed_back: queue.SimpleQueue[UserId] = queue.SimpleQueue()
        #: Those of `_left` that have been looked at: only their lock is waited for.
        self._seen: set[UserId] = set()
        self._said: set[UserId] = set()
        self._is_waiting = False
        self._stopped = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="surveyor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def waiting_for(self) -> Sequence[UserId]:
        """The users that are left, when others are writing all of them."""
        return tuple(self._left) if self._is_waiting else ()

    def next_ready(self) -> Surveyed | Trouble | Removed | Freed | Notice | None:
        """What has become of a user, or something to say; None: nothing now. Raises what ended the thread."""
        try:
            found = self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def wait_for(self, user: UserId) -> None:
        """Others are writing a user that was handed over: say so (`Freed`) when they have ended. Lists nothing anew."""
        self._handed_back.put(user)
        self._news.set()

    def stop(self) -> None:
        """Look at no more users."""
        self._stopped.set()
        self._news.set()
        if self._thread.is_alive():
            # A listing of a slow network folder is not waited for: it writes nothing before it is complete.
            self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        try:
            ledger = self._client.open_ledger()
            try:
                self._look_at_all(ledger)
            finally:
                ledger.close()
        except BaseException as error:  # noqa: BLE001 - raised again by the loop, which can act on it
            self._ready.put(error)
            self._client.wake()

    def _look_at_all(self, ledger: Ledger) -> None:
        busy = 0
        while not self._stopped.is_set():
            self._take_those_handed_back()
            if not self._left:
                self._wait_for_news(None)
                continue
            user = self._left.popleft()
            found = self._try(user, ledger)
            if found is None:
                self._left.append(user)
                self._client.ask_for_promotion(user)
                busy += 1
                if busy >= len(self._left):
                    # All that are left are being written by others: look again in a while.
                    self._is_waiting = True
                    self._say_waiting()
                    self._wait_for_news(RETRY_SECONDS)
                    busy = 0
                continue
            busy, self._is_waiting = 0, False
            self._ready.put(found)
            self._client.wake()

    def _try(self, user: UserId, ledger: Ledger) -> Surveyed | Trouble | Removed | Freed | None:
        """What is to be said of a user; None: others are writing it."""
        try:
            if user not in self._seen:
                return self._client.survey(user, ledger)
            if self._client.is_busy(user):
                return None
            self._seen.discard(user)
            return Freed(user)
        except IndexBusy:
            return None
        except (IndexFault, OSError) as error:
            return Trouble(user, str(error))
        except UsageError:
            return Removed(user)

    def _take_those_handed_back(self) -> None:
        while True:
            try:
                user = self._handed_back.get_nowait()
            except queue.Empty:
                return
            self._seen.add(user)
            self._left.append(user)

    def _wait_for_news(self, seconds: float | None) -> None:
        self._news.wait(seconds)
        self._news.clear()

    def _say_waiting(self) -> None:
        news = [user for user in self._left if user not in self._said]
        self._said.update(news)
        if news:
            names = ", ".join(news[:5]) + (f" and {len(news) - 5} more" if len(news) > 5 else "")
            self._ready.put(Notice(f"another process is working on {names}; waiting for it"))
            self._client.wake()
