"""One run: a loop that keeps workers busy with the units of its users, within the tokens that it is lent.

    surveyor thread --Surveyed--> coordinator (one loop, this thread) --orders--> workers
    (own ledger)                    |  asks, returns                 <--reports--
                                    v
                                  desk

    a user with work:  in line (not locked) --opened--> a turn --> done
                          ^                               |
                          +--- rests, for others wait ----+          who goes when: policy/turns.py

Rule: one loop, which never waits for anything but news. What is shut down is shut down in `Coordinator.close`, in an
order that leaves nothing behind whoever kills us in between: workers first, then leases, then locks.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine import spool as spools
from engine.clearing import MOST_REUSED
from engine.desk import Desk
from engine.errors import NO_ROOM, CannotRunError, UsageError
from engine.fetching import FetchThreads
from engine.model import (
    Counts,
    Failure,
    Fetched,
    Fingerprint,
    Lane,
    LeaseId,
    RunId,
    SourceId,
    Stage,
    TokenKind,
    UserId,
)
from engine.model import ItemKey as ListedKey
from engine.opening import can_start_programs
from engine.pages import Paces
from engine.parts import PartStore
from engine.pipeline import Kept, UserPipeline
from engine.plan import Plan
from engine.policy import estimates, growth
from engine.policy.peaks import Peaks
from engine.policy.spool import FULL_IN_A_ROW, Need, Verdict
from engine.policy.turns import Backlog, Rules, Turns
from engine.ports import Answer, Ask, Clock, Ledger, Return, Source
from engine.processes import give_memory_back, private_bytes
from engine.promises import TELL_SECONDS, Promises
from engine.reasons import Reason
from engine.settings import DEBUG_FILES, INDEXES_FOLDER, Settings
from engine.sources.uri import open_source
from engine.survey import Freed, Orders, Removed, Surveyed, Surveyor, Trouble, make_pending, try_survey
from engine.telemetry import Notice, Progressed, Reporter, UserBegan, WorkerDied
from engine.way import Cost, HeldFile, Unit, Work
from engine.workers.supervisor import Bounds, Ended, Finished, Lost, Report, Supervisor, Swollen, Worker
from indexes import lock, paths
from indexes.errors import IndexBusy, IndexFault, IndexFull
from indexes.records import ItemKey, Published
from indexes.writer import Writer, open_writer

_log = logging.getLogger(__name__)

#: The longest the loop waits before it looks at clocks again; news end the wait at once.
WAIT_SECONDS = 0.05
#: Workers of bulk runs: a tenth of the processor's time where others want it too, all of it otherwise.
BULK_NICENESS = 10
#: Copies of files at once: a disk or a network folder may be slow.
FETCH_THREADS = 4
#: How often free disk space and workers' outboxes are looked at, progress said, and open users looked at of whom
#: nothing was heard (they may have something to publish). A disk takes some 500 MB a second at most: the reserve.
DISK_SECONDS, PROGRESS_SECONDS, SWEEP_SECONDS = 0.5, 0.2, 0.5
#: How often the desk is asked why users wait; its bell says when they wait no longer.
EXPLAIN_SECONDS = 0.5
#: Removals are names only; all of them are taken up at once.
_ALL = 10**9
#: A worker at rest, over all stages (40 to 250 MiB), with what it may have kept: on a small server as many may live as
#: fit. On 1 GiB there is one of each stage then; with fewer, each second unit waits for a Python to start. When memory
#: is waited for, they go all the same.
_IDLE_WORKER_BYTES = 160 * 1024**2

#: What a worker that has nothing to do may hold of the disk: its slate, a moment's leftovers, and empty files.
_IDLE_BYTES = 4 * 1024**2 + MOST_REUSED * spools.NAME_BYTES

EXIT_DONE, EXIT_SOME_FAILED, EXIT_CANNOT, EXIT_DEADLINE, EXIT_INTERRUPTED = 0, 3, 4, 5, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run ended. `counts` are of its users, after it; `troubles` the sources that could not be listed."""

    exit_code: int
    seconds: float
    users: int
    counts: Counts
    work: Work
    held: int = 0
    troubles: tuple[str, ...] = ()
    message: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "users": self.users,
            "counts": asdict(self.counts),
            "work": {name: round(value, 3) for name, value in asdict(self.work).items()},
            "held_removals": self.held,
            "troubles": list(self.troubles),
            "message": self.message,
        }


@dataclass(slots=True, kw_only=True, eq=False)
class _Known:
    """A user that has work, from the survey on. What the loop remembers of it between two turns.

    stamp      of its index when it was last seen (paths.stamp): another one means that somebody else has written
    must_look  ledger and index are to be compared, whatever the stamp is
    created    when it was registered: another time means that it has been removed and added meanwhile
    counts     by the ledger then
    only       the sources that this run is about; empty: all
    begun      it has had a turn
    """

    user: UserId
    weight: float
    stamp: str
    created: float
    must_look: bool
    counts: Counts
    only: tuple[SourceId, ...] = ()
    begun: bool = False
    kept: Kept = field(default_factory=Kept)


@dataclass(slots=True, eq=False)
class _Open:
    """A user whose turn it is."""

    known: _Known
    folder: Path
    pipeline: UserPipeline
    stack: ExitStack
    writer: Writer
    parts: PartStore
    asked: dict[str, Unit] = field(default_factory=dict)
    running: int = 0

    @property
    def user(self) -> UserId:
        return self.known.user


@dataclass(slots=True, eq=False)
class _Going:
    """A unit that has its token. `name`: the numbers of its worker and of its reservation there."""

    owner: _Open
    unit: Unit
    lease: LeaseId
    worker: Worker
    name: tuple[int, int]
    began: float
    copies: Sequence[Fetched | Failure] = ()
    assigned: bool = False
    cpu_seconds: float = 0.0

    def charge(self, report: Ended | Lost) -> Cost:
        """What the order took, which is a part of what the unit takes."""
        self.cpu_seconds += report.cpu_seconds
        return Cost(
            began=report.began,
            seconds=report.seconds,
            cpu_seconds=report.cpu_seconds,
            peak_bytes=report.peak_bytes,
        )


class Coordinator:
    """One run: its users, its workers, its leases."""

    def __init__(
        self,
        *,
        settings: Settings,
        plan: Plan,
        run: RunId,
        lane: Lane,
        orders: Orders,
        turns: Rules,
        until: float | None,
        ledger: Ledger,
        open_ledger: Callable[[], Ledger],
        desk: Desk,
        spool: Path,
        private: Sequence[Path],
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        """private: folders that stay closed to workers."""
        self._settings, self._run, self._lane, self._orders, self._until = settings, run, lane, orders, until
        self._open_ledger = open_ledger
        self._ledger, self._desk, self._reporter, self._clock = ledger, desk, reporter, clock
        self._plan = plan
        #: What is known of the memory that units take. Users share it: nothing in it is anybody's.
        self._peaks = Peaks(ledger.peaks(), clock.now())
        self._paces = Paces(lambda media_type: estimates.ocr_page(media_type=media_type).seconds)
        self._supervisor = Supervisor(
            spool=spool / "workers",
            book=desk,
            clock=clock,
            bounds=Bounds(stall_seconds=settings.stall_seconds, wall_seconds=settings.unit_seconds),
            # Whoever waits for an answer, and the rest of the server, go before bulk work.
            niceness=0 if lane is Lane.INTERACTIVE else BULK_NICENESS,
            sandbox=settings.sandbox,
            may_start=can_start_programs(settings),
            private=private,
        )
        self._promises = Promises(self._supervisor, clock, lambda: desk.limits)
        self._held_bytes = private_bytes(os.getpid())
        #: Leases of workers that were killed, and that the kernel has not let go of yet.
        self._stuck: dict[Worker, LeaseId] = {}
        self._wake_out, self._wake_in = os.pipe()
        #: Held while the pipe is written to or closed. A signal handler may come in between, in the same thread.
        self._wake_lock = threading.RLock()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._supervisor.watch(self._wake_out, self._drain_wake)
        self._supervisor.watch(desk.bell_fd, self._hear_bell)
        self._threads = FetchThreads(FETCH_THREADS)
        self._room = spools.SpoolRoom(settings)
        #: Orders in a row that found no room on the disk.
        self._full_in_a_row = 0
        self._copied: queue.SimpleQueue[tuple[_Going, list[Fetched | Failure] | BaseException]] = queue.SimpleQueue()
        self._surveyor: Surveyor | None = None
        #: Users of whom the surveyor has not said yet what becomes of them.
        self._unheard = 0
        #: Users with work that are not open, in line or written by others.
        self._closed: dict[UserId, _Known] = {}
        self._turns = Turns(turns)
        self._backlog = Backlog()
        self._open: dict[UserId, _Open] = {}
        #: Open users of whom there is news: they may have units to begin, and things to write down.
        self._to_ask: dict[UserId, _Open] = {}
        self._to_look: dict[UserId, _Open] = {}
        self._resting: frozenset[UserId] = frozenset()
        self._askers: dict[str, _Open] = {}
        #: Whose next unit lacks what others have for the moment.
        self._patient: set[UserId] = set()
        self._going: dict[tuple[int, int], _Going] = {}
        #: What idle workers have in their inboxes.
        self._holding: dict[Worker, HeldFile] = {}
        self._returns: list[Return] = []
        self._withdrawn: list[str] = []
        self._lies: list[tuple[Worker, Failure]] = []
        self._work = Work()
        self._users_done = 0
        #: Of the users that are done, as they were then.
        self._after: dict[UserId, Counts] = {}
        self._before: Counter[str] = Counter()
        self._troubles: list[str] = []
        self._held = 0
        self._waits: Mapping[UserId, str] = {}
        self._users = 0
        self._interrupted = False
        self._draining: tuple[int, str] | None = None
        self._looked_at_disk = self._said = self._swept = self._explained = 0.0
        self._rung = False
        self._asks = 0

    # --- from outside ---

    def interrupt(self) -> None:
        """Stop within seconds; everything can be taken up again. Safe to call from a signal handler."""
        self._interrupted = True
        self._wake()

    def work_through(self, users: Sequence[UserId]) -> RunReport:
        """Do everything that can be done for these users."""
        began = self._clock.monotonic()
        self._unheard = self._users = len(users)
        self._surveyor = Surveyor(self, users)
        self._surveyor.start()
        while self._go_around():
            pass
        self._ledger.settle(self._run, (), (), self._peaks.take_changes())
        self._say_progress(last=True)
        by_user = self._ledger.counts_by_user()
        # What others have found since we were done with a user is not of this run.
        counts = _sum({user: self._after.get(user, counts) for user, counts in by_user.items()}, users)
        return RunReport(
            exit_code=self._exit_code(counts),
            seconds=self._clock.monotonic() - began,
            users=len(users),
            counts=counts,
            work=self._work,
            held=self._held,
            troubles=tuple(self._troubles),
            message=self._draining[1] if self._draining else "",
        )

    def _backlog_changes(self) -> Mapping[UserId, int]:
        """Items that wait, in line and open, of the users where that has changed since the last call; 0: none left."""
        for opened in self._open.values():
            if opened.pipeline.moved:
                opened.pipeline.moved = False
                self._note_backlog(opened.user, self._ledger.counts(opened.user))
        return self._backlog.take_changes()

    def close(self) -> None:
        """Stop all of it. Idempotent."""
        # Workers first: a token may only be given back when nothing runs on it any more.
        self._supervisor.close()
        if self._surveyor is not None:
            self._surveyor.stop()
        self._threads.stop()
        for opened in list(self._open.values()):
            self._close_user(opened)
        with self._wake_lock:
            # Threads that nobody waits for may have news yet: by then the numbers may be those of other people's files.
            descriptors = self._wake_out, self._wake_in
            self._wake_out = self._wake_in = -1
            for descriptor in descriptors:
                with suppress(OSError):
                    os.close(descriptor)

    # --- the loop ---

    def _go_around(self) -> bool:
        """Once around: hear of users, open and rest them, ask, begin, hear, publish. False: nothing more to do."""
        if self._interrupted:
            self._draining = self._draining or (EXIT_INTERRUPTED, "interrupted; run again to go on where it stopped")
            self._wind_up()
            return False
        self._look_around()
        self._hear_of_users()
        self._change_turns()
        self._talk_to_desk()
        # The desk's bell ends the wait too.
        self._hear(0.0 if self._to_look else WAIT_SECONDS)
        self._look_after_users()
        self._say_progress()
        if self._draining is not None and all(going.worker.gone for going in self._going.values()):
            self._wind_up()
            return False
        return bool(self._open or self._closed or self._unheard)

    def _look_after_users(self) -> None:
        """Write down and publish what has been done for users, and let go of those that are done or are to rest."""
        now = self._clock.monotonic()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            for opened in self._open.values():
                self._stir(opened)
        to_look, self._to_look = self._to_look, {}
        for opened in to_look.values():
            with self._on_behalf_of(opened):
                opened.pipeline.flush_if_due()
                opened.pipeline.publish_if_due()
                if opened.pipeline.idle and not opened.running and not opened.asked:
                    self._finish_user(opened)

    def _look_around(self) -> None:
        now = self._clock.monotonic()
        if self._draining is None and self._until is not None and self._clock.now() >= self._until:
            self._draining = EXIT_DEADLINE, "the deadline was reached; the rest comes next time, stalest users first"
        if now - self._looked_at_disk >= DISK_SECONDS:
            self._looked_at_disk = now
            self._look_at_disk()

    def _look_at_disk(self) -> None:
        """Below the reserve nothing is begun, and what is there is published; far below it nothing runs on."""
        short = spools.find_short(self._settings)
        if short is not None:
            self._draining = self._draining or (EXIT_CANNOT, str(short))
            if short.badly:
                self._stop_units()
        for worker in self._supervisor.workers:
            # Its outbox is empty. One that was taken over may wait until nobody looks.
            if not worker.busy and worker.ready and self._wrote(worker, _IDLE_BYTES) > _IDLE_BYTES:
                self._supervisor.retire(worker)
        for going in list(self._going.values()):
            wrote = self._wrote(going.worker, going.unit.outbox_limit) if going.assigned else 0
            if wrote > going.unit.outbox_limit and going.name in self._going:
                lie = f"it wrote {wrote // 10**6:,} MB, and may write {going.unit.outbox_limit // 10**6:,} MB"
                self._hear_all(self._supervisor.stop(going.worker, Failure(reason=Reason.PROTOCOL, detail=lie)))

    def _wrote(self, worker: Worker, most: int) -> int:
        return spools.written_by(worker.process.pid, worker.home, most)

    def _hear_of_users(self) -> None:
        """Take in what the surveyor has found."""
        assert self._surveyor is not None
        while self._draining is None and (found := self._surveyor.next_ready()) is not None:
            if isinstance(found, Notice):
                self._reporter.say(found)
                continue
            self._unheard -= 1
            match found:
                case Trouble():
                    self._note_trouble(found.user, found.text)
                    self._drop(found.user)
                case Removed():
                    self._note_removed(found.user)
                case Freed():
                    self._turns.join(found.user, self._closed[found.user].weight)
                case Surveyed():
                    self._note_survey(found)
            if isinstance(found, Surveyed) and found.to_do:
                user = found.user.name
                self._closed[user] = _Known(
                    user=user,
                    weight=found.user.weight,
                    stamp=found.stamp,
                    created=found.user.created,
                    must_look=found.must_look,
                    counts=found.counts,
                    only=found.only,
                )
                self._turns.join(user, found.user.weight)

    def _change_turns(self) -> None:
        """Let those rest that have had enough for now, and open those whose turn it is."""
        if self._draining is not None:
            return
        before, self._resting = self._resting, frozenset(self._turns.resting())
        for user in before - self._resting:
            if user in self._open:
                self._stir(self._open[user])
        for user in self._resting:
            opened = self._open[user]
            self._take_back(opened)
            if not opened.running:
                with self._on_behalf_of(opened):
                    self._rest_user(opened)
        while (next_user := self._turns.open_next()) is not None:
            self._try_open(next_user)

    def _try_open(self, user: UserId) -> None:
        known = self._closed.pop(user)
        try:
            opened = self._open_user(known)
        except IndexBusy:
            assert self._surveyor is not None
            self._closed[user] = known
            self._turns.leave(user)
            self._unheard += 1
            self._surveyor.wait_for(user)
        except UsageError:
            self._note_removed(user)
        except (IndexFault, OSError) as error:
            self._note_full(error)
            self._note_trouble(user, str(error))
            self._drop(user)
        else:
            self._open[user] = opened
            self._stir(opened)

    def _drop(self, user: UserId) -> None:
        """Nothing more is done for a user in this run."""
        self._turns.leave(user)
        self._closed.pop(user, None)
        self._backlog.note(user, 0)
        self._users_done += 1

    def _note_removed(self, user: UserId) -> None:
        self._reporter.say(Notice(f"{user} was removed while the run went on"))
        self._drop(user)

    def _note_survey(self, surveyed: Surveyed) -> None:
        self._note_counts(surveyed.user.name, surveyed.counts, Counts())
        if not surveyed.to_do:
            self._after[surveyed.user.name] = surveyed.counts
            self._users_done += 1
        self._held += surveyed.held
        for trouble in surveyed.troubles:
            self._note_trouble(surveyed.user.name, trouble)
        if surveyed.held:
            self._reporter.say(
                Notice(
                    f"{surveyed.user.name}: {surveyed.held:,} items vanished at once; they stay until another run "
                    "finds the same, or until `--accept-removals`"
                )
            )

    def _note_counts(self, user: UserId, counts: Counts, before: Counts) -> None:
        """What the ledger says of a user now; what differs from `before` is not of our doing."""
        for name in ("indexed", "skipped", "failed", "pending"):
            self._before[name] += getattr(counts, name) - getattr(before, name)
        self._note_backlog(user, counts)

    def _note_backlog(self, user: UserId, counts: Counts) -> None:
        self._backlog.note(user, counts.pending + counts.attachments_pending)

    def _note_trouble(self, user: UserId, trouble: str) -> None:
        self._troubles.append(f"{user}: {trouble}")
        self._reporter.say(Notice(f"{user}: {trouble}"))

    @contextmanager
    def _on_behalf_of(self, opened: _Open) -> Iterator[None]:
        """What goes wrong with one user's index ends the work on that user, and on nobody else."""
        try:
            yield
        except (IndexFault, OSError) as error:
            self._note_full(error)
            self._give_up(opened, str(error))

    def _note_full(self, error: IndexFault | OSError) -> None:
        """Where the disk is full, all others would fare alike: the run ends."""
        if isinstance(error, IndexFull) or (isinstance(error, OSError) and error.errno in NO_ROOM):
            way_out = ", then run again" if isinstance(error, IndexFull) else "; free space, then run again"
            self._draining = self._draining or (EXIT_CANNOT, f"the disk is full: {error}{way_out}")

    def _give_up(self, opened: _Open, trouble: str) -> None:
        """Stop all that is done for a user. What was committed stays; the next run goes on from there."""
        self._note_trouble(opened.user, trouble)
        for going in [going for going in self._going.values() if going.owner is opened]:
            self._supervisor.kill(going.worker, Failure(reason=Reason.KILLED, detail="work on its user was given up"))
            self._end(going)
        self._take_back(opened)
        if opened.user in self._open:
            self._close_user(opened)
            self._drop(opened.user)

    def _take_back(self, opened: _Open) -> None:
        """Withdraw what stands at the desk for a user."""
        self._withdrawn += opened.asked
        for ask_id, unit in opened.asked.items():
            del self._askers[ask_id]
            opened.pipeline.put_back(unit)
        opened.asked.clear()

    def _open_user(self, known: _Known) -> _Open:
        """Begin a turn. Raises IndexBusy while another process writes the user, UsageError when it was removed."""
        user = known.user
        record = self._ledger.find_user(user)
        if record is None:
            raise UsageError(f"there is no user {user!r}; `nightmill users list` names them")
        folder = paths.make_user_dir(self._settings.data_dir / INDEXES_FOLDER, user)
        stack = ExitStack()
        lock_fd = lock.take(folder)
        # Closed last: until then nobody else writes this index.
        stack.callback(os.close, lock_fd)
        try:
            if paths.stamp(folder) != known.stamp or record.created != known.created:
                # Others have had the user meanwhile.
                known.created = record.created
                known.must_look = True
                known.kept.forget_places()
            writer = stack.enter_context(open_writer(folder, lock_fd=lock_fd))
            if self._orders.full and not known.begun:
                writer.forget_reads()
                # Others may have settled since the survey what was to be read anew.
                make_pending(self._ledger, record, self._plan.versions, self._plan.extracts, self._orders, known.only)
            if known.must_look:
                self._ledger.reconcile(user, writer.generation, self._current(writer.published()))
            removed = {(int(source), str(key)) for source, key in self._ledger.departed(user, limit=_ALL)}
            counts = self._ledger.counts(user)
            parts = PartStore(folder / "parts")
            if not counts.attachments_pending:
                parts.clear()
            pipeline = UserPipeline(
                user=user,
                run=self._run,
                plan=self._plan,
                ledger=self._ledger,
                writer=writer,
                sources=self._open_sources(user, folder),
                removed=removed,
                parts=parts,
                clock=self._clock,
                reporter=self._reporter,
                work=self._work,
                kept=known.kept,
                peaks=self._peaks,
                paces=self._paces,
                slots=lambda: min(self._desk.limits.max_workers_per_user, self._desk.limits.cpu_limit),
                budget=lambda: self._desk.limits.memory_limit_bytes,
                spool_bytes=self._settings.spool_limit_bytes,
                has_parts=counts.attachments > 0,
                most_items=DEBUG_FILES if self._settings.debug_mode else None,
                remove_nothing=self._orders.remove_nothing,
                leave_parts=self._orders.leave_parts,
                only=known.only,
            )
        except BaseException:
            stack.close()
            raise
        self._note_counts(user, counts, known.counts)
        _log.debug("%s: its turn; %s pending", user, counts.pending)
        if not known.begun:
            self._reporter.say(UserBegan(user=user, found=counts.found))
        known.begun, known.must_look = True, False
        return _Open(known=known, folder=folder, pipeline=pipeline, stack=stack, writer=writer, parts=parts)

    def _open_sources(self, user: UserId, folder: Path) -> dict[SourceId, Source]:
        """Those that cannot be opened are left out; the survey has said so."""
        sources: dict[SourceId, Source] = {}
        for source in self._ledger.sources(user):
            with suppress(UsageError):
                sources[source.id] = open_source(
                    source.uri, own_folder=str(self._settings.data_dir), user_folder=folder
                )
        return sources

    def _current(self, published: Mapping[ItemKey, Published]) -> dict[tuple[SourceId, ListedKey], Fingerprint]:
        """What the index holds, for the ledger: an item that would come out otherwise today has no fingerprint."""
        return {
            (SourceId(source), ListedKey(key)): Fingerprint(found.fingerprint if self._plan.is_current(found) else "")
            for (source, key), found in published.items()
        }

    def _finish_user(self, opened: _Open) -> None:
        opened.pipeline.flush()
        opened.writer.tidy(model=self._plan.model)
        counts = self._after[opened.user] = self._ledger.counts(opened.user)
        if not counts.attachments_pending:
            opened.parts.clear()
        # Under the lock, so that the stamp is of what we leave behind.
        opened.writer.close()
        stamp = paths.stamp(opened.folder)
        partly = bool(opened.known.only)
        self._ledger.user_done(opened.user, self._run, index_stamp=stamp, versions=self._plan.versions, partly=partly)
        self._close_user(opened)
        self._drop(opened.user)

    def _rest_user(self, opened: _Open) -> None:
        """Others want the place: the user goes to the end of the line, where everything of it is on the disk."""
        known = opened.known
        opened.pipeline.rest()
        opened.writer.close()
        known.stamp, known.counts = paths.stamp(opened.folder), self._ledger.counts(opened.user)
        self._note_backlog(opened.user, known.counts)
        self._close_user(opened)
        self._turns.rest(opened.user)
        self._closed[opened.user] = known
        _log.debug("%s rests; %s pending", opened.user, known.counts.pending)

    def _close_user(self, opened: _Open) -> None:
        self._open.pop(opened.user, None)
        self._to_ask.pop(opened.user, None)
        self._to_look.pop(opened.user, None)
        self._room.forget(opened.user)
        self._patient.discard(opened.user)
        for worker in [worker for worker, held in self._holding.items() if held.user == opened.user]:
            self._let_go_of(worker)
        opened.stack.close()

    # --- tokens ---

    def _talk_to_desk(self) -> None:
        """Give back, ask, and begin what was granted: one round trip."""
        if self._draining is not None:
            for opened in self._open.values():
                self._take_back(opened)
        asks = list(self._new_asks()) if self._draining is None else []
        withdraw, self._withdrawn = self._withdrawn, []
        returns, self._returns = self._returns, []
        now = self._clock.monotonic()
        self._free_stuck()
        self._forget_gone()
        explain = bool(self._askers) and now - self._explained >= EXPLAIN_SECONDS
        if not (asks or withdraw or returns or self._rung or explain or self._promises.are_due):
            return
        self._rung = False
        claims = self._promises.claims()
        backlog = self._backlog_changes() if explain else None
        answer = self._desk.exchange(
            asks=asks, returns=returns, withdraw=withdraw, claims=claims, backlog=backlog, explain=explain
        )
        self._hear_all(self._promises.heed(claims, answer))
        if explain:
            self._explained = now
        if not self._askers:
            self._waits = {}
        elif answer.waits is not None:
            if answer.waits != self._waits:
                _log.debug("waiting: %s", dict(answer.waits))
            self._waits = answer.waits
        self._retire_for_memory(answer)
        for grant in answer.grants:
            owner = self._askers.pop(grant.ask_id, None)
            unit = None if owner is None else owner.asked.pop(grant.ask_id)
            if owner is None or unit is None or not self._has_room(owner, unit):
                self._returns.append(Return(lease_id=grant.lease_id, cost_seconds=0.0))
                continue
            self._begin(owner, unit, grant.lease_id)

    def _has_room(self, owner: _Open, unit: Unit) -> bool:
        """There is room on the disk for what the unit copies and writes. If not, it is put back, or has failed."""
        verdict = self._room.ask(owner.user, unit.need)
        if verdict is not Verdict.GO and self._holding:
            for worker in list(self._holding):
                self._let_go_of(worker)
            verdict = self._room.ask(owner.user, unit.need)
        if verdict is Verdict.GO and self._draining is None:
            return True
        with self._on_behalf_of(owner):
            if verdict is Verdict.NEVER or (verdict is Verdict.FULL and unit.stage is Stage.INDEX):
                owner.pipeline.refuse(unit, self._room.refusal(unit.need))
                self._stir(owner)
                return False
            owner.pipeline.put_back(unit)
        if verdict is Verdict.FULL:
            self._draining = self._draining or (EXIT_CANNOT, self._room.shortage(unit.need))
        return False

    def _retire_for_memory(self, answer: Answer) -> None:
        """Idle workers go where memory is waited for: first those of stages that no unit waits for."""
        lacking = answer.waits is not None and not {"memory", "reserved"}.isdisjoint(answer.waits.values())
        idle = [worker for worker in self._supervisor.workers if not worker.busy and worker.ready]
        if lacking:
            give_memory_back()
        if not idle or not (lacking or self._promises.is_short):
            return
        wanted = self._wanted_stages()
        unwanted = [worker for worker in idle if worker.stage not in wanted]
        for worker in unwanted or (idle if lacking else ()):
            _log.debug("worker %s of %s makes room: %s bytes are free", worker.number, worker.stage, answer.room_bytes)
            self._supervisor.retire(worker)

    def _wanted_stages(self) -> set[Stage]:
        """Of units that wait for a token."""
        return {unit.stage for opened in self._askers.values() for unit in opened.asked.values()}

    def _forget_gone(self) -> None:
        """What workers held that are gone went with them."""
        for worker in [worker for worker in self._holding if worker.gone]:
            self._let_go_of(worker, clear=False)

    def _free_stuck(self) -> None:
        for worker in self._stuck.keys() - set(self._supervisor.dying):
            self._returns.append(Return(lease_id=self._stuck.pop(worker), cost_seconds=0.0))

    def _new_asks(self) -> Iterator[Ask]:
        """For those of whom there was news: nobody else has more to begin than before."""
        most = min(self._desk.limits.max_workers_per_user, self._desk.limits.cpu_limit + 1)
        for user in self._room.take_stirred():
            if user in self._open:
                self._stir(self._open[user])
        to_ask, self._to_ask = self._to_ask, {}
        for opened in to_ask.values():
            while opened.user not in self._resting and len(opened.asked) + opened.running < most:
                unit = None
                with self._on_behalf_of(opened):
                    unit = opened.pipeline.next_unit()
                if unit is not None and self._promises.must_wait(unit.memory_bytes):
                    # The next sweep asks again.
                    self._patient.add(opened.user)
                    opened.pipeline.put_back(unit)
                    break
                self._patient.discard(opened.user)
                if unit is None or not self._has_room(opened, unit):
                    break
                self._asks += 1
                ask_id = f"{unit.user}/{self._asks}"
                opened.asked[ask_id] = unit
                self._askers[ask_id] = opened
                yield Ask(
                    ask_id=ask_id,
                    user=unit.user,
                    lane=self._lane,
                    kind=TokenKind.CPU,
                    cost_seconds=unit.seconds,
                    memory_bytes=unit.memory_bytes,
                    weight=opened.known.weight,
                )
            if not opened.asked and not opened.running and self._open.get(opened.user) is opened:
                # It may be that nothing is left.
                self._to_look[opened.user] = opened

    def _begin(self, owner: _Open, unit: Unit, lease: LeaseId) -> None:
        worker = self._find_worker(unit) or self._start_worker(unit.stage)
        if self._promises.is_overdrawn:
            self._make_way_for(worker)
        number = self._asks = self._asks + 1
        self._supervisor.reserve(worker, number, len(unit.pieces), owner=self._owner_of(unit))
        name = worker.number, number
        _log.debug(
            "lease %s: unit %s of %s, %s orders of %s, worker %s, %s bytes promised, %.0f CPU seconds allowed",
            *(lease, unit.number, unit.user, len(unit.pieces), unit.stage, worker.number, unit.memory_bytes),
            sum(piece.estimate.deadline for piece in unit.pieces),
        )
        going = _Going(owner=owner, unit=unit, lease=lease, worker=worker, name=name, began=self._clock.monotonic())
        self._going[name] = going
        held = self._holding.get(worker)
        if held is not None and held.label == unit.wanted_label:
            unit.held = held
        self._let_go_of(worker, clear=unit.held is None)
        self._room.take(name, owner.user, unit.need)
        owner.running += 1
        held_copies = [held.copy for _, piece in unit.copied if (held := unit.held_for(piece))]
        if len(held_copies) == len(unit.copied):
            with self._on_behalf_of(owner):
                self._assign(going, held_copies)
            return

        def copy() -> None:
            try:
                copies: list[Fetched | Failure] | BaseException = owner.pipeline.fetch(unit, worker.inbox)
            except BaseException as error:  # noqa: BLE001 - raised again by the loop, which can act on it
                copies = error
            self._copied.put((going, copies))
            self._wake()

        self._threads.submit(copy)

    def _let_go_of(self, worker: Worker, *, clear: bool = True) -> None:
        """What a worker holds is not held any more. clear: and is removed."""
        if self._holding.pop(worker, None) is not None:
            self._room.give_back(worker)
            if clear:
                self._supervisor.clear_inbox(worker)

    def _make_way_for(self, worker: Worker) -> None:
        """It was promised what is not there, and has what others leave: no idle ones then, and of us what we need."""
        now = self._clock.monotonic()
        held = private_bytes(os.getpid())
        give_memory_back()
        # What this process held before the run counts as nobody's.
        given_back = max(0, held - max(self._held_bytes, private_bytes(os.getpid())))
        for idle in [idle for idle in self._supervisor.workers if not idle.busy]:
            if now - idle.began >= 2 * TELL_SECONDS:
                # By now the desk's guard counts it as taken; what the worker itself holds already is its own.
                with suppress(ProcessLookupError):
                    given_back += private_bytes(idle.watched.pid)
            if idle is not worker:
                self._supervisor.retire(idle)
        self._promises.note_given_back(given_back)

    def _find_worker(self, unit: Unit) -> Worker | None:
        """An idle worker that leaves the unit something of what it was promised: one that has kept much of earlier
        units would be stopped for it, and the unit begun again. Where others have a part of it nothing may be kept."""
        while (worker := self._find_idle(unit)) is not None:
            kept = worker.grown_bytes if self._promises.is_overdrawn else 0
            fits = worker.resting_bytes + growth.LEAST_BURST_BYTES <= unit.memory_bytes
            if fits and kept <= growth.LEAST_BURST_BYTES:
                return worker
            _log.debug(
                "worker %s of %s holds %s bytes, too many for a unit of %s: it is replaced",
                *(worker.number, worker.stage, worker.resting_bytes, unit.memory_bytes),
            )
            self._supervisor.retire(worker)
        return None

    def _find_idle(self, unit: Unit) -> Worker | None:
        return self._supervisor.find_idle(unit.stage, self._owner_of(unit), holds=unit.wanted_label)

    def _owner_of(self, unit: Unit) -> str:
        """Whose worker the unit needs. Where the sandbox is strict, what reads the bytes of strangers is of one user
        alone; other stages are given what was checked field by field."""
        return unit.user if unit.needs_fetch and self._settings.sandbox == "strict" else ""

    def _start_worker(self, stage: Stage) -> Worker:
        """A new worker; idle ones of other stages make room when there are many."""
        limits = self._desk.limits
        most = max(limits.cpu_limit + 1, min(limits.cpu_limit + 5, limits.memory_limit_bytes // _IDLE_WORKER_BYTES))
        wanted = self._wanted_stages()
        # Those of stages that no unit waits for first.
        idle = deque(
            sorted(
                (worker for worker in self._supervisor.workers if not worker.busy),
                # Then those of users that are done or rest; of the others whoever has been idle longest.
                key=lambda worker: (worker.stage in wanted, worker.owner in self._open, worker.began),
            )
        )
        while idle and len(self._supervisor.workers) >= most:
            self._supervisor.retire(idle.popleft())
        return self._supervisor.start(stage, self._plan.options[stage])

    def _assign(self, going: _Going, copies: Sequence[Fetched | Failure]) -> None:
        going.assigned, going.copies = True, copies
        self._stir(going.owner)
        for copy in copies:
            self._note_room(copy if isinstance(copy, Failure) else None)
        orders = going.owner.pipeline.orders(going.unit, going.worker.inbox, copies)
        if not orders:
            self._end(going)
            return
        unit = going.unit
        limit = self._promises.begin(
            going.lease, going.worker, promised_bytes=unit.memory_bytes, ceiling_bytes=unit.ceiling_bytes
        )
        self._supervisor.assign(
            going.worker,
            orders,
            deadlines=[piece.estimate.deadline for piece in unit.orders],
            promised_bytes=unit.memory_bytes,
            limit_bytes=limit,
        )

    # --- news ---

    def _hear(self, timeout_seconds: float) -> None:
        by_owner: dict[_Open, list[tuple[_Going, Report]]] = {}
        for report in self._supervisor.poll(timeout_seconds):
            if isinstance(report, Swollen):
                self._promises.note_swollen(report)
                continue
            going = self._going.get((report.worker.number, report.unit))
            if going is not None:
                by_owner.setdefault(going.owner, []).append((going, report))
        for owner, heard in by_owner.items():
            self._take_all(owner, heard)
        # Only now: what a liar said before has all been taken in, and what is left of its unit is untouched.
        lies, self._lies = self._lies, []
        for worker, lie in lies:
            self._hear_all(self._supervisor.kill(worker, lie))
        while True:
            try:
                going, copies = self._copied.get_nowait()
            except queue.Empty:
                return
            if going.worker.gone:
                continue  # Lost has been said, and the unit was put back.
            with self._on_behalf_of(going.owner):
                if isinstance(copies, BaseException):
                    raise copies
                self._assign(going, copies)

    def _hear_all(self, reports: Sequence[Report]) -> None:
        for report in reports:
            going = self._going.get((report.worker.number, report.unit))
            if going is not None:
                self._take_all(going.owner, [(going, report)])

    def _take_all(self, owner: _Open, heard: Sequence[tuple[_Going, Report]]) -> None:
        """Take in what was heard at once of a user: one transaction of its index, whose price is that of many rows."""
        self._stir(owner)
        # A FAISS file is taken in by a transaction of its own; nothing else of the user runs then.
        at_once = any(going.unit.stage is not Stage.INDEX for going, _ in heard)
        with self._on_behalf_of(owner), owner.writer.batch() if at_once else nullcontext():
            for going, report in heard:
                self._take_for(going, report)

    def _take_for(self, going: _Going, report: Report) -> None:
        pipeline = going.owner.pipeline
        match report:
            case Ended():
                cost = going.charge(report)
                self._note_room(report.failure)
                failure = self._judged(going, report.failure) if report.failure is not None else None
                lie = pipeline.ended(going.unit, report.index, report.worker.outbox, report.result, failure, cost)
                if lie is not None:
                    self._lies.append((report.worker, lie))
            case Finished():
                pipeline.end_unit(going.unit)
                self._end(going)
            case Lost():
                self._lost(going, report)

    def _judged(self, going: _Going, failure: Failure) -> Failure:
        return self._promises.judged(going.lease, failure, own_bytes=lambda: private_bytes(os.getpid()))

    def _note_room(self, failure: Failure | None) -> None:
        """Free space says nothing of quotas: several copies or orders in a row that find no room do.

        A worker's word alone ends no run: we try it ourselves.
        """
        if failure is None:
            self._full_in_a_row = 0
        elif failure.reason is Reason.DISK_FULL:
            self._full_in_a_row += 1
            if self._full_in_a_row >= FULL_IN_A_ROW and spools.is_full(self._settings):
                said = f"the disk is full: {failure.detail}; free space, then run again"
                self._draining = self._draining or (EXIT_CANNOT, said)

    def _lost(self, going: _Going, report: Lost) -> None:
        unit = going.unit
        orders = unit.orders or list(unit.pieces)
        item = orders[report.blamed].item if report.blamed is not None and report.blamed < len(orders) else None
        self._reporter.say(
            WorkerDied(stage=unit.stage, detail=report.failure.detail, path=item.record.path if item else "")
        )
        cost = going.charge(report)
        failure = self._judged(going, report.failure)
        going.owner.pipeline.lost(unit, report.blamed, failure, report.untouched, cost, outbox=report.worker.outbox)
        self._end(going)

    def _end(self, going: _Going) -> None:
        """The unit is over: its worker is free, its token goes back with the next word to the desk."""
        held = going.owner.pipeline.file_to_hold(going.unit, going.copies) if going.assigned else None
        del self._going[going.name]
        self._room.give_back(going.name)
        if held is not None and self._open.get(going.owner.user) is going.owner:
            self._supervisor.release(going.worker, keep=held.name, holds=held.label)
            self._holding[going.worker] = held
            self._room.keep(going.worker, Need(spool_bytes=held.copy.size_bytes, disk_bytes=held.copy.size_bytes))
        else:
            self._supervisor.release(going.worker)
        going.owner.running -= 1
        self._stir(going.owner)
        seconds = self._clock.monotonic() - going.began if going.assigned else 0.0
        cost = going.cpu_seconds or seconds
        self._turns.charge(going.owner.user, cost)
        self._promises.end(going.lease)
        if going.worker in self._supervisor.dying:
            # Its memory and its core are still in use.
            self._stuck[going.worker] = going.lease
        else:
            self._returns.append(Return(lease_id=going.lease, cost_seconds=cost))

    def _stir(self, opened: _Open) -> None:
        """There is news of an open user."""
        if self._open.get(opened.user) is opened:
            self._to_ask[opened.user] = self._to_look[opened.user] = opened

    def _wind_up(self) -> None:
        """Stop what runs, publish what is ready, leave the rest for the next run."""
        self._stop_units()
        for opened in list(self._open.values()):
            with self._on_behalf_of(opened):
                opened.pipeline.flush()
                opened.pipeline.publish_if_due(last=True)
                opened.pipeline.lay_by()
                self._close_user(opened)
        if self._returns:
            returns, self._returns = self._returns, []
            self._desk.exchange(returns=returns)

    def _stop_units(self) -> None:
        """End all workers; what they were at is put back."""
        for worker in self._supervisor.workers:
            for report in self._supervisor.kill(worker, Failure(reason=Reason.KILLED, detail="the run was stopped")):
                going = self._going.get((report.worker.number, report.unit))
                if going is not None:
                    going.owner.pipeline.put_back(going.unit)
                    self._end(going)

    def _hear_bell(self) -> None:
        self._rung = True

    # --- how ---

    def _exit_code(self, counts: Counts) -> int:
        if self._draining is not None:
            return self._draining[0]
        some = counts.failed or counts.attachments_failed or self._troubles
        some = some or counts.pending or counts.attachments_pending
        return EXIT_SOME_FAILED if some else EXIT_DONE

    def _say_progress(self, *, last: bool = False) -> None:
        now = self._clock.monotonic()
        if not last and now - self._said < PROGRESS_SECONDS:
            return
        self._said = now
        awaited = self._surveyor.waiting_for() if self._surveyor is not None and not self._open else ()
        if awaited:
            # Another process does the work: what it has told the ledger is what there is to see.
            self._say_counts(_sum(self._ledger.counts_by_user(), awaited))
            return
        done = self._settled()
        self._reporter.say(
            Progressed(
                indexed=self._before["indexed"] + done["indexed"],
                skipped=self._before["skipped"] + done["skipped"],
                failed=self._before["failed"] + done["failed"],
                pending=max(0, self._before["pending"] - sum(done.values())),
                users_done=self._users_done,
                users_total=self._users,
                active=len(self._going),
                waits=Counter(self._waits.values()) + Counter(spool=self._room.waiting, memory=len(self._patient)),
                vectors=self._work.embedded,
            )
        )

    def _say_counts(self, counts: Counts) -> None:
        self._reporter.say(
            Progressed(
                indexed=counts.indexed,
                skipped=counts.skipped,
                failed=counts.failed,
                pending=counts.pending,
                users_done=self._users_done,
                users_total=self._users,
            )
        )

    def _settled(self) -> Counter[str]:
        return Counter(
            indexed=self._work.items_indexed, skipped=self._work.items_skipped, failed=self._work.items_failed
        )

    def _wake(self) -> None:
        with self._wake_lock, suppress(OSError):
            os.write(self._wake_in, b".")

    def _drain_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_out, 4096)

    # --- for the surveyor ---

    def open_ledger(self) -> Ledger:
        """A ledger of the caller's own."""
        return self._open_ledger()

    def survey(self, user: UserId, ledger: Ledger) -> Surveyed:
        """Lock and look at one user. Raises IndexBusy."""
        return try_survey(
            user,
            run=self._run,
            ledger=ledger,
            data_dir=self._settings.data_dir,
            versions=self._plan.versions,
            extracts=self._plan.extracts,
            orders=self._orders,
        )

    def is_busy(self, user: UserId) -> bool:
        """Somebody is writing the user's index."""
        return lock.is_locked(paths.user_dir(self._settings.data_dir / INDEXES_FOLDER, user))

    def ask_for_promotion(self, user: UserId) -> None:
        """Somebody else works on a user that we wait for: ask for it to go first, if somebody waits for us."""
        if self._lane is Lane.INTERACTIVE:
            with suppress(CannotRunError):
                self._desk.promote(user)

    def wake(self) -> None:
        """There is news for the loop."""
        self._wake()


def _sum(by_user: Mapping[UserId, Counts], users: Sequence[UserId]) -> Counts:
    total: Counter[str] = Counter()
    for user in users:
        if user in by_user:
            total.update(asdict(by_user[user]))
    return Counts(**total)
