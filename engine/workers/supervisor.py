"""Start, watch, stop and replace worker processes.

Rule: one thread, the one that made the supervisor, and it never waits for a worker: what workers say is taken apart as
it comes, and one that does not behave is killed, alone, with all that it has started. Knows nothing of users, items or
stages beyond their names: it is given orders and reports how each ended.

    start -> Worker (starting) --Ready--> idle --assign--> busy --UnitDone--> idle --retire--> gone
                                                     \\--death, deadline, lie--> dying --> gone, with a Lost report

A stage of which a worker was lost with an order, before any had ended one, is in doubt: its next workers do an order of
ours before they are ready (rehearsal.py). So a library that is broken is a stage that cannot be started, and no file is
blamed for it.

A worker that has been killed is dying until the kernel has let go of it: milliseconds, and where it hangs on a disk
that does not answer, hours. Only then it is lost: whatever was lent for it is in use until then.
"""

from __future__ import annotations

import fcntl
import os
import re
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from engine import clearing, processes
from engine.errors import CannotRunError, MalformedMessage
from engine.model import Failure, Stage
from engine.ports import Clock
from engine.printing import printable
from engine.reasons import Reason
from engine.workers.messages import (
    EXIT_FULL,
    Begin,
    ItemDone,
    Message,
    Progress,
    Ready,
    Stream,
    UnitDone,
    UnitOrder,
    send,
)
from engine.workers.rehearsal import rehearsal_of
from engine.workers.watch import FAR, Watch, Weighed

#: A stage loads in under a second; a minute covers a machine that swaps.
START_SECONDS = 60.0
#: How often clocks are looked at: CPU time, progress, wall time. Deadlines are tens of seconds.
LOOK_SECONDS = 0.5
#: A worker that has nothing to do ends after so long: an idle engine holds no memory.
IDLE_SECONDS = 10.0
#: Growth over its own size, after which a worker is replaced; and the growth with its first unit that counts as its own
#: size: caches and arenas are filled then, and stay. Less than loky allows (300 MB): what a worker holds too much, the
#: next unit lacks of what it was promised.
GROWTH_BYTES, WARMTH_BYTES = 96 * 1024**2, 256 * 1024**2
#: Workers of a stage that die in a row before they are ready, until the stage is given up.
STARTS_IN_A_ROW = 3
#: Kills from outside that count as one such death.
KILLS_FOR_A_START = 5
#: What is kept of a worker's standard error: the end of it; and what is taken off at once, for which its pipe has room.
STDERR_BYTES, STDERR_BLOCK_BYTES = 4096, 1 << 20
#: Blocks of 64 KiB taken in from one worker before the others have their turn: more than the pipe of an honest one
#: holds, so that all it said before its end is heard, and no end of words holds us.
BLOCKS_AT_ONCE = 8
#: Between the end of its pipe and its own, a Python that ends clears up its modules: a second where there is swapping.
ENDING_SECONDS = 5.0
#: An end is waited for so long (most take ten milliseconds, a hundred where all cores are busy), and from then on it is
#: looked for now and then.
HOLD_SECONDS, DYING_LOOK_SECONDS = 0.25, 0.05
#: Words of progress within one order: an honest worker says two a second. Each costs us ten microseconds.
WORDS_AT_ONCE, WORDS_A_SECOND = 100, 10
#: The kernel counts CPU time in ticks of 10 ms, for user and system apart.
_TICKS_SECONDS = 0.05
#: In the environment of each worker, and so of all that it starts: its home. It is marked by it otherwise too.
_MARK = "NIGHTMILL_WORKER"

#: Variables that programs, Python and our own stages go by.
_KEPT_NAMES = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})
_KEPT_BEGINNINGS = ("LC_", "PYTHON", "TESSDATA_", "NIGHTMILL_")
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)

_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class WorkerBook(Protocol):
    """Where workers are written down, so that somebody can end them when we are dead (the desk's client file)."""

    def note_worker(self, pid: int, started: float) -> None:
        """Called before the worker's first unit."""
        ...

    def note_worker_gone(self, pid: int) -> None:
        """Called when it has been waited for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long an order may take: seconds without a word, and seconds in all."""

    stall_seconds: float = 120.0
    wall_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One order of a unit has ended, with a result or a failure."""

    worker: Worker
    unit: int
    index: int
    result: Mapping[str, Any]
    failure: Failure | None
    cpu_seconds: float
    peak_bytes: int
    began: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """All orders of a unit have ended; the worker is idle again (its outbox still holds the results)."""

    worker: Worker
    unit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A worker is gone, and its unit with it: never said of a unit that has Finished.

    blamed: the order that was being done; None: nobody's fault.

    untouched: the orders that had not begun, and may be given out again as they are.
    cpu_seconds, peak_bytes: what the order that was being done had used by then, as seen from outside; 0: not seen.
    """

    worker: Worker
    unit: int
    blamed: int | None
    failure: Failure
    untouched: tuple[int, ...]
    began: float
    seconds: float
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Swollen:
    """A worker holds more than its unit was promised. Said again and again while it lasts.

    The answer is `allow` (more was to be had), `stop` (there is none), or nothing: far over its promise it is stopped
    whatever is answered.
    """

    worker: Worker
    unit: int
    resident_bytes: int


Report = Ended | Finished | Lost | Swollen


@dataclass(slots=True, eq=False)
class Worker:
    """One child process. `home` holds its inbox and outbox."""

    number: int
    stage: Stage
    home: Path
    process: subprocess.Popen[bytes]
    watched: processes.Watched
    pipe: Connection
    stream: Stream = field(default_factory=Stream)
    stderr: deque[bytes] = field(default_factory=deque)
    owner: str = ""  # the only one whose files it reads; "": none yet
    rehearses: bool = False  # it does an order of ours before it is ready
    ready: bool = False
    began: float = 0.0  # of the present state: starting, idle, or the present order
    heard: float = 0.0
    #: The latest `heard` that was looked at, and how long it had waited for a core by then.
    waited: tuple[float, float] = 0.0, 0.0
    unit: int = 0
    orders: int = 0
    done: set[int] = field(default_factory=set)
    words: int = 0  # of progress, within the present order
    pending: UnitOrder | None = None
    given: bool = False  # the unit's orders were sent, and have not all ended
    deadlines: Sequence[float] = ()
    promised_bytes: int = 0
    limit_bytes: int = 0
    is_raised: bool = False  # its limit was raised by us, and is not its own to take back
    mapped_bytes: int = 0  # beyond what it held when its unit began: its limit counts what is mapped
    weighed: Weighed | None = None  # while it does a unit
    cpu_before: float = 0.0  # what it had used when the present order began: at the unit's start, and what ended since
    base_bytes: int = 0  # what it held when it was ready, or after its first unit
    is_warm: bool = False  # it has done a unit
    grown_bytes: int = 0  # over that, after its latest unit
    holds: str = ""  # what its inbox still holds of the unit before, in the words of whoever left it there
    hung_up: float | None = None  # since when nothing more can come out of its pipe, though it lives
    gone: bool = False  # it is of no more use, though the kernel may not have let go of it yet

    @property
    def inbox(self) -> Path:
        """Where the next unit's files go."""
        return self.home / "inbox"

    @property
    def outbox(self) -> Path:
        """Where results are found."""
        return self.home / "outbox"

    @property
    def resting_bytes(self) -> int:
        """What it held when it was last idle; 0: not ready yet."""
        return self.base_bytes + self.grown_bytes

    @property
    def busy(self) -> bool:
        """It has been given a unit that has not ended."""
        return self.unit != 0

    @property
    def has_finished(self) -> bool:
        """All orders of its unit have ended, and Finished was said of it; it is not released yet."""
        return self.busy and not self.given and len(self.done) == self.orders


@dataclass(slots=True, eq=False, kw_only=True)
class _Dying:
    """A worker that is gone for us. `failure`, None: what it ended by is read from how it ended."""

    worker: Worker
    failure: Failure | None
    may_blame: bool
    is_news: bool
    slate: tuple[int, int] | None
    noticed: float
    cpu_seconds: float
    peak_bytes: int
    next_look: float


class Supervisor:
    """All workers of one coordinator."""

    def __init__(
        self,
        *,
        spool: Path,
        book: WorkerBook,
        clock: Clock,
        bounds: Bounds | None = None,
        package: str = "engine.workers",
        niceness: int = 0,
        sandbox: str = "off",
        private: Sequence[Path] = (),
        may_start: bool = True,
    ) -> None:
        """package: holds the stages, a module each, named as the stage is; niceness: of the workers, as in nice(1).

        sandbox: "auto", "strict" or "off", see engine/workers/sandbox.py; private: folders that stay closed in it.
        may_start: nothing keeps workers from starting programs, so what they start is looked for.
        """
        self._sandbox, self._private = sandbox, tuple(str(folder.resolve()) for folder in private)
        self._package = package
        self._niceness = niceness
        self._spool = spool
        self._book = book
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._workers: list[Worker] = []
        self._dying: list[_Dying] = []
        self._watch = Watch(may_start=may_start)
        self._numbers = 0
        self._selector = selectors.DefaultSelector()
        self._looked = 0.0
        self._unsaid: list[Report] = []
        self._left: list[Path] = []
        self._failed_starts: dict[Stage, int] = {}
        #: Stages of which a worker has ended an order; and those of which one was lost with one before.
        self._proven: set[Stage] = set()
        self._doubted: set[Stage] = set()
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- what the coordinator does ---

    @property
    def workers(self) -> Sequence[Worker]:
        """All that live, and are not dying."""
        return tuple(self._workers)

    @property
    def dying(self) -> Sequence[Worker]:
        """Those that were killed, and that the kernel has not let go of: what is lent for them is still in use."""
        return tuple(dying.worker for dying in self._dying)

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Also wake up, and call `action`, when this descriptor can be read."""
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def find_idle(self, stage: Stage, owner: str = "", *, holds: str = "") -> Worker | None:
        """A worker of that stage without a unit; one that is still starting counts (it waits for the unit).

        holds: one that has this in its inbox goes before others.

        owner: whose files the unit reads. One that has read another owner's is not found: whoever took it over with a
        file would be given those of everybody else.
        """
        free = [
            worker
            for worker in self._workers
            if worker.stage is stage and not worker.busy and worker.hung_up is None and worker.owner in ("", owner)
        ]

        def rank(worker: Worker) -> tuple[bool, bool, bool, int]:
            return not (holds and worker.holds == holds), not worker.owner, not worker.ready, worker.number

        return min(free, key=rank, default=None)

    def start(self, stage: Stage, options: Mapping[str, Any]) -> Worker:
        """A new worker process for a stage. Raises CannotRunError when the system gives us none."""
        self._numbers += 1
        home = self._spool / f"worker-{self._numbers}"
        for folder in (home, home / "inbox", home / "outbox"):
            folder.mkdir(mode=0o700)
        ours, theirs = Pipe()
        command = [sys.executable, "-P", "-m", "engine.workers.child", str(theirs.fileno()), str(os.getpid())]
        try:
            # Between the start and the note in the client file a kill of ours leaves a worker that nobody lists: it
            # has no unit yet, and dies with us (PDEATHSIG; elsewhere by the end of its pipe).
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
                env={**_worker_environment(), _MARK: str(home)},
            )
        except OSError as error:
            ours.close()
            raise CannotRunError(f"no worker process can be started: {error}") from error
        finally:
            theirs.close()
        processes.mark_descent(process.pid, _mark_of(home))
        now = self._clock.monotonic()
        if self._niceness:
            os.setpriority(os.PRIO_PROCESS, process.pid, self._niceness)
        started = processes.start_time(process.pid)
        self._book.note_worker(process.pid, started)
        worker = Worker(
            number=self._numbers,
            stage=stage,
            home=home,
            process=process,
            watched=_Ending(process, started),
            pipe=ours,
            rehearses=stage in self._doubted,
            began=now,
            heard=now,
        )
        self._workers.append(worker)
        os.set_blocking(ours.fileno(), False)
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        with suppress(OSError, AttributeError):
            # Whoever shouts is heard sixteen times as seldom.
            fcntl.fcntl(process.stderr.fileno(), fcntl.F_SETPIPE_SZ, STDERR_BLOCK_BYTES)
        self._selector.register(ours.fileno(), selectors.EVENT_READ, worker)
        self._selector.register(process.stderr.fileno(), selectors.EVENT_READ, (worker, process.stderr.fileno()))
        if worker.watched.fd >= 0:
            self._selector.register(worker.watched.fd, selectors.EVENT_READ, worker)
        with suppress(OSError, ValueError):
            # A worker that is already dead is noticed by its pidfd.
            self._say(worker, self._beginning(worker, options))
        return worker

    def reserve(self, worker: Worker, unit: int, orders: int, *, owner: str = "") -> None:
        """The worker is spoken for: files are being copied into its inbox for this unit (numbers begin at 1).

        owner: of these files, and from now on the only one of this worker; "": it stays anybody's.
        """
        worker.owner = worker.owner or owner
        worker.unit, worker.orders = unit, orders
        worker.done, worker.words = set(), 0
        worker.pending, worker.given, worker.deadlines = None, False, ()
        worker.began = worker.heard = self._clock.monotonic()

    def assign(
        self,
        worker: Worker,
        orders: Sequence[Mapping[str, Any]],
        *,
        deadlines: Sequence[float],
        promised_bytes: int,
        limit_bytes: int,
    ) -> None:
        """Begin the reserved unit.

        deadlines       CPU seconds for each order
        promised_bytes  what the worker may hold, all in all, helpers included; 0: nobody counts
        limit_bytes     beyond it the worker itself meets an error; 0: it meets none
        """
        if worker.gone:
            return
        worker.promised_bytes, worker.limit_bytes = promised_bytes, limit_bytes
        worker.orders, worker.deadlines = len(orders), tuple(deadlines)
        worker.pending = UnitOrder(unit=worker.unit, orders=tuple(orders), memory_bytes=_own_limit(worker))
        if worker.ready:
            self._give(worker)

    def allow(self, worker: Worker, *, promised_bytes: int, limit_bytes: int) -> None:
        """The unit that the worker does was promised more. `limit_bytes` as for `assign`; it is never lowered."""
        worker.promised_bytes = max(worker.promised_bytes, promised_bytes)
        if limit_bytes == 0 or worker.limit_bytes == 0:
            worker.limit_bytes = 0
        else:
            worker.limit_bytes = max(worker.limit_bytes, limit_bytes)
        room = _own_limit(worker)
        if worker.pending is not None:
            # It still loads its stage.
            worker.pending = replace(worker.pending, memory_bytes=room)
        if worker.weighed is None:
            return
        self._watch.allow(worker.weighed, promised_bytes)
        # It may have ended, or have ended the unit, whose limit it then takes back itself: see UnitDone.
        worker.is_raised = True
        with suppress(OSError):
            # What it has mapped meanwhile and not touched yet is within the limit too.
            processes.raise_memory_limit(worker.process.pid, room and room + worker.mapped_bytes)

    def release(self, worker: Worker, *, keep: str = "", holds: str = "") -> None:
        """The reserved unit has come to nothing, or its results have been taken: the worker is free.

        keep: a file of its inbox that stays there for its next unit, as `holds`. All else is removed.
        One that has grown too much is ended now: a worker that always has a unit is never found idle.
        """
        worker.unit = worker.orders = 0
        worker.pending, worker.given = None, False
        worker.began = self._clock.monotonic()
        if not worker.gone and worker.grown_bytes > GROWTH_BYTES:
            self._let_go(worker)
        elif not worker.gone:
            worker.holds = holds
            clearing.empty(worker.inbox, but=keep)
            clearing.empty(worker.outbox)

    def clear_inbox(self, worker: Worker) -> None:
        """What was left in a worker's inbox is not wanted any more."""
        if worker.holds:
            worker.holds = ""
            clearing.empty(worker.inbox)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Wait for news, at most so long, and hand them on. Raises CannotRunError when a stage cannot be started.

        The outbox of a worker that was lost stays until the next call: results that it had reported may lie there.
        """
        self._remove_left()
        reports, self._unsaid = self._unsaid, []
        if reports:
            timeout_seconds = 0.0
        elif self._dying:
            timeout_seconds = min(timeout_seconds, DYING_LOOK_SECONDS)
        for key, _ in self._selector.select(max(0.0, timeout_seconds)):
            match key.data:
                case Worker() as worker:
                    if not worker.gone:
                        self._hear(worker, reports)
                case (Worker() as worker, int() as descriptor):
                    if not worker.gone:
                        self._keep_stderr(worker, descriptor)
                case action:
                    action()
        for worker in self._workers:
            if worker.weighed is not None and self._watch.take_news(worker.weighed):
                resident = worker.weighed.resident_bytes
                reports.append(Swollen(worker=worker, unit=worker.unit, resident_bytes=resident))
        self._look_at_dying(reports)
        now = self._clock.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look_at_clocks(now, reports)
        return reports

    def retire(self, worker: Worker) -> None:
        """End a worker that has no unit."""
        self._let_go(worker)

    def kill(self, worker: Worker, failure: Failure) -> list[Report]:
        """Stop a worker for a reason of ours; its unit comes back as Lost, with none of its orders to blame.

        Lost is in the answer when the worker is gone at once, as it nearly always is; else `poll` says it.
        """
        reports: list[Report] = []
        self._lose(worker, failure, reports, may_blame=False)
        return reports

    def stop(self, worker: Worker, failure: Failure) -> list[Report]:
        """Stop a worker for what it does, as `kill` does; but the order that is being done is blamed with `failure`.

        Unless its memory is the reason, and would have done for a worker that had not grown before: then nobody is.
        """
        reports: list[Report] = []
        self._lose(worker, failure, reports)
        return reports

    def close(self) -> None:
        """Kill every worker, wait until all are gone, and remove what they left. Idempotent."""
        for worker in list(self._workers):
            self._strike(worker, None)
        for dying in list(self._dying):
            dying.is_news = False
            while not self._bury(dying, [], HOLD_SECONDS):
                pass
        self._watch.close()
        self._selector.close()
        self._left.clear()
        clearing.remove(self._spool)

    # --- how ---

    def _beginning(self, worker: Worker, options: Mapping[str, Any]) -> Begin:
        rehearsal = rehearsal_of(worker.stage) if worker.rehearses else None
        try:
            for name, data in rehearsal.files.items() if rehearsal is not None else ():
                (worker.inbox / name).write_bytes(data)
        except OSError:
            # The disk is full, or broken: not what is in doubt.
            worker.rehearses, rehearsal = False, None
        return Begin(
            stage=f"{self._package}.{worker.stage.value}",
            options=options,
            home=str(worker.home),
            sandbox=self._sandbox,
            private=self._private,
            rehearsal=rehearsal.order if rehearsal is not None else None,
        )

    def _note_works(self, stage: Stage) -> None:
        """A worker of the stage has lived through an order."""
        self._proven.add(stage)
        self._doubted.discard(stage)

    def _say(self, worker: Worker, message: Message) -> None:
        """Does not wait: orders are small, and what was said before has been read. BlockingIOError: it has not."""
        send(worker.pipe, message)

    def _give(self, worker: Worker) -> None:
        order, worker.pending, worker.given = worker.pending, None, True
        assert order is not None
        worker.began = worker.heard = self._clock.monotonic()
        worker.cpu_before = _cpu_seconds(worker)
        worker.mapped_bytes = _mapped_bytes(worker)
        worker.weighed = Weighed(
            watched=worker.watched, promised_bytes=worker.promised_bytes, before_bytes=worker.grown_bytes
        )
        self._watch.begin(worker.weighed)
        try:
            self._say(worker, order)
        except BlockingIOError:
            deaf = Failure(reason=Reason.PROTOCOL, detail="it did not read its orders")
            self._lose(worker, deaf, self._unsaid)
        except OSError:
            pass  # A dead worker is noticed by its pidfd, or by the end of its pipe.

    def _hear(self, worker: Worker, reports: list[Report]) -> None:
        """Take in all that the worker has said; then see whether it has ended."""
        # Looked at first: what it said before its end is in the pipe already.
        ended = not worker.watched.alive
        try:
            for _ in range(BLOCKS_AT_ONCE):
                data = os.read(worker.pipe.fileno(), 1 << 16)
                if not data:
                    self._note_hang_up(worker)
                    break
                for message in worker.stream.feed(data):
                    self._take(worker, message, reports)
                    if worker.gone:
                        return
        except BlockingIOError:
            pass
        except OSError:
            self._note_hang_up(worker)
        except MalformedMessage as error:
            self._lose(worker, Failure(reason=Reason.PROTOCOL, detail=str(error)), reports)
            return
        if ended:
            self._lose(worker, None, reports)

    def _note_hang_up(self, worker: Worker) -> None:
        """What it ended by is known when it has ended: killed now, it would seem to have been killed from outside."""
        if worker.hung_up is None:
            worker.hung_up = self._clock.monotonic()
            self._selector.unregister(worker.pipe.fileno())

    def _take(self, worker: Worker, message: Message, reports: list[Report]) -> None:
        now = self._clock.monotonic()
        worker.heard = now
        match message:
            case Ready() if not worker.ready:
                worker.ready = True
                worker.began = now
                self._failed_starts.pop(worker.stage, None)
                if worker.rehearses:
                    self._note_works(worker.stage)
                worker.base_bytes = _resident_bytes(worker)
                if worker.pending is not None:
                    self._give(worker)
            case Progress() if worker.given and worker.words < WORDS_AT_ONCE + WORDS_A_SECOND * (now - worker.began):
                worker.words += 1
            case ItemDone() if worker.given and message.unit == worker.unit and self._is_next(worker, message.index):
                worker.done.add(message.index)
                worker.words = 0
                self._note_works(worker.stage)
                reports.append(
                    Ended(
                        worker=worker,
                        unit=message.unit,
                        index=message.index,
                        result=message.result,
                        failure=message.failure,
                        cpu_seconds=_credible_seconds(worker, message.cpu_seconds),
                        peak_bytes=_credible_peak(worker, message.peak_bytes),
                        began=self._clock.now() - (now - worker.began),
                        seconds=now - worker.began,
                    )
                )
                worker.began = now
                if worker.weighed is not None:
                    # The next order may have come far by now: what was seen last is its own.
                    worker.weighed.peak_bytes = worker.weighed.resident_bytes
            case UnitDone() if worker.given and message.unit == worker.unit and len(worker.done) == worker.orders:
                worker.given = False
                self._weigh_no_more(worker)
                reports.append(Finished(worker=worker, unit=message.unit))
            case _:
                raise MalformedMessage(f"{type(message).__name__} was not expected now")

    def _weigh_no_more(self, worker: Worker) -> None:
        """The unit has ended; the worker has given back to the system what it could (child.py)."""
        if worker.weighed is not None:
            self._watch.end(worker.weighed)
            worker.weighed = None
        if worker.is_raised:
            worker.is_raised = False
            with suppress(OSError):
                processes.raise_memory_limit(worker.process.pid, 0)
        held = _resident_bytes(worker)
        if not worker.is_warm:
            worker.is_warm = True
            worker.base_bytes = max(worker.base_bytes, min(held, worker.base_bytes + WARMTH_BYTES))
        worker.grown_bytes = max(0, held - worker.base_bytes)

    def _is_next(self, worker: Worker, index: int) -> bool:
        return index == len(worker.done) and index < worker.orders

    def _look_at_clocks(self, now: float, reports: list[Report]) -> None:
        for worker in list(self._workers):
            if worker.watched.fd < 0 and not worker.watched.alive:
                self._hear(worker, reports)
            if worker.gone:
                continue
            if worker.hung_up is not None:
                if now - worker.hung_up > ENDING_SECONDS:
                    lie = Failure(reason=Reason.PROTOCOL, detail="it closed its pipe and lived on")
                    self._lose(worker, lie, reports)
            elif not worker.ready:
                if now - worker.began > START_SECONDS:
                    detail = f"not ready after {START_SECONDS:.0f} s"
                    self._lose(worker, Failure(reason=Reason.NO_PROGRESS, detail=detail), reports)
            elif worker.given and worker.deadlines:
                failure = self._overrun(worker, now)
                if failure is not None:
                    self._lose(worker, failure, reports)
            elif not worker.given and _is_up_to_something(worker):
                # Nobody weighs it, nor what it has started, and it should be doing nothing.
                idler = Failure(reason=Reason.KILLED, detail="its worker grew while it had nothing to do")
                self._lose(worker, idler, reports, may_blame=False)
            elif not worker.busy and now - worker.began > IDLE_SECONDS:
                self._let_go(worker)

    def _overrun(self, worker: Worker, now: float) -> Failure | None:
        index = min(len(worker.done), len(worker.deadlines) - 1)
        used = _cpu_seconds(worker) - worker.cpu_before
        if used > worker.deadlines[index]:
            detail = f"stopped after {used:.0f} CPU seconds (allowed: {worker.deadlines[index]:.0f})"
            return Failure(reason=Reason.DEADLINE, detail=detail)
        if now - worker.began > self._bounds.wall_seconds:
            return Failure(reason=Reason.DEADLINE, detail=f"stopped after {now - worker.began:.0f} s")
        # While others have all the cores nobody can say a word, and bulk work is the first to go without.
        waited = processes.waited_seconds(worker.process.pid)
        if worker.waited[0] != worker.heard:
            worker.waited = worker.heard, waited
        if now - worker.heard - (waited - worker.waited[1]) > self._bounds.stall_seconds:
            return Failure(reason=Reason.NO_PROGRESS, detail=f"no word for {now - worker.heard:.0f} s")
        return None

    def _lose(self, worker: Worker, failure: Failure | None, reports: list[Report], *, may_blame: bool = True) -> None:
        """The worker is gone, or goes now; say what became of its unit, now or when it is gone."""
        if not worker.gone:
            self._bury(self._strike(worker, failure, may_blame=may_blame), reports, HOLD_SECONDS)

    def _let_go(self, worker: Worker) -> None:
        """End a worker that has no unit; nobody hears of it."""
        if not worker.gone:
            self._bury(self._strike(worker, None, is_news=False), [], HOLD_SECONDS)

    def _strike(
        self, worker: Worker, failure: Failure | None, *, may_blame: bool = False, is_news: bool = True
    ) -> _Dying:
        """Have no more to do with a worker: all that can be known of it is known now. It is killed when it is buried.

        One that had ended before keeps the code that it ended with.
        """
        now = self._clock.monotonic()
        dying = _Dying(
            worker=worker,
            failure=failure,
            may_blame=may_blame,
            is_news=is_news,
            slate=_read_slate(worker),
            noticed=now,
            cpu_seconds=max(0.0, _cpu_seconds(worker) - worker.cpu_before) if worker.given else 0.0,
            peak_bytes=_seen_peak(worker) if worker.given else 0,
            next_look=now,
        )
        self._dying.append(dying)
        worker.gone = True
        self._workers.remove(worker)
        if worker.weighed is not None:
            self._watch.end(worker.weighed)
        assert worker.process.stderr is not None
        self._keep_stderr(worker, worker.process.stderr.fileno(), closing=True)
        if worker.hung_up is None:
            self._selector.unregister(worker.pipe.fileno())
        if worker.watched.fd >= 0:
            self._selector.unregister(worker.watched.fd)
        worker.pipe.close()
        return dying

    def _look_at_dying(self, reports: list[Report]) -> None:
        now = self._clock.monotonic()
        for dying in list(self._dying):
            if now >= dying.next_look:
                # Each look reads all of /proc: at one that takes hours it is looked twice a second.
                dying.next_look = now + min(LOOK_SECONDS, (now - dying.noticed) / 4)
                self._bury(dying, reports, 0.0)

    def _bury(self, dying: _Dying, reports: list[Report], timeout_seconds: float) -> bool:
        """Kill all that has come of the worker; when nothing is left of it, say what became of its unit."""
        worker = dying.worker
        # It is waited for only after its family is gone: until then its id cannot be used again.
        if not processes.kill_family(
            worker.process.pid,
            worker.watched.started,
            mark=_mark_of(worker.home),
            seen=worker.weighed.seen if worker.weighed is not None else None,
            timeout_seconds=timeout_seconds,
        ):
            return False
        code = worker.process.wait()
        self._dying.remove(dying)
        worker.watched.close()
        self._book.note_worker_gone(worker.process.pid)
        self._left.append(worker.home)
        if not dying.is_news:
            return True
        failure = dying.failure or _cause(code, worker)
        between = bool(worker.done) and dying.slate == (worker.unit, len(worker.done) - 1)
        if dying.failure is None and code == EXIT_FULL and between:
            # Said when an order has ended, that is no order's fault. Before the first it would be said for ever.
            failure = Failure(reason=Reason.KILLED, detail="its worker made way: it could not give back what it had")
        if worker.busy and not worker.has_finished:
            reports.append(self._loss(dying, failure))
        if not worker.ready:
            self._note_failed_start(worker, failure)
        return True

    def _loss(self, dying: _Dying, failure: Failure) -> Lost:
        worker = dying.worker
        left = [index for index in range(worker.orders) if index not in worker.done]
        blamed = None
        if dying.may_blame and worker.given and left and not _had_grown(worker, failure):
            blamed = _blame(worker, dying.slate, left, failure)
            if worker.stage not in self._proven:
                self._doubted.add(worker.stage)
        return Lost(
            worker=worker,
            unit=worker.unit,
            blamed=blamed,
            failure=failure,
            untouched=tuple(index for index in left if index != blamed),
            began=self._clock.now() - (self._clock.monotonic() - worker.began),
            seconds=dying.noticed - worker.began,
            cpu_seconds=dying.cpu_seconds,
            peak_bytes=dying.peak_bytes,
        )

    def _note_failed_start(self, worker: Worker, failure: Failure) -> None:
        # A kill from outside says little, so it takes many of them; but a kernel that kills every one would go on.
        weight = 1 if failure.reason is Reason.KILLED else KILLS_FOR_A_START
        count = self._failed_starts[worker.stage] = self._failed_starts.get(worker.stage, 0) + weight
        if count >= STARTS_IN_A_ROW * KILLS_FOR_A_START:
            cannot = "survives even a file of our own" if worker.rehearses else "can be started"
            raise CannotRunError(
                f"no worker for stage {worker.stage} {cannot}: {failure.detail or failure.reason}; "
                "`nightmill doctor` says what is missing"
            )

    def _remove_left(self) -> None:
        while self._left:
            clearing.remove(self._left.pop())

    def _keep_stderr(self, worker: Worker, descriptor: int, *, closing: bool = False) -> None:
        """Keep the last of what a worker writes to its standard error; a block each time, so that it cannot hold us."""
        data = b""
        with suppress(BlockingIOError, ValueError, OSError):
            data = os.read(descriptor, STDERR_BLOCK_BYTES)
        if data:
            worker.stderr.append(data[-STDERR_BYTES:])
            while len(worker.stderr) > 4:
                worker.stderr.popleft()
        if closing or not data:
            with suppress(KeyError, ValueError):
                self._selector.unregister(descriptor)
        if closing and worker.process.stderr is not None:
            worker.process.stderr.close()


def _mark_of(home: Path) -> bytes:
    return f"{_MARK}={home}".encode()


class _Ending(processes.Watched):
    """A child of ours, which is a zombie when it has ended and which nobody but us waits for."""

    def __init__(self, process: subprocess.Popen[bytes], started: float) -> None:
        try:
            super().__init__(process.pid, started)
        except ProcessLookupError:
            # It has ended already: looked at below, noticed at the first look.
            self.pid, self.started, self.fd = process.pid, started, -1


def _worker_environment() -> dict[str, str]:
    """What a worker needs to find its programs and data, and no key or password that we were started with.

    One thread for each native library: parallelism is ours to give out.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if (name in _KEPT_NAMES or name.startswith(_KEPT_BEGINNINGS)) and not _SECRET.search(name)
    }
    names = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {**kept, **dict.fromkeys(names, "1"), "PYTHONDONTWRITEBYTECODE": "1"}


def _cause(code: int, worker: Worker) -> Failure:
    """Why a worker ended that we did not end. A signal that programs do not send themselves came from outside."""
    said = b"".join(worker.stderr)[-STDERR_BYTES:].decode("utf-8", "replace").strip()
    last = printable(said.splitlines()[-1] if said else "", 500)
    if code == -signal.SIGKILL and worker.weighed is not None and worker.weighed.struck is not None:
        return worker.weighed.struck
    if code < 0:
        # Of the 64 signals, those between SIGRTMIN and SIGRTMAX are valid and have no name.
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if -code in _OUTSIDE:
            return Failure(reason=Reason.KILLED, detail=f"its worker was ended by {name} from outside", signal=-code)
        return Failure(reason=Reason.CRASHED, detail=f"its worker was ended by {name}", signal=-code)
    return Failure(reason=Reason.CRASHED, detail=f"its worker ended with code {code}{': ' if last else ''}{last}")


def _is_up_to_something(worker: Worker) -> bool:
    """Though it has nothing to do: it has grown, or has processes of its own (orphans of theirs become its own)."""
    grown = _resident_bytes(worker) > worker.resting_bytes + GROWTH_BYTES
    return grown or bool(processes.children(worker.process.pid))


def _blame(worker: Worker, slate: tuple[int, int] | None, left: Sequence[int], failure: Failure) -> int | None:
    """Which order was being done. A worker killed from outside before it began one leaves nobody to blame."""
    if slate is not None and slate[0] == worker.unit and slate[1] in left:
        return slate[1]
    return None if failure.reason is Reason.KILLED else left[0]


def _had_grown(worker: Worker, failure: Failure) -> bool:
    """Too large it is because of units before: this one is as innocent as one that did not run."""
    if failure.reason is not Reason.OUT_OF_MEMORY or worker.weighed is None or not worker.weighed.before_bytes:
        return False
    return not worker.weighed.own_doing


def _own_limit(worker: Worker) -> int:
    """What the worker may hold before it meets an error. What it holds too much is not taken from the unit, except
    where less is there than was promised: others have the rest."""
    is_lacking = worker.limit_bytes < worker.promised_bytes
    return worker.limit_bytes if is_lacking or not worker.limit_bytes else worker.limit_bytes + worker.grown_bytes


def _credible_seconds(worker: Worker, said: float) -> float:
    """What a worker says of an order's CPU time, no more than the kernel says. What it keeps back counts as the next
    order's: so it does not matter how late we hear of it."""
    believed = min(said, max(0.0, _cpu_seconds(worker) - worker.cpu_before) + _TICKS_SECONDS)
    worker.cpu_before += believed
    return believed


def _credible_peak(worker: Worker, said: int) -> int:
    """What a worker says of an order's memory, no more than it could have had; it does not know of its helpers'."""
    weighed = worker.weighed
    if weighed is None or not weighed.promised_bytes:
        return said
    said = min(said, max(int(FAR * weighed.promised_bytes), worker.limit_bytes + worker.grown_bytes))
    return max(said, weighed.peak_bytes) if weighed.seen else said


def _seen_peak(worker: Worker) -> int:
    """The most that was seen of a worker since its order began; while it lives the kernel knows it better."""
    seen = worker.weighed.peak_bytes if worker.weighed is not None else 0
    with suppress(OSError):
        seen = max(seen, processes.memory_use(worker.process.pid).peak)
    return seen


def _read_slate(worker: Worker) -> tuple[int, int] | None:
    """(unit, index) as the worker wrote them; it may have written anything."""
    try:
        descriptor = os.open(worker.home / "slate", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        unit, index = os.read(descriptor, 64).split()
        return int(unit), int(index)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _cpu_seconds(worker: Worker) -> float:
    """Of the worker, and of the programs that it has started and waited for."""
    try:
        return processes.cpu_use(worker.process.pid).seconds
    except ProcessLookupError:
        return 0.0


def _mapped_bytes(worker: Worker) -> int:
    """What it has mapped beyond what it holds; below 0 where libraries are most of that."""
    with suppress(OSError):
        use = processes.memory_use(worker.process.pid)
        return use.data - use.resident
    return 0


def _resident_bytes(worker: Worker) -> int:
    try:
        return processes.resident_bytes(worker.process.pid)
    except ProcessLookupError:
        return 0
