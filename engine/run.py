"""The composition root: build everything, start it, drain it, stop it, in this order.

Rule: what is built here is closed here, in the reverse order. No other file puts the parts together.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from types import FrameType

from engine import processes
from engine.clock import SystemClock
from engine.coordinator import Coordinator, RunReport
from engine.desk import Desk
from engine.errors import CannotRunError, NightmillError, SettingsError, UsageError
from engine.ledger import SqlLedger, open_ledger
from engine.model import Lane, UserId
from engine.opening import desk_for, make_data_dir, private_folders, require_sandbox
from engine.plan import make_plan
from engine.policy.turns import Rules, rules_for
from engine.ports import StageFailed
from engine.prune import prune_some
from engine.settings import LEDGER_FILE, Settings
from engine.spool import find_short, spool_for
from engine.survey import Orders
from engine.telemetry import Reporter
from engine.workers.tessdata import require_data

#: Open files of a run: 4 for each open user (policy/turns.py), 3 for each worker, the copies that are being made. Some
#: systems allow 256 until more are asked for.
DESCRIPTORS = 4096


def open_own_ledger(settings: Settings) -> SqlLedger:
    """The ledger of this data directory. Raises CannotRunError."""
    return open_ledger(settings.data_dir / LEDGER_FILE, SystemClock())


def require_languages(settings: Settings) -> None:
    """Raises SettingsError when a language of NIGHTMILL_OCR_LANGUAGES has no data: every scan would fail."""
    if settings.ocr == "off":
        return
    try:
        require_data(settings.ocr_languages, settings.ocr_backend)
    except StageFailed as error:
        value = ",".join(settings.ocr_languages)
        origin = settings.origins.get("NIGHTMILL_OCR_LANGUAGES", "default")
        raise SettingsError((f"NIGHTMILL_OCR_LANGUAGES = {value} (from {origin}); {error.failure.detail}",)) from None


def run(
    settings: Settings,
    users: Sequence[UserId] | None,
    *,
    kind: str,
    lane: Lane,
    orders: Orders,
    reporter: Reporter,
    until: float | None = None,
    turns: Rules | None = None,
    own_signals: bool = True,
    host: Settings | None = None,
) -> RunReport:
    """Bring the given users (None: all) up to date, and say how it went.

    until: seconds since the epoch after which nothing new is begun. turns: how users take turns, if not as usual.
    Raises UsageError (unknown user) and CannotRunError (data directory, scheduler, disk). SIGINT and SIGTERM end it,
    resumable, with code 130; without `own_signals` they are left to the program that we are a part of.
    host: the data directory whose scheduler and spool are used, where users, ledger and indexes lie in another.
    """
    host = host or settings
    clock = SystemClock()
    require_languages(settings)
    require_sandbox(settings)
    processes.allow_descriptors(DESCRIPTORS)
    make_data_dir(settings)
    short = find_short(settings)
    if short is not None:
        raise CannotRunError(str(short))
    if settings.debug_mode:
        orders = replace(orders, remove_nothing=True)
    with ExitStack() as stack:
        ledger = stack.enter_context(_closing(open_own_ledger(settings)))
        known = [record.name for record in ledger.users()]
        for user in sorted(set(users or ()) - set(known)):
            raise UsageError(f"there is no user {user!r}; `nightmill users list` names them")
        chosen = list(users) if users is not None else known
        spool = stack.enter_context(spool_for(host))
        desk = stack.enter_context(desk_for(host))
        number = ledger.begin_run(kind, len(chosen))
        coordinator = Coordinator(
            settings=settings,
            plan=make_plan(settings),
            run=number,
            lane=lane,
            orders=orders,
            turns=turns or _turns_at(desk),
            until=until,
            ledger=ledger,
            open_ledger=lambda: open_own_ledger(settings),
            desk=desk,
            spool=spool,
            private=(*private_folders(settings), *(private_folders(host) if host is not settings else ())),
            reporter=reporter,
            clock=clock,
        )
        # To the end: a signal that comes while workers are being stopped must not leave them and an open run.
        with _signals(coordinator.interrupt) if own_signals else nullcontext():
            try:
                report = coordinator.work_through(chosen)
            except BaseException as error:
                code = error.exit_code if isinstance(error, NightmillError) else NightmillError.exit_code
                ledger.end_run(number, code, {"message": f"{type(error).__name__}: {error}"})
                raise
            finally:
                coordinator.close()
            # Without the troubles: they name people's folders, and outlive the people here.
            ledger.end_run(number, report.exit_code, {**report.to_json(), "troubles": len(report.troubles)})
            if kind == "init" and host is settings:
                prune_some(settings, ledger, clock.now())
        return report


def _turns_at(desk: Desk) -> Rules:
    limits = desk.limits
    workers = min(limits.max_total_workers, limits.cpu_limit + 1)
    return rules_for(workers=workers, workers_per_user=limits.max_workers_per_user)


@contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP stop the run; a second SIGINT kills it, as people expect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        interrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _closing(ledger: SqlLedger) -> Iterator[SqlLedger]:
    try:
        yield ledger
    finally:
        ledger.close()


def seconds_until(clock_time: str, now: float) -> float:
    """ "06:00" -> that time of day, next time it comes, as seconds since the epoch (local time). Raises UsageError."""
    try:
        parsed = time.strptime(clock_time, "%H:%M")
    except ValueError:
        raise UsageError(f"--until {clock_time}: not a time of day; write it as 06:00") from None
    today = time.localtime(now)
    moment = time.mktime((today.tm_year, today.tm_mon, today.tm_mday, parsed.tm_hour, parsed.tm_min, 0, 0, 0, -1))
    return moment if moment > now else moment + 86400
