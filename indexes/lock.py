"""Who may write an index: the holder of an advisory lock on the file `lock` in its folder.

Rule: the lock belongs to an open file. It ends with the process that took it, however that ends, and no child
inherits it (O_CLOEXEC).
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from indexes.errors import IndexBusy, IndexFault

NAME: Final = "lock"
#: `is_locked` holds the lock for some microseconds: a writer that meets it there tries again.
_TRIES: Final = 4
_PAUSE_SECONDS: Final = 0.005

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def take(folder: Path) -> int:
    """Lock `folder` and return the descriptor that holds the lock until it is closed. Never waits for a writer.

    Raises IndexBusy when another writer has it, IndexFault when the lock file cannot be made.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            descriptor = os.open(folder / NAME, _FLAGS, 0o600)
        except FileNotFoundError:
            # The folder was there a moment ago and is being erased: whoever comes back finds it made anew, or nobody.
            raise IndexBusy(f"{folder} has just been removed; try again") from None
        except OSError as error:
            raise IndexFault(f"{folder / NAME} cannot be opened: {error.strerror}; mind its permissions") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except OSError as error:
            os.close(descriptor)
            raise IndexFault(f"{folder / NAME} cannot be locked: {error.strerror}; use a local disk") from None
        # Between open and flock the folder may have been erased, and the lock with it: it would guard nothing.
        if _is_current(folder, descriptor):
            return descriptor
        os.close(descriptor)
    raise IndexBusy(f"{folder} is being written by another process; wait until it is done, or stop it")


def is_locked(folder: Path) -> bool:
    """Somebody writes this index now. An indication only: the next moment it may be otherwise. Raises OSError."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_current(folder: Path, descriptor: int) -> bool:
    held = os.fstat(descriptor)
    try:
        named = os.stat(folder / NAME, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
