"""`ics:PATH`: the events of an iCalendar file, or of all .ics files beneath a folder.

Rule: lines and offsets (RFC 5545, 3.1 and 3.4). Where an event begins and ends, its UID, and its first day for
"newest first" are seen here; what it says is read in a worker, from a calendar of its own that `fetch` writes.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engine.errors import SourceUnavailable
from engine.model import Fetched, Fingerprint, ItemKey, Kind, Listed
from engine.reasons import Reason
from engine.sources.beneath import (
    blocks,
    copy_file,
    failed,
    key_of,
    name_of,
    open_file,
    open_root,
    open_root_for_fetch,
    open_single,
    open_single_for_fetch,
    shown,
    write_new,
)
from engine.sources.folder import pages, stamp, walk
from engine.sources.mailbox import DIGEST_DIGITS, Repeats, file_cursor
from engine.sources.rules import Rules

#: A longer line is seen in parts: what matters here is never that long, an inline attachment may be.
_LINE_BYTES: Final = 65_536
_DAY: Final = re.compile(rb"DTSTART[^:\r\n]*:(\d{4})(\d\d)(\d\d)", re.IGNORECASE)
_ZONE_NAME: Final = re.compile(rb";TZID=\"?([^\":;,\r\n]+)", re.IGNORECASE)


class CalendarSource:
    """The events of one .ics file, or of those beneath a folder."""

    def __init__(self, uri: str, path: str, rules: Rules) -> None:
        self.uri = uri
        self._path = path
        self._rules = rules
        self._cursor = ""

    def list(self, cursor: str) -> Iterator[Sequence[Listed]]:
        """Pages of events. A file in the folder that holds no calendar is listed as it is, for a worker to judge."""
        if not os.path.isdir(self._path):
            yield from pages(self._items_of_file())
            return
        before = self._folder_cursor()
        yield from pages(self._items_of_folder())
        self._cursor = before

    def unchanged_since(self, cursor: str) -> bool:
        """True when all files have the sizes, times and inodes that they had."""
        if not cursor:
            return False
        try:
            now = self._folder_cursor() if os.path.isdir(self._path) else file_cursor(os.stat(self._path))
        except (OSError, SourceUnavailable):
            return False
        return now == cursor

    def cursor(self) -> str:
        """The state of the file, or of all files, as it was when the last complete listing began."""
        return self._cursor

    def fetch(self, locator: Mapping[str, Any], target: Path) -> Fetched:
        """Write a calendar with this one event and the time zones it names. Raises FetchFailed."""
        if "path" not in locator:
            with open_single_for_fetch(self._path) as descriptor:
                return _write_event(descriptor, locator, target, shown(os.path.basename(self._path)))
        names = [name_of(part) for part in str(locator["path"]).split("/")]
        path = shown("/".join(names))
        with open_root_for_fetch(self._path) as root, open_file(root, names) as descriptor:
            if "offset" not in locator:
                return copy_file(descriptor, target, path, stamp)
            return _write_event(descriptor, locator, target, path)

    def _items_of_file(self) -> Iterator[Listed]:
        descriptor = open_single(self._path, what="calendar file or folder")
        try:
            before = os.fstat(descriptor)
            scan = _scan(descriptor)
            if not scan.calendar:
                message = f"{shown(self._path)} is not a calendar: it has no line BEGIN:VCALENDAR; check the path"
                raise SourceUnavailable(Reason.SOURCE_UNREADABLE, message)
            yield from self._events(scan, shown(os.path.basename(self._path)), "", before, Repeats())
            if file_cursor(os.fstat(descriptor)) != file_cursor(before):
                message = f"{shown(self._path)} was rewritten while it was listed; the next run looks again"
                raise SourceUnavailable(Reason.SOURCE_INCOMPLETE, message)
            self._cursor = file_cursor(before)
        except OSError as error:
            message = f"{shown(self._path)} cannot be read: {error.strerror}"
            raise SourceUnavailable(Reason.SOURCE_UNREADABLE, message) from None
        finally:
            os.close(descriptor)

    def _items_of_folder(self) -> Iterator[Listed]:
        repeats, trouble = Repeats(), ""
        root = open_root(self._path)
        try:
            for path, status in self._files():
                skip = self._skip(path, status)
                if skip is not None:
                    yield _whole(path, status, skip)
                    continue
                try:
                    with contextlib.closing(_Opened(root, path)) as opened:
                        scan = _scan(opened.descriptor)
                        if scan.calendar:
                            yield from self._events(scan, shown(path), key_of(path), status, repeats)
                        else:
                            yield _whole(path, status, None)
                except OSError as error:
                    trouble = trouble or f"{shown(path)}: {error.strerror}"
        finally:
            os.close(root)
        if trouble:
            message = f"a part of {shown(self._path)} could not be listed: {trouble}"
            raise SourceUnavailable(Reason.SOURCE_INCOMPLETE, message)

    def _skip(self, path: str, status: os.stat_result) -> tuple[Reason, str] | None:
        if stat.S_ISLNK(status.st_mode):
            return Reason.SYMBOLIC_LINK, ""
        if self._rules.excluded(path, path.rpartition("/")[2]):
            return Reason.EXCLUDED, ""
        if not stat.S_ISREG(status.st_mode):
            return Reason.NOT_A_FILE, stat.filemode(status.st_mode)
        return None

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        for found in walk(self._path, enter=lambda path, name: not self._rules.excluded(path, name)):
            if found.name.lower().endswith(".ics"):
                yield found.path, found.status

    def _folder_cursor(self) -> str:
        """The sum over all files; addition, so that the order in which they are found does not matter."""
        total = 0
        for path, status in self._files():
            line = f"{key_of(path)}\n{stamp(status)}"
            total += int.from_bytes(hashlib.sha256(line.encode()).digest(), "big")
        return f"{total % (1 << 256):064x}"

    def _events(self, scan: _Scan, path: str, key: str, status: os.stat_result, repeats: Repeats) -> Iterator[Listed]:
        for number, event in enumerate(scan.events, start=1):
            modified = status.st_mtime if event.day is None else event.day
            # One that repeats began long ago and is still to come: its first day says nothing of its age.
            skip = self._rules.verdict(size_bytes=event.length, modified=status.st_mtime if event.repeats else modified)
            zones = [n for name, *place in scan.zones if name in event.zones for n in place]
            locator: dict[str, str | int | list[int]] = {
                "offset": event.offset,
                "length": event.length,
                "sha256": event.sha256,
                "zones": zones,
            }
            if key:
                locator["path"] = key
            yield Listed(
                key=repeats.key(event.identity),
                fingerprint=Fingerprint(event.sha256),
                path=f"{path}#{number}",
                size_bytes=event.length,
                modified=modified,
                kind=Kind.EVENT,
                locator=locator,
                skip=skip[0] if skip else None,
                skip_detail=skip[1] if skip else "",
            )


class _Opened:
    """A file of the folder, open for reading. Raises OSError."""

    def __init__(self, root: int, path: str) -> None:
        self._stack = contextlib.ExitStack()
        from engine.ports import FetchFailed

        try:
            self.descriptor = self._stack.enter_context(open_file(root, path.split("/")))
        except FetchFailed as error:
            raise OSError(None, error.failure.detail) from None

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    offset: int
    length: int
    sha256: str
    identity: bytes
    day: float | None
    repeats: bool
    zones: frozenset[bytes]


@dataclass(slots=True)
class _Scan:
    """What one file holds. `zones` are (name, offset, length)."""

    calendar: bool = False
    events: list[_Event] = field(default_factory=list)
    zones: list[tuple[bytes, int, int]] = field(default_factory=list)


def _scan(descriptor: int) -> _Scan:
    """All events and time zones of a file. One that is not closed, because the file is cut off, ends with it."""
    scan, stack, opened, offset = _Scan(), list[bytes](), _Component(0), 0
    for line, whole in _lines(descriptor, 0, None):
        word = line[:40].strip().upper() if whole else b""
        if word.startswith(b"BEGIN:"):
            name = word[6:]
            if name in (b"VEVENT", b"VTIMEZONE") and b"VEVENT" in stack:
                _close(scan, stack, opened, offset)
            scan.calendar = scan.calendar or name == b"VCALENDAR"
            if name in (b"VEVENT", b"VTIMEZONE"):
                opened = _Component(offset)
            stack.append(name)
        inside = b"VEVENT" in stack or b"VTIMEZONE" in stack
        if inside:
            opened.add(line, whole, direct=stack[-1] in (b"VEVENT", b"VTIMEZONE"))
        offset += len(line)
        if word.startswith(b"END:") and word[4:] in stack:
            while stack[-1] != word[4:]:
                stack.pop()
            if stack[-1] in (b"VEVENT", b"VTIMEZONE"):
                _close(scan, stack, opened, offset)
            else:
                stack.pop()
    if b"VEVENT" in stack:
        _close(scan, stack, opened, offset)
    return scan


class _Component:
    """An event or a time zone being read."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.digest = hashlib.sha256()
        self.day: float | None = None
        self.repeats = False
        self.zones: set[bytes] = set()
        self.names: dict[bytes, bytes] = {}
        self._name = b""
        self._stamp = False

    def add(self, line: bytes, whole: bool, *, direct: bool) -> None:
        folded = not whole or line[:1] in (b" ", b"\t")
        if not folded:
            self._name = re.split(rb"[;:]", line[:64], maxsplit=1)[0].strip().upper() if direct else b""
            self._stamp = self._name == b"DTSTAMP"
        # DTSTAMP is the time of the export in what many services write: it is no change of the event.
        if not self._stamp:
            self.digest.update(line)
        self.zones.update(_ZONE_NAME.findall(line))
        if self._name in (b"UID", b"RECURRENCE-ID", b"TZID"):
            text = line.rstrip(b"\r\n")
            self.names[self._name] = self.names.get(self._name, b"") + (text[1:] if folded else text)
        elif self._name == b"RRULE":
            self.repeats = True
        elif self._name == b"DTSTART" and self.day is None:
            self.day = _day(line)

    def identity(self) -> bytes:
        uid = self.names.get(b"UID")
        if uid is None:
            return self.digest.digest()
        return hashlib.sha256(uid + b"\n" + self.names.get(b"RECURRENCE-ID", b"")).digest()


def _close(scan: _Scan, stack: list[bytes], opened: _Component, end: int) -> None:
    while stack:
        name = stack.pop()
        if name == b"VTIMEZONE":
            zone = opened.names.get(b"TZID", b"").partition(b":")[2].strip()
            scan.zones.append((zone, opened.offset, end - opened.offset))
            return
        if name == b"VEVENT":
            scan.events.append(
                _Event(
                    offset=opened.offset,
                    length=end - opened.offset,
                    sha256=opened.digest.hexdigest()[:DIGEST_DIGITS],
                    identity=opened.identity(),
                    day=opened.day,
                    repeats=opened.repeats,
                    zones=frozenset(opened.zones),
                )
            )
            return


def _day(line: bytes) -> float | None:
    match = _DAY.match(line)
    try:
        return float(calendar.timegm((*(int(n) for n in match.groups()), 0, 0, 0))) if match else None
    except (ValueError, OverflowError):
        return None


def _lines(descriptor: int, offset: int, length: int | None) -> Iterator[tuple[bytes, bool]]:
    """Lines with their ends, and whether each is the beginning of one. Longer ones come in parts of 64 kB."""
    carry, whole = b"", True
    for block in blocks(descriptor, offset, length, "the calendar"):
        carry += block
        *lines, carry = carry.split(b"\n")
        for line in lines:
            yield line + b"\n", whole
            whole = True
        while len(carry) > _LINE_BYTES:
            yield carry[:_LINE_BYTES], whole
            carry, whole = carry[_LINE_BYTES:], False
    if carry:
        yield carry, whole


def _write_event(descriptor: int, locator: Mapping[str, Any], target: Path, path: str) -> Fetched:
    component = _Component(0)

    def pieces() -> Iterator[bytes]:
        yield b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Nightmill//one event//EN\r\n"
        zones = list(locator["zones"])
        for offset, length in zip(zones[::2], zones[1::2], strict=True):
            yield from _ended(blocks(descriptor, int(offset), int(length), path))
        yield from _ended(hashed())
        yield b"END:VCALENDAR\r\n"

    def hashed() -> Iterator[bytes]:
        depth = 0
        for line, whole in _lines(descriptor, int(locator["offset"]), int(locator["length"])):
            word = line[:40].strip().upper() if whole else b""
            depth += word.startswith(b"BEGIN:")
            component.add(line, whole, direct=depth == 1)
            depth -= word.startswith(b"END:")
            yield line

    fetched = write_new(target, pieces())
    if component.digest.hexdigest()[:DIGEST_DIGITS] != locator["sha256"]:
        target.unlink(missing_ok=True)
        raise failed(Reason.CHANGED_WHILE_READING, f"{path} was rewritten after it was listed")
    return Fetched(
        fingerprint=Fingerprint(str(locator["sha256"])), size_bytes=fetched.size_bytes, sha256=fetched.sha256
    )


def _ended(pieces: Iterator[bytes]) -> Iterator[bytes]:
    last = b"\n"
    for piece in pieces:
        last = piece
        yield piece
    if not last.endswith(b"\n"):
        yield b"\r\n"


def _whole(path: str, status: os.stat_result, skip: tuple[Reason, str] | None) -> Listed:
    key = key_of(path)
    return Listed(
        key=ItemKey(key),
        fingerprint=Fingerprint(stamp(status)),
        path=shown(path),
        size_bytes=status.st_size,
        modified=status.st_mtime,
        kind=Kind.EVENT,
        locator={"path": key},
        skip=skip[0] if skip else None,
        skip_detail=skip[1] if skip else "",
    )
