"""Pictures -> pages that wait for OCR. Nothing is recognised here.

Rule: sizes are looked at before a pixel is decoded; then the picture is decoded once, to know that it is whole, or how
much of it is there.
"""

from __future__ import annotations

import importlib
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from PIL import ExifTags, Image, ImageChops, ImageFile, UnidentifiedImageError, features

from engine.document import Document, Method, Page
from engine.ports import Place, StageFailed
from engine.reasons import Reason
from engine.workers import image_heads
from engine.workers.reading import Material, ask_memory, told

#: Pixels of one frame. A sheet of A0 at 250 dpi has 98 million; in colour that is 0.3 GB of memory.
MAX_PIXELS: Final = 100_000_000
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
#: Of the pictures that are coded as a film is: its planes, what the library hands over, and Pillow's own.
_FILM_PIXEL_BYTES: Final = 12

FORMATS: Final = {
    "image/png": ("PNG",),
    "image/jpeg": ("JPEG", "MPO"),
    "image/tiff": ("TIFF",),
    "image/webp": ("WEBP",),
    "image/gif": ("GIF",),
    "image/bmp": ("BMP", "DIB"),
    "image/x-portable-anymap": ("PPM",),
    "image/avif": ("AVIF",),
    "image/heic": ("HEIF",),
}
#: The first has decoders only (BSD, with libheif and libde265 under the LGPL); the second an encoder under the GPL too.
_HEIC_PACKAGES: Final = ("pi_heif", "pillow_heif")
_MAY_MOVE: Final = frozenset({"image/gif", "image/png", "image/webp", "image/avif"})
#: What Pillow says where a decoder got no memory: that of TIFF takes a whole strip beside the picture.
_LACKS_MEMORY: Final = "decoder error -9"
#: What Pillow says of the texts and profiles in a PNG that unpack to more than it allows.
_UNPACKS = re.compile("Decompressed data too large|Too much memory used in text chunks")
#: What Pillow raises for files that are not what they claim; SyntaxError is its own old way of saying so.
TROUBLE: Final = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(EOFError, OverflowError, ZeroDivisionError, RuntimeError, NotImplementedError, struct.error),
    Image.DecompressionBombError,
)


def read(material: Material) -> Document:
    """A page for every frame of a TIFF, one for all others. Raises StageFailed: damaged, bomb, unsupported_type."""
    if material.media_type == "image/tiff":
        image_heads.refuse_many_frames(material.path)
    with open_image(material.path, material.media_type, material.place) as image:
        facts = {"size": f"{image.width} x {image.height} pixels", "date": _date(image)}
        if image.info.get("progressive") and image.format in FORMATS["image/jpeg"]:
            image_heads.refuse_many_scans(material.path)
        count = _frame_count(image) if material.media_type == "image/tiff" else 1
        pages, notes = [], []
        for index in range(count):
            try:
                pixels, note = _check_frame(image, index, material)
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
        if material.media_type in _MAY_MOVE and _moves(image):
            notes.append("an animation: only its first picture is read")
    if not material.ocr:
        notes.append(f"{len(pages)} pages were not read: OCR is off")
    return material.document(pages=pages, facts=facts, notes=notes)


@contextmanager
def open_image(path: Path, media_type: str, place: Place) -> Iterator[Image.Image]:
    """An image of the named type, not decoded yet. Raises StageFailed: damaged, bomb, out_of_memory,
    unsupported_type."""
    if media_type == "image/webp":
        _ask_for_webp(path, place)
    elif media_type in ("image/heic", "image/avif"):
        _learn(media_type)
        # HEIC is read into memory whole.
        ask_memory(place, path.stat().st_size, "opening the picture")
    image_heads.refuse_many_blocks(path, media_type)
    Image.MAX_IMAGE_PIXELS = None  # its limit only warns; ours is looked at below, and for every frame
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd about a file is no news of this program
        try:
            image = Image.open(path, formats=FORMATS[media_type])
        except TROUBLE as error:
            raise refused(error, media_type) from error
        with image:
            _refuse_large(image.width, image.height)
            yield image


def load_rows(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture, decoded, and whether it is whole; of a JPEG that ends early the rows that are there, if ENOUGH_ROWS.
    In a progressive one every row is there from the start, and it is read where that is not too coarse.

    Raises what Pillow raises (TROUBLE) for one that is damaged otherwise, or has less.
    """
    try:
        image.load()
    except OSError:
        if image.format not in FORMATS["image/jpeg"]:
            raise
        progressive = bool(image.info.get("progressive"))
        if progressive and not image_heads.is_legible(Path(getattr(image, "filename", ""))):
            raise
        # Pillow keeps this setting for the whole process; nothing else in it decodes a picture meanwhile.
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        if progressive:
            return image, False
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
        raise refused(error, f"frame {index + 1}") from error
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
    it is there twice more. Raises StageFailed."""
    width, height = image_heads.webp_size(path)
    _refuse_large(width, height)
    ask_memory(place, width * height * _WEBP_PIXEL_BYTES, f"decoding {width} x {height} pixels")


def decoding_bytes(image: Image.Image) -> int:
    """What Pillow surely takes to decode an image that is open, in its present mode and at its present size."""
    film = image.format in ("AVIF", "HEIF")
    need = image.width * image.height * (_FILM_PIXEL_BYTES if film else _PIXEL_BYTES.get(image.mode, 1))
    if image.format in FORMATS["image/jpeg"] and image.info.get("progressive"):
        # libjpeg keeps two bytes for every coefficient of the whole picture; of the two colours, mostly a quarter.
        full_width, full_height = getattr(image, "tile", [("", (0, 0, *image.size))])[0][1][2:]
        need += int(full_width * full_height * (2 if image.mode == "L" else 3))
    return need


def _check_frame(image: Image.Image, index: int, material: Material) -> tuple[int, str]:
    """The frame's pixels, 0 when nothing legible fits into it, and a note when that is so or not all of it is there.

    Raises StageFailed.
    """
    seek_frame(image, index)
    width, height = image.size
    place, what = material.place, f"frame {index + 1}" if index else "the picture"
    if min(width, height) < MIN_SIDE:
        pixels, note = 0, f"{what} is too small to hold words: {width} x {height} pixels"
    elif index and _is_thumbnail(image):
        pixels, note = 0, f"{what} is a small copy of another"
    else:
        pixels, note = width * height, ""
    # Where nobody will look at the pixels they are not decoded. Its end tells that a JPEG is whole, which is all that
    # Pillow could tell; the checksums of a PNG tell more than that, in a tenth of the time.
    if image.format in FORMATS["image/jpeg"] and not material.is_looked_at and image_heads.ends(material.path):
        return pixels, note
    if image.format == "PNG" and not material.is_looked_at:
        try:
            image.verify()
        except TROUBLE as error:
            raise refused(error, what) from error
        return pixels, note
    try:
        # JPEG can be decoded at an eighth of its size, which reads it to the end all the same.
        image.draft("L", (1, 1))
        ask_memory(place, decoding_bytes(image), f"decoding {width} x {height} pixels")
        found, whole = load_rows(image)
    except TROUBLE as error:
        raise refused(error, what) from error
    if not whole and image.info.get("progressive"):
        note = "partial: the picture ends early, it is coarser than it was"
    elif not whole:
        rows = height * found.height // image.height
        note = f"partial: the picture ends early, {rows} of its {height} rows are there"
    return pixels, note


def _learn(media_type: str) -> None:
    """Have Pillow read the type. Raises StageFailed(UNSUPPORTED_TYPE) where the package that does so is not there."""
    if media_type == "image/avif":
        if not features.check("avif"):
            raise StageFailed(Reason.UNSUPPORTED_TYPE, f"{media_type}: it is read with Pillow 11.3 or later")
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a worker has one core
        return
    for package in _HEIC_PACKAGES:
        with suppress(ImportError):
            plugin: Any = importlib.import_module(package)
            plugin.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
            return
    raise StageFailed(Reason.UNSUPPORTED_TYPE, f"{media_type}: it is read where the package pi-heif is installed")


def _is_thumbnail(image: Image.Image) -> bool:
    """Of a TIFF, a frame that says that it is another at a lower resolution (TIFF 6.0, NewSubfileType)."""
    kind = getattr(image, "tag_v2", {}).get(ExifTags.Base.NewSubfileType, 0)
    return isinstance(kind, int) and bool(kind & 1)


def _moves(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except TROUBLE:
        return False  # what follows the first picture is damaged: nobody looks at it


def _frame_count(image: Image.Image) -> int:
    try:
        count = int(getattr(image, "n_frames", 1))
        image.seek(0)
    except TROUBLE as error:
        raise refused(error, "the list of frames") from error
    if count > image_heads.MAX_FRAMES:
        raise StageFailed(Reason.BOMB, f"a picture of {count} frames; at most {image_heads.MAX_FRAMES}")
    return max(1, count)


def _date(image: Image.Image) -> str:
    """When a photograph was taken, as ISO 8601 without zone; "" where it is not said."""
    if image.format == "PNG" and "exif" not in image.info:
        return ""  # Pillow would decode it all to see whether something stands behind the pixels
    try:
        exif = image.getexif()
        taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    except TROUBLE:
        return ""
    match = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", str(taken))
    return "{}-{}-{}T{}".format(*match.groups()) if match else ""


def refused(error: BaseException, what: str) -> Exception:
    """What to raise for an error of Pillow: memory that ran out is a MemoryError, the rest is damage."""
    if str(error) == _LACKS_MEMORY:
        return MemoryError(f"{what}: {error}")
    reason = Reason.BOMB if _UNPACKS.search(str(error)) else Reason.DAMAGED
    return StageFailed(reason, f"{what}: {type(error).__name__}: {told(error)}")
