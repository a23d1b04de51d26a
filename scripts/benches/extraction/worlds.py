"""What is read: the files of the corpus, and PDFs made of its pages.

Rule: the same corpus gives the same files. Page images are put into PDFs at the resolution they were made at, in an
order in which kinds of pages alternate; pages of text PDFs are copied with their fonts and all.
"""

from __future__ import annotations

import random
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pymupdf
from lxml import etree
from PIL import Image

from extraction.measures import words_of

#: A receipt has none of its own; at this one it is about as wide as the paper is.
_UNKNOWN_DPI = 200
#: Characters other than white space; a page of a book has 2,000, a title page a hundred.
_PAGE_OF_TEXT_CHARS = 200
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_BESIDE = frozenset(f"{_M}{name}" for name in ("num", "den", "sub", "sup", "deg", "lim"))
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageImage:
    """A picture of a page with its truth. dpi: 0 where nobody knows."""

    path: Path
    group: str
    dpi: int
    truth: str


def page_images(folder: Path, every: int = 1) -> list[PageImage]:
    """The images of the corpus that have a truth, by name; with `every` N only each Nth."""
    lines = [line.split("\t") for line in (folder / "groups.tsv").read_text(encoding="utf-8").splitlines() if line]
    return [
        PageImage(
            path=folder / name,
            group=group,
            dpi=int(dpi or 0),
            truth=(folder / f"{name}.gt.txt").read_text(encoding="utf-8", errors="replace"),
        )
        for name, group, dpi, *_ in lines[::every]
    ]


def write_scans(folder: Path, images: Sequence[PageImage], sizes: Sequence[int]) -> list[Path]:
    """One PDF for each of `sizes`, of so many pages, one picture a page. Pages go on where the file before ended."""
    folder.mkdir(parents=True)
    # Alphabetical, all books would come together and a short file hold but one kind.
    mixed = random.Random(1).sample(list(images), len(images))
    at, paths = 0, []
    for number, size in enumerate(sizes):
        path = folder / f"scan{number:02d}-{size:03d}.pdf"
        with pymupdf.open() as book:
            for image in (mixed[(at + index) % len(mixed)] for index in range(size)):
                with Image.open(image.path) as picture:
                    width, height = picture.size
                scale = 72 / (image.dpi or _UNKNOWN_DPI)
                page = book.new_page(width=width * scale, height=height * scale)
                page.insert_image(page.rect, filename=str(image.path))
            book.save(path, deflate=True)
        at += size
        paths.append(path)
    return paths


def write_books(folder: Path, sources: Sequence[Path], books: int, pages: int) -> list[Path]:
    """PDFs of text pages, copied from `sources` in turn; no two files are the same."""
    folder.mkdir(parents=True)
    pymupdf.TOOLS.mupdf_display_errors(False)  # Some of these PDFs are broken on purpose.
    paths = []
    with pymupdf.open() as good:
        for source in sources:
            with pymupdf.open(source) as pdf:
                for first, last in _runs(_text_pages(pdf)):
                    good.insert_pdf(pdf, from_page=first, to_page=last, links=False, annots=False)
        for book in range(books if len(good) else 0):
            path = folder / f"book{book:02d}.pdf"
            with pymupdf.open() as pdf:
                while len(pdf) < pages:
                    pdf.insert_pdf(good, to_page=min(len(good), pages - len(pdf)) - 1)
                pdf.set_metadata({"title": f"Book {book + 1}"})
                pdf.save(path, garbage=1, deflate=True)
            paths.append(path)
    return paths


def _text_pages(pdf: pymupdf.Document) -> Iterator[int]:
    if pdf.needs_pass:
        return
    for page in pdf:
        chars = len("".join(page.get_text().split()))
        covered = sum(abs(pymupdf.Rect(image["bbox"]) & page.rect) for image in page.get_image_info())
        if chars >= _PAGE_OF_TEXT_CHARS and covered < abs(page.rect) / 2:
            yield page.number


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Pages that follow each other are copied together: they share their fonts, as in the file that they come from."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run[0], run[-1]
            run = []
        run.append(number)
    if run:
        yield run[0], run[-1]


def page_count(path: Path) -> int:
    """Of a PDF."""
    with pymupdf.open(path) as pdf:
        return len(pdf)


def docx_words(path: Path) -> Counter[str]:
    """The words of all parts of a DOCX, each once: body, headers, footers, notes, comments, text boxes, formulas,
    diagrams; titles and labels of charts, without their numbers, a label once in each."""
    words: Counter[str] = Counter()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            kind = _kind_of_part(name)
            if kind:
                root = etree.fromstring(archive.read(name), etree.XMLParser(resolve_entities=False, huge_tree=True))
                for text in _chart_texts(root) if kind == "chart" else _paragraph_texts(root):
                    words += words_of(text)
    return words


def _kind_of_part(name: str) -> str:
    folder, _, file = name.rpartition("/")
    bare = file.removesuffix(".xml").rstrip("0123456789")
    stories = ("document", "header", "footer", "footnotes", "endnotes", "comments")
    if (folder == "word" and bare in stories) or (folder, bare) == ("word/diagrams", "data"):
        return "story"
    return "chart" if (folder, bare) == ("word/charts", "chart") else ""


def _paragraph_texts(root: etree._Element) -> Iterator[str]:
    for paragraph in root.iter(f"{_W}p", f"{_A}p"):
        yield "".join(_own_text(paragraph))


def _chart_texts(root: etree._Element) -> Iterator[str]:
    yield from _paragraph_texts(root)
    yield from {value.text or "" for cache in root.iter(f"{_C}strCache") for value in cache.iter(f"{_C}v")}


def _own_text(element: etree._Element) -> Iterator[str]:
    """Of a paragraph, without those inside it (text boxes), which are paragraphs of their own."""
    for child in element:
        if child.tag in (f"{_W}t", f"{_M}t", f"{_A}t"):
            yield child.text or ""
        elif child.tag in (f"{_W}tab", f"{_W}br", f"{_W}cr", f"{_A}br"):
            yield "\n"
        elif child.tag in _BESIDE:
            # What stands over, under or beside something in a formula is no part of its word.
            yield "\n"
            yield from _own_text(child)
            yield "\n"
        elif child.tag not in (_FALLBACK, f"{_W}p"):
            yield from _own_text(child)
