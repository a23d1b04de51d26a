"""Take what a worker has left in its outbox, trusting nothing.

Rule: only regular files, directly in the outbox, opened without following links, with one name in the file system, and
never more bytes than are allowed. Everything else is a lie and raises MalformedMessage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.document import MAX_TEXT_CHARS
from engine.errors import MalformedMessage

#: A document of the longest text allowed, in which every character is written as an escape of six bytes.
MAX_JSON_BYTES = 6 * MAX_TEXT_CHARS + (16 << 20)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BLOCK_BYTES = 1 << 20


def read_json(outbox: Path, result: Mapping[str, Any], field: str) -> object:
    """The JSON file that `result[field]` names."""
    data = read_bytes(outbox, result, field, MAX_JSON_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{field} is not JSON") from error


def read_bytes(outbox: Path, result: Mapping[str, Any], field: str, most: int) -> bytes:
    """The bytes of the file that `result[field]` names, at most `most` of them."""
    with _opened(outbox, result.get(field), most) as (descriptor, size):
        data = bytearray()
        while len(data) <= size and (block := os.read(descriptor, _BLOCK_BYTES)):
            data += block
    if len(data) != size:
        raise MalformedMessage(f"{field} changed while it was read")
    return bytes(data)


def take_file(outbox: Path, name: str, target: Path, most: int) -> tuple[str, int]:
    """Copy the file `name` to the new file `target` (0600); answers with its sha256 (hex) and its size.

    A copy and not a rename: the worker may hold the file open, and write to it after we have looked.
    """
    digest, total = hashlib.sha256(), 0
    with _opened(outbox, name, most) as (descriptor, _):
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(out, "wb") as file:
            while block := os.read(descriptor, _BLOCK_BYTES):
                total += len(block)
                if total > most:
                    target.unlink()
                    raise MalformedMessage(f"{name} grew beyond {most} bytes while it was copied")
                digest.update(block)
                file.write(block)
    return digest.hexdigest(), total


@contextlib.contextmanager
def _opened(outbox: Path, name: object, most: int) -> Iterator[tuple[int, int]]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MalformedMessage(f"{name!r:.100} is not the name of a result")
    try:
        # The outbox as well: a worker may have put a link in its place.
        folder = os.open(outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise MalformedMessage(f"result {name} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise MalformedMessage(f"result {name} is not a plain file")
        if status.st_size > most:
            raise MalformedMessage(f"result {name} has {status.st_size} bytes; at most {most} are allowed")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)
