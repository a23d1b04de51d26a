"""ZIP containers, opened and read within bounds: what a DOCX is kept in.

Rule: entries are counted before the directory is taken apart, sizes are looked at before a byte is unpacked, and
counted again while it is.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.reading import told

#: Entries of one container. The largest honest ones, presentations with a picture on every page, have some thousands.
MAX_ENTRIES: Final = 20_000
#: Bytes of the directory: MAX_ENTRIES with names, times and rights of 400 bytes each, twice what is usual.
MAX_DIRECTORY_BYTES: Final = 8 << 20
_DIRECTORY_ROW: Final = b"PK\x01\x02"
#: Bytes of one unpacked XML part. A novel of 4 million characters is 30 MB of WordprocessingML.
MAX_PART_BYTES: Final = 256 << 20
#: Deflate packs XML 10 to 50 times; its own ceiling is 1,032. Looked at beyond RATIO_FROM_BYTES only.
MAX_RATIO: Final = 300
RATIO_FROM_BYTES: Final = 16 << 20
#: What documents are packed with (ISO/IEC 29500-2, OpenDocument 1.3 part 2, EPUB OCF: stored or deflated). Of bzip2 and
#: LZMA `zipfile` unpacks a whole block of the file at once, whatever comes out: 5 GB of one that has 256 kB.
READ_METHODS: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
#: Bytes by which all entries together may be larger than they are packed.
MAX_GROWTH_BYTES: Final = 2 << 30

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, UnicodeDecodeError)


@contextmanager
def open_archive(file: BinaryIO | Path) -> Iterator[zipfile.ZipFile]:
    """A ZIP file within the bounds above. Raises StageFailed: damaged, bomb."""
    with ExitStack() as opened:
        stream = opened.enter_context(open(file, "rb")) if isinstance(file, Path) else file
        try:
            archive = zipfile.ZipFile(cast(BinaryIO, _Counting(stream)))
        except _BROKEN as error:
            raise StageFailed(Reason.DAMAGED, f"a ZIP container that cannot be opened: {told(error)}") from error
        opened.enter_context(archive)
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise StageFailed(Reason.BOMB, f"a ZIP container of {len(entries)} entries; at most {MAX_ENTRIES}")
        yield archive


class _Counting:
    """A file whose ZIP directory is read by `zipfile` in one piece, before anything is made of it: that is where rows
    are counted. What the file's end says of their number may be a lie, and `zipfile` does not go by it."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """As of any file. Raises StageFailed(BOMB)."""
        if size > MAX_DIRECTORY_BYTES:  # entries are read in blocks, and what stands at the end has 64 kB
            raise StageFailed(Reason.BOMB, f"a ZIP container with a directory of {size} bytes")
        data = self._file.read(size)
        if size > MAX_ENTRIES * len(_DIRECTORY_ROW) and (rows := data.count(_DIRECTORY_ROW)) > MAX_ENTRIES:
            raise StageFailed(Reason.BOMB, f"a ZIP container of {rows} entries; at most {MAX_ENTRIES}")
        return data


def refuse_bombs(archive: zipfile.ZipFile) -> None:
    """Raises StageFailed(BOMB) when the entries claim to unpack to more than is allowed."""
    growth = 0
    for entry in archive.infolist():
        ratio = entry.file_size / max(1, entry.compress_size)
        if entry.file_size > RATIO_FROM_BYTES and ratio > MAX_RATIO:
            raise StageFailed(Reason.BOMB, f"{entry.filename:.200} unpacks to {ratio:.0f} times its size")
        # Films in a presentation are as large packed as unpacked: what they take is there already.
        growth += max(0, entry.file_size - entry.compress_size)
        if growth > MAX_GROWTH_BYTES:
            raise StageFailed(Reason.BOMB, f"unpacks to more than {MAX_GROWTH_BYTES} bytes beyond its own")


def blocks_of(archive: zipfile.ZipFile, name: str, limit_bytes: int = MAX_PART_BYTES) -> Iterator[bytes]:
    """The unpacked bytes of an entry. Raises KeyError when it is missing, StageFailed: damaged, bomb, encrypted."""
    info = archive.getinfo(name)
    if info.compress_type not in READ_METHODS:
        raise StageFailed(Reason.DAMAGED, f"{name:.200} in the ZIP container is packed as no document is")
    if info.flag_bits & 1:
        raise StageFailed(Reason.ENCRYPTED, f"{name:.200} in the ZIP container opens only with a password")
    if info.file_size > limit_bytes:
        raise StageFailed(Reason.BOMB, f"{name:.200} unpacks to {info.file_size} bytes; at most {limit_bytes}")
    left = limit_bytes
    try:
        with archive.open(info) as entry:
            while block := entry.read(1 << 18):
                left -= len(block)
                if left < 0:
                    raise StageFailed(Reason.BOMB, f"{name:.200} unpacks to more than {limit_bytes} bytes")
                yield block
    except _BROKEN as error:
        raise StageFailed(
            Reason.DAMAGED, f"{name:.200} in the ZIP container cannot be unpacked: {told(error)}"
        ) from error
