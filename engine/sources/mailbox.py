"""`mbox:PATH` and `maildir:PATH`: mails as slices of a file, or as files of their own.

Rule: bytes and offsets. Of a mail's content nothing is understood here except where it begins and its Message-ID.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from engine.errors import SourceUnavailable
from engine.model import Fetched, Fingerprint, ItemKey, Kind, Listed
from engine.ports import FetchFailed
from engine.reasons import Reason
from engine.sources.beneath import (
    BLOCK_BYTES,
    blocks,
    copy_file,
    failed,
    key_of,
    name_of,
    open_file,
    open_folder,
    open_root,
    open_root_for_fetch,
    open_single,
    open_single_for_fetch,
    shown,
    source_unavailable,
    write_new,
)
from engine.sources.folder import pages
from engine.sources.rules import Rules

#: Hex digits of SHA-256 that keys and fingerprints keep: 128 bits, no accidental collisions.
DIGEST_DIGITS: Final = 32

#: A line that separates mails stands after a blank one. 500: an address (254) and a date, twice over.
_SEPARATOR: Final = re.compile(rb"\n\r?\nFrom ([^\r\n]{0,500})(?=\r?\n)")
_FIRST: Final = re.compile(rb"(?:\r?\n)*From ([^\r\n]{0,500})\r?(?:\n|\Z)")
#: Longer than any match of _SEPARATOR or _UNDATED.
_OVERLAP_BYTES: Final = 640
#: Where the first separator is dated, a "From here on" in a text is not mistaken for one. An address alone with a
#: header in the next line is: some programs keep the "From " line with which they were given a mail.
_UNDATED: Final = re.compile(rb"\n\r?\nFrom [^\s]{1,500}\r?\n[!-9;-~]{1,76}:")
_TIME_OF_DAY: Final = re.compile(rb"\b\d{1,2}:\d\d\b")
#: As asctime(3) writes it, or with a time zone before the year ("+0000" in what Google Takeout exports).
_DATE: Final = re.compile(
    rb"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +(\d{1,2}) +(\d{1,2}):(\d\d)(?::(\d\d))?\b"
    rb".*?(?<![\d+-])(\d{4})\b"
)
_MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
#: 64 kB of header hold the Message-ID of every real mail.
_HEADER_BYTES: Final = 65_536
_HEADER_END: Final = re.compile(rb"\n\r?\n")
_MESSAGE_ID: Final = re.compile(rb"^message-id[ \t]*:[ \t]*(?:\r?\n[ \t]+)?([^\r\n]+)", re.IGNORECASE | re.MULTILINE)
#: How often a maildir's folder is read until it keeps still. Each look after the first costs only its names.
_LOOKS: Final = 5
_QUOTED_FROM: Final = re.compile(rb"^>(>*From )", re.MULTILINE)
_QUOTED_FROM_LATER: Final = re.compile(rb"(?<=\n)>(>*From )")


class MboxSource:
    """The mails of one mbox file (mboxo, mboxrd; LF or CRLF)."""

    def __init__(self, uri: str, path: str, rules: Rules) -> None:
        self.uri = uri
        self._path = path
        self._name = shown(os.path.basename(path))
        self._rules = rules
        self._cursor = ""

    def list(self, cursor: str) -> Iterator[Sequence[Listed]]:
        """Pages of mails, in the order of the file. Raises SourceUnavailable."""
        descriptor = open_single(self._path, what="mbox file")
        try:
            before = os.fstat(descriptor)
            yield from pages(self._items(descriptor, before))
            after = os.fstat(descriptor)
            # Mail appended meanwhile harms nothing: the cursor is older, the next listing sees it.
            if after.st_size < before.st_size or (
                after.st_size == before.st_size and after.st_mtime_ns != before.st_mtime_ns
            ):
                message = f"{shown(self._path)} was rewritten while it was listed; the next run looks again"
                raise SourceUnavailable(Reason.SOURCE_INCOMPLETE, message)
            self._cursor = file_cursor(before)
        finally:
            os.close(descriptor)

    def unchanged_since(self, cursor: str) -> bool:
        """True when the file has the size, times and inode that it had."""
        try:
            return bool(cursor) and file_cursor(os.stat(self._path)) == cursor
        except OSError:
            return False

    def cursor(self) -> str:
        """Size, times and inode of the file as it was when the last complete listing began."""
        return self._cursor

    def fetch(self, locator: Mapping[str, Any], target: Path) -> Fetched:
        """Copy one mail, with quoted "From " lines as they were written. Raises FetchFailed."""
        offset, length, expected = int(locator["offset"]), int(locator["length"]), str(locator["sha256"])
        raw = hashlib.sha256()

        def hashed(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                raw.update(piece)
                yield piece

        with open_single_for_fetch(self._path) as descriptor:
            slice_ = hashed(blocks(descriptor, offset, length, self._name))
            fetched = write_new(target, unquoted(slice_))
        if raw.hexdigest()[:DIGEST_DIGITS] != expected:
            target.unlink(missing_ok=True)
            raise failed(Reason.CHANGED_WHILE_READING, f"{self._name} was rewritten after it was listed")
        return Fetched(fingerprint=Fingerprint(expected), size_bytes=fetched.size_bytes, sha256=fetched.sha256)

    def _items(self, descriptor: int, status: os.stat_result) -> Iterator[Listed]:
        seen = Repeats()
        try:
            for number, mail in enumerate(split_mails(descriptor, status.st_size, self._path), start=1):
                modified = _separator_date(mail.separator) or status.st_mtime
                skip = self._rules.verdict(size_bytes=mail.length, modified=modified)
                yield Listed(
                    key=seen.key(mail.identity),
                    fingerprint=Fingerprint(mail.sha256),
                    path=f"{self._name}#{number}",
                    size_bytes=mail.length,
                    modified=modified,
                    kind=Kind.MAIL,
                    locator={"offset": mail.offset, "length": mail.length, "sha256": mail.sha256},
                    skip=skip[0] if skip else None,
                    skip_detail=skip[1] if skip else "",
                )
        except OSError as error:
            raise source_unavailable(error, self._path, what="mbox file") from None


class MaildirSource:
    """The mails in `cur` and `new` of a maildir, and of its Maildir++ folders (".Sent")."""

    def __init__(self, uri: str, root: str, rules: Rules) -> None:
        self.uri = uri
        self._root = root
        self._rules = rules

    def list(self, cursor: str) -> Iterator[Sequence[Listed]]:
        """Pages of mails. Raises SourceUnavailable."""
        root = open_root(self._root, what="maildir")
        try:
            yield from pages(self._items(root))
        finally:
            os.close(root)

    def unchanged_since(self, cursor: str) -> bool:
        """Never known without looking."""
        return False

    def cursor(self) -> str:
        """Nothing to remember."""
        return ""

    def fetch(self, locator: Mapping[str, Any], target: Path) -> Fetched:
        """Copy one mail, wherever its reader has moved it since. Raises FetchFailed."""
        names = [name_of(part) for part in str(locator["path"]).split("/")]
        with open_root_for_fetch(self._root) as root:
            try:
                return _copy_mail(root, names, target, self._rules.max_size_bytes)
            except FetchFailed as error:
                if error.failure.reason is not Reason.VANISHED:
                    raise
            moved = _find_moved(root, names)
            if moved is None:
                raise failed(Reason.VANISHED, f"{shown('/'.join(names))} was removed after it was listed")
            return _copy_mail(root, moved, target, self._rules.max_size_bytes)

    def _items(self, root: int) -> Iterator[Listed]:
        trouble: list[str] = []
        found_any = False
        for folder in ("", *self._folders(root)):
            # `new` before `cur`: readers move mails this way, so one that moves meanwhile is not missed.
            seen: set[str] = set()
            for place in ("new", "cur"):
                names = [folder, place] if folder else [place]
                try:
                    descriptor = _open_all(root, names)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    trouble.append(f"{shown('/'.join(names))}: {error.strerror}")
                    continue
                found_any = True
                try:
                    yield from self._mails(descriptor, names, seen)
                except FileNotFoundError:
                    trouble.append(f"{shown('/'.join(names))}: it did not keep still")
                except OSError as error:
                    trouble.append(f"{shown('/'.join(names))}: {error.strerror}")
                finally:
                    os.close(descriptor)
        if trouble:
            message = f"a part of {shown(self._root)} could not be listed: {trouble[0]}"
            raise SourceUnavailable(Reason.SOURCE_INCOMPLETE, message)
        if not found_any:
            message = (
                f"{shown(self._root)} is not a maildir: it has neither `cur` nor `new`; name the folder that holds them"
            )
            raise SourceUnavailable(Reason.SOURCE_UNREADABLE, message)

    def _folders(self, root: int) -> Sequence[str]:
        try:
            with os.scandir(root) as entries:
                return sorted(e.name for e in entries if e.name.startswith(".") and e.is_dir(follow_symlinks=False))
        except OSError as error:
            raise source_unavailable(error, self._root, what="maildir") from None

    def _mails(self, descriptor: int, names: Sequence[str], seen: set[str]) -> Iterator[Listed]:
        """The mails of one folder. Raises OSError; FileNotFoundError when one could not be caught."""
        folder = "/".join(names[:-1])
        missed: FileNotFoundError | None = None
        for _ in range(_LOOKS):
            # A mail that is read or flagged is renamed: between two system calls it is found under neither name.
            missed, before = None, os.fstat(descriptor).st_mtime_ns
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    unique = _unique(entry.name)
                    if entry.name.startswith(".") or unique in seen:
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError as error:
                        missed = error
                        continue
                    seen.add(unique)
                    yield self._listed(folder, "/".join([*names, entry.name]), unique, status)
            if missed is None and os.fstat(descriptor).st_mtime_ns == before:
                return
        if missed is not None:
            raise missed

    def _listed(self, folder: str, path: str, unique: str, status: os.stat_result) -> Listed:
        skip: tuple[Reason, str] | None
        if stat.S_ISLNK(status.st_mode):
            skip = Reason.SYMBOLIC_LINK, ""
        elif not stat.S_ISREG(status.st_mode):
            skip = Reason.NOT_A_FILE, stat.filemode(status.st_mode)
        else:
            skip = self._rules.verdict(size_bytes=status.st_size, modified=status.st_mtime)
        identity = f"{folder}/{unique}" if folder else unique
        return Listed(
            key=ItemKey(key_of(identity)),
            fingerprint=Fingerprint(_mail_stamp(status)),
            path=shown(identity),
            size_bytes=status.st_size,
            modified=status.st_mtime,
            kind=Kind.MAIL,
            locator={"path": key_of(path)},
            skip=skip[0] if skip else None,
            skip_detail=skip[1] if skip else "",
        )


class Repeats:
    """Keys for things whose names may come more than once: the second gets "-2"."""

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def key(self, identity: bytes) -> ItemKey:
        """The key of the next thing that is called `identity` (a SHA-256 digest)."""
        short = identity[: DIGEST_DIGITS // 2]
        count = self._seen[short] = self._seen.get(short, 0) + 1
        return ItemKey(short.hex() if count == 1 else f"{short.hex()}-{count}")


def file_cursor(status: os.stat_result) -> str:
    """What says that a file as a whole is unchanged."""
    return json.dumps([status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns])


@dataclass(frozen=True, slots=True, kw_only=True)
class MailSlice:
    """Where a mail stands in an mbox file.

    offset, length  of its bytes, as they are quoted there
    sha256          of these bytes, its first DIGEST_DIGITS hex digits
    identity        a digest of its Message-ID, of its bytes where it has none
    separator       what follows "From " in the line before it
    """

    offset: int
    length: int
    sha256: str
    identity: bytes
    separator: bytes


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


class _Growing:
    """The mail being read: where it began and what was seen of it."""

    def __init__(self, offset: int, separator: bytes) -> None:
        self._offset = offset
        self._separator = separator
        self._length = 0
        self._head = b""
        self._digest: _Hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self._digest.update(data)
        self._length += len(data)
        if len(self._head) < _HEADER_BYTES:
            self._head += data[: _HEADER_BYTES - len(self._head)]

    def finish(self) -> MailSlice:
        return MailSlice(
            offset=self._offset,
            length=self._length,
            sha256=self._digest.hexdigest()[:DIGEST_DIGITS],
            identity=self._identity(),
            separator=self._separator,
        )

    def _identity(self) -> bytes:
        end = _HEADER_END.search(self._head)
        found = _MESSAGE_ID.search(self._head, 0, end.start() + 1 if end else len(self._head))
        name = found.group(1).strip() if found else b""
        # A name that is there but empty would be shared by all such mails, and their keys would follow their order.
        return hashlib.sha256(name).digest() if name else self._digest.digest()


def split_mails(descriptor: int, size: int, path: str) -> Iterator[MailSlice]:
    """The mails within the first `size` bytes. Neither the From line nor the blank line before it belongs to a mail.

    `path` is named in complaints. Raises SourceUnavailable when the file begins with anything but a From line.
    """
    buffer = os.pread(descriptor, min(BLOCK_BYTES, size), 0)
    position = len(buffer)  # of the file, after the buffer
    if not buffer.strip(b"\r\n"):
        return
    first = _FIRST.match(buffer)
    if first is None:
        message = f"{shown(path)} is not an mbox file: it does not begin with a line 'From ...'; check the path"
        raise SourceUnavailable(Reason.SOURCE_UNREADABLE, message)
    dated = _TIME_OF_DAY.search(first.group(1)) is not None
    mail = _Growing(first.end(), first.group(1))
    buffer = buffer[first.end() :]
    # The last bytes are looked at together with the next block: a separator may lie across.
    # The newline of the From line may begin the next separator, so it is kept in sight.
    sight = b"\n"
    while True:
        block = os.pread(descriptor, min(BLOCK_BYTES, size - position), position)
        position += len(block)
        buffer += block
        at_end = not block
        decided = len(buffer) if at_end else max(0, len(buffer) - _OVERLAP_BYTES)
        base = position - len(buffer)
        done = 0
        text = sight + buffer
        for match in _SEPARATOR.finditer(text):
            start = match.start()  # in `buffer`: one past the newline that ends the mail, as `text` is longer by one
            if start >= decided and not at_end:
                break
            if dated and not _TIME_OF_DAY.search(match.group(1)) and not _UNDATED.match(text, match.start()):
                continue
            mail.add(buffer[done:start])
            yield mail.finish()
            done = match.end() - 1
            done += 2 if buffer[done : done + 2] == b"\r\n" else 1
            mail = _Growing(base + done, match.group(1))
        if at_end:
            # With the newline before: a mail of nothing but a blank line ends at once.
            mail.add(_without_last_blank(text[done:])[1:])
            yield mail.finish()
            return
        cut = max(done, decided)
        mail.add(buffer[done:cut])
        sight = buffer[cut - 1 : cut] if cut else sight
        buffer = buffer[cut:]


def _without_last_blank(data: bytes) -> bytes:
    # The blank line that ends a mail is there before the next one is appended; its bytes must not make a change.
    if data.endswith(b"\n\r\n"):
        return data[:-2]
    if data.endswith(b"\n\n"):
        return data[:-1]
    return data


def _separator_date(line: bytes) -> float | None:
    match = _DATE.search(line)
    if match is None:
        return None
    month, day, hour, minute, second, year = match.groups()
    fields = int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second or 0)
    try:
        return float(calendar.timegm(fields))
    except (ValueError, OverflowError):
        return None


def unquoted(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Take one ">" off quoted "From " lines, in whole lines; a line longer than a block passes in parts."""
    carry, at_line_start = b"", True
    for piece in pieces:
        carry += piece
        cut = carry.rfind(b"\n") + 1
        if not cut and len(carry) < BLOCK_BYTES:
            continue
        part, carry = (carry[:cut], carry[cut:]) if cut else (carry, b"")
        yield (_QUOTED_FROM if at_line_start else _QUOTED_FROM_LATER).sub(rb"\1", part)
        at_line_start = bool(cut)
    yield (_QUOTED_FROM if at_line_start else _QUOTED_FROM_LATER).sub(rb"\1", carry)


def _unique(name: str) -> str:
    """What names a mail in a maildir for ever: all before the flags (":2,S")."""
    return name.partition(":2,")[0]


def _mail_stamp(status: os.stat_result) -> str:
    # No ctime: it moves with every flag, as flags are kept in the name. Mails in a maildir are never rewritten.
    return f"{status.st_size}-{status.st_mtime_ns}"


def _copy_mail(root: int, names: Sequence[str], target: Path, max_size_bytes: int) -> Fetched:
    with open_file(root, names) as descriptor:
        return copy_file(descriptor, target, shown("/".join(names)), _mail_stamp, max_size_bytes=max_size_bytes)


def _find_moved(root: int, names: Sequence[str]) -> Sequence[str] | None:
    unique = _unique(names[-1])
    for place in ("cur", "new"):
        folder = [*names[:-2], place]
        try:
            descriptor = _open_all(root, folder)
        except OSError:
            continue
        try:
            for name in os.listdir(descriptor):
                if _unique(name) == unique:
                    return [*folder, name]
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return None


def _open_all(root: int, names: Sequence[str]) -> int:
    descriptor = os.dup(root)
    for name in names:
        try:
            deeper = open_folder(name, descriptor)
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor
