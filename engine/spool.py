"""The folder of workers' inboxes and outboxes: one for each process that has workers, and how much may lie in it.

Rule: a process removes its own folder, and anybody the folders of the dead. What may start is decided by
policy/spool.py; here it is measured, and remembered who waits.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from engine import clearing, guards, processes
from engine.errors import NO_ROOM, CannotRunError
from engine.model import Failure, UserId
from engine.policy.spool import Need, SpoolBudget, Verdict
from engine.reasons import Reason
from engine.settings import SPOOL_FOLDER, Settings

#: Megabytes that a disk must have room for to be believed against a worker's word.
_TRIAL_BLOCKS = 8
#: What a file in an outbox counts at least: a name takes an inode, and the time to find it. A mail of a thousand small
#: attachments has 64 MB by this, less than the text that it may have.
NAME_BYTES = 64 << 10


@contextmanager
def spool_for(settings: Settings) -> Iterator[Path]:
    """A folder of this process for its workers' inboxes and outboxes. What dead processes left there is removed.

    Raises CannotRunError.
    """
    root = settings.data_dir / SPOOL_FOLDER
    pid = os.getpid()
    place = root / f"{pid}-{processes.start_time(pid):.0f}-{secrets.token_hex(4)}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in find_stale(settings.data_dir):
            clearing.remove(left)
        place.mkdir(mode=0o700)
    except OSError as error:
        said = f"{root} cannot be used: {error.strerror}; give the engine's account the right to write it, and room"
        raise CannotRunError(said) from error
    try:
        yield place
    finally:
        clearing.remove(place)


def find_stale(data_dir: Path) -> list[Path]:
    """Folders of the spool whose process is dead. Raises OSError when the spool cannot be listed; none: empty."""
    root = data_dir / SPOOL_FOLDER
    try:
        entries = sorted(root.iterdir())
    except FileNotFoundError:
        return []
    return [entry for entry in entries if _is_stale(entry)]


def _is_stale(entry: Path) -> bool:
    owner, _, rest = entry.name.partition("-")
    started = rest.partition("-")[0]
    # What has another name is not ours: somebody may be at work there by hand.
    return owner.isdigit() and started.isdigit() and not processes.is_alive(int(owner), float(started))


def bytes_in(folder: Path) -> int:
    """What lies in a folder, as the disk counts it. Links are not followed, and what vanishes meanwhile counts 0."""
    total, folders = 0, [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
    return total


def written_by(pid: int, home: Path, most: int) -> int:
    """Bytes of the disk that a worker has taken: its outbox, its slate, and files that it has removed and holds open.

    A file counts as NAME_BYTES at least, however small. Looks no further than to what is more than `most`: a worker can
    make a million files while we count a thousand. Files that are gone meanwhile count 0. One that was removed and is
    mapped has a size that cannot be seen, and no honest reason: it counts as more than `most`.
    """
    if _maps_removed(pid, home):
        return most + 1
    total = 0
    for path in _written(pid, home):
        with suppress(OSError):
            status = os.stat(path, follow_symlinks=path.startswith("/proc/"))
            if path.startswith("/proc/") and (status.st_nlink or not stat.S_ISREG(status.st_mode)):
                continue
            # No honest worker makes a folder, and the sandbox forbids it: nobody looks into it.
            total += most + 1 if stat.S_ISDIR(status.st_mode) else max(status.st_blocks * 512, NAME_BYTES)
            if total > most:
                break
    return total


def _maps_removed(pid: int, home: Path) -> bool:
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            maps, own, removed = file.read(), os.fsencode(home), b" (deleted)"
        return removed in maps and any(line.endswith(removed) and own in line for line in maps.splitlines())
    except OSError:
        # Not on Linux, or its process has just ended.
        return False


def _written(pid: int, home: Path) -> Iterator[str]:
    for folder in (home / "outbox", Path(f"/proc/{pid}/fd")):
        # /proc may not be ours to read, as that of a process that has just ended.
        with suppress(OSError), os.scandir(folder) as entries:
            yield from (entry.path for entry in entries)
    yield str(home / "slate")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskShort:
    """The disk of `path` has less free than the reserve."""

    path: Path
    free_bytes: int
    reserve_bytes: int

    def __str__(self) -> str:
        free, reserve = self.free_bytes // 10**6, self.reserve_bytes // 10**6
        return (
            f"{self.path} has {free:,} MB free, less than NIGHTMILL_DISK_RESERVE ({reserve:,} MB); "
            "free space, or lower the reserve"
        )

    @property
    def badly(self) -> bool:
        """What runs eats up the room that is kept for publishing what is there."""
        return self.free_bytes < self.reserve_bytes // 2


def find_short(settings: Settings) -> DiskShort | None:
    """Whether the data directory's disk is below its reserve now."""
    free, reserve = guards.disk_free_bytes(settings.data_dir), settings.disk_reserve_bytes
    return DiskShort(path=settings.data_dir, free_bytes=free, reserve_bytes=reserve) if free < reserve else None


def is_full(settings: Settings) -> bool:
    """Whether a file of a few megabytes cannot be written into the spool. For milliseconds it lies there."""
    try:
        with tempfile.TemporaryFile(dir=settings.data_dir / SPOOL_FOLDER, buffering=0) as file:
            block = bytes(1 << 20)
            return any(file.write(block) < len(block) for _ in range(_TRIAL_BLOCKS))
    except OSError as error:
        return error.errno in NO_ROOM


class SpoolRoom:
    """Room in the spool of one run, for the loop that hands it out."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._budget = SpoolBudget(settings.spool_limit_bytes, settings.disk_reserve_bytes)
        self._waiting: dict[UserId, None] = {}
        self._stirred = False

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    def ask(self, asker: UserId, need: Need) -> Verdict:
        """May a unit start now? Who is to wait hears of it by `take_stirred`."""
        verdict = self._budget.ask(asker, need, self._free_bytes() if need.disk_bytes else 0)
        if verdict is Verdict.WAIT:
            self._waiting[asker] = None
        return verdict

    def take(self, unit: Hashable, asker: UserId, need: Need) -> None:
        """A unit that may start begins."""
        self._budget.take(unit, asker, need)
        self._stirred = True

    def give_back(self, unit: Hashable) -> None:
        """It is over."""
        self._budget.give_back(unit)
        self._stirred = True

    def forget(self, asker: UserId) -> None:
        """Nothing more is begun for it."""
        self._budget.forget(asker)
        self._waiting.pop(asker, None)
        self._stirred = True

    def take_stirred(self) -> list[UserId]:
        """Those who wait and should ask again, since something has changed."""
        if not self._stirred:
            return []
        self._stirred = False
        waiting, self._waiting = list(self._waiting), {}
        return waiting

    def refusal(self, need: Need) -> Failure:
        """Why a unit can never start."""
        detail = f"it takes {_megabytes(need.disk_bytes)} of the disk while it is worked on; {self._left()}"
        return Failure(reason=Reason.DISK_FULL, detail=detail)

    def shortage(self, need: Need) -> str:
        """Why nothing more can start."""
        return (
            f"the disk of {self._settings.data_dir} has no room for the next files, which take "
            f"{_megabytes(need.disk_bytes)} while they are worked on: {self._left()}; free space, or lower the reserve"
        )

    def _left(self) -> str:
        free, reserve = self._free_bytes(), self._settings.disk_reserve_bytes
        return f"{_megabytes(free)} are free, of which NIGHTMILL_DISK_RESERVE keeps {_megabytes(reserve)}"

    def _free_bytes(self) -> int:
        return guards.disk_free_bytes(self._settings.data_dir)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 10**6:,.0f} MB"
