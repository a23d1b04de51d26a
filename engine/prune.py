"""Give back disk space: history past its days, what killed processes have left, logs.

Rule: nothing goes that anybody may still ask for or use. What is searchable is not touched here, nor the folder of any
user. Killed at any moment, what is left is found by the next call.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine import guards, logfile, rendezvous
from engine.errors import CannotRunError
from engine.ledger import SqlLedger
from engine.processes import is_alive
from engine.settings import Settings
from engine.spool import bytes_in, find_stale

_log = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0
#: Attempts that the end of a run forgets, in one transaction of some 0.2 s; a night adds no more than that in the long
#: run, and `nightmill prune` forgets all.
ATTEMPTS_AT_ONCE = 20_000
#: The ledger is written anew when so much of it, and this share, is empty: less is filled again by the next nights.
SHRINK_BYTES, SHRINK_SHARE = 16 * 2**20, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What went, or would go.

    attempts      entries of the ledger about what was tried with items that are well
    runs          entries of the ledger about runs
    ledger_bytes  that the ledger's file shrank by; with a dry run, that are empty in it already
    spools        folders of dead processes, and spool_bytes of files in them
    sessions      client files of dead coordinators whose workers are gone
    log_bytes     of the scheduler's log
    """

    attempts: int = 0
    runs: int = 0
    ledger_bytes: int = 0
    spools: int = 0
    spool_bytes: int = 0
    sessions: int = 0
    log_bytes: int = 0


def prune(settings: Settings, ledger: SqlLedger | None, now: float, *, dry_run: bool = False) -> Pruned:
    """Give back all that can be. now: seconds since the epoch; ledger: None where there is none yet.

    Raises CannotRunError when the data directory or the ledger does not play along.
    """
    before = now - settings.keep_days * DAY_SECONDS
    attempts = runs = ledger_bytes = 0
    try:
        spools, spool_bytes = _prune_spools(settings.data_dir, dry_run=dry_run)
        sessions, log_bytes = _prune_meeting_place(settings.data_dir, dry_run=dry_run)
    except OSError as error:
        said = f"{settings.data_dir} cannot be cleared up: {error}; give the engine's account the right to write it"
        raise CannotRunError(said) from error
    if ledger is not None:
        if dry_run:
            attempts, runs = ledger.count_old(before)
        else:
            while (found := ledger.forget_old(before, limit=ATTEMPTS_AT_ONCE)) != (0, 0):
                attempts, runs = attempts + found[0], runs + found[1]
        ledger_bytes = _shrink(settings, ledger, dry_run=dry_run)
    return Pruned(
        attempts=attempts,
        runs=runs,
        ledger_bytes=ledger_bytes,
        spools=spools,
        spool_bytes=spool_bytes,
        sessions=sessions,
        log_bytes=log_bytes,
    )


def prune_some(settings: Settings, ledger: SqlLedger, now: float) -> None:
    """What the end of each nightly run gives back: cheap, and what went wrong is left for the next time.

    Folders of dead processes went when the run began, and the scheduler looks after its own.
    """
    try:
        ledger.forget_old(now - settings.keep_days * DAY_SECONDS, limit=ATTEMPTS_AT_ONCE)
    except CannotRunError as error:
        _log.warning("old history was not forgotten: %s", error)


def _prune_spools(data_dir: Path, *, dry_run: bool) -> tuple[int, int]:
    """(folders, bytes)."""
    stale = find_stale(data_dir)
    total = sum(bytes_in(folder) for folder in stale)
    for folder in [] if dry_run else stale:
        shutil.rmtree(folder, ignore_errors=True)
    return len(stale), total


def _prune_meeting_place(data_dir: Path, *, dry_run: bool) -> tuple[int, int]:
    """(client files, bytes of the log). Nothing while a scheduler runs, which does both itself."""
    place = rendezvous.find_runtime_dir(data_dir)
    try:
        rendezvous.check_private(place)
    except FileNotFoundError:
        return 0, 0
    if rendezvous.scheduler_runs(place):
        return 0, 0
    # Workers of a dead coordinator that live on are ended by the next scheduler, which needs the file to know them.
    dead = [
        path
        for path in sorted((place / "clients").glob("*.json"))
        if not rendezvous.client_is_alive(path)
        and not any(is_alive(pid, started) for pid, started in rendezvous.read_client_file(path).items())
    ]
    log_bytes = logfile.excess_bytes(place)
    if not dry_run:
        dead = [path for path in dead if rendezvous.remove_dead_client(path)]
        logfile.turn_over_unwatched(place)
    return len(dead), log_bytes


def _shrink(settings: Settings, ledger: SqlLedger, *, dry_run: bool) -> int:
    """Write the ledger anew without what is empty in it, where that is much, nobody is at work, and the disk has room.

    It is written into the log beside it first, and then back: twice its size for a moment.
    """
    total, empty = ledger.size_bytes()
    if dry_run:
        return empty
    if empty < SHRINK_BYTES or empty < SHRINK_SHARE * total:
        return 0
    place = rendezvous.find_runtime_dir(settings.data_dir)
    if any(rendezvous.client_is_alive(path) for path in (place / "clients").glob("*.json")):
        return 0
    if guards.disk_free_bytes(settings.data_dir) - 2 * (total - empty) < settings.disk_reserve_bytes:
        return 0
    ledger.shrink()
    return total - ledger.size_bytes()[0]
