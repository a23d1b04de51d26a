"""Open and copy what lies beneath a folder, and nothing else: the only door from a source to the file system.

Rule: every component of a path is opened relative to the descriptor of its parent and without following links, so
that a folder swapped for a link, at any moment, leads nowhere. It also frees us of PATH_MAX.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from engine.errors import SourceUnavailable
from engine.model import Failure, Fetched, Fingerprint
from engine.ports import FetchFailed
from engine.reasons import Reason

#: 1 MiB: large enough that system calls do not count, small enough that memory does not.
BLOCK_BYTES: Final = 1 << 20

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: opening a named pipe must never wait for a writer. It means nothing to regular files.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: What the system says when a disk, a quota or a file can take no more.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})

#: What a key may not hold as it is: the escape itself, control characters, undecodable bytes.
_ESCAPED_IN_KEYS: Final = re.compile("[%\x00-\x1f\x7f-\x9f\udc80-\udcff]")
#: What must not reach a terminal: controls, and the marks that turn the direction of a file name to hide its ending.
_ESCAPED_FOR_PEOPLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNDECODABLE: Final = re.compile("[\udc80-\udcff]")


def key_of(name: str) -> str:
    """A name as the system gives it -> a name without surrogates and control characters, and without loss."""
    if name.isascii() and name.isprintable() and "%" not in name:
        return name
    return _ESCAPED_IN_KEYS.sub(_percent, os.fsencode(name).decode("utf-8", "surrogateescape"))


def name_of(key: str) -> str:
    """The inverse of `key_of`."""
    return os.fsdecode(unquote_to_bytes(key))


def shown(name: str) -> str:
    """A name for people: undecodable bytes become U+FFFD, control characters are spelled out."""
    if name.isascii() and name.isprintable():
        return name
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    text = _UNDECODABLE.sub("\ufffd", text)
    return _ESCAPED_FOR_PEOPLE.sub(lambda m: ascii(m.group())[1:-1], text)


def open_root(root: str, *, what: str = "folder") -> int:
    """A descriptor of the root folder, which may itself be a link. Raises SourceUnavailable."""
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise source_unavailable(error, root, what=what) from None


@contextlib.contextmanager
def open_root_for_fetch(root: str) -> Iterator[int]:
    """As `open_root`, for the copy of one item. Raises FetchFailed."""
    with _fetch_failures(shown(root)):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def source_unavailable(error: OSError, place: str, *, what: str) -> SourceUnavailable:
    """The reason why the root of a source does not open, with what to do about it."""
    match error.errno:
        case errno.ENOENT:
            message = f"{shown(place)} is not there; mount or restore it, or remove the source"
            return SourceUnavailable(Reason.SOURCE_MISSING, message)
        case errno.ENOTDIR:
            message = f"{shown(place)} is not a {what}; name the {what} that is meant"
        case errno.EACCES | errno.EPERM:
            message = f"{shown(place)} may not be read; give the engine's account the right to read it"
        case _:
            message = f"{shown(place)} cannot be read: {error.strerror}"
    return SourceUnavailable(Reason.SOURCE_UNREADABLE, message)


def open_folder(name: str, parent: int) -> int:
    """A descriptor of the folder `name` within the folder `parent`. Raises OSError; a link is ENOTDIR or ELOOP."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent)


@contextlib.contextmanager
def open_file(root: int, names: Sequence[str]) -> Iterator[int]:
    """A descriptor of a regular file beneath `root`. Raises FetchFailed."""
    path = shown("/".join(names))
    if any(name in ("", ".", "..") or "/" in name or "\0" in name for name in names):
        # No listing gives such a name, so the locator is damaged; followed, it could lead out of the root.
        raise failed(Reason.UNREADABLE, f"{path} does not name a file beneath the source")
    folder = os.dup(root)
    try:
        with _fetch_failures(path):
            for name in names[:-1]:
                folder = _step(folder, name, path)
            # Looked at before it is opened: opening some devices already does something.
            _require_regular(os.stat(names[-1], dir_fd=folder, follow_symlinks=False), path)
            descriptor = os.open(names[-1], _FILE_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _require_regular(os.fstat(descriptor), path)
        yield descriptor
    finally:
        os.close(descriptor)


def open_single(place: str, *, what: str) -> int:
    """A descriptor of a source that is one regular file; links are followed. Raises SourceUnavailable."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise source_unavailable(error, place, what=what) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceUnavailable(Reason.SOURCE_UNREADABLE, f"{shown(place)} is not a {what}: it is not a regular file")
    return descriptor


@contextlib.contextmanager
def open_single_for_fetch(place: str) -> Iterator[int]:
    """As `open_single`, for the copy of one item. Raises FetchFailed."""
    with _fetch_failures(shown(place)):
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor), shown(place))
        yield descriptor
    finally:
        os.close(descriptor)


def copy_file(
    descriptor: int, target: Path, path: str, stamp: Callable[[os.stat_result], str], *, max_size_bytes: int
) -> Fetched:
    """Copy a whole regular file. `stamp` makes the fingerprint; a copy during which it moved is refused.

    Raises FetchFailed: too_large (it has grown since it was listed), changed_while_reading, unreadable, disk_full.
    """
    before = os.fstat(descriptor)
    if before.st_size > max_size_bytes:
        raise failed(Reason.TOO_LARGE, f"{path} has grown to {before.st_size:,} bytes; max_size is {max_size_bytes:,}")
    # One byte more than there were shows that it grows; a log that is written as fast as we read would never end.
    result = write_new(target, blocks(descriptor, 0, before.st_size + 1, path))
    after = os.fstat(descriptor)
    if stamp(before) != stamp(after) or result.size_bytes != after.st_size:
        target.unlink(missing_ok=True)
        raise failed(Reason.CHANGED_WHILE_READING, f"{path} was written to while it was copied")
    return Fetched(fingerprint=Fingerprint(stamp(before)), size_bytes=result.size_bytes, sha256=result.sha256)


def blocks(descriptor: int, offset: int, length: int | None, path: str) -> Iterator[bytes]:
    """The bytes from `offset` on, `length` of them or all, in blocks of 1 MiB. Raises FetchFailed."""
    with _fetch_failures(path):
        while length is None or length > 0:
            block = os.pread(descriptor, BLOCK_BYTES if length is None else min(BLOCK_BYTES, length), offset)
            if not block:
                return
            offset += len(block)
            if length is not None:
                length -= len(block)
            yield block


def write_new(target: Path, pieces: Iterator[bytes]) -> Fetched:
    """Write a new file of mode 0600, or one that is empty; nothing is left of it when that fails. The fingerprint is
    left empty.

    Raises FetchFailed with disk_full; FileExistsError where there is another already, which is a defect of the caller.
    """
    digest, size = hashlib.sha256(), 0
    try:
        descriptor = _open_empty(target)
    except OSError as error:
        raise _out_of_room(error, target) from None
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as out:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                rest = memoryview(piece)
                while rest:
                    rest = rest[out.write(rest) or 0 :]
    except OSError as error:
        target.unlink(missing_ok=True)
        raise _out_of_room(error, target) from None
    except FetchFailed:
        target.unlink(missing_ok=True)
        raise
    return Fetched(fingerprint=Fingerprint(""), size_bytes=size, sha256=digest.hexdigest())


def _open_empty(target: Path) -> int:
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(target, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        try:
            descriptor = os.open(target, flags | os.O_NONBLOCK)
        except OSError:
            raise error from None
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == 0:
            return descriptor
        os.close(descriptor)
        raise


def failed(reason: Reason, detail: str) -> FetchFailed:
    """One item that could not be copied, in the words of the catalogue."""
    return FetchFailed(Failure(reason=reason, detail=detail[:2000]))


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogateescape"))


def _step(folder: int, name: str, path: str) -> int:
    try:
        deeper = open_folder(name, folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(folder, name):
            raise failed(Reason.SYMBOLIC_LINK, f"{path}: the folder {shown(name)} is a link now") from None
        raise
    os.close(folder)
    return deeper


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _require_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise failed(Reason.SYMBOLIC_LINK, f"{path} is a link now")
    if not stat.S_ISREG(status.st_mode):
        raise failed(Reason.NOT_A_FILE, f"{path} is not a regular file")


@contextlib.contextmanager
def _fetch_failures(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise failed(Reason.VANISHED, f"{path}: {error.strerror}") from None
        if error.errno == errno.ELOOP:
            raise failed(Reason.SYMBOLIC_LINK, f"{path} is a link now") from None
        if error.errno == errno.ENXIO:
            raise failed(Reason.NOT_A_FILE, f"{path} is not a regular file") from None
        raise failed(Reason.UNREADABLE, f"{path}: {error.strerror}") from None


def _out_of_room(error: OSError, target: Path) -> Exception:
    if error.errno in NO_ROOM:
        return failed(Reason.DISK_FULL, f"no room in {shown(str(target.parent))}: {error.strerror}")
    return error
