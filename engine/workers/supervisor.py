"""Start, watch, stop and replace worker processes.

Rule: one thread, the one that made the supervisor, and it never waits for a worker: what workers say is taken apart as
it comes, and one that does not behave is killed, alone, with its whole process group. Knows nothing of users, items or
stages beyond their names: it is given orders and reports how each ended.

    start -> Worker (starting) --Ready--> idle --assign--> busy --UnitDone--> idle --retire--> gone
                                                     \\--death, deadline, lie--> gone, with a Lost report
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from engine import processes
from engine.errors import CannotRunError, MalformedMessage
from engine.model import Failure, Stage
from engine.ports import Clock
from engine.printing import printable
from engine.reasons import Reason
from engine.workers.messages import (
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

#: A stage loads in under a second; a minute covers a machine that swaps.
START_SECONDS = 60.0
#: How often clocks are looked at: CPU time, progress, wall time. Deadlines are tens of seconds.
LOOK_SECONDS = 0.5
#: A worker that has nothing to do ends after so long: an idle engine holds no memory.
IDLE_SECONDS = 10.0
#: Growth over its own size when it was ready, after which a worker is replaced (loky's rule).
GROWTH_BYTES = 300 * 1024**2
#: Workers of a stage that die in a row before they are ready, until the stage is given up.
STARTS_IN_A_ROW = 3
#: Kills from outside that count as one such death.
KILLS_FOR_A_START = 5
#: What is kept of a worker's standard error: the end of it.
STDERR_BYTES = 4096
#: Blocks of 64 KiB taken in from one worker before the others have their turn: more than the pipe of an honest one
#: holds, so that all it said before its end is heard, and no end of words holds us.
BLOCKS_AT_ONCE = 8
#: Between the end of its pipe and its own, a Python that ends clears up its modules: a second where there is swapping.
ENDING_SECONDS = 5.0

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
    """A worker is gone, and its unit with it. `blamed`: the order that was being done; None: nobody's fault.

    untouched: the orders that had not begun, and may be given out again as they are.
    """

    worker: Worker
    unit: int
    blamed: int | None
    failure: Failure
    untouched: tuple[int, ...]
    began: float
    seconds: float


Report = Ended | Finished | Lost


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
    ready: bool = False
    began: float = 0.0  # of the present state: starting, idle, or the present order
    heard: float = 0.0
    unit: int = 0
    orders: int = 0
    done: set[int] = field(default_factory=set)
    pending: UnitOrder | None = None
    given: bool = False  # the unit's orders were sent, and have not all ended
    deadlines: Sequence[float] = ()
    cpu_before: float = 0.0
    base_bytes: int = 0
    hung_up: float | None = None  # since when nothing more can come out of its pipe, though it lives
    gone: bool = False

    @property
    def inbox(self) -> Path:
        """Where the next unit's files go."""
        return self.home / "inbox"

    @property
    def outbox(self) -> Path:
        """Where results are found."""
        return self.home / "outbox"

    @property
    def busy(self) -> bool:
        """It has been given a unit that has not ended."""
        return self.unit != 0


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
    ) -> None:
        """package: holds the stages, a module each, named as the stage is; niceness: of the workers, as in nice(1)."""
        self._package = package
        self._niceness = niceness
        self._spool = spool
        self._book = book
        self._clock = clock
        self._bounds = bounds or Bounds()
        self._workers: list[Worker] = []
        self._numbers = 0
        self._selector = selectors.DefaultSelector()
        self._looked = 0.0
        self._unsaid: list[Report] = []
        self._left: list[Path] = []
        self._failed_starts: dict[Stage, int] = {}
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- what the coordinator does ---

    @property
    def workers(self) -> Sequence[Worker]:
        """All that live."""
        return tuple(self._workers)

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Also wake up, and call `action`, when this descriptor can be read."""
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def find_idle(self, stage: Stage) -> Worker | None:
        """A worker of that stage without a unit; one that is still starting counts (it waits for the unit)."""
        free = [
            worker for worker in self._workers if worker.stage is stage and not worker.busy and worker.hung_up is None
        ]
        return min(free, key=lambda worker: (not worker.ready, worker.number), default=None)

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
                env=_worker_environment(),
            )
        except OSError as error:
            ours.close()
            raise CannotRunError(f"no worker process can be started: {error}") from error
        finally:
            theirs.close()
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
            began=now,
            heard=now,
        )
        self._workers.append(worker)
        os.set_blocking(ours.fileno(), False)
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        self._selector.register(ours.fileno(), selectors.EVENT_READ, worker)
        self._selector.register(process.stderr.fileno(), selectors.EVENT_READ, (worker, process.stderr.fileno()))
        if worker.watched.fd >= 0:
            self._selector.register(worker.watched.fd, selectors.EVENT_READ, worker)
        with suppress(OSError, ValueError):
            # A worker that is already dead is noticed by its pidfd.
            self._say(worker, Begin(stage=f"{self._package}.{stage.value}", options=options, home=str(home)))
        return worker

    def reserve(self, worker: Worker, unit: int, orders: int) -> None:
        """The worker is spoken for: files are being copied into its inbox for this unit (numbers begin at 1)."""
        worker.unit, worker.orders = unit, orders
        worker.done = set()
        worker.pending, worker.given, worker.deadlines = None, False, ()
        worker.began = worker.heard = self._clock.monotonic()

    def assign(
        self, worker: Worker, orders: Sequence[Mapping[str, Any]], *, deadlines: Sequence[float], limit_bytes: int
    ) -> None:
        """Begin the reserved unit. `deadlines`: CPU seconds for each order; `limit_bytes` 0: none."""
        if worker.gone:
            return
        worker.orders, worker.deadlines = len(orders), tuple(deadlines)
        worker.pending = UnitOrder(unit=worker.unit, orders=tuple(orders), memory_bytes=limit_bytes)
        if worker.ready:
            self._give(worker)

    def release(self, worker: Worker) -> None:
        """The reserved unit has come to nothing, or its results have been taken: the worker is free."""
        worker.unit = worker.orders = 0
        worker.pending, worker.given = None, False
        worker.began = self._clock.monotonic()
        if not worker.gone:
            _empty(worker.inbox)
            _empty(worker.outbox)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Wait for news, at most so long, and hand them on. Raises CannotRunError when a stage cannot be started.

        The outbox of a worker that was lost stays until the next call: results that it had reported may lie there.
        """
        self._remove_left()
        reports, self._unsaid = self._unsaid, []
        for key, _ in self._selector.select(0.0 if reports else max(0.0, timeout_seconds)):
            match key.data:
                case Worker() as worker:
                    if not worker.gone:
                        self._hear(worker, reports)
                case (Worker() as worker, int() as descriptor):
                    if not worker.gone:
                        self._keep_stderr(worker, descriptor)
                case action:
                    action()
        now = self._clock.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look_at_clocks(now, reports)
        return reports

    def retire(self, worker: Worker) -> None:
        """End a worker that has no unit."""
        self._end(worker)

    def kill(self, worker: Worker, failure: Failure) -> list[Report]:
        """Stop a worker for a reason of ours; its unit comes back as Lost, with none of its orders to blame."""
        reports: list[Report] = []
        self._lose(worker, failure, reports, may_blame=False)
        return reports

    def stop(self, worker: Worker, failure: Failure) -> list[Report]:
        """Stop a worker for what it does: as `kill`, but the order that is being done is to blame."""
        reports: list[Report] = []
        self._lose(worker, failure, reports)
        return reports

    def close(self) -> None:
        """Kill every worker, wait until all are gone, and remove what they left. Idempotent."""
        for worker in list(self._workers):
            self._end(worker)
        self._selector.close()
        self._left.clear()
        shutil.rmtree(self._spool, ignore_errors=True)

    # --- how ---

    def _say(self, worker: Worker, message: Message) -> None:
        """Does not wait: orders are small, and what was said before has been read. BlockingIOError: it has not."""
        send(worker.pipe, message)

    def _give(self, worker: Worker) -> None:
        order, worker.pending, worker.given = worker.pending, None, True
        assert order is not None
        worker.began = worker.heard = self._clock.monotonic()
        worker.cpu_before = _cpu_seconds(worker)
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
                worker.base_bytes = _resident_bytes(worker)
                if worker.pending is not None:
                    self._give(worker)
            case Progress() if worker.busy:
                pass
            case ItemDone() if worker.given and message.unit == worker.unit and self._is_next(worker, message.index):
                worker.done.add(message.index)
                reports.append(
                    Ended(
                        worker=worker,
                        unit=message.unit,
                        index=message.index,
                        result=message.result,
                        failure=message.failure,
                        cpu_seconds=message.cpu_seconds,
                        peak_bytes=message.peak_bytes,
                        began=self._clock.now() - (now - worker.began),
                        seconds=now - worker.began,
                    )
                )
                worker.began = now
                worker.cpu_before = _cpu_seconds(worker)
            case UnitDone() if worker.given and message.unit == worker.unit and len(worker.done) == worker.orders:
                worker.given = False
                reports.append(Finished(worker=worker, unit=message.unit))
            case _:
                raise MalformedMessage(f"{type(message).__name__} was not expected now")

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
            elif not worker.busy and (
                now - worker.began > IDLE_SECONDS or _resident_bytes(worker) > worker.base_bytes + GROWTH_BYTES
            ):
                self.retire(worker)

    def _overrun(self, worker: Worker, now: float) -> Failure | None:
        index = min(len(worker.done), len(worker.deadlines) - 1)
        used = _cpu_seconds(worker) - worker.cpu_before
        if used > worker.deadlines[index]:
            detail = f"stopped after {used:.0f} CPU seconds (allowed: {worker.deadlines[index]:.0f})"
            return Failure(reason=Reason.DEADLINE, detail=detail)
        if now - worker.began > self._bounds.wall_seconds:
            return Failure(reason=Reason.DEADLINE, detail=f"stopped after {now - worker.began:.0f} s")
        if now - worker.heard > self._bounds.stall_seconds:
            return Failure(reason=Reason.NO_PROGRESS, detail=f"no word for {now - worker.heard:.0f} s")
        return None

    def _lose(self, worker: Worker, failure: Failure | None, reports: list[Report], *, may_blame: bool = True) -> None:
        """The worker is gone, or goes now; say what became of its unit."""
        if worker.gone:
            return
        now = self._clock.monotonic()
        slate = _read_slate(worker)
        was_ready = worker.ready
        died = self._end(worker)
        if failure is None:
            failure = _cause(died, worker)
        if not was_ready:
            self._note_failed_start(worker, failure)
        if not worker.unit:
            return
        left = [index for index in range(worker.orders) if index not in worker.done]
        blamed = _blame(worker, slate, left, failure) if may_blame and worker.given and left else None
        reports.append(
            Lost(
                worker=worker,
                unit=worker.unit,
                blamed=blamed,
                failure=failure,
                untouched=tuple(index for index in left if index != blamed),
                began=self._clock.now() - (now - worker.began),
                seconds=now - worker.began,
            )
        )

    def _note_failed_start(self, worker: Worker, failure: Failure) -> None:
        # A kill from outside says little, so it takes many of them; but a kernel that kills every one would go on.
        weight = 1 if failure.reason is Reason.KILLED else KILLS_FOR_A_START
        count = self._failed_starts[worker.stage] = self._failed_starts.get(worker.stage, 0) + weight
        if count >= STARTS_IN_A_ROW * KILLS_FOR_A_START:
            raise CannotRunError(
                f"no worker for stage {worker.stage} can be started: {failure.detail or failure.reason}; "
                "`nightmill doctor` says what is missing"
            )

    def _end(self, worker: Worker) -> int:
        """Kill the worker's group and wait for it. Answers with what the process ended with.

        One that had ended before keeps the code that it ended with.
        """
        if worker.gone:
            return worker.process.returncode
        worker.gone = True
        self._workers.remove(worker)
        assert worker.process.stderr is not None
        self._keep_stderr(worker, worker.process.stderr.fileno(), closing=True)
        if worker.hung_up is None:
            self._selector.unregister(worker.pipe.fileno())
        if worker.watched.fd >= 0:
            self._selector.unregister(worker.watched.fd)
        worker.pipe.close()
        # The leader is waited for only after its group is gone: until then its id cannot be used again.
        while not processes.kill_group(worker.process.pid, worker.watched.started):
            pass
        worker.process.wait()
        worker.watched.close()
        self._book.note_worker_gone(worker.process.pid)
        self._left.append(worker.home)
        return worker.process.returncode

    def _remove_left(self) -> None:
        while self._left:
            shutil.rmtree(self._left.pop(), ignore_errors=True)

    def _keep_stderr(self, worker: Worker, descriptor: int, *, closing: bool = False) -> None:
        """Keep the last of what a worker writes to its standard error; a block each time, so that it cannot hold us."""
        data = b""
        with suppress(BlockingIOError, ValueError, OSError):
            data = os.read(descriptor, 1 << 16)
        if data:
            worker.stderr.append(data[-STDERR_BYTES:])
            while len(worker.stderr) > 4:
                worker.stderr.popleft()
        if closing or not data:
            with suppress(KeyError, ValueError):
                self._selector.unregister(descriptor)
        if closing and worker.process.stderr is not None:
            worker.process.stderr.close()


class _Ending(processes.Watched):
    """A child of ours, which is a zombie when it has ended and which nobody but us waits for."""

    def __init__(self, process: subprocess.Popen[bytes], started: float) -> None:
        try:
            super().__init__(process.pid, started)
        except ProcessLookupError:
            # It has ended already: looked at below, noticed at the first look.
            self.pid, self.started, self.fd = process.pid, started, -1


def _worker_environment() -> dict[str, str]:
    """One thread for each native library: parallelism is ours to give out."""
    names = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1"), "PYTHONDONTWRITEBYTECODE": "1"}


def _cause(code: int, worker: Worker) -> Failure:
    """Why a worker ended that we did not end. A signal that programs do not send themselves came from outside."""
    said = b"".join(worker.stderr)[-STDERR_BYTES:].decode("utf-8", "replace").strip()
    last = printable(said.splitlines()[-1] if said else "", 500)
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        if -code in _OUTSIDE:
            return Failure(reason=Reason.KILLED, detail=f"its worker was ended by {name} from outside", signal=-code)
        return Failure(reason=Reason.CRASHED, detail=f"its worker was ended by {name}", signal=-code)
    return Failure(reason=Reason.CRASHED, detail=f"its worker ended with code {code}{': ' if last else ''}{last}")


def _blame(worker: Worker, slate: tuple[int, int] | None, left: Sequence[int], failure: Failure) -> int | None:
    """Which order was being done. A worker killed from outside before it began one leaves nobody to blame."""
    if slate is not None and slate[0] == worker.unit and slate[1] in left:
        return slate[1]
    return None if failure.reason is Reason.KILLED else left[0]


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
    try:
        return processes.cpu_seconds(worker.process.pid)
    except ProcessLookupError:
        return 0.0


def _resident_bytes(worker: Worker) -> int:
    try:
        return processes.resident_bytes(worker.process.pid)
    except ProcessLookupError:
        return 0


def _empty(folder: Path) -> None:
    """Remove all that lies in a folder of a worker; links are removed, not followed: the folder may be one by now."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for name in os.listdir(descriptor):
            try:
                os.unlink(name, dir_fd=descriptor)
            except OSError:
                shutil.rmtree(name, ignore_errors=True, dir_fd=descriptor)
    finally:
        os.close(descriptor)
