"""The scheduler's log: begun anew when it is large, with the one before kept beside it.

Rule: whoever appends has the file open, and may go on appending to the old one; names are changed only by the holder of
the scheduler's lock, of whom there is one. A process killed between two steps leaves at worst no file under the name,
which the next one who opens it to append makes again.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

#: In the runtime folder.
LOG_FILE, OLD_LOG_FILE = "scheduler.log", "scheduler.log.1"
#: Of one file, of which there are two: with debug a grant writes two lines of some 100 bytes, so this is the last
#: 50,000 grants at least; without it, years.
LOG_BYTES = 10 * 2**20
_STANDARD = (1, 2)


def find_log(place: Path) -> Path:
    """Where the log of this runtime folder is, or will be."""
    return place / LOG_FILE


def excess_bytes(place: Path, most: int = LOG_BYTES) -> int:
    """What would go if the log were begun anew now: the one before, if the present one is large."""
    if _size(place / LOG_FILE) <= most:
        return 0
    return _size(place / OLD_LOG_FILE)


def turn_over(place: Path, most: int = LOG_BYTES) -> bool:
    """Begin the log anew if it is large, and let our own standard output and error, where they go to it, go to the
    new one. For the holder of the scheduler's lock. Raises OSError, and then nothing has changed."""
    log = place / LOG_FILE
    if _size(log) <= most:
        return False
    before = log.lstat()
    draft = place / f"{LOG_FILE}.new"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600)
    try:
        log.replace(place / OLD_LOG_FILE)
        draft.replace(log)
        for standard in _STANDARD:
            with suppress(OSError):
                ours = os.fstat(standard)
                if (ours.st_dev, ours.st_ino) == (before.st_dev, before.st_ino):
                    os.dup2(descriptor, standard)
    finally:
        os.close(descriptor)
    return True


def turn_over_unwatched(place: Path, most: int = LOG_BYTES) -> bool:
    """The same where no scheduler runs, which would do it itself. False also when one does."""
    if _size(place / LOG_FILE) <= most:
        return False
    try:
        lock = os.open(place / "scheduler.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        # A scheduler that starts at this moment finds the lock held, and is started again by whoever wants one.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return turn_over(place, most)
    except OSError:
        return False
    finally:
        os.close(lock)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
