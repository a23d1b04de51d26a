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

from engine.errors import MalformedMessage

#: What stands outside of strings in a document of 50,000 pages and 1,000 parts: 3 MB. As nothing but empty lists so
#: many bytes would still take 25 times their size in our own memory.
MAX_FRAME_BYTES = 4 << 20
#: Smaller than this a JSON file cannot do harm, whatever it says.
_HARMLESS_BYTES = 1 << 20
#: Nothing is tried twice, and a string without end ends with the data: what is no JSON takes no longer than what is.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
#: Bytes that do not begin a character in UTF-8.
_CONTINUATIONS = bytes(range(0x80, 0xC0))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BLOCK_BYTES = 1 << 20


def read_json(outbox: Path, result: Mapping[str, Any], field: str, *, most: int, most_chars: int) -> object:
    """The JSON file that `result[field]` names: at most `most` bytes, and `most_chars` characters, as it is written.

    Both are looked at before it is taken apart, and so is what stands outside of its strings: one character that needs
    4 bytes makes Python keep 4 for each, and lists within lists take twenty times the bytes that say so.
    """
    data = read_bytes(outbox, result, field, most)
    if len(data) > _HARMLESS_BYTES:
        if len(data.translate(None, _CONTINUATIONS)) > most_chars:
            raise MalformedMessage(f"{field} has more than {most_chars} characters")
        check_frame(data, field)
    return _loads(data, field)


def read_json_lines(
    outbox: Path, result: Mapping[str, Any], field: str, *, most: int, most_of_a_line: int
) -> Iterator[object]:
    """The values of the file that `result[field]` names, a line each, of which only one is in memory at a time."""
    with _opened(outbox, result.get(field), most) as (descriptor, size), open(descriptor, "rb", closefd=False) as file:
        if size <= _HARMLESS_BYTES:
            # All of them at once, which takes a third of the time. A text holds no line breaks as they are.
            data = file.read(_HARMLESS_BYTES + 1)
            if len(data) != size:
                raise MalformedMessage(f"{field} changed while it was read")
            yield from _lines(data, field, most_of_a_line)
            return
        total = 0
        while line := file.readline(most_of_a_line + 1):
            total += len(line)
            if len(line) > most_of_a_line:
                raise MalformedMessage(f"{field} has a line of more than {most_of_a_line} bytes")
            if total > size:
                raise MalformedMessage(f"{field} changed while it was read")
            yield _loads(line, field)
        if total != size:
            raise MalformedMessage(f"{field} changed while it was read")


def check_frame(data: bytes, field: str) -> None:
    """Before JSON is taken apart: what stands outside of its strings is little. Raises MalformedMessage."""
    frame = end = 0
    for string in _STRING.finditer(data):
        frame += string.start() - end + 2
        end = string.end()
        if frame > MAX_FRAME_BYTES:
            break
    if frame + len(data) - end > MAX_FRAME_BYTES:
        raise MalformedMessage(f"{field} has more than {MAX_FRAME_BYTES} bytes outside of texts")


def _lines(data: bytes, field: str, most_of_a_line: int) -> list[object]:
    lines = data.removesuffix(b"\n").split(b"\n")
    if max(map(len, lines)) > most_of_a_line:
        raise MalformedMessage(f"{field} has a line of more than {most_of_a_line} bytes")
    values = _loads(b"[" + b",".join(lines) + b"]", field)
    assert isinstance(values, list)
    return values


def _loads(data: bytes, field: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{field} is not JSON") from error


def read_bytes(outbox: Path, result: Mapping[str, Any], field: str, most: int) -> bytes:
    """The bytes of the file that `result[field]` names, at most `most` of them."""
    with _opened(outbox, result.get(field), most) as (descriptor, size):
        blocks: list[bytes] = []
        total = 0
        while total <= size and (block := os.read(descriptor, _BLOCK_BYTES)):
            blocks.append(block)
            total += len(block)
    if total != size:
        raise MalformedMessage(f"{field} changed while it was read")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


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
