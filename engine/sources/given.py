"""`given:mail`, `given:events`, `given:files`: what a product handed over, kept in the user's own folder.

    <user's folder>/given/mail/<digest of the id>      one line of JSON (`_Label`), then the bytes as they were given

Rule: a file is written under another name and renamed, by the holder of the user's lock alone, so that a kill or a
power cut leaves the old one or the new one. What is identical is not written again. Everything lies in the user's
folder: who destroys that destroys this, and no URI can name what was given to somebody else.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from engine.errors import SourceUnavailable
from engine.model import Fetched, Fingerprint, ItemKey, Kind, Listed
from engine.ports import FetchFailed
from engine.reasons import Reason
from engine.sources.beneath import blocks, failed, open_file, open_root, open_root_for_fetch, shown, write_new
from engine.sources.folder import pages

SCHEME: Final = "given"
#: What may be given -> what it is to the person who searches.
KINDS: Final[Mapping[str, Kind]] = {"mail": Kind.MAIL, "events": Kind.EVENT, "files": Kind.FILE}

#: Hex digits of a sha256: two ids never meet at 160 bits, and the key stays short.
_DIGITS: Final = 40
_NAME: Final = re.compile(rf"[0-9a-f]{{{_DIGITS}}}")
_DRAFT: Final = ".draft-"
#: A label is looked for in so many bytes. The longest path that is kept has 4,000 characters of 4 bytes at most.
_LABEL_BYTES: Final = 32_768
MAX_PATH_CHARS: Final = 4_000
#: A folder's time has the grain of the kernel's tick, some ms: one that moved a moment ago may move unseen.
_SETTLED_SECONDS: Final = 1.0
#: A cursor that no state of a folder is equal to.
_UNSETTLED: Final = "unsettled"


def folder_of(user_folder: Path, kind: str) -> Path:
    """Where the user's things of this kind (a key of KINDS) lie."""
    return user_folder / SCHEME / kind


def key_of_id(space: str, id_: str) -> ItemKey:
    """What an item is called for ever. space: whose id it is; the same word in two spaces names two items."""
    return ItemKey(hashlib.sha256(f"{space}\n{id_}".encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS])


def label_path(path: str) -> str:
    """A path as it is kept and shown."""
    return shown(path)[:MAX_PATH_CHARS]


def forget(user_folder: Path, kind: str) -> None:
    """Destroy all that was given of this kind. The caller holds the user's lock. Raises OSError."""
    folder = folder_of(user_folder, kind)
    if folder.exists():
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Label:
    """The first line of a file: what is shown of the item, and how to know that its bytes are whole."""

    path: str
    sha256: str
    size_bytes: int
    modified: float

    def line(self) -> bytes:
        """As long for any digest and any size, so that these can be filled in at the end."""
        table = {
            "sha256": self.sha256,
            "size": f"{self.size_bytes:020}",
            "modified": self.modified,
            "path": self.path,
        }
        return json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the bytes and the name: another name is another title, and may be another way to read them."""
        return Fingerprint(hashlib.sha256(f"{self.sha256}\n{self.path}".encode()).hexdigest()[:_DIGITS])


class Keeper:
    """Takes in what is given of one kind, for whoever holds the user's lock. What is kept counts with `settle`.

    Many at a time, because bringing each file to the disk by itself takes some 5 ms, and a thousand together not more
    than a few of them.
    """

    def __init__(self, user_folder: Path, kind: str) -> None:
        """Raises OSError when the folder cannot be made."""
        self._folder = folder_of(user_folder, kind)
        for place in (self._folder.parent, self._folder):
            place.mkdir(mode=0o700, exist_ok=True)
        for left in self._folder.glob(f"{_DRAFT}*"):
            # Of somebody who was killed while writing: the lock is ours, so nobody writes it now.
            left.unlink()
        #: Files that are complete, by what they will be called.
        self._drafts: dict[ItemKey, Path] = {}

    def keep(self, key: ItemKey, path: str, content: bytes | Iterable[bytes], *, modified: float = 0.0) -> bool:
        """Keep these bytes under the key, in place of what was there. False: it was the same already.

        path: for people. modified: seconds since the epoch, 0.0 where unknown. Raises OSError, and what `content`
        raises. A kill before `settle` leaves the old file, and drafts that the next Keeper removes.
        """
        draft = self._folder / f"{_DRAFT}{secrets.token_hex(8)}"
        label = _Label(path=label_path(path), sha256="0" * 64, size_bytes=0, modified=modified)
        if isinstance(content, bytes):
            if self._holds(key, replace(label, sha256=hashlib.sha256(content).hexdigest())):
                return False  # before anything is written: the folder's time says that nothing came into it
            content = (content,)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(label.line())
                digest, size = hashlib.sha256(), 0
                for piece in content:
                    digest.update(piece)
                    size += len(piece)
                    out.write(piece)
                label = replace(label, sha256=digest.hexdigest(), size_bytes=size)
                if self._holds(key, label):
                    draft.unlink()
                    return False
                out.seek(0)
                out.write(label.line())
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        earlier = self._drafts.pop(key, None)
        if earlier is not None:
            earlier.unlink()
        self._drafts[key] = draft
        return True

    def settle(self) -> None:
        """All that was kept so far is there from now on, and outlives a power cut. Raises OSError."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if self._drafts:
                # Before the renames: after a power cut no name must stand for half of a file.
                _sync(descriptor)
            for key, draft in self._drafts.items():
                draft.rename(self._folder / key)
            self._drafts.clear()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _holds(self, key: ItemKey, label: _Label) -> bool:
        if key in self._drafts:
            # Of two for one id in one call the later one stays, whatever is there.
            return False
        try:
            descriptor = os.open(self._folder / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            found = _label_in(descriptor)
        finally:
            os.close(descriptor)
        return found is not None and found[0].fingerprint == label.fingerprint


def _sync(descriptor: int) -> None:
    """Everything written to the file system of this open folder reaches its disk. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
    elif library.syncfs(descriptor) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class GivenSource:
    """What was given to one user, of one kind."""

    def __init__(self, uri: str, user_folder: Path, kind: str) -> None:
        self.uri = uri
        self._folder = str(folder_of(user_folder, kind))
        self._kind = KINDS[kind]
        self._cursor = ""

    def list(self, cursor: str) -> Iterator[Sequence[Listed]]:
        """Pages of items. A folder that was never listed may be missing: nothing was given yet."""
        if not cursor and not os.path.lexists(self._folder):
            return
        before = self._state()
        yield from pages(self._items())
        self._cursor = before

    def unchanged_since(self, cursor: str) -> bool:
        """True when nothing was renamed in the folder: that is how everything comes into it."""
        return cursor not in ("", _UNSETTLED) and cursor == self._state()

    def cursor(self) -> str:
        """The folder's time as it was when the last complete listing began."""
        return self._cursor

    def fetch(self, locator: Mapping[str, Any], target: Path) -> Fetched:
        """Copy the bytes as they were given, without the label. Raises FetchFailed."""
        name = str(locator["name"])
        with open_root_for_fetch(self._folder) as root, open_file(root, [name]) as descriptor:
            found = _label_in(descriptor)
            if found is None:
                raise failed(Reason.DAMAGED, "the file that was kept of it is not whole; give the item again")
            label, begin = found
            fetched = write_new(target, blocks(descriptor, begin, None, label.path))
        if fetched.sha256 != label.sha256:
            target.unlink(missing_ok=True)
            raise failed(Reason.DAMAGED, "the file that was kept of it is not what was given; give the item again")
        return Fetched(fingerprint=label.fingerprint, size_bytes=fetched.size_bytes, sha256=fetched.sha256)

    def _items(self) -> Iterator[Listed]:
        root = open_root(self._folder)
        trouble: list[str] = []
        try:
            with os.scandir(root) as entries:
                for entry in entries:
                    if _NAME.fullmatch(entry.name):
                        try:
                            yield self._listed(root, entry.name)
                        except FetchFailed as error:
                            trouble.append(error.failure.detail)
        except OSError as error:
            trouble.append(str(error.strerror))
        finally:
            os.close(root)
        if trouble:
            message = f"a part of {shown(self._folder)} could not be listed: {trouble[0]}"
            raise SourceUnavailable(Reason.SOURCE_INCOMPLETE, message)

    def _listed(self, root: int, name: str) -> Listed:
        with open_file(root, [name]) as descriptor:
            found, status = _label_in(descriptor), os.fstat(descriptor)
        # Torn by a broken disk, it is listed all the same, so that it is said to have failed.
        torn = _Label(path=name, sha256="", size_bytes=status.st_size, modified=0.0)
        label = torn if found is None else found[0]
        return Listed(
            key=ItemKey(name),
            fingerprint=label.fingerprint,
            path=label.path,
            size_bytes=label.size_bytes,
            modified=label.modified or status.st_mtime,
            kind=self._kind,
            locator={"name": name},
        )

    def _state(self) -> str:
        try:
            status = os.stat(self._folder)
        except OSError:
            return _UNSETTLED
        settled = time.time() - status.st_mtime > _SETTLED_SECONDS
        return f"{status.st_ino}-{status.st_mtime_ns}" if settled else _UNSETTLED


def _label_in(descriptor: int) -> tuple[_Label, int] | None:
    """The label of an open file, and where the bytes begin; None when the file is not whole."""
    head, newline, _ = os.pread(descriptor, _LABEL_BYTES, 0).partition(b"\n")
    try:
        table = json.loads(head)
        label = _Label(
            path=str(table["path"]),
            sha256=str(table["sha256"]),
            size_bytes=int(table["size"]),
            modified=float(table["modified"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
    begin = len(head) + 1
    return (label, begin) if newline and os.fstat(descriptor).st_size == begin + label.size_bytes else None
