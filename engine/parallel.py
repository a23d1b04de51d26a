"""One call of process_parallel: items in, results in their order, each item under a token of its own.

Rule: a slot gives its token back in the call that asks for the next, and asks only with an item in hand. So others get
their turn after every item, and there are never more threads than the desk lets work, and one that waits for it.

    calling thread   takes items from the iterable, reports progress, waits
    slot (thread)    item -> token -> run -> result;  runs the item itself, or has it run by a process of its own

The calling thread alone touches the iterable and the reporter: both may be bound to it (a database cursor, a window).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol

from engine.desk import Desk
from engine.lending import Lender, Loan, Wish
from engine.model import Lane, TokenKind, UserId
from engine.workers.caller import Caller, Package
from engine.workers.calls import failure_of

_log = logging.getLogger(__name__)

OnProgress = Callable[[int, int | None], object]
#: Predicted seconds of the first item; from then on, what items took.
_FIRST_GUESS_SECONDS = 0.1
#: How much the latest item counts in that prediction.
_NEW_SHARE = 0.2


class Runner(Protocol):
    """What runs the items of one slot. `run` never raises for what an item does."""

    def run(self, index: int, item: Any) -> Any:
        """The item's result, or its ItemFailure."""
        ...

    def stop(self) -> None:
        """From another thread: let a running item end now, where that can be done."""
        ...

    def close(self) -> None:
        """The slot has ended."""
        ...


class _Here:
    """Runs items in the slot's own thread."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def run(self, index: int, item: Any) -> Any:
        try:
            return self._function(item)
        except BaseException as error:  # noqa: BLE001 - one item must not end the others, whatever it raises
            return failure_of(index, error)

    def stop(self) -> None:
        """A thread cannot be ended from outside: its item runs to its end."""

    def close(self) -> None:
        """Nothing was opened."""


def in_threads(function: Callable[[Any], Any]) -> Callable[[], Runner]:
    """Runners that share everything with the caller."""
    return lambda: _Here(function)


def in_processes(function: Callable[[Any], Any], desk: Desk) -> Callable[[], Runner]:
    """Runners with a process each. Raises UsageError when the function cannot be sent to one."""
    package = Package(function)
    return lambda: Caller(package, desk)


class Call:
    """One call; `run` once."""

    def __init__(
        self,
        *,
        lender: Lender,
        user: UserId,
        kind: TokenKind,
        items: Iterable[Any],
        open_runner: Callable[[], Runner],
        max_workers: int,
        on_progress: OnProgress | None,
    ) -> None:
        self._lender, self._user, self._kind = lender, user, kind
        self._open_runner, self._max_workers, self._on_progress = open_runner, max_workers, on_progress
        self._total = len(items) if isinstance(items, Sized) else None
        self._items: Iterator[Any] = iter(items)
        #: Guards all that follows; whoever changes something of it that another waits for, notifies.
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._results: list[Any] = []
        self._queue: deque[tuple[int, Any]] = deque()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._done = 0
        self._told = 0
        self._slots: set[threading.Thread] = set()
        self._runners: set[Runner] = set()
        self._wishes: set[Wish] = set()
        #: Slots that wait for an item, or for a token: while there is one, no other is started.
        self._waiting = 0
        self._guess_seconds = _FIRST_GUESS_SECONDS

    def run(self) -> list[Any]:
        """The results. Raises the first error that was no item's own; an interruption stops what it can and goes on."""
        try:
            self._attend()
        except BaseException:
            self._stop()
            self._wait_slots()
            raise
        if self._error is not None:
            raise self._error
        return self._results

    # --- the calling thread ---

    def _attend(self) -> None:
        while True:
            self._feed()
            with self._lock:
                self._news.wait_for(lambda: self._has_room() or self._is_untold() or self._is_over())
                untold, over = self._is_untold(), self._is_over()
            if untold:
                self._tell()
            elif over:
                return

    def _feed(self) -> None:
        """Take items until one waits for each slot that there may be. The iterable may take its time, without lock."""
        while True:
            with self._lock:
                if not self._has_room():
                    return
            try:
                item = next(self._items)
            except StopIteration:
                with self._lock:
                    self._ended = True
                    self._news.notify_all()
                return
            with self._lock:
                self._queue.append((len(self._results), item))
                self._results.append(None)
                self._news.notify_all()
            self._grow()

    def _has_room(self) -> bool:
        return not self._ended and not self._stopped and len(self._queue) < self._max_workers

    def _is_untold(self) -> bool:
        return self._on_progress is not None and self._told < self._done

    def _is_over(self) -> bool:
        return (self._ended or self._stopped) and not self._slots

    def _tell(self) -> None:
        assert self._on_progress is not None
        self._told += 1
        try:
            self._on_progress(self._told, self._total)
        except Exception:  # noqa: BLE001 - a reporter of the caller's: the work is worth more than its report
            _log.exception("on_progress(%s, %s) failed", self._told, self._total)

    def _stop(self) -> None:
        """Begin nothing more: who waits for a token is called off, processes are ended."""
        with self._lock:
            self._stopped = True
            self._queue.clear()
            wishes, runners = list(self._wishes), list(self._runners)
            self._news.notify_all()
        for wish in wishes:
            wish.call_off()
        for runner in runners:
            runner.stop()

    def _wait_slots(self) -> None:
        """Items that run in threads run to their end. A second interruption leaves them; their tokens return later."""
        with self._lock:
            self._news.wait_for(lambda: not self._slots)

    # --- slots ---

    def _grow(self) -> None:
        """One more slot, if an item waits, none of the others is about to take it, and there may be one."""
        slot = threading.Thread(target=self._live, daemon=True, name=f"nightmill-{self._user}")
        try:
            with self._lock:
                if self._stopped or not self._queue or self._waiting or len(self._slots) >= self._max_workers:
                    return
                self._slots.add(slot)
                self._waiting += 1
            slot.start()
        except BaseException:
            # The system gives us no thread, or Ctrl-C: the call ends, and nothing waits for this one.
            with self._lock:
                self._slots.discard(slot)
                self._news.notify_all()
            raise

    def _live(self) -> None:
        """A slot's whole life. Counted among those that wait, except while it runs an item."""
        loan: Loan | None = None
        runner: Runner | None = None
        try:
            while True:
                entry = self._take_now()
                held, loan = loan, None
                if entry is None:
                    if held is not None:
                        # Nothing to do at the moment: others may use the token meanwhile.
                        self._lender.give_back(held)
                        held = None
                    entry = self._take()
                    if entry is None:
                        return
                loan = self._borrow(held)
                if loan is None:
                    return
                self._begin_item()
                if runner is None:
                    runner = self._open()
                self._end_item(entry[0], runner.run(*entry), loan)
        except BaseException as error:  # noqa: BLE001 - it is raised by the thread that made the call
            self._fail(error)
        finally:
            try:
                if runner is not None:
                    runner.close()
            finally:
                if loan is not None:
                    self._lender.give_back(loan)
                with self._lock:
                    if runner is not None:
                        self._runners.discard(runner)
                    self._slots.discard(threading.current_thread())
                    self._waiting -= 1
                    self._news.notify_all()

    def _take_now(self) -> tuple[int, Any] | None:
        with self._lock:
            entry = self._queue.popleft() if self._queue else None
            self._news.notify_all()
            return entry

    def _take(self) -> tuple[int, Any] | None:
        with self._lock:
            self._news.wait_for(lambda: self._queue or self._ended or self._stopped)
            entry = self._queue.popleft() if self._queue else None
            self._news.notify_all()
            return entry

    def _borrow(self, held: Loan | None) -> Loan | None:
        wish = self._lender.wish(self._user, lane=Lane.BULK, kind=self._kind, cost_seconds=self._guess_seconds)
        with self._lock:
            self._wishes.add(wish)
            if self._stopped:
                wish.call_off()
        try:
            loan = self._lender.borrow(wish, instead_of=held)
        finally:
            with self._lock:
                self._wishes.discard(wish)
        if loan is not None and self._stopped:
            self._lender.give_back(loan)
            return None
        return loan

    def _begin_item(self) -> None:
        with self._lock:
            self._waiting -= 1
        self._grow()

    def _open(self) -> Runner:
        runner = self._open_runner()
        with self._lock:
            self._runners.add(runner)
            stopped = self._stopped
        if stopped:
            runner.stop()
        return runner

    def _end_item(self, index: int, result: Any, loan: Loan) -> None:
        took = time.monotonic() - loan.began
        with self._lock:
            self._waiting += 1
            self._results[index] = result
            self._done += 1
            self._guess_seconds += _NEW_SHARE * (took - self._guess_seconds)
            self._news.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
        self._stop()
