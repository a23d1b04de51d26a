"""What pictures say of themselves before a library opens them: how many blocks, frames and passes they are made of.

Rule: one pass over heads, and never more than the bounds; what is damaged is left to the library, which says so.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from engine.ports import StageFailed
from engine.reasons import Reason

#: Frames of one file; faxes and scans of whole books stay below.
MAX_FRAMES: Final = 5_000
#: Entries of all directories of a TIFF, and strips or tiles that they list. Pillow takes 5 microseconds and 250 bytes
#: for each strip, and frames may share their list. With a row in each, the pages of 400 faxes have as many.
MAX_ENTRIES: Final = 1_000_000
#: The tags that list them (TIFF 6.0: StripOffsets, TileOffsets).
_PLACES_OF_STRIPS: Final = (273, 324)
#: Passes of a progressive JPEG; programs write about ten.
MAX_SCANS: Final = 500
#: Blocks before the pixels of a JPEG, a GIF or a PNG. A colour profile has at most 255 of them, comments and EXIF data
#: of 64 kB each; Pillow puts them together by copying what there is for each, which takes the square of their number.
MAX_BLOCKS: Final = 5_000
#: All blocks of a PNG: 100 MB in pieces of 8 kB, as usual, are 12,000.
MAX_CHUNKS: Final = 100_000
#: Of a progressive JPEG that ends early: the last bits of each coefficient that may be missing. With two, as many words
#: are read as of the whole picture (5 scans and book pages: .90 .62 .98 .70 .98, whole .90 .59 .98 .75 .98).
LEGIBLE_BITS: Final = 2

#: A scan's mark does not occur within the data of another (ITU T.81, B.1.1.5).
_SCAN: Final = b"\xff\xda"


def refuse_many_blocks(path: Path, media_type: str) -> None:
    """Raises StageFailed(BOMB) for a JPEG, PNG or GIF of more blocks than any program writes."""
    count = {"image/jpeg": _jpeg_blocks, "image/png": _png_blocks, "image/gif": _gif_blocks}.get(media_type)
    if count is None:
        return
    with open(path, "rb") as file:
        try:
            blocks = count(file)
        except (struct.error, IndexError):
            return  # it ends early
    if blocks > MAX_BLOCKS:
        raise StageFailed(Reason.BOMB, f"a picture of more than {blocks - 1} blocks")


def refuse_many_scans(path: Path) -> None:
    """Each scan of a progressive JPEG goes over all of its pixels, and can be a few bytes long. Raises
    StageFailed(BOMB)."""
    with open(path, "rb") as file:
        refuse_scans_of(iter(lambda: file.read(1 << 20), b""))


def refuse_scans_of(blocks: Iterable[bytes]) -> None:
    """The same of a JPEG wherever it is. Raises StageFailed(BOMB)."""
    scans, last = 0, b""
    for block in blocks:
        scans += (last + block).count(_SCAN)
        last = block[-1:]
    if scans > MAX_SCANS:
        raise StageFailed(Reason.BOMB, f"a picture in {scans} passes; at most {MAX_SCANS}")


def is_legible(path: Path) -> bool:
    """Whether of a progressive JPEG that ends early so much is there that it can be read: of the first component, the
    brightness, every coefficient but for its last bits, in scans that are followed by another."""
    with open(path, "rb") as file:
        try:
            _jpeg_blocks(file)  # thumbnails, which have scans too, stand before
        except struct.error:
            return False
        begin = file.tell()
        # Mapped: whatever its size, it takes no memory of ours. IndexError and ValueError: it ends within a head.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, suppress(IndexError, ValueError):
            return _brightness_is_there(data, begin)
    return False


def _brightness_is_there(data: mmap.mmap, begin: int) -> bool:
    places = [match.start() for match in re.compile(_SCAN).finditer(data, begin)]
    whole: set[int] = set()
    brightness = -1
    for place in places[:-1]:
        # Length; how many components, each with its tables; first and last coefficient; bits so far and left (B.2.3).
        count = data[place + 4]
        components = data[place + 5 : place + 5 + 2 * count : 2]
        first, last, bits = data[place + 5 + 2 * count : place + 8 + 2 * count]
        brightness = components[0] if brightness < 0 and components else brightness
        if brightness in components and bits & 15 <= LEGIBLE_BITS:
            whole.update(range(first, min(last, 63) + 1))
    return len(whole) == 64


def ends(path: Path) -> bool:
    """Whether a JPEG has its end mark, where only padding follows."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return file.read().rstrip(b"\0\r\n \x1a").endswith(b"\xff\xd9")


def refuse_many_frames(path: Path) -> None:
    """Raises StageFailed(BOMB) for a TIFF of more directories than MAX_FRAMES, or with more in them than MAX_ENTRIES.
    Pillow, which counts directories too, compares each with all."""
    entries = 0
    with open(path, "rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        large = head[2:4] in (b"+\0", b"\0+")  # BigTIFF: 8 bytes where the others have 2 or 4
        count, row, place = ("Q", 20, "Q") if large else ("H", 12, "I")
        try:
            at = struct.unpack_from(order + place, head, 8 if large else 4)[0]
            seen: set[int] = set()
            while at and at not in seen:  # a circle has an end too, and Pillow finds it
                if len(seen) == MAX_FRAMES:
                    raise StageFailed(Reason.BOMB, f"a picture of more than {MAX_FRAMES} frames")
                seen.add(at)
                file.seek(at)
                rows = struct.unpack(order + count, file.read(struct.calcsize(count)))[0]
                for _ in range(rows):
                    tag, _, values = struct.unpack_from(f"{order}HH{place}", file.read(row))
                    entries += values if tag in _PLACES_OF_STRIPS else 1
                    if entries > MAX_ENTRIES:
                        raise StageFailed(Reason.BOMB, f"a picture of more than {MAX_ENTRIES} strips or tags")
                at = struct.unpack(order + place, file.read(struct.calcsize(place)))[0]
        except (struct.error, OSError, OverflowError, ValueError):
            return  # it ends early, or points nowhere


def webp_size(path: Path) -> tuple[int, int]:
    """Width and height of a WebP, which stand at one of three places (RFC 9649, 2.5 to 2.7)."""
    with open(path, "rb") as file:
        head = file.read(30).ljust(30, b"\0")
    match head[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def _jpeg_blocks(file: BinaryIO) -> int:
    """Segments before the first scan (ITU T.81, B.1.1.4); the file then stands at the scan, or where it is damaged."""
    file.seek(2)
    for count in range(MAX_BLOCKS + 1):
        mark, size = struct.unpack(">HH", file.read(4))
        if mark == 0xFFDA or mark < 0xFF01:
            file.seek(-4, os.SEEK_CUR)
            return count
        if mark == 0xFFFF:  # marks may be filled up by any number of these
            file.seek(-3, os.SEEK_CUR)
        else:
            file.seek(max(0, size - 2), os.SEEK_CUR)
    return MAX_BLOCKS + 1


def _png_blocks(file: BinaryIO) -> int:
    """Chunks before the first that has pixels (ISO/IEC 15948, 5.3); of one with too many in all, as many as too many.

    Pillow goes on through what stands behind the pixels too.
    """
    file.seek(8)
    before, pixels = 0, False
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return before
        pixels = pixels or head[4:] == b"IDAT"
        before += not pixels
        if before > MAX_BLOCKS:
            return before
        file.seek(struct.unpack(">I", head[:4])[0] + 4, os.SEEK_CUR)
    return MAX_CHUNKS + 1


def _gif_blocks(file: BinaryIO) -> int:
    """Pieces of comments and the like before the first picture (GIF89a, 15 and 24)."""
    head = file.read(13)
    if head[10] & 0x80:
        file.seek(3 << (head[10] & 7) + 1, os.SEEK_CUR)
    count = 0
    while count <= MAX_BLOCKS and file.read(1) == b"!":
        file.read(1)
        while count <= MAX_BLOCKS and (size := file.read(1)[0]):
            file.seek(size, os.SEEK_CUR)
            count += 1
    return count
