"""The Python API: the engine's tokens for the work that a product does itself.

Rule: one manager for each process and data directory, and nobody has to pass it around. It never forks. What it lends
counts against the same limits as the workers of `nightmill init`, over all processes of the data directory.

    get_thread_pool_manager() -> ThreadPoolManager -> Lender (threads) -> Desk -> scheduler
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import UsageError
from engine.lending import Lender, Loan
from engine.model import ItemFailure, Lane, TokenKind, UserId
from engine.opening import desk_for, make_data_dir
from engine.parallel import Call, OnProgress, in_processes, in_threads
from engine.settings import Settings, own_settings

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Predicted seconds of a token whose use nobody has described. It is corrected when the token comes back.
_GUESS_SECONDS = 0.1


class ThreadPoolManager:
    """Tokens, statistics and parallel work for this process. Made by `get_thread_pool_manager`.

    Any number of threads may use it at once. After os.fork the child's copy opens a desk of its own at first use, and
    knows nothing of what the parent holds. Every method may raise SchedulerUnreachable and CannotRunError, and
    UsageError for a word that makes no sense or after `close`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closed = False
        self._lender: Lender | None = None
        self._begin_anew()
        _all_managers.add(self)

    def acquire_worker(self, user_id: str, timeout: float | None = None, *, interactive: bool = False) -> bool:
        """Wait for a token of that user and take it. False when there was none for `timeout` seconds.

        interactive: somebody is waiting for what follows; it goes before bulk work.
        """
        return self._borrow(user_id, timeout, interactive, kept=True) is not None

    def release_worker(self, user_id: str) -> None:
        """Give this process's newest token of that user back. Without one this warns, and changes nothing."""
        user = _checked_user(user_id)
        if not self._lending().release(user):
            warnings.warn(
                f"this process holds no worker of {user!r}; nothing is released", RuntimeWarning, stacklevel=2
            )

    @contextmanager
    def worker(self, user_id: str, *, interactive: bool = False) -> Iterator[None]:
        """`with manager.worker("ann"):` waits for a token of that user, and gives it back at the end of the block."""
        loan = self._borrow(user_id, None, interactive, kept=False)
        assert loan is not None  # Without a time-out there is nothing that could call the wish off.
        try:
            yield
        finally:
            self._lending().give_back(loan)

    def process_parallel(
        self,
        user_id: str,
        items: Iterable[_Item],
        process_func: Callable[[_Item], _Result],
        max_workers: int = 5,
        *,
        processes: bool = False,
        on_progress: OnProgress | None = None,
    ) -> list[_Result | ItemFailure]:
        """`process_func(item)` for every item, at most `max_workers` at once, each under a token of that user.

        Results stand in the order of the items; one that raised has an ItemFailure in its place. Items are taken from
        the iterable as they are needed, in the calling thread.

        processes    in worker processes instead of threads: nothing is shared, and one that dies costs its item alone
        on_progress  called as on_progress(done, total) in the calling thread, once for each item that is done; total is
                     None where the iterable has no length. What it raises is logged, and otherwise ignored.

        Raises what iterating over `items` raises, once the items that were begun are done.
        """
        user = _checked_user(user_id)
        if type(max_workers) is not int or max_workers < 1:
            raise UsageError(f"max_workers = {max_workers!r}; must be a whole number of at least 1")
        if not callable(process_func):
            raise UsageError(f"process_func = {process_func!r:.100}; must be a function of one item")
        lender = self._lending()
        open_runner = in_processes(process_func, lender.desk) if processes else in_threads(process_func)
        return Call(
            lender=lender,
            user=user,
            kind=TokenKind.CPU if processes else TokenKind.API,
            items=items,
            open_runner=open_runner,
            max_workers=max_workers,
            on_progress=on_progress,
        ).run()

    def get_stats(self) -> dict[str, Any]:
        """The counters now, over all processes of the data directory, as a table of plain JSON values.

        At least active_workers, max_total_workers, user_workers, waiting, reasons (why users wait, and how many do),
        memory (limit_bytes, reserved_bytes and more), rates (granted, grants_per_second) and user_status.
        """
        table = asdict(self._lending().desk.statistics())
        names = [name for name in table if name.startswith("memory_")]
        table["memory"] = {name.removeprefix("memory_"): table.pop(name) for name in names}
        table["rates"] = {name: table.pop(name) for name in ("granted", "grants_per_second")}
        return table

    def update_user_status(self, user_id: str, status: str, progress: float | None = None, message: str = "") -> None:
        """What your product shows for a user: `get_stats()["user_status"][user_id]`, in every process.

        progress: 0 to 100; None: unknown. It lasts until the next word, or the end of this process.
        """
        user = _checked_user(user_id)
        if not isinstance(status, str) or not isinstance(message, str):
            raise UsageError(f"status = {status!r}, message = {message!r}; both must be text")
        if progress is not None and (
            isinstance(progress, bool) or not isinstance(progress, (int, float)) or not 0 <= progress <= 100
        ):
            raise UsageError(f"progress = {progress!r}; must be a number from 0 to 100, or None")
        try:
            self._lending().desk.tell(user, {"status": status, "progress": progress, "message": message})
        except ValueError:
            raise UsageError(
                f"status = {status[:40]!r}..., message = {message[:40]!r}...: too long to be shown; a line or two"
            ) from None

    def close(self) -> None:
        """Give everything back and leave the scheduler. Idempotent; get_thread_pool_manager() gives another manager.

        Calls that wait in other threads end with UsageError.
        """
        with self._lock:
            self._closed = True
            lender, self._lender = self._lender, None
        _forget(self)
        if lender is not None:
            lender.close()

    def __enter__(self) -> ThreadPoolManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A function that is sent to another process takes no desk along: there, its manager is that process's own.
        return _registered, (self.settings,)

    # --- how ---

    def _begin_anew(self) -> None:
        """As made: nothing open, nothing held. After a fork the parent's lock may be held for ever, so it is new."""
        self._lock = threading.Lock()
        self._lender = None

    def _lending(self) -> Lender:
        lender = self._lender
        if lender is not None:
            return lender
        with self._lock:
            if self._closed:
                raise UsageError("this manager is closed; get_thread_pool_manager() gives another")
            if self._lender is None:
                make_data_dir(self.settings)
                self._lender = Lender(desk_for(self.settings))
            return self._lender

    def _borrow(self, user_id: str, timeout: float | None, interactive: bool, *, kept: bool) -> Loan | None:
        user = _checked_user(user_id)
        if timeout is not None:
            if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or math.isnan(timeout):
                raise UsageError(f"timeout = {timeout!r}; must be a number of seconds, or None")
            timeout = min(max(0.0, timeout), threading.TIMEOUT_MAX)
        lender = self._lending()
        lane = Lane.INTERACTIVE if interactive else Lane.BULK
        wish = lender.wish(user, lane=lane, kind=TokenKind.API, cost_seconds=_GUESS_SECONDS, kept=kept)
        return lender.borrow(wish, timeout_seconds=timeout)


# --- the process's managers ------------------------------------------------------------------------------------------

_all_managers: weakref.WeakSet[ThreadPoolManager] = weakref.WeakSet()
_registry_lock = threading.Lock()
_by_data_dir: dict[Path, ThreadPoolManager] = {}
#: The one that calls without settings get: the environment is read once.
_default: ThreadPoolManager | None = None
_prepared = False


def get_thread_pool_manager(settings: Settings | None = None) -> ThreadPoolManager:
    """This process's manager, made at the first call; for every data directory there is one.

    settings: None: those of the command line, from the environment and `.env`. Raises SettingsError,
    SchedulerUnreachable (after 30 s) and CannotRunError. Closed at the end of the process, by `close`, or at the end
    of a `with` block.
    """
    global _default
    _prepare()
    with _registry_lock:
        manager = _default if settings is None else _by_data_dir.get(settings.data_dir)
        if manager is None:
            chosen = settings if settings is not None else own_settings()
            manager = _by_data_dir.setdefault(chosen.data_dir, ThreadPoolManager(chosen))
        if settings is None:
            _default = manager
    try:
        # Outside the lock: the scheduler of another data directory need not wait until this one has started.
        manager._lending()
    except BaseException:
        # Settings that lead nowhere are not kept: the next call reads them anew.
        _forget(manager)
        raise
    return manager


def process_parallel(
    user_id: str,
    items: Iterable[_Item],
    process_func: Callable[[_Item], _Result],
    max_workers: int = 5,
    *,
    processes: bool = False,
    on_progress: OnProgress | None = None,
) -> list[_Result | ItemFailure]:
    """See ThreadPoolManager.process_parallel."""
    return get_thread_pool_manager().process_parallel(
        user_id, items, process_func, max_workers, processes=processes, on_progress=on_progress
    )


def get_stats() -> dict[str, Any]:
    """See ThreadPoolManager.get_stats."""
    return get_thread_pool_manager().get_stats()


def update_user_status(user_id: str, status: str, progress: float | None = None, message: str = "") -> None:
    """See ThreadPoolManager.update_user_status."""
    get_thread_pool_manager().update_user_status(user_id, status, progress, message)


# --- how ---


def _checked_user(user_id: str) -> UserId:
    if not isinstance(user_id, str) or not user_id:
        raise UsageError(f"user_id = {user_id!r}; must be the name of a user")
    return UserId(user_id)


def _registered(settings: Settings) -> ThreadPoolManager:
    """The manager of that data directory, which opens a desk when it is first used."""
    _prepare()
    with _registry_lock:
        return _by_data_dir.setdefault(settings.data_dir, ThreadPoolManager(settings))


def _forget(manager: ThreadPoolManager) -> None:
    global _default
    with _registry_lock:
        if _by_data_dir.get(manager.settings.data_dir) is manager:
            del _by_data_dir[manager.settings.data_dir]
        if _default is manager:
            _default = None


def _prepare() -> None:
    """At the first call, not at import. A thread that comes in between does it again, which harms nobody."""
    global _prepared
    if not _prepared:
        os.register_at_fork(after_in_child=_begin_anew_in_child)
        atexit.register(_close_all)
        _prepared = True


def _begin_anew_in_child() -> None:
    """The desks are the parent's: they are let go of without a word to the scheduler."""
    global _registry_lock
    _registry_lock = threading.Lock()
    for manager in list(_all_managers):
        manager._begin_anew()


def _close_all() -> None:
    for manager in list(_by_data_dir.values()):
        manager.close()
