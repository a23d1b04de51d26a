"""The file inside an OLE object: how Word keeps a PDF, a mail or a text that was put into a document by hand.

Rule: bounded by what there is. An object is in memory as a whole; chains of its sectors end after as many steps as it
has sectors, and nothing that it says is taken for a size before it is compared with that. Damage ends in "there is
none", nothing is raised.

    [MS-CFB]     header -> table of sectors (FAT) -> directory -> streams; small ones lie in a stream of their own
    [MS-OLEDS]   2.3.6, OLENativeStream: label, path, bytes
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

#: From here on, numbers of sectors are words: free, end of a chain, part of a table.
_LAST_SECTOR: Final = 0xFFFFFFFA
_ENTRY_BYTES: Final = 128
#: Streams of fewer bytes lie in small sectors.
_CUTOFF: Final = 4096
_SMALL_BYTES: Final = 64
_STREAM, _ROOT = 2, 5
#: Entries of a directory: what a program embeds has a dozen, a document with hundreds of pictures some thousands.
_MAX_ENTRIES: Final = 20_000


def file_inside(data: bytes) -> tuple[str, bytes] | None:
    """(name, bytes) of the file that an OLE2 object holds, as it was when it was put there; None if there is none.

    The name is what the sender's program wrote, "" where it wrote none.
    """
    try:
        streams = _Streams(data)
        native = streams.read("\x01Ole10Native")
        if native is not None:
            return _packaged(native)
        for name in ("CONTENTS", "Package"):  # a PDF of Acrobat's; a document of Office's
            found = streams.read(name)
            if found is not None:
                return "", found
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _packaged(native: bytes) -> tuple[str, bytes] | None:
    size, kind = struct.unpack_from("<IH", native, 0)
    if kind != 2:
        return "", native[4 : 4 + size]
    label_end = native.index(b"\0", 6)
    at = native.index(b"\0", label_end + 1) + 1 + 4
    at += 4 + struct.unpack_from("<I", native, at)[0]  # the path that it was copied to meanwhile
    size = struct.unpack_from("<I", native, at)[0]
    return native[6:label_end].decode("cp1252", "replace"), native[at + 4 : at + 4 + size]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    kind: int
    start: int
    size: int


class _Streams:
    """The streams of an OLE2 file, by name, whatever storage they are in. Raises struct.error, ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        shift, small_shift = struct.unpack_from("<HH", data, 30)
        directory, _, cutoff, small, _, more = struct.unpack_from("<IIIIII", data, 48)
        if shift not in (9, 12) or small_shift != 6 or cutoff != _CUTOFF:
            raise ValueError("not as the format demands it")
        self._size = 1 << shift
        self._limit = len(data) // self._size + 1
        self._table = self._numbers(self._tables(more))
        self._entries = list(self._listed(self._joined(directory)))
        self._small_table = self._numbers(self._chain(small))
        root = next((entry for entry in self._entries if entry.kind == _ROOT), None)
        self._small = self._joined(root.start)[: root.size] if root is not None else b""

    def read(self, name: str) -> bytes | None:
        """The bytes of the first stream of that name, None when there is none."""
        entry = next((entry for entry in self._entries if entry.kind == _STREAM and entry.name == name), None)
        if entry is None:
            return None
        if entry.size >= _CUTOFF:
            return self._joined(entry.start)[: entry.size]
        pieces, at = [], entry.start
        for _ in range(_CUTOFF // _SMALL_BYTES):
            if at >= len(self._small_table):
                break
            pieces.append(self._small[at * _SMALL_BYTES : (at + 1) * _SMALL_BYTES])
            at = self._small_table[at]
        return b"".join(pieces)[: entry.size]

    def _tables(self, more: int) -> Iterator[int]:
        """The sectors that the table of sectors is in: 109 are named by the header, others by sectors of their own."""
        yield from struct.unpack_from("<109I", self._data, 76)
        for _ in range(self._limit):
            if more >= _LAST_SECTOR:
                return
            *numbers, more = struct.unpack_from(f"<{self._size // 4}I", self._data, (more + 1) * self._size)
            yield from numbers

    def _numbers(self, sectors: Iterator[int]) -> array[int]:
        numbers = array("I")
        for sector, _ in zip(sectors, range(self._limit), strict=False):
            if sector < _LAST_SECTOR:
                numbers.extend(struct.unpack_from(f"<{self._size // 4}I", self._data, (sector + 1) * self._size))
        return numbers

    def _chain(self, sector: int) -> Iterator[int]:
        for _ in range(self._limit):
            if sector >= len(self._table):
                return
            yield sector
            sector = self._table[sector]

    def _joined(self, sector: int) -> bytes:
        sectors = self._chain(sector)
        return b"".join(self._data[(each + 1) * self._size : (each + 2) * self._size] for each in sectors)

    def _listed(self, directory: bytes) -> Iterator[_Entry]:
        for at in range(0, min(len(directory), _MAX_ENTRIES * _ENTRY_BYTES), _ENTRY_BYTES):
            length, kind = struct.unpack_from("<HB", directory, at + 64)
            start, size = struct.unpack_from("<II", directory, at + 116)
            if 2 <= length <= 64:
                name = directory[at : at + length - 2].decode("utf-16-le", "replace")
                yield _Entry(name, kind, start, size)
