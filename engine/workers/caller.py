"""The caller's side of a process that runs its function (calls.py): start it, give it items, notice its end.

Rule: used by one thread, which lives as long as the process does: the system kills the process when that thread ends.
What the process answers is unpickled, because it runs the caller's own code; a worker that reads files is never
trusted so (results.py).
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import dill

from engine import processes
from engine.errors import CannotRunError, UsageError
from engine.model import ItemFailure
from engine.workers.calls import DONE, READY, UNFIT, dump, failure_of, frame, take_frame

#: Processes of one call that may die in a row before they are ready. One may be the victim of a kill from outside.
STARTS_IN_A_ROW = 3
#: How long a process that was told that there is no more may take to end: what it does at its exit is its own.
ENDING_SECONDS = 5.0
_BLOCK_BYTES = 1 << 20
#: Parallelism is lent by the desk: where the caller says nothing else, native libraries use the one core lent.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerBook(Protocol):
    """Where processes are written down, so that the scheduler can end them when we are dead (the client file)."""

    def note_worker(self, pid: int, started: float) -> None:
        """Called before its first item."""
        ...

    def note_worker_gone(self, pid: int) -> None:
        """Called when it has been waited for."""
        ...


class Package:
    """A function made ready to be sent, for all processes of one call. Raises UsageError when it cannot be sent."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        try:
            alone = dill.dumps(function, recurse=True)
        except Exception as error:
            raise UsageError(
                f"process_func cannot be sent to another process: {type(error).__name__}: {error}; use threads "
                "(processes=False), or make it take what it needs from the item and open the rest itself"
            ) from error
        try:
            with_classes = dill.dumps((function, _classes_of_main()), recurse=True)
        except Exception:  # noqa: BLE001 - together they may fail where each alone did not; the function does alone
            with_classes = dill.dumps((function, {}), recurse=True)
        self.opening = frame(pickle.dumps((with_classes, alone)))
        self._failed_starts = 0

    def note_start(self) -> None:
        """A process is ready."""
        self._failed_starts = 0

    def note_failed_start(self, why: str) -> None:
        """One died before it was ready. Raises CannotRunError when so many did that there is no hope."""
        self._failed_starts += 1
        if self._failed_starts >= STARTS_IN_A_ROW:
            raise CannotRunError(
                f"no worker process can be started: {self._failed_starts} in a row ended before their first item, the "
                f"last one {why}; what it wrote to standard error says more"
            )


def _classes_of_main() -> dict[str, type]:
    """The classes of the caller's script that can be sent. Instances of others travel by value, as far as they can."""
    classes = {}
    for name, value in list(vars(sys.modules["__main__"]).items()):
        if isinstance(value, type) and value.__module__ == "__main__" and value.__qualname__ == name:
            with suppress(Exception):
                dill.dumps(value, recurse=True)
                classes[name] = value
    return classes


class Caller:
    """One process at a time; one that dies is replaced when the next item comes."""

    def __init__(self, package: Package, book: WorkerBook) -> None:
        self._package, self._book = package, book
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pipe: socket.socket | None = None
        self._pidfd = -1
        self._buffer = bytearray()
        #: Held while the process is waited for or killed, so that no later process with its id is.
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, index: int, item: Any) -> Any:
        """The item's result, or its failure. Raises CannotRunError when no process can be started."""
        try:
            order = frame(dump(item))
        except Exception as error:  # noqa: BLE001 - whatever the item's own pickling raises is that item's failure
            return failure_of(index, error)
        while self._process is None:
            if self._stopped:
                return _died(index, "the call was stopped")
            self._start()
        answer = self._talk(order)
        if answer is None:
            return _died(index, f"its worker process {self._end()}")
        try:
            content = pickle.loads(answer[1:])  # noqa: S301 - it runs the caller's own code
        except Exception as error:  # noqa: BLE001 - a result that cannot be made here is that item's failure
            return failure_of(index, error)
        if answer[:1] == DONE:
            return content
        kind, message, trace = content
        return ItemFailure(index=index, kind=kind, message=message, traceback=trace)

    def stop(self) -> None:
        """From another thread: kill the process; `run` returns."""
        with self._guard:
            self._stopped = True
            if self._process is not None:
                _kill(self._process)

    def close(self) -> None:
        """Let the process end by itself, then see that nothing of it is left. Idempotent."""
        if self._process is None or self._pipe is None:
            return
        self._pipe.close()
        if not self._stopped:
            with suppress(subprocess.TimeoutExpired):
                _wait(self._pidfd, ENDING_SECONDS)
        self._end()

    # --- how ---

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # The search path is the script's own, from the start: its modules are imported by what is sent.
        program = (
            f"import sys; sys.path[:] = {[str(place) for place in sys.path]!r}; from engine.workers.calls import main; "
            f"main({theirs.fileno()}, {os.getpid()})"
        )
        try:
            # Between the start and the note in the client file a kill of ours leaves a process that nobody lists: it
            # has no item yet, and dies with us.
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,
                env={**dict.fromkeys(_THREADS, "1"), **os.environ},
            )
        except OSError as error:
            ours.close()
            raise CannotRunError(f"no worker process can be started: {error}") from error
        finally:
            theirs.close()
        ours.setblocking(False)
        self._started = processes.start_time(process.pid)
        self._book.note_worker(process.pid, self._started)
        self._pipe, self._buffer = ours, bytearray()
        self._pidfd = _open_pidfd(process.pid)
        with self._guard:
            self._process = process
            if self._stopped:
                _kill(process)
        answer = self._talk(self._package.opening)
        if answer is None:
            why = self._end()
            if not self._stopped:
                self._package.note_failed_start(why)
        elif answer[:1] == UNFIT:
            kind, message, trace = pickle.loads(answer[1:])  # noqa: S301 - as above
            self._end()
            raise UsageError(f"process_func cannot be loaded in another process: {kind}: {message}\n{trace}")
        else:
            assert answer == READY
            self._package.note_start()

    def _talk(self, outgoing: bytes) -> bytes | None:
        """Say something, and hear the answer; None: the process ended without one.

        The process is watched as well as its pipe, which what it has started may keep open after its death.
        """
        assert self._pipe is not None
        left = memoryview(outgoing)
        poller = select.poll()
        if self._pidfd >= 0:
            poller.register(self._pidfd, select.POLLIN)
        pipe = self._pipe.fileno()
        try:
            while True:
                poller.register(pipe, select.POLLIN | (select.POLLOUT if left else 0))
                found = dict(poller.poll())
                events = found.get(pipe, 0)
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    data = self._pipe.recv(_BLOCK_BYTES)
                    if not data:
                        return None
                    self._buffer += data
                    answer = take_frame(self._buffer)
                    if answer is not None:
                        return answer
                elif self._pidfd in found:
                    return None
                elif events & select.POLLOUT:
                    left = left[self._pipe.send(left[:_BLOCK_BYTES]) :]
        except ConnectionError:
            return None

    def _end(self) -> str:
        """Kill the process and all that it started, wait until they are gone; says how it had ended."""
        process = self._process
        assert process is not None
        assert self._pipe is not None
        self._pipe.close()
        # It is waited for only after its group is gone: until then its id cannot be used again.
        while not processes.kill_group(process.pid, self._started):
            pass
        with self._guard:
            code = process.wait()
            self._process = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._book.note_worker_gone(process.pid)
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return f"was ended by {name}"


def _died(index: int, message: str) -> ItemFailure:
    return ItemFailure(index=index, kind="WorkerDied", message=message)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _open_pidfd(pid: int) -> int:
    """-1 where the system has none: then the end of the pipe tells."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _wait(pidfd: int, seconds: float) -> None:
    if pidfd >= 0:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(seconds * 1000)
