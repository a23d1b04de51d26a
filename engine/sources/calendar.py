"""`ics:PATH`: the events of an iCalendar file, or of all .ics files beneath a folder.

Rule: lines and offsets (RFC 5545, 3.1 and 3.4). Where an event begins and ends, its UID, and its first day for
"newest first" are seen here; what it says is read in a worker, from a calendar of its own that `fetch` writes.
"""

from __future__ import annotations

import calendar
import codecs
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
from engine.ports import FetchFailed
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
#: Of a property (a line, unfolded) so much is looked at; a UID has 255 bytes at most (RFC 7986, 5.3).
_PROPERTY_BYTES: Final = 2_000
_PROPERTY: Final = re.compile(rb"([\w-]+)((?:;[\w-]+=(?:\"[^\"]*\"|[^\";:]++)*+)*+)\s*:(.*)", re.DOTALL)
_ZONE_NAME: Final = re.compile(rb";TZID=(?:\"([^\"]*)\"|([^\";:]+))", re.IGNORECASE)
_STAMP: Final = re.compile(rb"DTSTAMP\s*[;:]", re.IGNORECASE)
_DAY: Final = re.compile(rb"(\d{4})(\d\d)(\d\d)")
#: Components inside each other that are told apart: an event holds alarms, and these hold nothing.
_DEPTH: Final = 16
_KEPT: Final = frozenset({b"VEVENT", b"VTIMEZONE"})
#: What begins where nothing of these is open any more.
_BOUNDS: Final = frozenset({*_KEPT, b"VCALENDAR"})


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
        try:
            before = self._folder_cursor()
        except SourceUnavailable:
            # What can be listed is listed first; the listing says the same at its end.
            before = ""
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
                return copy_file(descriptor, target, path, stamp, max_size_bytes=self._rules.max_size_bytes)
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
        except FetchFailed as error:
            message = f"{shown(self._path)} cannot be read: {error.failure.detail}"
            raise SourceUnavailable(Reason.SOURCE_UNREADABLE, message) from None
        finally:
            os.close(descriptor)

    def _items_of_folder(self) -> Iterator[Listed]:
        repeats, trouble = Repeats(), list[str]()
        root = open_root(self._path)
        try:
            for path, status in self._files():
                skip = self._skip(path, status)
                if skip is not None:
                    yield _whole(path, status, skip)
                    continue
                try:
                    with open_file(root, path.split("/")) as descriptor:
                        scan = _scan(descriptor)
                except FetchFailed as error:
                    # Its events are not known to be gone, so the listing must not pass for complete.
                    trouble.append(error.failure.detail)
                    continue
                if scan.calendar:
                    yield from self._events(scan, shown(path), key_of(path), status, repeats)
                else:
                    verdict = self._rules.verdict(size_bytes=status.st_size, modified=status.st_mtime)
                    yield _whole(path, status, verdict)
        finally:
            os.close(root)
        if trouble:
            more = f" (and {len(trouble) - 1:,} more)" if len(trouble) > 1 else ""
            message = f"a part of {shown(self._path)} could not be listed: {trouble[0]}{more}"
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

    def add(self, component: _Component, end: int) -> None:
        """A component that ends before `end`."""
        component.finish()
        length = end - component.offset
        if component.kind == b"VTIMEZONE":
            self.zones.append((component.zone(), component.offset, length))
            return
        self.events.append(
            _Event(
                offset=component.offset,
                length=length,
                sha256=component.sha256(),
                identity=component.identity(),
                day=component.day,
                repeats=component.repeats,
                zones=frozenset(component.zones),
            )
        )


def _scan(descriptor: int) -> _Scan:
    """All events and time zones of a file. One that is not closed ends with the calendar, or where the next begins."""
    scan, offset = _Scan(), 0
    component: _Component | None = None
    for line, whole in _lines(descriptor, 0, None):
        begun, ended = _boundary(line if offset else line.removeprefix(codecs.BOM_UTF8), whole)
        if component is not None and (begun in _BOUNDS or ended == b"VCALENDAR"):
            scan.add(component, offset)
            component = None
        scan.calendar = scan.calendar or begun == b"VCALENDAR"
        if begun in _KEPT:
            component = _Component(begun, offset)
        offset += len(line)
        if component is not None:
            component.add(line, whole)
            if component.closed:
                scan.add(component, offset)
                component = None
    if component is not None:
        scan.add(component, offset)
    return scan


def _boundary(line: bytes, whole: bool) -> tuple[bytes, bytes]:
    """The names of the component that the line begins, and of the one that it ends. A folded line is none of both."""
    word = line[:40].rstrip().upper() if whole else b""
    return (
        word.removeprefix(b"BEGIN:") if word.startswith(b"BEGIN:") else b"",
        word.removeprefix(b"END:") if word.startswith(b"END:") else b"",
    )


class _Component:
    """An event or a time zone being read. `day` and the like are known after `finish`."""

    def __init__(self, kind: bytes, offset: int) -> None:
        self.kind = kind
        self.offset = offset
        self.day: float | None = None
        self.repeats = False
        self.zones: set[bytes] = set()
        self.open: list[bytes] = []  # components begun and not ended, this one first
        self._digest = hashlib.sha256()
        self._values: dict[bytes, bytes] = {}
        self._line = b""  # unfolded (RFC 5545, 3.1), as far as it matters
        self._own = False  # that line is its own, not one of a component inside it
        self._stamp = False

    @property
    def closed(self) -> bool:
        """Its END has been seen."""
        return not self.open

    def add(self, line: bytes, whole: bool) -> None:
        """The next line, or part of one."""
        begun, ended = _boundary(line, whole)
        if begun and len(self.open) < _DEPTH:
            self.open.append(begun)
        text = line.rstrip(b"\r\n")
        folded = line[:1] in (b" ", b"\t")
        if whole and not folded:
            self.finish()
            self._line = b""
            self._own = len(self.open) == 1
            self._stamp = self._own and _STAMP.match(line) is not None
        elif whole:
            text = text[1:]
        if self._own and len(self._line) < _PROPERTY_BYTES:
            self._line += text[:_PROPERTY_BYTES]
        # DTSTAMP is the time of the export in what many services write: it is no change of the event.
        if not self._stamp:
            self._digest.update(line)
        if ended in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(ended) :]

    def finish(self) -> None:
        """The present property is complete: take from it what a listing needs."""
        match = _PROPERTY.match(self._line)
        if match is None:
            return
        name, parameters, value = match.group(1).upper(), match.group(2), match.group(3).strip()
        self.zones.update(_zone_name(quoted or bare) for quoted, bare in _ZONE_NAME.findall(parameters))
        if name in (b"RRULE", b"RDATE"):
            self.repeats = True
        elif name == b"DTSTART" and self.day is None:
            self.day = _day(value)
        elif name in (b"UID", b"RECURRENCE-ID", b"TZID"):
            self._values.setdefault(name, value)

    def sha256(self) -> str:
        """What changes with it, its DTSTAMP aside."""
        return self._digest.hexdigest()[:DIGEST_DIGITS]

    def zone(self) -> bytes:
        """The name by which events refer to this time zone."""
        return _zone_name(self._values.get(b"TZID", b""))

    def identity(self) -> bytes:
        """What it is called for ever: its UID, and which of the repetitions it replaces; without one, its content."""
        uid = self._values.get(b"UID")
        if not uid:
            return self._digest.digest()
        return hashlib.sha256(uid + b"\n" + self._values.get(b"RECURRENCE-ID", b"")).digest()


def _zone_name(text: bytes) -> bytes:
    """TZID is escaped text as a property (RFC 5545, 3.3.11), and not as a parameter."""
    return text.replace(b"\\", b"").strip()


def _day(value: bytes) -> float | None:
    match = _DAY.match(value)
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
    component = _Component(b"VEVENT", 0)

    def pieces() -> Iterator[bytes]:
        yield b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Nightmill//one event//EN\r\n"
        zones = list(locator["zones"])
        for offset, length in zip(zones[::2], zones[1::2], strict=True):
            yield from _ended(blocks(descriptor, int(offset), int(length), path))
        yield from _ended(event())
        # What a cut-off file leaves open; readers pass over an event without its end.
        for name in reversed(component.open):
            yield b"END:%b\r\n" % name
        yield b"END:VCALENDAR\r\n"

    def event() -> Iterator[bytes]:
        for line, whole in _lines(descriptor, int(locator["offset"]), int(locator["length"])):
            component.add(line, whole)
            yield line

    fetched = write_new(target, pieces())
    if component.sha256() != locator["sha256"]:
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
