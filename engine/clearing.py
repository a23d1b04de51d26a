"""Remove folders that a worker may have filled, whatever it has made of them.

Rule: links are removed and not followed, and no folder is too deep: where the system has nothing against folders within
folders, a worker can make more of them than Python calls itself, or than a path can name.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Folders gone into, or left. Whoever still makes them while they are removed is not waited for.
_MOST_STEPS = 100_000


def empty(folder: Path, *, but: str = "") -> None:
    """Remove all that lies in a folder, but the file of that name. What cannot be removed stays; where the folder is a
    link by now, all."""
    with suppress(OSError):
        _empty(os.open(folder, _FOLDER), but)


def remove(folder: Path) -> None:
    """Remove a folder with all that lies in it. What cannot be removed stays."""
    empty(folder)
    with suppress(OSError):
        os.rmdir(folder)


def _empty(here: int, but: str = "") -> None:
    """Goes down and up again by one descriptor, which it closes. Raises OSError when a folder was moved meanwhile."""
    # Of each folder above: the name of the one gone into, what it is itself, and the names in it that stay.
    above: list[tuple[str, tuple[int, int], set[str]]] = []
    stay = {but} if but else set[str]()
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
