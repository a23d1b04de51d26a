"""PDF -> pages of text, and which of them have to be read by OCR.

Rule: page by page. One page that cannot be read costs that page; what MuPDF keeps of it is dropped before the next.
One that takes the worker with it costs that page too: those before it are in the journal, and the next worker is told
to leave it alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pymupdf

from engine.document import MAX_PAGES, MAX_PARTS, Document, Method, Page
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.journal import Journal
from engine.workers.reading import Budget, Material, Parts, clean, sheet_pixels, tidy, told
from engine.workers.types import HEAD_BYTES, media_type_of

#: Measured on 220 labelled pages, all of them decided rightly: a page needs OCR when images cover at least half of it
#: and its text layer is short, hardly alphanumeric (stamps, noise), or in glyphs without meaning.
_COVER: Final = 0.5
_SHORT_CHARS: Final = 200
_ALPHANUMERIC: Final = 0.5
_GARBLED: Final = 0.1
#: A page without a single character is a picture of something from this cover on: a receipt on a large sheet.
_COVER_WITHOUT_TEXT: Final = 0.1
#: Where most of the characters have no meaning, OCR is all there is, whatever the page is painted with.
_HOPELESS: Final = 0.5
#: Bytes of an embedded file.
_ATTACHMENT_BYTES: Final = 64 << 20
#: Characters of form fields and comments of one page.
_EXTRA_CHARS: Final = 100_000
#: Memory that no honest page takes to be read: the densest of maps and drawings take a tenth of it.
_PAGE_BYTES: Final = 400 << 20
#: Of each kind, on one page: PyMuPDF looks for each from the first one on, so that a number costs its square.
_MAX_EXTRAS: Final = 5_000

_NO_TITLE = re.compile(r"^untitled|^slide 1$|^\W*$|\.(docx?|pptx?|xlsx?|tex|dvi|indd|qxd|rtf)$", re.IGNORECASE)
_MEANINGLESS = re.compile("[\x00-\x08\x0e-\x1f\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]")


def read(material: Material) -> Document:
    """Pages numbered from 1. Raises StageFailed: encrypted, damaged, bomb."""
    pdf = open_pdf(material.path)
    try:
        return _read(pdf, material)
    finally:
        pdf.close()
        pymupdf.TOOLS.store_shrink(100)


def open_pdf(path: Path) -> Any:
    """An open pymupdf.Document with pages. Raises StageFailed: encrypted, damaged, bomb."""
    pymupdf.TOOLS.mupdf_display_errors(False)
    pymupdf.TOOLS.mupdf_display_warnings(False)
    try:
        pdf = pymupdf.open(path, filetype="pdf")
        if pdf.needs_pass:  # MuPDF has tried the empty password, which opens what is only protected from printing
            raise StageFailed(Reason.ENCRYPTED, "a PDF that opens only with a password")
        count = pdf.page_count
    except TROUBLE as error:
        raise refused(error, "a PDF that cannot be opened") from error
    if count > MAX_PAGES:
        raise StageFailed(Reason.BOMB, f"a PDF that claims {count} pages; at most {MAX_PAGES}")
    if count < 1:
        raise StageFailed(Reason.DAMAGED, "a PDF without a page")
    return pdf


#: What PyMuPDF raises: MuPDF's errors as such or as RuntimeError, and plain slips of its Python side when a file's
#: objects are not what they should be.
TROUBLE: Final = (
    *(pymupdf.mupdf.FzErrorBase, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError),
    *(OverflowError, OSError),
)


def refused(error: Exception, what: str) -> Exception:
    """What to raise for an error of MuPDF: memory that ran out stays a MemoryError, the rest is damage."""
    message = told(error)
    if re.search(r"malloc|calloc|realloc|memory", message):
        return MemoryError(message)
    return StageFailed(Reason.DAMAGED, f"{what}: {message}")


@dataclass(slots=True)
class _Reading:
    """What has been seen so far."""

    budget: Budget
    pages: list[Page] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    skipped: int = 0
    too_large: list[int] = field(default_factory=list)
    without_ocr: int = 0
    complaint: str = ""


def _read(pdf: Any, material: Material) -> Document:
    state = _Reading(Budget(limit=material.max_text_bytes))
    count, title, facts = pdf.page_count, _title(pdf), _facts(pdf)
    # Of one page there would be nothing to keep.
    wanted = material.journal and count > 1
    journal = Journal(material, material.document(title=title, facts=facts), count) if wanted else None
    try:
        _read_pages(pdf, material, state, journal)
    finally:
        if journal is not None:
            journal.close()
    without = len(state.unread) + state.skipped
    if state.too_large and without + len(state.too_large) == len(state.pages):
        raise StageFailed(Reason.BOMB, f"a PDF of which no page can be read: {state.complaint}")
    if without == len(state.pages):
        raise StageFailed(Reason.DAMAGED, f"a PDF of which no page can be read: {state.complaint}")
    parts = _attachments(pdf, material)
    return material.document(
        title=title,
        pages=state.pages,
        parts=parts.written,
        facts=facts,
        notes=[*_notes(pdf, state, count), *parts.notes()],
    )


def _read_pages(pdf: Any, material: Material, state: _Reading, journal: Journal | None) -> None:
    count = pdf.page_count
    for number in range(1, count + 1):
        if number in material.skip:
            page = Page(number=number, text="", method=Method.NONE)
            state.skipped += 1
        else:
            page = _page(pdf, number - 1, state, material.ocr, material.place.memory_left)
        state.pages.append(page)
        if journal is not None:
            journal.add(page)
        material.place.progress(number, count)
        if state.budget.left <= 0:
            state.budget.cut = state.budget.cut or number < count
            break


def _page(pdf: Any, index: int, state: _Reading, ocr: bool, left: Callable[[], int]) -> Page:
    number = index + 1
    before = left()
    try:
        page = pdf.load_page(index)
        text = tidy(page.get_text("text"))
        needs_ocr = _needs_ocr(page, text)
    except TROUBLE as error:
        trouble = refused(error, "page")
        if isinstance(trouble, MemoryError):
            # One that had more than any page takes is the trouble itself. What it took MuPDF does not give back: the
            # pages before it are kept, and those after it are read as far as there is memory.
            if before < _PAGE_BYTES and not state.too_large:
                raise trouble from error
            pymupdf.TOOLS.store_shrink(100)
            state.too_large.append(number)
            state.complaint = state.complaint or f"page {number} takes more than {_PAGE_BYTES >> 20} MiB of memory"
            return Page(number=number, text="", method=Method.NONE)
        state.unread.append(number)
        state.complaint = state.complaint or told(error)
        return Page(number=number, text="", method=Method.NONE)
    text = state.budget.take("\n".join(filter(None, (text, _extras(page, text)))))
    if needs_ocr and not ocr:
        state.without_ocr += 1
    return Page(
        number=number,
        text=text,
        method=Method.TEXT if text else Method.NONE,
        needs_ocr=needs_ocr and ocr,
        pixels=sheet_pixels(page.rect.width, page.rect.height) if needs_ocr and ocr else 0,
    )


def _needs_ocr(page: Any, text: str) -> bool:
    signs = "".join(text.split())
    alphanumeric = sum(sign.isalnum() for sign in signs)
    garbled = len(_MEANINGLESS.findall(signs))
    if signs and garbled > _HOPELESS * len(signs):
        return True
    if len(signs) >= _SHORT_CHARS and alphanumeric >= _ALPHANUMERIC * len(signs) and garbled <= _GARBLED * len(signs):
        return False
    painted = page.get_bboxlog()
    if not signs and any(kind.endswith("-text") and kind != "ignore-text" for kind, _ in painted):
        return True  # letters are painted, but nothing tells which they are
    return _image_cover(page, painted) >= (_COVER if signs else _COVER_WITHOUT_TEXT)


def _image_cover(page: Any, painted: list[Any]) -> float:
    """The share of the page that images are painted on, 0 to 1; where they overlap, they count twice."""
    rect = page.rect
    whole = abs(float(rect.width) * float(rect.height))
    if not whole:
        return 0.0
    covered = 0.0
    for kind, (left, top, right, bottom) in painted:
        if kind in ("fill-image", "fill-imgmask"):
            width = min(right, rect.x1) - max(left, rect.x0)
            height = min(bottom, rect.y1) - max(top, rect.y0)
            covered += max(0.0, float(width)) * max(0.0, float(height))
    return min(1.0, covered / whole)


def _extras(page: Any, text: str) -> str:
    """What form fields hold and comments say, where the page does not show it as text."""
    pieces: list[str] = []
    try:
        if page.first_widget is not None:
            widgets = islice(page.widgets(), _MAX_EXTRAS)
            pieces += [widget.field_value for widget in widgets if _is_said(widget.field_value)]
        if page.first_annot is not None:
            pieces += [annot.info.get("content", "") for annot in islice(page.annots(), _MAX_EXTRAS)]
    except TROUBLE:
        return ""
    shown = " ".join(text.split())
    hidden = dict.fromkeys(flat for piece in pieces if (flat := " ".join(piece.split())) and flat not in shown)
    return "\n".join(hidden)[:_EXTRA_CHARS]


def _is_said(value: object) -> bool:
    return isinstance(value, str) and value not in ("", "Off", "Yes")


def _attachments(pdf: Any, material: Material) -> Parts:
    """The files that are embedded in the PDF, as far as they can be unpacked and are of a reasonable size."""
    parts = Parts(material)
    try:
        count = pdf.embfile_count()
    except TROUBLE:
        parts.left_out += 1
        return parts
    parts.left_out += max(0, count - MAX_PARTS)
    for index in range(min(count, MAX_PARTS)):
        if parts.is_full():
            parts.left_out += min(count, MAX_PARTS) - index
            break
        try:
            info = pdf.embfile_info(index)
            if max(info.get("length", 0), info.get("size", 0)) > _ATTACHMENT_BYTES:
                parts.left_out += 1
                continue
            data = pdf.embfile_get(index)
        except TROUBLE:
            parts.left_out += 1
            continue
        name = str(info.get("ufilename") or info.get("filename") or info.get("name") or "")
        parts.add(name, media_type_of(data[:HEAD_BYTES], name), data)
    return parts


def _title(pdf: Any) -> str:
    title = clean(str((pdf.metadata or {}).get("title") or "")).strip()
    title = re.sub(r"^Microsoft (Office )?(Word|PowerPoint|Excel) - ", "", title)
    # Writers leave their own working names in this field; the file's name says more.
    if len(title) < 3 or _NO_TITLE.search(title):
        return ""
    return "" if _MEANINGLESS.search(title) else title


def _facts(pdf: Any) -> dict[str, str]:
    metadata = pdf.metadata or {}
    return {
        "author": str(metadata.get("author") or ""),
        "subject": str(metadata.get("subject") or ""),
        "keywords": str(metadata.get("keywords") or ""),
        "date": _date(str(metadata.get("creationDate") or "")),
    }


def _date(value: str) -> str:
    """A PDF date (ISO 32000, 7.9.4), "D:20260301093000+01'00'", as ISO 8601; "" when it is none."""
    match = re.match(r"D?:?(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?(?:(Z)|([+-]\d\d)'?(\d\d)?)?", value)
    if not match:
        return ""
    year, month, day, hour, minute, second, utc, zone, zone_minute = match.groups()
    if not ("01" <= month <= "12" and "01" <= day <= "31"):
        return ""
    date = f"{year}-{month}-{day}"
    if hour is None:
        return date
    offset = "+00:00" if utc else f"{zone}:{zone_minute or '00'}" if zone else ""
    return f"{date}T{hour}:{minute}:{second or '00'}{offset}"


def _notes(pdf: Any, state: _Reading, count: int) -> list[str]:
    notes = state.budget.notes()
    if pdf.is_repaired:
        notes.append("the PDF was damaged and has been repaired")
    unread = sorted(state.unread + state.too_large)
    if unread:
        listed = ", ".join(map(str, unread[:20])) + (", ..." if len(unread) > 20 else "")
        notes.append(f"pages that could not be read: {listed} ({state.complaint})")
    if state.without_ocr:
        notes.append(f"{state.without_ocr} pages were not read: OCR is off")
    if len(state.pages) < count:
        notes.append(f"pages {len(state.pages) + 1} to {count} were left out")
    return notes
