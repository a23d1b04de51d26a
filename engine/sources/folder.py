"""`folder:PATH`: every file beneath a folder.

Rule: stay beneath the root. Links are listed and never followed (the root alone may be one). A name is bytes: one
that is not UTF-8 is listed, shown, and found again. Memory does not grow with the number of files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine.errors import SourceUnavailable
from engine.model import Fetched, Fingerprint, ItemKey, Listed
from engine.reasons import Reason
from engine.sources.beneath import (
    copy_file,
    key_of,
    name_of,
    open_file,
    open_folder,
    open_root,
    open_root_for_fetch,
    shown,
)
from engine.sources.rules import Rules

#: The most that engine/ports.py allows.
PAGE_ITEMS: Final = 1000
#: Descriptors kept open on the way down; deeper folders are reached again from there. The usual limit is 1024.
_KEPT_OPEN: Final = 64


class FolderSource:
    """The files beneath one folder."""

    def __init__(self, uri: str, root: str, rules: Rules) -> None:
        self.uri = uri
        self._root = root
        self._rules = rules
        #: Our own data as a path from the root; no path begins with a slash, so "/" is nowhere.
        self._own = "/"
        if rules.own_folder:
            own = os.path.relpath(os.path.realpath(rules.own_folder), os.path.realpath(root))
            self._own = "/" if own.startswith("..") else own

    def list(self, cursor: str) -> Iterator[Sequence[Listed]]:
        """Pages of files. A folder that cannot be listed is passed over and named in SourceUnavailable at the end."""
        yield from pages(self._items())

    def unchanged_since(self, cursor: str) -> bool:
        """Never known without looking: a folder's own time says nothing of the files beneath."""
        return False

    def cursor(self) -> str:
        """Nothing to remember."""
        return ""

    def fetch(self, locator: Mapping[str, Any], target: Path) -> Fetched:
        """Copy one file. Raises FetchFailed."""
        names = [name_of(part) for part in str(locator["path"]).split("/")]
        with open_root_for_fetch(self._root) as root, open_file(root, names) as descriptor:
            path = shown("/".join(names))
            return copy_file(descriptor, target, path, stamp, max_size_bytes=self._rules.max_size_bytes)

    def _items(self) -> Iterator[Listed]:
        for found in walk(self._root, enter=self._enter):
            item = self._listed(found)
            if item is not None:
                yield item

    def _enter(self, path: str, name: str) -> bool:
        return path != self._own and not self._rules.excluded(path, name)

    def _listed(self, found: Found) -> Listed | None:
        if found.path == self._own:
            return None
        status = found.status
        skip: tuple[Reason, str] | None
        if stat.S_ISLNK(status.st_mode):
            skip = Reason.SYMBOLIC_LINK, ""
        elif self._rules.excluded(found.path, found.name):
            skip = Reason.EXCLUDED, "the folder as a whole" if stat.S_ISDIR(status.st_mode) else ""
        elif not stat.S_ISREG(status.st_mode):
            skip = Reason.NOT_A_FILE, stat.filemode(status.st_mode)
        else:
            skip = self._rules.verdict(size_bytes=status.st_size, modified=status.st_mtime)
        key = key_of(found.path)
        return Listed(
            key=ItemKey(key),
            fingerprint=Fingerprint(stamp(status)),
            path=shown(found.path),
            size_bytes=status.st_size,
            modified=status.st_mtime,
            locator={"path": key},
            skip=skip[0] if skip else None,
            skip_detail=skip[1] if skip else "",
        )


def stamp(status: os.stat_result) -> str:
    """What moves when a file may have changed. ctime: a copy that keeps the old mtime still moves it."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def pages(items: Iterator[Listed]) -> Iterator[Sequence[Listed]]:
    """Items in pages; what was found before an error is handed on before the error is."""
    page: list[Listed] = []
    try:
        for item in items:
            page.append(item)
            if len(page) == PAGE_ITEMS:
                yield page
                page = []
    except SourceUnavailable:
        if page:
            yield page
        raise
    if page:
        yield page


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a folder: its path from the root and last part as the system gives them, and what lstat says."""

    path: str
    name: str
    status: os.stat_result


def walk(root: str, *, enter: Callable[[str, str], bool]) -> Iterator[Found]:
    """Everything beneath `root` except folders; a folder that `enter` (path, name) declines is found as one thing.

    Raises SourceUnavailable: source_missing and source_unreadable at once, source_incomplete after all the rest.
    """
    trail = _Trail(open_root(root))
    trouble: list[str] = []
    try:
        waiting: list[_Folder] = [_Folder(None, "", "", 0)]
        while waiting:
            folder = waiting.pop()
            deeper: list[_Folder] = []
            try:
                descriptor = trail.reach(folder)
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        path = folder.prefix + entry.name
                        is_folder = entry.is_dir(follow_symlinks=False)
                        if is_folder and enter(path, entry.name):
                            deeper.append(_Folder(folder, entry.name, path + "/", folder.depth + 1))
                            continue
                        try:
                            status = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue  # removed since the folder was read: there is nothing to list
                        yield Found(path, entry.name, status)
            except OSError as error:
                # Also a folder that has vanished or become a link: what it held may have been moved to a place
                # already passed, so the listing must not pass for complete.
                trouble.append(f"{shown(folder.prefix.rstrip('/')) or '.'}: {error.strerror}")
            # Kept in every folder on the way down, the paths of a deep tree would need the square of its depth.
            folder.prefix = ""
            waiting.extend(reversed(deeper))
    finally:
        trail.close()
    if trouble:
        more = f" (and {len(trouble) - 1:,} more)" if len(trouble) > 1 else ""
        message = f"a part of {shown(root)} could not be listed: {trouble[0]}{more}"
        raise SourceUnavailable(Reason.SOURCE_INCOMPLETE, message)


@dataclass(slots=True, eq=False)
class _Folder:
    """A folder to visit. `prefix` is its path with a slash at the end, until it has been visited."""

    parent: _Folder | None
    name: str
    prefix: str
    depth: int


class _Trail:
    """Open descriptors from the root down to the folder last visited: the first ones, and the last."""

    def __init__(self, root: int) -> None:
        self._open: dict[_Folder | None, int] = {}
        self._order: list[_Folder] = []
        self._root = root

    def reach(self, folder: _Folder) -> int:
        """A descriptor of `folder`, owned by the trail. Raises OSError."""
        missing: list[_Folder] = []
        at: _Folder | None = folder
        while at is not None and at.parent is not None and at not in self._open:
            missing.append(at)
            at = at.parent
        start = at if at is not None and at.parent is not None else None
        self._forget_beyond(start)
        descriptor = self._open[start] if start is not None else self._root
        for step in reversed(missing):
            descriptor = open_folder(step.name, descriptor)
            self._keep(step, descriptor)
        return descriptor

    def close(self) -> None:
        """Close all of them."""
        self._forget_beyond(None)
        os.close(self._root)

    def _keep(self, folder: _Folder, descriptor: int) -> None:
        if len(self._order) > _KEPT_OPEN:
            os.close(self._open.pop(self._order.pop()))
        self._open[folder] = descriptor
        self._order.append(folder)

    def _forget_beyond(self, last: _Folder | None) -> None:
        while self._order and self._order[-1] is not last:
            os.close(self._open.pop(self._order.pop()))
