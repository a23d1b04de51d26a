"""Scans as office machines make them: PDFs of A4 and A3 pages at 300 dpi, an image a page, no text layer.

Rule: the same pages give the same bytes. The pages of the corpus that are whole A4 sheets of 300 dpi follow each other;
an A3 sheet holds two of them side by side. Each page carries its number, so that no two are alike; in turn they are
gray JPEG, colour JPEG and black and white (CCITT group 4). The PDF is written by hand, page after page: libraries keep
all of it in memory, or decode what is to go in as it is. A poster is a picture file of its own: small on the disk, and
hundreds of megabytes where it is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_A4 = (2480, 3508)
_DPI = 300
_POSTER = (7016, 9921)
#: As scanners do by default: an A4 page of text has about a megabyte in colour.
_QUALITY = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """An encoded page: its size in pixels, and what the PDF says of it."""

    width: int
    height: int
    words: str
    data: bytes


def write_scan(path: Path, sheet: str, pages: int, sources: list[Path]) -> None:
    """A PDF of so many pages of "A4" or "A3". sources: images of pages, see find_sources."""
    with open(path, "wb") as file:
        _write_pdf(file, (_encoded(_drawn(sheet, number, sources), number) for number in range(pages)))


def write_poster(folder: Path, number: int, sources: list[Path]) -> Path:
    """A picture of A3 at 600 dpi, 70 million pixels: in turn colour PNG, colour TIFF, and PNG with transparency."""
    with Image.open(sources[number % len(sources)]) as source:
        page = source.convert("RGB").resize(_POSTER, Image.Resampling.NEAREST)
    words = f"Poster {number + 1}"
    ImageDraw.Draw(page).text((800, 200), words, font=ImageFont.load_default(size=200), fill="black")
    path = folder / f"poster{number + 1}.{'tif' if number % 3 == 1 else 'png'}"
    if number % 3 == 1:
        page.save(path, "TIFF", compression="tiff_adobe_deflate", dpi=(600, 600))
    else:
        if number % 3 == 2:
            page.putalpha(
                Image.linear_gradient("L").resize(_POSTER).point([255 if value else 0 for value in range(256)])
            )
        page.save(path, "PNG", compress_level=1, dpi=(600, 600))
    return path


def find_sources(folder: Path) -> list[Path]:
    """The images in the folder that are A4 pages at 300 dpi, by name."""
    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            if abs(image.width - _A4[0]) <= 8 and abs(image.height - _A4[1]) <= 8:
                found.append(path)
    return found


def _drawn(sheet: str, number: int, sources: list[Path]) -> Image.Image:
    halves = 1 if sheet == "A4" else 2
    page = Image.new("RGB", (_A4[0] * halves, _A4[1]), "white")
    for half in range(halves):
        with Image.open(sources[(number * halves + half) % len(sources)]) as source:
            page.paste(source.convert("RGB"), (_A4[0] * half, 0))
    words = f"Sheet {number + 1} of a scan in {sheet}"
    ImageDraw.Draw(page).text((300, 60), words, font=ImageFont.load_default(size=56), fill="black")
    return page


def _encoded(page: Image.Image, number: int) -> _Picture:
    buffer = io.BytesIO()
    if number % 3 == 2:
        # One strip for the whole page (TIFF tag 278), which is what a PDF takes.
        page.convert("1").save(buffer, "TIFF", compression="group4", tiffinfo={278: page.height})
        with Image.open(buffer) as tiff:
            (start,), (length,) = tiff.tag_v2[273], tiff.tag_v2[279]  # type: ignore[attr-defined]
            # Tag 262 is 0 where white is written as 0, as fax machines do.
            black = "true" if tiff.tag_v2[262] == 1 else "false"  # type: ignore[attr-defined]
        said = f"/K -1 /Columns {page.width} /Rows {page.height} /BlackIs1 {black}"
        words = f"/ColorSpace /DeviceGray /BitsPerComponent 1 /Filter /CCITTFaxDecode /DecodeParms << {said} >>"
        data = buffer.getvalue()[start : start + length]
    else:
        gray = number % 3 == 0
        (page.convert("L") if gray else page).save(buffer, "JPEG", quality=_QUALITY)
        words = f"/ColorSpace /Device{'Gray' if gray else 'RGB'} /BitsPerComponent 8 /Filter /DCTDecode"
        data = buffer.getvalue()
    return _Picture(width=page.width, height=page.height, words=words, data=data)


def _write_pdf(file: io.BufferedWriter, pictures: Iterator[_Picture]) -> None:
    """ISO 32000-1, 7.5: objects 1 (catalog), 2 (page tree), then page, content and image of each page."""
    places: dict[int, int] = {}

    def put(number: int, words: str, data: bytes | None = None) -> None:
        places[number] = file.tell()
        file.write(f"{number} 0 obj\n{words}\n".encode())
        if data is not None:
            file.write(b"stream\n" + data + b"\nendstream\n")
        file.write(b"endobj\n")

    file.write(b"%PDF-1.4\n")
    kids = []
    for index, picture in enumerate(pictures):
        page = 3 + 3 * index
        kids.append(f"{page} 0 R")
        width, height = picture.width * 72 / _DPI, picture.height * 72 / _DPI
        content = f"{width:.2f} 0 0 {height:.2f} 0 0 cm /Scan Do".encode()
        box = f"/MediaBox [0 0 {width:.2f} {height:.2f}]"
        put(
            page,
            f"<< /Type /Page /Parent 2 0 R {box} /Contents {page + 1} 0 R"
            f" /Resources << /XObject << /Scan {page + 2} 0 R >> >> >>",
        )
        put(page + 1, f"<< /Length {len(content)} >>", content)
        size = f"/Width {picture.width} /Height {picture.height}"
        named = f"<< /Type /XObject /Subtype /Image {size} {picture.words} /Length {len(picture.data)} >>"
        put(page + 2, named, picture.data)
    put(1, "<< /Type /Catalog /Pages 2 0 R >>")
    put(2, f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>")
    table = file.tell()
    entries = "".join(f"{places[number]:010} 00000 n \n" for number in sorted(places))
    file.write(f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{entries}".encode())
    file.write(f"trailer\n<< /Size {len(places) + 1} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode())
