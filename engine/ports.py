"""The seams: what the coordinator needs of its surroundings, as Protocols that the shells plug in.

Rule: nothing here says where anything is kept or which process does it. A second machine, a PostgreSQL ledger or
a Google source is another class with these methods, and no change to policy, pipeline or stages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.model import (
    Counts,
    Failure,
    Fetched,
    Fingerprint,
    ItemId,
    ItemKey,
    ItemState,
    Kind,
    Lane,
    LeaseId,
    Listed,
    PeakCount,
    RunId,
    SourceId,
    Stage,
    TokenKind,
    UserId,
)
from engine.reasons import Reason


class Clock(Protocol):
    """Time as an argument: the real one, or one that a test moves by hand."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...

    def now(self) -> float:
        """Seconds since the epoch."""
        ...


# --- sources ---------------------------------------------------------------------------------------------------------


class Source(Protocol):
    """A place a user's items come from. Lists bytes and offsets; parses no content."""

    uri: str

    def list(self, cursor: str) -> Iterator[Sequence[Listed]]:
        """Pages of at most 1,000 items, in no promised order. Ends normally only when the listing is complete.

        cursor: what `cursor` said after the last complete listing, "" at first. Raises SourceUnavailable.
        """
        ...

    def unchanged_since(self, cursor: str) -> bool:
        """True when the whole source is known to be as it was at `cursor`, without listing it."""
        ...

    def cursor(self) -> str:
        """After a complete listing: what to hand to the next one."""
        ...

    def fetch(self, locator: Mapping[str, Any], target: Path) -> Fetched:
        """Copy the item's bytes into the new file `target` (mode 0600).

        Raises FetchFailed with the Failure (vanished, unreadable, changed_while_reading, symbolic_link, ...).
        """
        ...


class FetchFailed(Exception):  # noqa: N818 - carries the value that says how
    """One item could not be copied; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.detail}")
        self.failure = failure


# --- the desk --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A wish for one token, standing at the desk until it is granted or withdrawn.

    ask_id        chosen by the asker, unique within its session
    cost_seconds  predicted CPU (or call) seconds; only orders users, never bounds anything
    memory_bytes  predicted peak of the unit, reserved while the lease is out
    """

    ask_id: str
    user: UserId
    lane: Lane
    kind: TokenKind
    cost_seconds: float
    memory_bytes: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A lease given back, with what the unit really took. A late or repeated one changes nothing."""

    lease_id: LeaseId
    cost_seconds: float
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A token lent: `lease_id` names it until it is returned."""

    ask_id: str
    lease_id: LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """This process works on the lease, and is to be promised so much memory.

    pid, started   of the worker, which leads its own process group and is noted (Desk.note_worker); `started` is
                   processes.start_time(pid)
    memory_bytes   in all, what the process holds already included. The first claim of a lease places it and says what
                   its ask said; a later, larger one asks for growth, a smaller one shrinks the promise
    """

    lease_id: LeaseId
    pid: int
    started: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the desk says in one round trip.

    grants      newly granted asks
    waits       for each user of this session that still waits, why: "user_cap", "total_cap", "cpu_cap", "memory",
                "reserved", "turn", "recovering"; None: it was not asked
    promoted    users of this session for whom somebody waits elsewhere: do them first
    denied      leases whose claim could not be met: what was promised before still is, and no more
    stops       leases whose worker is to be ended now because memory runs out, and why, in words for people. Said in
                every answer until the lease ends; after a second the scheduler ends the worker's group itself
    room_bytes  memory that is neither promised nor taken, as of now; 0 where nothing may start, below 0 when less is
                there than was promised
    """

    grants: tuple[Grant, ...] = ()
    waits: Mapping[UserId, str] | None = None
    promoted: frozenset[UserId] = frozenset()
    denied: frozenset[LeaseId] = frozenset()
    stops: Mapping[LeaseId, str] = field(default_factory=dict)
    room_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskStats:
    """A frozen look at the counters (`get_stats` of the public API says the same as a table).

    user_workers       tokens out, by user
    waiting            asks that stand, by user
    reasons            why users wait (the words of Answer.waits) -> how many do
    memory_reserved    bytes promised to leases, of memory_limit_bytes
    memory_used        bytes in use under the limit that leaves least, which comes from memory_source
    memory_taken       those of them that are not in use by workers that work on a lease
    memory_closed      so much is in use that nothing new starts
    memory_stopped     leases stopped since the scheduler began, because memory ran out
    backlog            items that are to be worked on, by user, as far as coordinators have said
    cpu_target         bulk CPU tokens that may be out now: scaled between 1 and cpu_limit
    scaled_by          what keeps the target below the limit: "load", "memory" or ""
    granted            tokens lent since the scheduler began; grants_per_second over the last ten seconds
    user_status        what products have told of users (Desk.tell)
    """

    active_workers: int
    max_total_workers: int
    max_workers_per_user: int
    user_workers: Mapping[UserId, int]
    waiting: Mapping[UserId, int]
    sessions: int
    memory_reserved_bytes: int = 0
    memory_limit_bytes: int = 0
    memory_used_bytes: int = 0
    memory_taken_bytes: int = 0
    memory_source: str = ""
    memory_closed: bool = False
    memory_stopped: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    backlog: Mapping[UserId, int] = field(default_factory=dict)
    cpu_limit: int = 0
    cpu_target: int = 0
    scaled_by: str = ""
    granted: int = 0
    grants_per_second: float = 0.0
    user_status: Mapping[UserId, Mapping[str, Any]] = field(default_factory=dict)


class Desk(Protocol):
    """Where tokens are lent. One instance per coordinator process.

    Calls may come from several threads; what is granted goes to whichever of them calls next.
    """

    @property
    def bell_fd(self) -> int:
        """Readable when there is news: grants, a promotion, or leases to stop. `exchange` takes it off."""
        ...

    def exchange(
        self,
        *,
        asks: Sequence[Ask] = (),
        returns: Sequence[Return] = (),
        withdraw: Sequence[str] = (),
        claims: Sequence[Claim] = (),
        backlog: Mapping[UserId, int] | None = None,
        explain: bool = True,
        patience_seconds: float = 0.0,
    ) -> Answer:
        """One round trip: give back, ask, and hear; it never waits at the desk.

        claims     which process works on a lease, and how much memory it is to be promised: as soon as a lease has its
                   worker (until then nobody knows whose memory that is), and when a promise is to change. Met or denied
                   at once, before `asks` get anything; of leases that are not out they are passed over
        backlog    items of a user that are to be worked on, where that has changed; 0: none are left
        explain    say why users wait (`Answer.waits`): some microseconds for each
        patience   wait here so long for a grant, and ask again when the bell rings

        Reconnects by itself; raises SchedulerUnreachable after its stated time. After a reconnection, asks that
        still stand and leases that are out are told to the new scheduler by the desk itself.
        """
        ...

    def wait_news(self, timeout_seconds: float) -> bool:
        """Wait until there is news; False when there was none within the time-out."""
        ...

    def tell(self, user: UserId, status: Mapping[str, Any]) -> None:
        """Have a user's status shown in everybody's statistics for as long as this desk is open; {}: no more.

        Values are text, numbers and None. Raises ValueError for others, and beyond 2,000 characters.
        """
        ...

    def promote(self, user: UserId) -> bool:
        """Somebody waits for this user: its asks count as interactive, in all sessions. False if no session has it."""
        ...

    def note_worker(self, pid: int, started: float) -> None:
        """A worker process was started: written to the client file before its first unit."""
        ...

    def note_worker_gone(self, pid: int) -> None:
        """A worker process has been waited for."""
        ...

    def statistics(self) -> DeskStats:
        """The counters now, over all processes of this data directory."""
        ...

    def close(self) -> None:
        """Return every lease, withdraw every ask, disconnect. Idempotent."""
        ...


# --- the ledger ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRecord:
    """A registered user.

    generation   of the index that the ledger's states describe
    index_stamp  what the index's files looked like then (indexes.paths.stamp); another one means: look inside
    versions     stage versions that the user's items were last brought to (engine/versions.py); "" before the first run
    done         when a run last did all that could be done for the user, seconds since the epoch; None: never
    """

    name: UserId
    weight: float
    generation: int
    created: float
    index_stamp: str = ""
    versions: str = ""
    done: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """A source of a user as registered, and how its last listing ended (`reason` None: well).

    held_removals  items that vanished at once and wait for a second listing that says the same (the brake)
    listed         when a complete listing last had something to write down; one that found nothing new writes nothing
    """

    id: SourceId
    user: UserId
    uri: str
    cursor: str
    reason: Reason | None
    detail: str
    held_removals: int
    listed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """One item as the ledger knows it.

    parent    the item whose attachment it is, or None
    attempts  failed attempts at the present fingerprint
    alone     it was suspect once: its next unit holds nothing else
    """

    id: ItemId
    source: SourceId
    user: UserId
    key: ItemKey
    parent: ItemId | None
    fingerprint: Fingerprint
    path: str
    kind: Kind
    size_bytes: int
    modified: float
    locator: Mapping[str, Any]
    state: ItemState
    reason: Reason | None = None
    detail: str = ""
    attempts: int = 0
    alone: bool = False
    partial: bool = False
    media_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one try at one stage of one item came to; `failure` None: well.

    part: which page range or batch, so that "no finished unit is repeated" can be checked ("" for the whole).
    """

    item: ItemId
    stage: Stage
    part: str
    failure: Failure | None
    started: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An item's new state. The ledger refuses a move that lifecycle.py does not list.

    fingerprint: of the bytes that were really read, where it differs from the listed one.
    """

    item: ItemId
    state: ItemState
    failure: Failure | None = None
    fingerprint: Fingerprint | None = None
    attempts: int | None = None
    alone: bool | None = None
    partial: bool | None = None
    media_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingOutcome:
    """What one listing found. `gone` are the keys removed from the ledger now; `held` those that wait (the brake).

    The keys of parts are among `gone`. Across a crash `Ledger.departed` remembers them for the index.
    """

    new: int
    changed: int
    unchanged: int
    gone: tuple[ItemKey, ...]
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One invocation. `ended` and `exit_code` are None while it runs (or where it was killed)."""

    id: RunId
    kind: str
    began: float
    ended: float | None
    exit_code: int | None
    report: Mapping[str, Any]


class Listing(Protocol):
    """One listing of one source being taken down: pages in, one set comparison each."""

    def add(self, page: Sequence[Listed]) -> None:
        """Compare a page with the ledger; new and changed items become pending (or skipped, where the source says)."""
        ...

    def outlook(self, *, complete: bool, accept_removals: bool) -> ListingOutcome:
        """What `finish` would find, without writing anything."""
        ...

    def finish(self, *, complete: bool, cursor: str, accept_removals: bool) -> ListingOutcome:
        """Commit. Only a complete listing removes anything, and only within the brake."""
        ...


class Ledger(Protocol):
    """What happened to every item, durably. Each verb is one transaction; safe to use from several processes.

    One instance belongs to one thread at a time.
    """

    def add_user(self, user: UserId, uris: Sequence[str], *, weight: float = 1.0) -> None:
        """Register a user, or add sources to one. Known sources are left as they are."""
        ...

    def remove_user(self, user: UserId) -> None:
        """Forget the user, its sources, items and attempts. Raises UsageError when unknown."""
        ...

    def remove_source(self, source: SourceId) -> None:
        """Forget a source and its items."""
        ...

    def find_user(self, user: UserId) -> UserRecord | None:
        """The user of that name."""
        ...

    def users(self) -> list[UserRecord]:
        """All users, the stalest (longest since their last complete run) first."""
        ...

    def sources(self, user: UserId) -> list[SourceRecord]:
        """The user's sources. Raises UsageError when the user is unknown."""
        ...

    def listing(self, source: SourceId) -> AbstractContextManager[Listing]:
        """Begin a listing; left without `finish`, nothing of it is kept."""
        ...

    def touch_source(self, source: SourceId) -> None:
        """The source was looked at and is wholly unchanged."""
        ...

    def source_failed(self, source: SourceId, failure: Failure) -> None:
        """The source could not be listed. Its items stay as they are."""
        ...

    def add_parts(self, parent: ItemId, parts: Sequence[Listed]) -> ListingOutcome:
        """The attachments found in an item, compared with those known from before; the missing ones are gone."""
        ...

    def with_parts(self, found: Sequence[ItemId]) -> set[ItemId]:
        """Those of these items of which attachments are known."""
        ...

    def pending(
        self, user: UserId, *, limit: int, beyond: Sequence[ItemId] = (), sources: Collection[SourceId] = ()
    ) -> list[ItemRecord]:
        """The next items to work on, refresh before first-time, newest first, without those in `beyond`; with
        `sources`, only theirs."""
        ...

    def find_trees(self, source: SourceId, keys: Sequence[ItemKey]) -> list[ItemRecord]:
        """The items of these keys with their attachments, parents before their parts."""
        ...

    def settle(
        self, run: RunId, attempts: Sequence[Attempt], moves: Sequence[Move], peaks: Sequence[PeakCount] = ()
    ) -> None:
        """Attempts and state moves of many items, in one transaction. Unknown (since removed) items are passed over.

        peaks: what was learned meanwhile of the memory that units take, added to what is there.
        """
        ...

    def peaks(self) -> list[PeakCount]:
        """All that was learned of the memory that units take, in any run of any process."""
        ...

    def published(
        self,
        run: RunId,
        user: UserId,
        generation: int,
        moves: Sequence[Move],
        departed: Sequence[tuple[SourceId, ItemKey]] = (),
    ) -> None:
        """The user's index has committed `generation`; the same facts are copied here, in one transaction.

        departed: what the index has let go of; the ledger need not remember it any longer.
        """
        ...

    def departed(self, user: UserId, *, limit: int = 10_000) -> list[tuple[SourceId, ItemKey]]:
        """What the index has to let go of: items that were in it and are gone, or skipped now, and what it holds of
        which the ledger knows nothing. Kept until `published` names it, whoever is killed in between."""
        ...

    def reconcile(
        self, user: UserId, generation: int, indexed: Mapping[tuple[SourceId, ItemKey], Fingerprint]
    ) -> tuple[int, int]:
        """Make the ledger agree with the index, which is the truth: items it holds at their present fingerprint are
        indexed, items it lacks are pending again. Returns (newly indexed, newly pending)."""
        ...

    def requeue(
        self,
        user: UserId | None,
        *,
        reasons: Sequence[Reason] = (),
        states: Sequence[ItemState],
        sources: Collection[SourceId] = (),
    ) -> int:
        """Make items pending again (`failures retry`, `reindex --full`, new stage versions); returns how many."""
        ...

    def begin_run(self, kind: str, users: int) -> RunId:
        """Open a run."""
        ...

    def end_run(self, run: RunId, exit_code: int, report: Mapping[str, Any]) -> None:
        """Close it, with its report."""
        ...

    def user_done(self, user: UserId, run: RunId, *, index_stamp: str, versions: str, partly: bool = False) -> None:
        """Everything of this user that could be done in this run is done (orders the next night, unless `partly`)."""
        ...

    def counts(self, user: UserId | None = None) -> Counts:
        """Items by state, of a user or of all."""
        ...

    def counts_by_user(self) -> Mapping[UserId, Counts]:
        """The same for every user, in one query."""
        ...

    def last_runs(self, limit: int) -> list[RunRecord]:
        """The latest runs, newest first."""
        ...

    def failures(
        self,
        *,
        user: UserId | None = None,
        reason: Reason | None = None,
        since: float | None = None,
        states: Sequence[ItemState] = (),
        limit: int = 10_000,
    ) -> list[ItemRecord]:
        """Items that failed, are quarantined or were skipped, failed first. Sources: see `sources`."""
        ...

    def find_item(self, item: ItemId) -> ItemRecord | None:
        """The item of that id."""
        ...

    def find_items(self, words: str, user: UserId | None = None) -> list[ItemRecord]:
        """Items by id (digits) or by a part of their path, at most 100."""
        ...

    def attempts(self, item: ItemId) -> list[Attempt]:
        """All attempts of an item, oldest first."""
        ...

    def close(self) -> None:
        """Release the database. Idempotent."""
        ...


# --- stages, inside a worker process ----------------------------------------------------------------------------------


class Place(Protocol):
    """All that a stage may touch: two folders, a way to say that it is alive, and how much memory there is."""

    inbox: Path
    outbox: Path

    def progress(self, done: int, total: int) -> None:
        """Something was finished (a page, a text). Without it for long, the worker is taken for stuck."""
        ...

    def memory_left(self) -> int:
        """Bytes that the worker may still take before its limit makes an error of it; `sys.maxsize`: it has none.

        A system call or two: to be asked before something large is decoded, not for every page.
        """
        ...


class StageFailed(Exception):  # noqa: N818 - carries the value that says how
    """Raised by a stage for an input that it understands to be bad; `failure` travels to the ledger."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.failure = Failure(reason=reason, detail=detail[:2000])


class StageRunner(Protocol):
    """One stage, loaded once per worker process. A stage module offers `open_stage(options) -> StageRunner`.

    `options` are the engine's settings for that stage, the same for all units of a run (JSON-able).
    """

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Do one item. Big results go to files in the outbox; what is returned is small and JSON-able.

        Raises StageFailed for bad input. Any other exception becomes `extractor_error` with its last line.
        """
        ...
