"""Where a user's index lies, and how its folder is named, made, recognised and erased.

Rule: two users never share a folder, whatever their names; a folder's name is safe on every file system and still
tells an operator whose it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from indexes import lock

DATABASE: Final = "index.db"
FAISS_PREFIX: Final = "vectors-"
FAISS_SUFFIX: Final = ".faiss"

#: Longer names are cut and get a digest. File systems allow 255 bytes; backups and tools add to names.
MAX_NAME_BYTES: Final = 150
_READABLE_BYTES: Final = 80
#: No escaped name holds this character, so no short name is ever taken for a long one.
_DIGEST_MARK: Final = "~"
#: A leading dot is escaped too: such folders are hidden, and ours to erase (`erase`).
_ESCAPED: Final = re.compile(rb"[^a-z0-9._@+-]|\A\.")
#: Folders on their way out. No user's folder begins with a dot.
_ERASED: Final = ".erased-"


def user_dir(root: Path, user: str) -> Path:
    """The folder of a user's index beneath `root`. Different users have different folders. ValueError for no name.

    Everything but a-z 0-9 . _ @ + - is percent-encoded, capitals too: not every file system tells them apart.
    """
    if not user:
        raise ValueError("a user needs a name")
    raw = user.encode("utf-8", "surrogatepass")
    name = _escaped(raw)
    if len(name) > MAX_NAME_BYTES:
        digest = hashlib.sha256(raw).hexdigest()
        name = re.sub(r"%.?\Z", "", name[:_READABLE_BYTES]) + _DIGEST_MARK + digest
    return root / name


def user_of(name: str) -> str | None:
    """The user whose folder has this name; None if it is nobody's, or so long that the name cannot be read back."""
    try:
        raw = unquote_to_bytes(name)
        user = raw.decode("utf-8", "surrogatepass")
    except UnicodeError:
        return None
    return user if user and _escaped(raw) == name and len(name) <= MAX_NAME_BYTES else None


def make_user_dir(root: Path, user: str) -> Path:
    """`user_dir`, made if it is not there, for its owner alone (0700). Raises OSError."""
    folder = user_dir(root, user)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def stamp(folder: Path) -> str:
    """What the database looks like from outside: equal stamps mean that nothing was published in between.

    "" when there is none. As long as a log with commits lies beside the database (after a crash, or while somebody
    writes) the log is part of the stamp: what was published last may be in there only.
    """
    try:
        status = os.stat(folder / DATABASE)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    seen = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
    try:
        log = os.stat(folder / f"{DATABASE}-wal")
    except FileNotFoundError:
        return seen
    return f"{seen}+{log.st_size}-{log.st_mtime_ns}" if log.st_size else seen


def erase(folder: Path, *, lock_fd: int | None = None) -> None:
    """Destroy a user's folder with everything in it; nothing happens when there is none.

    lock_fd: a lock on the folder that the caller holds (`lock.take`) and keeps. Raises IndexBusy while somebody else
    writes it, OSError when a file resists.
    A crash half-way leaves a hidden folder beside it, under no user's name; the next `erase` there removes it.
    """
    for left_over in folder.parent.glob(f"{_ERASED}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if not folder.is_dir():
        return
    descriptor = lock.take(folder) if lock_fd is None else lock_fd
    try:
        doomed = folder.parent / f"{_ERASED}{secrets.token_hex(8)}"
        folder.rename(doomed)
        # Somebody who erases another user may be clearing this away too: what vanishes by itself is no error.
        shutil.rmtree(doomed, ignore_errors=True)
        if doomed.exists():
            shutil.rmtree(doomed)
    finally:
        if lock_fd is None:
            os.close(descriptor)


def _escaped(raw: bytes) -> str:
    return _ESCAPED.sub(lambda match: b"%%%02x" % ord(match.group()), raw).decode("ascii")
