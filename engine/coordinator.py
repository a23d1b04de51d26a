"""One run: a loop that keeps workers busy with the units of its users, within the tokens that it is lent.

    surveyor thread --Surveyed--> coordinator (one loop, this thread) --orders--> workers
    (own ledger)                    |  asks, returns                 <--reports--
                                    v
                                  desk

Rule: one loop, which never waits for anything but news. What is shut down is shut down in `Coordinator.close`, in an
order that leaves nothing behind whoever kills us in between: workers first, then leases, then locks.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import guards
from engine.desk import Desk
from engine.errors import CannotRunError, UsageError
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
from engine.parts import PartStore
from engine.pipeline import UserPipeline
from engine.plan import Plan
from engine.ports import Ask, Clock, Ledger, Return
from engine.reasons import Reason
from engine.settings import DEBUG_FILES, Settings
from engine.survey import Orders, Surveyed, Surveyor, Trouble, try_survey
from engine.telemetry import Notice, Progressed, Reporter, UserBegan, WorkerDied
from engine.way import Cost, Unit, Work
from engine.workers.supervisor import Bounds, Ended, Finished, Lost, Report, Supervisor, Worker
from indexes import paths
from indexes.errors import IndexFault
from indexes.records import ItemKey, Published
from indexes.writer import Writer, open_writer

_log = logging.getLogger(__name__)

#: The longest the loop waits before it looks at clocks again; news end the wait at once.
TURN_SECONDS = 0.05
#: Workers of bulk runs: a tenth of the processor's time where others want it too, all of it otherwise.
BULK_NICENESS = 10
#: Copies of files at once: a disk or a network folder may be slow.
FETCH_THREADS = 4
#: How often free disk space is looked at, and progress said.
DISK_SECONDS, PROGRESS_SECONDS = 5.0, 0.2
#: A worker of any stage, at rest: what idle ones may take of a small server.
_IDLE_WORKER_BYTES = 400 * 1024**2

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

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
            "work": asdict(self.work),
            "held_removals": self.held,
            "troubles": list(self.troubles),
            "message": self.message,
        }


@dataclass(slots=True, eq=False)
class _Open:
    """A user whose work is under way."""

    surveyed: Surveyed
    pipeline: UserPipeline
    stack: ExitStack
    writer: Writer
    parts: PartStore
    asked: dict[str, Unit] = field(default_factory=dict)
    running: int = 0


@dataclass(slots=True, eq=False)
class _Going:
    """A unit that has its token. `name`: the numbers of its worker and of its reservation there."""

    owner: _Open
    unit: Unit
    lease: LeaseId
    worker: Worker
    name: tuple[int, int]
    began: float
    assigned: bool = False
    cpu_seconds: float = 0.0


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
        until: float | None,
        ledger: Ledger,
        open_ledger: Callable[[], Ledger],
        desk: Desk,
        spool: Path,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._settings, self._run, self._lane, self._orders, self._until = settings, run, lane, orders, until
        self._open_ledger = open_ledger
        self._ledger, self._desk, self._reporter, self._clock = ledger, desk, reporter, clock
        self._plan = plan
        self._supervisor = Supervisor(
            spool=spool / "workers",
            book=desk,
            clock=clock,
            bounds=Bounds(stall_seconds=settings.stall_seconds, wall_seconds=settings.unit_seconds),
            # Whoever waits for an answer, and the rest of the server, go before bulk work.
            niceness=0 if lane is Lane.INTERACTIVE else BULK_NICENESS,
        )
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._supervisor.watch(self._wake_out, self._drain_wake)
        self._threads = FetchThreads(FETCH_THREADS)
        self._copied: queue.SimpleQueue[tuple[_Going, list[Fetched | Failure] | BaseException]] = queue.SimpleQueue()
        self._surveyor: Surveyor | None = None
        self._open: dict[UserId, _Open] = {}
        self._going: dict[tuple[int, int], _Going] = {}
        self._returns: list[Return] = []
        self._withdrawn: list[str] = []
        self._lies: list[tuple[Worker, Failure]] = []
        self._work = Work()
        self._users_done = 0
        self._before: Counter[str] = Counter()
        self._troubles: list[str] = []
        self._held = 0
        self._waits: Mapping[UserId, str] = {}
        self._interrupted = False
        self._draining: tuple[int, str] | None = None
        self._looked_at_disk = self._said = 0.0
        self._asks = 0

    # --- from outside ---

    def interrupt(self) -> None:
        """Stop within seconds; everything can be taken up again. Safe to call from a signal handler."""
        self._interrupted = True
        self._wake()

    def work_through(self, users: Sequence[UserId]) -> RunReport:
        """Do everything that can be done for these users."""
        began = self._clock.monotonic()
        self._surveyor = Surveyor(self, users)
        self._surveyor.start()
        while self._turn():
            pass
        self._say_progress(len(users), last=True)
        counts = _sum(self._ledger.counts_by_user(), users)
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

    def close(self) -> None:
        """Stop all of it. Idempotent."""
        # Workers first: a token may only be given back when nothing runs on it any more.
        self._supervisor.close()
        if self._surveyor is not None:
            self._surveyor.stop()
        self._threads.stop()
        for opened in list(self._open.values()):
            self._close_user(opened)
        for descriptor in (self._wake_out, self._wake_in):
            with suppress(OSError):
                os.close(descriptor)

    # --- the loop ---

    def _turn(self) -> bool:
        """One turn: take in users, ask, begin, hear, publish. False when there is nothing more to do."""
        assert self._surveyor is not None
        if self._interrupted:
            self._draining = self._draining or (EXIT_INTERRUPTED, "interrupted; run again to go on where it stopped")
            self._wind_up()
            return False
        self._look_around()
        self._take_in_users()
        self._talk_to_desk()
        busy = bool(self._going)
        waiting = any(opened.asked for opened in self._open.values())
        # With nothing running the wait for a token has been at the desk already.
        self._hear(0.0 if waiting and not busy else TURN_SECONDS)
        for opened in list(self._open.values()):
            with self._on_behalf_of(opened):
                opened.pipeline.flush()
                opened.pipeline.publish_if_due()
                if opened.pipeline.idle and not opened.running and not opened.asked:
                    self._finish_user(opened)
        self._say_progress(self._surveyor.total)
        if self._draining is not None and not self._going:
            self._wind_up()
            return False
        return bool(self._open) or not self._surveyor.done

    def _look_around(self) -> None:
        now = self._clock.monotonic()
        if self._draining is None and self._until is not None and self._clock.now() >= self._until:
            self._draining = EXIT_DEADLINE, "the deadline was reached; the rest comes next time, stalest users first"
        if now - self._looked_at_disk >= DISK_SECONDS:
            self._looked_at_disk = now
            free = guards.disk_free_bytes(self._settings.data_dir)
            if self._draining is None and free < self._settings.disk_reserve_bytes:
                text = f"only {free // 10**6:,} MB are free on the disk of {self._settings.data_dir}; free space"
                self._draining = EXIT_CANNOT, text

    def _take_in_users(self) -> None:
        assert self._surveyor is not None
        while self._draining is None and (surveyed := self._surveyor.next_ready()) is not None:
            match surveyed:
                case Notice():
                    self._reporter.say(surveyed)
                    continue
                case Trouble():
                    self._note_trouble(surveyed.user, surveyed.text)
                    self._users_done += 1
                    continue
            self._note_survey(surveyed)
            if surveyed.lock_fd < 0:
                self._note_counts(surveyed.counts)
                self._users_done += 1
                continue
            try:
                self._open[surveyed.user.name] = self._open_user(surveyed)
            except (IndexFault, OSError, UsageError) as error:
                # UsageError: the user was removed between the survey and now.
                self._note_trouble(surveyed.user.name, str(error))
                self._surveyor.release()
                self._users_done += 1

    def _note_survey(self, surveyed: Surveyed) -> None:
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

    def _note_counts(self, counts: Counts) -> None:
        for name in ("indexed", "skipped", "failed", "pending"):
            self._before[name] += getattr(counts, name)

    def _note_trouble(self, user: UserId, trouble: str) -> None:
        self._troubles.append(f"{user}: {trouble}")
        self._reporter.say(Notice(f"{user}: {trouble}"))

    @contextmanager
    def _on_behalf_of(self, opened: _Open) -> Iterator[None]:
        """What goes wrong with one user's index ends the work on that user, and on nobody else."""
        try:
            yield
        except IndexFault as error:
            self._give_up(opened, str(error))
        except OSError as error:
            if error.errno in _NO_ROOM:
                said = f"the disk is full: {error}; free space, then run again"
                self._draining = self._draining or (EXIT_CANNOT, said)
            self._give_up(opened, str(error))

    def _give_up(self, opened: _Open, trouble: str) -> None:
        """Stop all that is done for a user. What was committed stays; the next run goes on from there."""
        user = opened.surveyed.user.name
        self._note_trouble(user, trouble)
        for going in [going for going in self._going.values() if going.owner is opened]:
            self._supervisor.kill(going.worker, Failure(reason=Reason.KILLED, detail="work on its user was given up"))
            self._end(going)
        self._withdrawn += opened.asked
        opened.asked.clear()
        if user in self._open:
            self._close_user(opened)
            self._users_done += 1

    def _open_user(self, surveyed: Surveyed) -> _Open:
        user = surveyed.user.name
        stack = ExitStack()
        # Closed last: until then nobody else writes this index.
        stack.callback(os.close, surveyed.lock_fd)
        try:
            writer = stack.enter_context(open_writer(surveyed.folder, lock_fd=surveyed.lock_fd))
            removed = set(surveyed.removed)
            if self._orders.full:
                writer.forget_reads()
            if surveyed.must_look:
                self._ledger.reconcile(user, writer.generation, self._current(writer.published()))
                removed.update((int(source), str(key)) for source, key in self._ledger.departed(user))
            parts = PartStore(surveyed.folder / "parts")
            if not self._ledger.counts(user).attachments_pending:
                parts.clear()
            pipeline = UserPipeline(
                user=user,
                run=self._run,
                plan=self._plan,
                ledger=self._ledger,
                writer=writer,
                sources=surveyed.sources,
                removed=removed,
                parts=parts,
                clock=self._clock,
                reporter=self._reporter,
                work=self._work,
                most_items=DEBUG_FILES if self._settings.debug_mode else None,
                remove_nothing=self._orders.remove_nothing,
                only=surveyed.only,
            )
        except BaseException:
            stack.close()
            raise
        counts = self._ledger.counts(user)
        self._note_counts(counts)
        _log.debug("%s: %s new, %s changed, %s pending", user, surveyed.new, surveyed.changed, counts.pending)
        self._reporter.say(UserBegan(user=user, found=counts.found))
        return _Open(surveyed=surveyed, pipeline=pipeline, stack=stack, writer=writer, parts=parts)

    def _current(self, published: Mapping[ItemKey, Published]) -> dict[tuple[SourceId, ListedKey], Fingerprint]:
        """What the index holds, for the ledger: an item that would come out otherwise today has no fingerprint."""
        return {
            (SourceId(source), ListedKey(key)): Fingerprint(found.fingerprint if self._plan.is_current(found) else "")
            for (source, key), found in published.items()
        }

    def _finish_user(self, opened: _Open) -> None:
        user = opened.surveyed.user.name
        opened.writer.tidy(model=self._plan.model)
        if not self._ledger.counts(user).attachments_pending:
            opened.parts.clear()
        self._close_user(opened)
        stamp = paths.stamp(opened.surveyed.folder)
        partly = bool(opened.surveyed.only)
        self._ledger.user_done(user, self._run, index_stamp=stamp, versions=self._plan.versions, partly=partly)
        self._users_done += 1

    def _close_user(self, opened: _Open) -> None:
        assert self._surveyor is not None
        self._open.pop(opened.surveyed.user.name, None)
        opened.stack.close()
        self._surveyor.release()

    # --- tokens ---

    def _talk_to_desk(self) -> None:
        """Give back, ask, and begin what was granted: one round trip."""
        asks = list(self._new_asks()) if self._draining is None else []
        withdraw, self._withdrawn = self._withdrawn, []
        if self._draining is not None:
            for opened in self._open.values():
                withdraw += opened.asked
                for unit in opened.asked.values():
                    opened.pipeline.put_back(unit)
                opened.asked.clear()
        waiting = any(opened.asked for opened in self._open.values())
        if not (asks or withdraw or waiting or self._returns):
            return
        returns, self._returns = self._returns, []
        patience = TURN_SECONDS if waiting and not self._going and not self._returns else 0.0
        answer = self._desk.exchange(asks=asks, returns=returns, withdraw=withdraw, patience_seconds=patience)
        waits = answer.waits or {}
        if waits != self._waits:
            _log.debug("waiting: %s", dict(waits))
        self._waits = waits
        for grant in answer.grants:
            owner = next((opened for opened in self._open.values() if grant.ask_id in opened.asked), None)
            if owner is None:
                self._returns.append(Return(lease_id=grant.lease_id, cost_seconds=0.0))
                continue
            self._begin(owner, owner.asked.pop(grant.ask_id), grant.lease_id)

    def _new_asks(self) -> Iterator[Ask]:
        most = min(self._desk.limits.max_workers_per_user, self._desk.limits.cpu_limit + 1)
        for opened in list(self._open.values()):
            while len(opened.asked) + opened.running < most:
                unit = None
                with self._on_behalf_of(opened):
                    unit = opened.pipeline.next_unit()
                if unit is None:
                    break
                self._asks += 1
                ask_id = f"{unit.user}/{self._asks}"
                opened.asked[ask_id] = unit
                yield Ask(
                    ask_id=ask_id,
                    user=unit.user,
                    lane=self._lane,
                    kind=TokenKind.CPU,
                    cost_seconds=unit.seconds,
                    memory_bytes=unit.memory_bytes,
                    weight=opened.surveyed.user.weight,
                )

    def _begin(self, owner: _Open, unit: Unit, lease: LeaseId) -> None:
        worker = self._supervisor.find_idle(unit.stage) or self._start_worker(unit.stage)
        number = self._asks = self._asks + 1
        self._supervisor.reserve(worker, number, len(unit.pieces))
        name = worker.number, number
        _log.debug(
            "lease %s: unit %s of %s, %s orders of %s, worker %s",
            *(lease, unit.number, unit.user, len(unit.pieces), unit.stage, worker.number),
        )
        going = _Going(owner=owner, unit=unit, lease=lease, worker=worker, name=name, began=self._clock.monotonic())
        self._going[name] = going
        owner.running += 1
        if not unit.needs_fetch:
            with self._on_behalf_of(owner):
                self._assign(going, [])
            return

        def copy() -> None:
            try:
                copies: list[Fetched | Failure] | BaseException = owner.pipeline.fetch(unit, worker.inbox)
            except BaseException as error:  # noqa: BLE001 - raised again by the loop, which can act on it
                copies = error
            self._copied.put((going, copies))
            self._wake()

        self._threads.submit(copy)

    def _start_worker(self, stage: Stage) -> Worker:
        """A new worker; idle ones of other stages make room when there are many."""
        limits = self._desk.limits
        most = max(limits.cpu_limit + 1, min(limits.cpu_limit + 5, limits.memory_limit_bytes // _IDLE_WORKER_BYTES))
        idle = deque(worker for worker in self._supervisor.workers if not worker.busy)
        while idle and len(self._supervisor.workers) >= most:
            self._supervisor.retire(idle.popleft())
        return self._supervisor.start(stage, self._plan.options[stage])

    def _assign(self, going: _Going, copies: Sequence[Fetched | Failure]) -> None:
        going.assigned = True
        orders = going.owner.pipeline.orders(going.unit, going.worker.inbox, copies)
        if not orders:
            self._end(going)
            return
        self._supervisor.assign(
            going.worker,
            orders,
            deadlines=[piece.estimate.deadline for piece in going.unit.orders],
            limit_bytes=going.unit.limit_bytes,
        )

    # --- news ---

    def _hear(self, timeout_seconds: float) -> None:
        for report in self._supervisor.poll(timeout_seconds):
            self._take(report)
        # Only now: what a liar said before has all been taken in, and what is left of its unit is untouched.
        lies, self._lies = self._lies, []
        for worker, lie in lies:
            for report in self._supervisor.kill(worker, lie):
                self._take(report)
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

    def _take(self, report: Report) -> None:
        going = self._going.get((report.worker.number, report.unit))
        if going is not None:
            with self._on_behalf_of(going.owner):
                self._take_for(going, report)

    def _take_for(self, going: _Going, report: Report) -> None:
        pipeline = going.owner.pipeline
        match report:
            case Ended():
                cost = Cost(
                    began=report.began,
                    seconds=report.seconds,
                    cpu_seconds=report.cpu_seconds,
                    peak_bytes=report.peak_bytes,
                )
                going.cpu_seconds += report.cpu_seconds
                lie = pipeline.ended(
                    going.unit, report.index, report.worker.outbox, report.result, report.failure, cost
                )
                if lie is not None:
                    self._lies.append((report.worker, lie))
            case Finished():
                pipeline.end_unit(going.unit)
                self._end(going)
            case Lost():
                self._lost(going, report)

    def _lost(self, going: _Going, report: Lost) -> None:
        unit = going.unit
        orders = unit.orders or list(unit.pieces)
        item = orders[report.blamed].item if report.blamed is not None and report.blamed < len(orders) else None
        self._reporter.say(
            WorkerDied(stage=unit.stage, detail=report.failure.detail, path=item.record.path if item else "")
        )
        cost = Cost(began=report.began, seconds=report.seconds)
        going.owner.pipeline.lost(unit, report.blamed, report.failure, report.untouched, cost)
        self._end(going)

    def _end(self, going: _Going) -> None:
        """The unit is over: its worker is free, its token goes back with the next word to the desk."""
        self._supervisor.release(going.worker)
        del self._going[going.name]
        going.owner.running -= 1
        seconds = self._clock.monotonic() - going.began if going.assigned else 0.0
        self._returns.append(Return(lease_id=going.lease, cost_seconds=going.cpu_seconds or seconds))

    def _wind_up(self) -> None:
        """Stop what runs, publish what is ready, leave the rest for the next run."""
        for worker in self._supervisor.workers:
            for report in self._supervisor.kill(worker, Failure(reason=Reason.KILLED, detail="the run was stopped")):
                going = self._going.get((report.worker.number, report.unit))
                if going is not None:
                    going.owner.pipeline.put_back(going.unit)
                    self._end(going)
        for opened in list(self._open.values()):
            with self._on_behalf_of(opened):
                opened.pipeline.flush()
                opened.pipeline.publish_if_due(last=True)
                self._close_user(opened)
        if self._returns:
            returns, self._returns = self._returns, []
            self._desk.exchange(returns=returns)

    # --- how ---

    def _exit_code(self, counts: Counts) -> int:
        if self._draining is not None:
            return self._draining[0]
        some = counts.failed or counts.attachments_failed or self._troubles
        some = some or counts.pending or counts.attachments_pending
        return EXIT_SOME_FAILED if some else EXIT_DONE

    def _say_progress(self, users: int, *, last: bool = False) -> None:
        now = self._clock.monotonic()
        if not last and now - self._said < PROGRESS_SECONDS:
            return
        self._said = now
        awaited = self._surveyor.waiting_for() if self._surveyor is not None and not self._open else ()
        if awaited:
            # Another process does the work: what it has told the ledger is what there is to see.
            self._say_counts(_sum(self._ledger.counts_by_user(), awaited), users)
            return
        done = self._settled()
        self._reporter.say(
            Progressed(
                indexed=self._before["indexed"] + done["indexed"],
                skipped=self._before["skipped"] + done["skipped"],
                failed=self._before["failed"] + done["failed"],
                pending=max(0, self._before["pending"] - sum(done.values())),
                users_done=self._users_done,
                users_total=users,
                active=len(self._going),
                waits=Counter(self._waits.values()),
                vectors=self._work.embedded,
            )
        )

    def _say_counts(self, counts: Counts, users: int) -> None:
        self._reporter.say(
            Progressed(
                indexed=counts.indexed,
                skipped=counts.skipped,
                failed=counts.failed,
                pending=counts.pending,
                users_done=self._users_done,
                users_total=users,
            )
        )

    def _settled(self) -> Counter[str]:
        return Counter(
            indexed=self._work.items_indexed, skipped=self._work.items_skipped, failed=self._work.items_failed
        )

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
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
            ledger=ledger,
            data_dir=self._settings.data_dir,
            versions=self._plan.versions,
            extracts=self._plan.extracts,
            orders=self._orders,
        )

    def nothing_to_do(self, surveyed: Surveyed, ledger: Ledger) -> Surveyed:
        """Note in the ledger that the user is up to date, and let go of the lock."""
        stamp = paths.stamp(surveyed.folder)
        name, partly = surveyed.user.name, bool(surveyed.only)
        ledger.user_done(name, self._run, index_stamp=stamp, versions=self._plan.versions, partly=partly)
        os.close(surveyed.lock_fd)
        return replace(surveyed, lock_fd=-1)

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
