"""Stage `ocr`: one page of a PDF or a picture -> its text.

Rule: one page in memory at a time, gray and bounded. Tesseract stays warm for the worker's whole life; the file that
the last page came from stays open, as its other pages usually follow.

    order -> sheet (PyMuPDF | Pillow) -> blank? -> recogniser (tesserocr | pytesseract) -> Page as JSON
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.document import MAX_TEXT_CHARS, Method, Page
from engine.ports import Place, StageFailed
from engine.reasons import Reason
from engine.workers.reading import MAX_SHEET_PIXELS, PAGE_DPI, ask_memory, clean, tidy, told
from engine.workers.tessdata import find_tessdata

if TYPE_CHECKING:
    from PIL.Image import Image

#: Below this resolution letters are too few pixels high: enlarged, clean pages of 100 dpi have 0.02 % errors instead of
#: 3.4. Only where the picture says so and is small, as cameras write 72 dpi on anything; receipts of unknown resolution
#: get worse (31 -> 40 %).
COARSE_DPI: Final = 160
COARSE_PIXELS: Final = 3_000_000
#: A pixel is dark below this gray, and a sheet with fewer dark pixels than one in 20,000 is blank: at 200 dpi that is
#: 190 pixels of an A4 page, less than two letters of 10 points. Dust on scans has more and is read as nothing.
_DARK: Final = 160
_BLANK_SHARE: Final = 1 / 20_000
#: Rows that are converted at a time, where a conversion takes several times the memory of the picture.
_BAND_ROWS: Final = 256


def open_stage(options: Mapping[str, Any]) -> OcrStage:
    """Options: {"languages": ["eng", ...], "backend": "auto" | "tesserocr" | "pytesseract"}.

    Nothing is loaded before the first page: what is missing then is that page's failure, with words for people.
    """
    languages = [str(language) for language in options.get("languages") or ["eng"]]
    return OcrStage(languages, str(options.get("backend") or "auto"))


class OcrStage:
    """A recogniser and the file that was opened last."""

    def __init__(self, languages: Sequence[str], backend: str) -> None:
        self._languages = languages
        self._backend = backend
        self._recogniser: _Recogniser | None = None
        self._opened: _Opened | None = None

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": name in the inbox, "media_type": as `extract` found it, "page": number from 1, "prefix"}.

        Writes `<prefix>.page.json` (Page.to_json: number, text, method "ocr", confidence 0 to 100) and returns
        {"page": its name}. Raises StageFailed: ocr_failed, ocr_language_missing, damaged, bomb, encrypted.
        """
        number = int(order["page"])
        if self._recogniser is None:
            self._recogniser = _open_recogniser(self._languages, self._backend)
        sheet = self._open(place.inbox / str(order["file"]), str(order["media_type"])).sheet(number, place)
        place.progress(0, 1)
        text, confidence = ("", 100.0) if sheet.is_blank() else self._recogniser.recognise(sheet)
        page = Page(
            number=number,
            text=clean(tidy(text))[:MAX_TEXT_CHARS],
            method=Method.OCR,
            confidence=min(100.0, max(0.0, float(confidence))),
        )
        name = f"{order['prefix']}.page.json"
        (place.outbox / name).write_text(json.dumps(page.to_json(), ensure_ascii=False), encoding="utf-8")
        place.progress(1, 1)
        return {"page": name}

    def _open(self, path: Path, media_type: str) -> _Opened:
        status = path.stat()
        identity = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if self._opened is None or self._opened.identity != identity:
            if self._opened is not None:
                self._opened.close()
                self._opened = None
            kind = _PdfFile if media_type == "application/pdf" else _ImageFile
            self._opened = kind(path, media_type, identity)
        return self._opened


# --- sheets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A gray page: one byte a pixel, row after row, 0 is black; `dpi` 0 where the resolution is not known."""

    gray: bytes
    width: int
    height: int
    dpi: int

    def is_blank(self) -> bool:
        """Almost no dark pixel, or almost none that is not."""
        import numpy

        dark = int((numpy.frombuffer(self.gray, numpy.uint8) < _DARK).sum())
        return min(dark, len(self.gray) - dark) < len(self.gray) * _BLANK_SHARE


class _Opened(Protocol):
    identity: tuple[str, int, int, int]

    def sheet(self, number: int, place: Place) -> Sheet: ...

    def close(self) -> None: ...


class _PdfFile:
    """A PDF whose pages are rendered one by one."""

    def __init__(self, path: Path, media_type: str, identity: tuple[str, int, int, int]) -> None:
        from engine.workers import read_pdf

        self.identity = identity
        self._module = read_pdf
        self._pdf = read_pdf.open_pdf(path)

    def sheet(self, number: int, place: Place) -> Sheet:
        import pymupdf

        if not 1 <= number <= self._pdf.page_count:
            raise StageFailed(Reason.OCR_FAILED, f"there is no page {number}; the file has {self._pdf.page_count}")
        try:
            page = self._pdf.load_page(number - 1)
            need, what = _largest_picture(page)
            ask_memory(place, need, what)
            dpi = _fitting_dpi(page.rect.width / 72, page.rect.height / 72)
            scale = pymupdf.Matrix(dpi / 72, dpi / 72)
            pixels = page.get_pixmap(matrix=scale, colorspace=pymupdf.csGRAY, alpha=False)
        except self._module.TROUBLE as error:
            raise self._module.refused(error, f"page {number}") from error
        finally:
            pymupdf.TOOLS.store_shrink(100)
        return Sheet(gray=pixels.samples, width=pixels.width, height=pixels.height, dpi=round(dpi))

    def close(self) -> None:
        self._pdf.close()


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


#: Of the colour spaces that a picture in a PDF may have; of those that are not named, one at least.
_COLOURS: Final = {"DeviceRGB": 3, "CalRGB": 3, "Lab": 3, "DeviceCMYK": 4}


class _ImageFile:
    """A picture, or the frames of a TIFF. Opened anew for every page, so that no decoded frame outlives its page."""

    def __init__(self, path: Path, media_type: str, identity: tuple[str, int, int, int]) -> None:
        from engine.workers import read_image

        self.identity = identity
        self._module = read_image
        self._path = path
        self._media_type = media_type

    def sheet(self, number: int, place: Place) -> Sheet:
        with self._module.open_image(self._path, self._media_type, place) as image:
            if self._media_type == "image/tiff":
                self._module.seek_frame(image, number - 1)
            try:
                size = f"{image.width} x {image.height} pixels"
                if image.format == "JPEG":
                    image.draft("L", image.size)
                ask_memory(place, self._module.decoding_bytes(image) + image.width * image.height, f"reading {size}")
                return _sheet_of(image)
            except self._module.TROUBLE as error:
                raise StageFailed(Reason.DAMAGED, f"page {number}: {type(error).__name__}: {told(error)}") from error

    def close(self) -> None:
        """Nothing is kept open."""


def _sheet_of(image: Image) -> Sheet:
    from PIL import ImageOps

    dpi = _said_dpi(image)
    gray = ImageOps.exif_transpose(_gray(image))
    factor = _fitting_factor(gray.width * gray.height, dpi)
    if factor != 1.0:
        size = (max(1, round(gray.width * factor)), max(1, round(gray.height * factor)))
        gray = gray.resize(size, reducing_gap=2.0)
    return Sheet(gray=gray.tobytes(), width=gray.width, height=gray.height, dpi=round(dpi * factor))


def _fitting_factor(pixels: int, dpi: float) -> float:
    """By how much a picture's sides are scaled: down where it is fine or huge, up where it is coarse."""
    fitting = math.sqrt(MAX_SHEET_PIXELS / pixels)
    if 0 < dpi < COARSE_DPI and pixels < COARSE_PIXELS:
        return min(fitting, 2.0, PAGE_DPI / dpi)
    return min(1.0, fitting, PAGE_DPI / dpi if dpi else 1.0)


def _gray(image: Image) -> Image:
    """One byte a pixel, on white where the picture is transparent; deeper than 8 bits: stretched to its own range."""
    from engine.workers.read_image import load_rows

    image, _ = load_rows(image)
    if image.mode.startswith(("I", "F")):
        return _stretched(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_paper(image)
    return image.convert("L")


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
    import PIL.Image

    gray = PIL.Image.new("L", image.size)
    gray.info = dict(image.info)
    for top in range(0, image.height, _BAND_ROWS):
        layer = image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height))).convert("RGBA")
        paper = PIL.Image.new("RGBA", layer.size, "white")
        paper.alpha_composite(layer)
        gray.paste(paper.convert("L"), (0, top))
    return gray


def _said_dpi(image: Image) -> float:
    """The resolution that the picture claims, 0 when it is none that a scanner has."""
    said = image.info.get("dpi") or (0, 0)
    try:
        dpi = float(said[0])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return 0.0
    return dpi if 70 <= dpi <= 2400 else 0.0


def _fitting_dpi(width_inches: float, height_inches: float) -> float:
    """PAGE_DPI, or less for sheets that would have more than MAX_SHEET_PIXELS."""
    return min(float(PAGE_DPI), math.sqrt(MAX_SHEET_PIXELS / max(1e-9, width_inches * height_inches)))


# --- recognisers -----------------------------------------------------------------------------------------------------


class _Recogniser(Protocol):
    def recognise(self, sheet: Sheet) -> tuple[str, float]:
        """(text, mean confidence 0 to 100). Raises StageFailed(OCR_FAILED)."""
        ...


def _open_recogniser(languages: Sequence[str], backend: str) -> _Recogniser:
    """The named backend; "auto" is tesserocr where it can be loaded, else pytesseract."""
    if backend not in ("auto", "tesserocr", "pytesseract"):
        raise StageFailed(Reason.OCR_FAILED, f"{backend!r:.100} is no OCR backend; tesserocr and pytesseract are")
    if backend != "pytesseract":
        try:
            return _Tesserocr(languages)
        except ImportError as error:
            if backend == "tesserocr":
                raise StageFailed(Reason.OCR_FAILED, f"tesserocr cannot be loaded: {error}") from error
    return _Pytesseract(languages)


class _Tesserocr:
    """Tesseract in this process, warm. Page segmentation is automatic: modes that are better for single columns break
    pages with several (character error rate 7 -> 70)."""

    def __init__(self, languages: Sequence[str]) -> None:
        import tesserocr

        folder = find_tessdata(languages)
        try:
            self._api: Any = tesserocr.PyTessBaseAPI(
                path=f"{folder}/",
                lang="+".join(languages),
                psm=tesserocr.PSM.AUTO,
                variables={"debug_file": os.devnull},
            )
        except RuntimeError as error:
            raise StageFailed(Reason.OCR_FAILED, f"Tesseract does not start with {folder}: {error}") from error

    def recognise(self, sheet: Sheet) -> tuple[str, float]:
        api = self._api
        try:
            api.SetImageBytes(sheet.gray, sheet.width, sheet.height, 1, sheet.width)
            if sheet.dpi:
                api.SetSourceResolution(sheet.dpi)
            if not api.Recognize():
                raise StageFailed(Reason.OCR_FAILED, "Tesseract gave up on the page")
            return api.GetUTF8Text(), float(api.MeanTextConf())
        except RuntimeError as error:
            raise StageFailed(Reason.OCR_FAILED, f"Tesseract: {error}") from error
        finally:
            api.Clear()


class _Pytesseract:
    """The `tesseract` program, once per page. One thread each: as it comes, it is seven times slower for fighting
    over the cores. Pages go to it as PPM, which costs 22 ms to write where PNG costs 144."""

    def __init__(self, languages: Sequence[str]) -> None:
        import pytesseract

        os.environ["OMP_THREAD_LIMIT"] = "1"
        self._module: Any = pytesseract
        self._language = "+".join(languages)
        try:
            known = set(pytesseract.get_languages(config=""))
        except (pytesseract.TesseractError, OSError) as error:
            raise StageFailed(Reason.OCR_FAILED, f"the tesseract program cannot be run: {error}") from error
        self._config = "--psm 3"
        if not known.issuperset(languages):
            # Not in the program's own folder; perhaps in one of the others.
            self._config += f' --tessdata-dir "{find_tessdata(languages)}"'

    def recognise(self, sheet: Sheet) -> tuple[str, float]:
        import PIL.Image

        image = PIL.Image.frombytes("L", (sheet.width, sheet.height), sheet.gray)
        image.format = "PPM"
        config = f"{self._config} --dpi {sheet.dpi}" if sheet.dpi else self._config
        try:
            table = self._module.image_to_data(
                image, lang=self._language, config=config, output_type=self._module.Output.DICT
            )
        except (self._module.TesseractError, OSError, RuntimeError, ValueError) as error:
            raise StageFailed(Reason.OCR_FAILED, f"the tesseract program: {error}") from error
        return _text_of(table)


def _text_of(table: Mapping[str, Sequence[Any]]) -> tuple[str, float]:
    """Words of Tesseract's TSV, in the page's lines, an empty line between paragraphs; and their mean confidence."""
    text, confidences = "", list[float]()
    last: tuple[object, ...] = ()
    for index, word in enumerate(table["text"]):
        confidence = float(table["conf"][index])
        if confidence < 0 or not str(word).strip():
            continue
        paragraph = (table["block_num"][index], table["par_num"][index])
        place = (*paragraph, table["line_num"][index])
        if last:
            text += " " if place == last else "\n" if paragraph == last[:2] else "\n\n"
        text += str(word)
        last = place
        confidences.append(confidence)
    return text, sum(confidences) / len(confidences) if confidences else 100.0
