"""Pictures -> pages that wait for OCR. Nothing is recognised here.

Rule: sizes are looked at before a pixel is decoded; then the picture is decoded once, to know that it is whole, or how
much of it is there.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import ExifTags, Image, ImageChops, ImageFile, UnidentifiedImageError

from engine.document import Document, Method, Page
from engine.ports import Place, StageFailed
from engine.reasons import Reason
from engine.workers.reading import Material, ask_memory, told

#: Pixels of one frame. A sheet of A0 at 250 dpi has 98 million; in colour that is 0.3 GB of memory.
MAX_PIXELS: Final = 100_000_000
#: Frames of one file; faxes and scans of whole books stay below.
MAX_FRAMES: Final = 5_000
#: Passes of a progressive JPEG; programs write about ten.
MAX_SCANS: Final = 500
#: Smaller on a side than this is an icon or a spacer: nothing legible fits into it.
MIN_SIDE: Final = 32
#: A JPEG that ends early is read when so much of its height is there: a download that broke off at its tail.
ENOUGH_ROWS: Final = 0.75

#: Memory of a pixel by Pillow's mode; of those that are not named, one byte.
_PIXEL_BYTES: Final = {
    **dict.fromkeys(("RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA", "I", "F"), 4),
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), 2),
}
#: Of a WebP: two canvases of its library, what that hands over, and Pillow's own.
_WEBP_PIXEL_BYTES: Final = 16

FORMATS: Final = {
    "image/png": ("PNG",),
    "image/jpeg": ("JPEG", "MPO"),
    "image/tiff": ("TIFF",),
    "image/webp": ("WEBP",),
    "image/gif": ("GIF",),
    "image/bmp": ("BMP", "DIB"),
}
#: What Pillow says of the texts and profiles in a PNG that unpack to more than it allows.
_UNPACKS = re.compile("Decompressed data too large|Too much memory used in text chunks")
#: What Pillow raises for files that are not what they claim; SyntaxError is its own old way of saying so.
TROUBLE: Final = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(EOFError, OverflowError, ZeroDivisionError, RuntimeError, NotImplementedError, struct.error),
    Image.DecompressionBombError,
)


def read(material: Material) -> Document:
    """A page for every frame of a TIFF, one for all others. Raises StageFailed: damaged, bomb."""
    with open_image(material.path, material.media_type, material.place) as image:
        size = f"{image.width} x {image.height} pixels"
        if image.info.get("progressive"):
            _refuse_many_scans(material.path)
        count = _frame_count(image, material.path) if material.media_type == "image/tiff" else 1
        pages, notes = [], []
        for index in range(count):
            try:
                pixels, note = _check_frame(image, index, material.place)
            except StageFailed as error:
                if index == 0 or error.failure.reason is not Reason.DAMAGED:
                    raise
                notes.append(f"pages {index + 1} to {count} could not be read: {error.failure.detail}")
                break
            notes += [note] if note else []
            needs_ocr = pixels > 0 and material.ocr
            pages.append(
                Page(number=index + 1, text="", method=Method.NONE, needs_ocr=needs_ocr, pixels=pixels * needs_ocr)
            )
            material.place.progress(index + 1, count)
        facts = {"size": size, "date": _date(image)}
    if not material.ocr:
        notes.append(f"{len(pages)} pages were not read: OCR is off")
    return material.document(pages=pages, facts=facts, notes=notes)


@contextmanager
def open_image(path: Path, media_type: str, place: Place) -> Iterator[Image.Image]:
    """An image of the named type, not decoded yet. Raises StageFailed: damaged, bomb, out_of_memory."""
    if media_type == "image/webp":
        _ask_for_webp(path, place)
    Image.MAX_IMAGE_PIXELS = None  # its limit only warns; ours is looked at below, and for every frame
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd about a file is no news of this program
        try:
            image = Image.open(path, formats=FORMATS[media_type])
        except TROUBLE as error:
            raise _damaged(error, media_type) from error
        with image:
            _refuse_large(image.width, image.height)
            yield image


def load_rows(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture, decoded, and whether it is whole; of a JPEG that ends early the rows that are there, if ENOUGH_ROWS.

    Raises what Pillow raises (TROUBLE) for one that is damaged otherwise, or has less.
    """
    try:
        image.load()
    except OSError:
        # In a progressive one every row is there from the start, however coarse: nothing tells what is missing.
        if image.format not in FORMATS["image/jpeg"] or image.info.get("progressive"):
            raise
        # Pillow keeps this setting for the whole process; nothing else in it decodes a picture meanwhile.
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        rows = _rows_decoded(image)
        if rows < ENOUGH_ROWS * image.height:
            raise
        return image.crop((0, 0, image.width, rows)), False
    return image, True


def seek_frame(image: Image.Image, index: int) -> None:
    """Go to a frame, counted from 0. Raises StageFailed: damaged, bomb."""
    try:
        if index or image.tell():
            image.seek(index)
    except TROUBLE as error:
        raise _damaged(error, f"frame {index + 1}") from error
    _refuse_large(image.width, image.height)


def _rows_decoded(image: Image.Image) -> int:
    """How many rows there are of a JPEG that ends early: libjpeg fills the rest with medium gray."""
    gray = image.convert("L")
    filling = Image.new("L", gray.size, 128)
    box = ImageChops.difference(gray, filling).point([0, 0, *[255] * 254]).getbbox()
    return box[3] if box else 0


def _refuse_large(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise StageFailed(Reason.BOMB, f"a picture of {width} x {height} pixels; at most {MAX_PIXELS} in all")


def _ask_for_webp(path: Path, place: Place) -> None:
    """Its library takes two canvases as soon as it is opened, and calls it damaged where it does not get them; decoded
    it is there twice more. Its size stands at one of three places (RFC 9649, 2.5 to 2.7). Raises StageFailed."""
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
    _refuse_large(width, height)
    ask_memory(place, width * height * _WEBP_PIXEL_BYTES, f"decoding {width} x {height} pixels")


def decoding_bytes(image: Image.Image) -> int:
    """What Pillow surely takes to decode an image that is open, in its present mode and at its present size."""
    need = image.width * image.height * _PIXEL_BYTES.get(image.mode, 1)
    if image.format in FORMATS["image/jpeg"] and image.info.get("progressive"):
        # libjpeg keeps two bytes for every coefficient of the whole picture; of the two colours, mostly a quarter.
        full_width, full_height = getattr(image, "tile", [("", (0, 0, *image.size))])[0][1][2:]
        need += int(full_width * full_height * (2 if image.mode == "L" else 3))
    return need


def _check_frame(image: Image.Image, index: int, place: Place) -> tuple[int, str]:
    """The frame's pixels, 0 when nothing legible fits into it, and a note when not all of it is there.

    Raises StageFailed.
    """
    seek_frame(image, index)
    width, height = image.size
    try:
        # JPEG can be decoded at an eighth of its size, which reads it to the end all the same.
        image.draft("L", (1, 1))
        ask_memory(place, decoding_bytes(image), f"decoding {width} x {height} pixels")
        found, whole = load_rows(image)
    except TROUBLE as error:
        raise _damaged(error, f"frame {index + 1}" if index else "the picture") from error
    rows = height * found.height // image.height
    note = "" if whole else f"partial: the picture ends early, {rows} of its {height} rows are there"
    return width * height if min(width, height) >= MIN_SIDE else 0, note


def _refuse_many_scans(path: Path) -> None:
    """Each scan of a progressive JPEG goes over all of its pixels, and can be a few bytes long. Within the data of a
    scan their mark does not occur (ITU T.81, B.1.1.5). Raises StageFailed(BOMB)."""
    scans, last = 0, b""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            scans += (last + block).count(b"\xff\xda")
            last = block[-1:]
    if scans > MAX_SCANS:
        raise StageFailed(Reason.BOMB, f"a picture in {scans} passes; at most {MAX_SCANS}")


def _has_many_frames(path: Path) -> bool:
    """Whether a TIFF has more directories than MAX_FRAMES. Pillow, which counts them too, compares each with all."""
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
                    return True
                seen.add(at)
                file.seek(at)
                rows = struct.unpack(order + count, file.read(struct.calcsize(count)))[0]
                file.seek(rows * row, os.SEEK_CUR)
                at = struct.unpack(order + place, file.read(struct.calcsize(place)))[0]
        except (struct.error, OSError, OverflowError, ValueError):
            return False  # it ends early, or points nowhere
    return False


def _frame_count(image: Image.Image, path: Path) -> int:
    if _has_many_frames(path):
        raise StageFailed(Reason.BOMB, f"a picture of more than {MAX_FRAMES} frames")
    try:
        count = int(getattr(image, "n_frames", 1))
        image.seek(0)
    except TROUBLE as error:
        raise _damaged(error, "the list of frames") from error
    if count > MAX_FRAMES:
        raise StageFailed(Reason.BOMB, f"a picture of {count} frames; at most {MAX_FRAMES}")
    return max(1, count)


def _date(image: Image.Image) -> str:
    """When a photograph was taken, as ISO 8601 without zone; "" where it is not said."""
    try:
        exif = image.getexif()
        taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    except TROUBLE:
        return ""
    match = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", str(taken))
    return "{}-{}-{}T{}".format(*match.groups()) if match else ""


def _damaged(error: BaseException, what: str) -> StageFailed:
    reason = Reason.BOMB if _UNPACKS.search(str(error)) else Reason.DAMAGED
    return StageFailed(reason, f"{what}: {type(error).__name__}: {told(error)}")
