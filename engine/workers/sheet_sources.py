"""Files whose pages are pictures, for OCR: PDFs and images -> gray pictures, one page at a time.

Rule: bounded before it is decoded, by what the file says of itself, and never more than one page in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.ports import Place, StageFailed
from engine.reasons import Reason
from engine.workers.reading import MAX_SHEET_PIXELS, PAGE_DPI, ask_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from engine.workers.sheets import Picture

#: Rows that are converted at a time, where a conversion takes several times the memory of the picture.
_BAND_ROWS: Final = 256
#: Letters lighter than this are not meant for white paper: logos and signatures for dark pages are white or nearly so.
_LIGHT_GRAY: Final = 230
#: Of the colour spaces that a picture in a PDF may have; of those that are not named, one at least.
_COLOURS: Final = {"DeviceRGB": 3, "CalRGB": 3, "Lab": 3, "DeviceCMYK": 4}

#: What a file is known by: inboxes are used again, with the same names.
Identity = tuple[str, int, int, int]


class Source(Protocol):
    """A file that is open.

    identity  tells it from another of the same name
    finer     its pages can be had finer than they are at first
    """

    identity: Identity
    finer: bool

    def picture(self, number: int, place: Place, scale: float = 1.0) -> Picture:
        """A page, numbered from 1, gray. `scale`: how many times finer than usual, of those that can be had finer.

        Raises StageFailed: ocr_failed (no such page), damaged, bomb, out_of_memory.
        """
        ...

    def close(self) -> None: ...


def identity_of(path: Path) -> Identity:
    """Of the file that is there now."""
    status = path.stat()
    return (str(path), status.st_ino, status.st_size, status.st_mtime_ns)


def open_source(path: Path, media_type: str) -> Source:
    """Raises StageFailed: encrypted, damaged, bomb."""
    identity = identity_of(path)
    return _PdfFile(path, identity) if media_type == "application/pdf" else _ImageFile(path, media_type, identity)


class _PdfFile:
    """A PDF whose pages are rendered one by one."""

    finer = True

    def __init__(self, path: Path, identity: Identity) -> None:
        from engine.workers import read_pdf

        self.identity = identity
        self._module = read_pdf
        self._pdf = read_pdf.open_pdf(path)
        #: Pictures that were looked through: some programs name all of a book on each of its pages.
        self._few_scans: set[int] = set()

    def picture(self, number: int, place: Place, scale: float = 1.0) -> Picture:
        import numpy
        import pymupdf

        if not 1 <= number <= self._pdf.page_count:
            raise StageFailed(Reason.OCR_FAILED, f"there is no page {number}; the file has {self._pdf.page_count}")
        try:
            page = self._pdf.load_page(number - 1)
            self._refuse_many_scans(page)
            need, what = _largest_picture(page)
            ask_memory(place, need, what)
            dpi = fitting_dpi(page.rect.width / 72, page.rect.height / 72, scale)
            matrix = pymupdf.Matrix(dpi / 72, dpi / 72)
            pixels = page.get_pixmap(matrix=matrix, colorspace=pymupdf.csGRAY, alpha=False)
            self._module.miss_nothing_for_memory()
        except self._module.TROUBLE as error:
            raise self._module.refused(error, f"page {number}") from error
        finally:
            pymupdf.TOOLS.store_shrink(100)
        rows = numpy.frombuffer(pixels.samples, numpy.uint8).reshape(pixels.height, pixels.stride)
        return rows[:, : pixels.width]

    def close(self) -> None:
        self._pdf.close()

    def _refuse_many_scans(self, page: Any) -> None:
        """Of the pictures in JPEG on a page. Raises StageFailed(BOMB)."""
        from engine.workers.image_heads import refuse_scans_of

        for number, *_, form, _ in page.get_images(full=True):
            if form == "DCTDecode" and number not in self._few_scans:
                refuse_scans_of([self._pdf.xref_stream_raw(number)])
                self._few_scans.add(number)


def _largest_picture(page: Any) -> tuple[int, str]:
    """(bytes, what for) that MuPDF surely takes for the largest picture on a page: a byte for each colour of a pixel.

    Those in JPEG are not among them: they are decoded at the size that is needed.
    """
    largest, what = 0, "the page"
    for _, _, width, height, _, colours, _, _, form, *_ in page.get_images(full=True):
        need = width * height * _COLOURS.get(colours, 1)
        if need > largest and form != "DCTDecode":
            largest, what = need, f"decoding a picture of {width} x {height} pixels"
    return largest, what


def fitting_dpi(width_inches: float, height_inches: float, scale: float = 1.0) -> float:
    """PAGE_DPI times the scale, or less for sheets that would have more than MAX_SHEET_PIXELS."""
    return min(PAGE_DPI * scale, math.sqrt(MAX_SHEET_PIXELS / max(1e-9, width_inches * height_inches)))


class _ImageFile:
    """A picture, or the frames of a TIFF. Opened anew for every page, so that no decoded frame outlives its page."""

    finer = False

    def __init__(self, path: Path, media_type: str, identity: Identity) -> None:
        from engine.workers import read_image

        self.identity = identity
        self._module = read_image
        self._path = path
        self._media_type = media_type

    def picture(self, number: int, place: Place, scale: float = 1.0) -> Picture:
        with self._module.open_image(self._path, self._media_type, place) as image:
            if self._media_type == "image/tiff":
                self._module.seek_frame(image, number - 1)
            try:
                size = f"{image.width} x {image.height} pixels"
                if image.format == "JPEG":
                    # Decoded at half its size where that is not less than what is kept of it.
                    image.draft("L", _kept_size(image))
                ask_memory(place, self._module.decoding_bytes(image) + image.width * image.height, f"reading {size}")
                return _picture_of(image)
            except self._module.TROUBLE as error:
                raise self._module.refused(error, f"page {number}") from error

    def close(self) -> None:
        """Nothing is kept open."""


def _picture_of(image: Image) -> Picture:
    """Gray, as the orientation tag turns it, within MAX_SHEET_PIXELS."""
    import numpy

    gray = _upright(_gray(image))
    size = _kept_size(gray)
    return numpy.asarray(gray if size == gray.size else gray.resize(size, reducing_gap=2.0))


def _kept_size(image: Image) -> tuple[int, int]:
    """Its own, or what of it lies within MAX_SHEET_PIXELS."""
    factor = math.sqrt(MAX_SHEET_PIXELS / (image.width * image.height))
    if factor >= 1.0:
        return image.size
    return max(1, int(image.width * factor)), max(1, int(image.height * factor))


def _upright(image: Image) -> Image:
    """Turned as its tag says. Where that cannot be read, the picture can all the same."""
    from PIL import ImageOps

    from engine.workers.read_image import TROUBLE

    try:
        return ImageOps.exif_transpose(image)
    except TROUBLE:
        return image


def _gray(image: Image) -> Image:
    """One byte a pixel, on paper where the picture is transparent; deeper than 8 bits: stretched to its own range."""
    from engine.workers.read_image import load_rows

    image, _ = load_rows(image)
    if image.mode.startswith(("I", "F")):
        return _stretched(image)
    if image.mode == "LAB":
        return image.getchannel("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_paper(image)
    return image if image.mode == "L" else _in_bands(image, lambda band: band.convert("L"))


def _stretched(image: Image) -> Image:
    import numpy
    import PIL.Image

    values = numpy.asarray(image)
    low, high = float(numpy.float32(values.min())), float(numpy.float32(values.max()))
    gray = numpy.empty(values.shape, numpy.uint8)
    for top in range(0, image.height, _BAND_ROWS):
        band = values[top : top + _BAND_ROWS].astype(numpy.float32)
        gray[top : top + _BAND_ROWS] = ((band - low) * (255.0 / (high - low or 1.0))).astype(numpy.uint8)
    stretched = PIL.Image.fromarray(gray)
    stretched.info = dict(image.info)
    return stretched


def _on_paper(image: Image) -> Image:
    """On black where all that is painted is light: on white there would be nothing to see."""
    gray = _laid_on(image, "white")
    is_light = not any(gray.histogram()[:_LIGHT_GRAY])
    return _laid_on(image, "black") if is_light else gray


def _laid_on(image: Image, paper: str) -> Image:
    import PIL.Image

    def gray_of(band: Image) -> Image:
        layer = band.convert("RGBA")
        sheet = PIL.Image.new("RGBA", layer.size, paper)
        sheet.alpha_composite(layer)
        return sheet.convert("L")

    return _in_bands(image, gray_of)


def _in_bands(image: Image, gray_of: Callable[[Image], Image]) -> Image:
    """What it takes on the way, such as all of it in RGB, is there for a few rows at a time."""
    import PIL.Image

    gray = PIL.Image.new("L", image.size)
    gray.info = dict(image.info)
    for top in range(0, image.height, _BAND_ROWS):
        band = image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height)))
        gray.paste(gray_of(band), (0, top))
    return gray
