"""Remove folders that a worker may have filled, whatever it has made of them.

Rule: links are removed and not followed, and no folder is too deep: where the system has nothing against folders within
folders, a worker can make more of them than Python calls itself, or than a path can name.

Files that the next unit will write again under the same names are emptied and stay. ext4 gives no inode away again for
a minute or more after its file was removed, and looks at each of them for every new file: where thousands of small
files come and go a second that took a quarter of all processor time.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Names that come again with each unit, and how many of them stay in one folder.
REUSED: Final = re.compile(r"again[0-9]{1,3}\.(bytes|(document|chunks)\.json|part[0-9]{1,2})")
MOST_REUSED: Final = 128
#: Folders gone into, or left. Whoever still makes them while they are removed is not waited for.
_MOST_STEPS = 100_000


def empty(folder: Path, *, but: str = "") -> None:
    """Remove all that lies in a folder, but the file of that name; files of names that come again are emptied. What
    cannot be removed stays; where the folder is a link by now, all."""
    with suppress(OSError):
        here = os.open(folder, _FOLDER)
        try:
            emptied = islice(
                (name for name in os.listdir(here) if name != but and _is_emptied(here, name)), MOST_REUSED
            )
            stay = {but, *emptied}
        except OSError:
            os.close(here)
            raise
        _empty(here, stay)


def remove(folder: Path) -> None:
    """Remove a folder with all that lies in it. What cannot be removed stays."""
    with suppress(OSError):
        _empty(os.open(folder, _FOLDER), set())
    with suppress(OSError):
        os.rmdir(folder)


def _is_emptied(folder: int, name: str) -> bool:
    """Whether the file is one to be used again, and is empty by now: what it held cannot be read under its name."""
    if not REUSED.fullmatch(name):
        return False
    try:
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False
        if status.st_size or status.st_blocks:
            os.ftruncate(file, 0)
        return True
    except OSError:
        return False
    finally:
        os.close(file)


def _empty(here: int, stay: set[str]) -> None:
    """Goes down and up again by one descriptor, which it closes. Raises OSError when a folder was moved meanwhile."""
    # Of each folder above: the name of the one gone into, what it is itself, and the names in it that stay.
    above: list[tuple[str, tuple[int, int], set[str]]] = []
    try:
        for _ in range(_MOST_STEPS):
            inner = _remove_files(here, stay)
            if inner is not None:
                try:
                    below = os.open(inner, _FOLDER, dir_fd=here)
                except OSError:
                    stay.add(inner)
                    continue
                above.append((inner, _identity(here), stay))
                stay = set()
            elif above:
                below = os.open("..", _FOLDER, dir_fd=here)
            else:
                return
            os.close(here)
            here = below
            if inner is None:
                name, identity, stay = above.pop()
                if _identity(here) != identity:
                    return
                try:
                    os.rmdir(name, dir_fd=here)
                except OSError:
                    stay.add(name)
    finally:
        os.close(here)


def _remove_files(descriptor: int, stay: set[str]) -> str | None:
    """Up to the first that cannot be removed, which is answered: a folder, most likely."""
    for name in os.listdir(descriptor):
        if name not in stay:
            try:
                os.unlink(name, dir_fd=descriptor)
            except FileNotFoundError:
                continue
            except OSError:
                return name
    return None


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
