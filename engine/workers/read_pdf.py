"""PDF -> pages of text, and which of them have to be read by OCR.

Rule: page by page. One page that cannot be read costs that page; what MuPDF keeps of it is dropped before the next.
One that takes the worker with it costs that page too: those before it are in the journal, and the next worker is told
to leave it alone.

    page -> MuPDF's structured text -> pdf_lines: rows, whole words -> text
                                       pdf_legibility: does it say what the page shows? no -> OCR
    all pages -> pdf_running: headers, footers, printed numbers
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pymupdf

from engine.document import MAX_PAGES, MAX_PARTS, Document, Method, Page
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.journal import Journal
from engine.workers.pdf_about import facts_of, labels_of, title_of
from engine.workers.pdf_legibility import Layer, is_outlined, layer_of, signs_in
from engine.workers.pdf_lines import text_of
from engine.workers.pdf_running import Running, marked, running_lines
from engine.workers.reading import Budget, Material, Parts, line, sheet_pixels, tidy, told
from engine.workers.types import HEAD_BYTES, media_type_of

#: Measured on 220 labelled pages, all of them decided rightly: a page needs OCR when images cover at least half of it
#: and its text layer is short, or no text (pdf_legibility.py).
_COVER: Final = 0.5
_SHORT_CHARS: Final = 200
#: A scan covers the page but for its margins.
_COVER_OF_SCAN: Final = 0.8
#: A page without a single character is a picture of something from this cover on: a receipt on a large sheet.
_COVER_WITHOUT_TEXT: Final = 0.1
#: Bytes of an embedded file.
_ATTACHMENT_BYTES: Final = 64 << 20
#: Characters of an attachment's name.
_NAME_CHARS: Final = 255
#: Names of embedded files that are gone through: PyMuPDF lists all of them for each, at 5 microseconds a name.
_MOST_NAMES: Final = 4_000_000
#: Characters of form fields and comments of one page.
_EXTRA_CHARS: Final = 100_000
#: Memory that pages have taken until MuPDF is told to let go of their fonts and pictures, and half of what is left at
#: most; by itself it keeps up to 256 MiB of them. Each font that is loaded anew costs as much as a page. Where nobody
#: counts it is told so every so many pages.
_STORE_BYTES: Final = 32 << 20
_STORE_PAGES: Final = 64
#: A file of at most so many bytes is read at once: MuPDF would seek before each few hundred bytes.
_IN_MEMORY_BYTES: Final = 1 << 20
#: Memory that no honest page takes to be read: the densest of maps and drawings take a tenth of it.
_PAGE_BYTES: Final = 400 << 20
#: In which MuPDF tells where the lines of one page stand: 30 KB for close print. It takes as much memory as the lines
#: do; read, they take ten times as much. Beyond it the text is taken as it comes.
_LAID_OUT_BYTES: Final = 8 << 20
#: Text of pages before that is kept for words that a line's end breaks.
_RECENT_CHARS: Final = 10_000
#: What MuPDF is asked for: ligatures as letters; of letters that no table names, the code that stands in the file,
#: which often is the letter. What is clipped away is not on the page.
_FLAGS: Final = pymupdf.TEXT_PRESERVE_WHITESPACE | pymupdf.TEXT_CLIP | pymupdf.TEXT_USE_CID_FOR_UNKNOWN_UNICODE
#: Kinds of form fields that hold what people wrote or chose.
_SAYING: Final = (pymupdf.PDF_WIDGET_TYPE_TEXT, pymupdf.PDF_WIDGET_TYPE_COMBOBOX, pymupdf.PDF_WIDGET_TYPE_LISTBOX)
#: Of each kind, on one page: PyMuPDF looks for each from the first one on, so that a number costs its square.
_MAX_EXTRAS: Final = 5_000


#: How MuPDF and OpenJPEG complain of it.
_LACKING = re.compile(r".*(?:[mc]alloc|memory|exceeds system limits).*")
_CODES = re.compile("[\x00-\x08\x0e-\x1f]")


def read(material: Material) -> Document:
    """Pages numbered from 1. Raises StageFailed: encrypted, damaged, bomb."""
    # Colours are converted for nobody here: a table for each of a page's colour spaces takes a fifth of its time.
    pymupdf.TOOLS.set_icc(False)
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
    pymupdf.TOOLS.reset_mupdf_warnings()  # of the file before
    try:
        if path.stat().st_size <= _IN_MEMORY_BYTES:
            pdf = pymupdf.open(stream=path.read_bytes(), filetype="pdf")
        else:
            pdf = pymupdf.open(path, filetype="pdf")
        if pdf.needs_pass:  # MuPDF has tried the empty password, which opens what is only protected from printing
            raise StageFailed(Reason.ENCRYPTED, "a PDF that opens only with a password")
        count = pdf.page_count
    except TROUBLE as error:
        # PyMuPDF says only that it failed, and where the file lies; MuPDF says why.
        why = error.__cause__ if isinstance(error.__cause__, Exception) else error
        if re.search(r"encrypt|crypt filter|password", str(why)):
            raise StageFailed(Reason.ENCRYPTED, f"a PDF that is encrypted in another manner: {told(why)}") from error
        raise refused(why, "a PDF that cannot be opened") from error
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


def miss_nothing_for_memory() -> None:
    """To be called when a page was painted: MuPDF leaves out a picture in JPEG 2000 that it has no memory for, and the
    page is blank. Raises RuntimeError, as MuPDF does where memory lacks for anything else."""
    complaints: str = pymupdf.TOOLS.mupdf_warnings()
    if found := _LACKING.search(complaints):
        raise RuntimeError(f"a picture has no memory: {found.group()}")


@dataclass(slots=True)
class _Reading:
    """What has been seen so far."""

    budget: Budget
    parts: Parts
    pages: list[Page] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)
    skipped: int = 0
    too_large: list[int] = field(default_factory=list)
    attached: dict[str, None] = field(default_factory=dict)
    not_taken: list[str] = field(default_factory=list)
    attempts: int = 0
    without_ocr: int = 0
    complaint: str = ""
    recent: str = ""


def _read(pdf: Any, material: Material) -> Document:
    state = _Reading(Budget(limit=material.max_text_bytes), Parts(material))
    count, title, facts = pdf.page_count, title_of(pdf), facts_of(pdf)
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
    state.pages = _with_running_lines(pdf, state, material.ocr)
    _attachments(pdf, state)
    return material.document(
        title=title,
        pages=state.pages,
        parts=state.parts.written,
        facts={**facts, "attachments": ", ".join(filter(None, state.attached))},
        notes=[*_notes(pdf, state, count), *state.parts.notes()],
    )


def _read_pages(pdf: Any, material: Material, state: _Reading, journal: Journal | None) -> None:
    count, left = pdf.page_count, material.place.memory_left
    room = left()
    for number in range(1, count + 1):
        if number in material.skip:
            page = Page(number=number, text="", method=Method.NONE)
            state.skipped += 1
        else:
            page = _page(pdf, number - 1, state, material.ocr, left)
            pymupdf.TOOLS.reset_mupdf_warnings()  # PyMuPDF keeps them all: a hundred of a page that is all mistakes
            now = left()
            if room - now > min(_STORE_BYTES, room // 2) or (now == sys.maxsize and number % _STORE_PAGES == 0):
                pymupdf.TOOLS.store_shrink(100)
                now = room = left()
            # More may have been allowed meanwhile.
            room = max(room, now)
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
        text = _text_of(page, state.recent)
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
    # A code without a letter stood for something, most often a blank.
    text = _CODES.sub(" ", text)
    state.recent = f"{state.recent}\n{text}"[-_RECENT_CHARS:]
    extras = _extras(page, text, state)
    text = state.budget.take(f"{text}\n{extras}".strip("\n") if extras else text)
    found = Page(number=number, text=text, method=Method.TEXT if text else Method.NONE)
    return _waiting(found, page, state, ocr) if needs_ocr else found


def _waiting(found: Page, page: Any, state: _Reading, ocr: bool) -> Page:
    """The page, to be read by OCR; where that is off, it is counted."""
    if not ocr:
        state.without_ocr += 1
        return found
    return replace(found, needs_ocr=True, pixels=sheet_pixels(page.rect.width, page.rect.height))


# --- the text of a page ----------------------------------------------------------------------------------------------


def _text_of(page: Any, before: str) -> str:
    """The text layer, row by row. `page.get_text` takes five times as long to write down what has been found."""
    mupdf = pymupdf.mupdf
    found = page.get_textpage(flags=_FLAGS).this
    laid_out = mupdf.fz_new_buffer(1 << 14)
    out = mupdf.FzOutput(laid_out)
    mupdf.fz_print_stext_page_as_json(out, found, 1)
    out.fz_close_output()
    if mupdf.fz_buffer_storage(laid_out)[0] > _LAID_OUT_BYTES:
        plain = mupdf.fz_new_buffer_from_stext_page(found)
        return tidy(plain.fz_buffer_extract().decode("utf-8", "replace"))
    # Names of fonts are in it, and may hold anything.
    data = laid_out.fz_buffer_extract().decode("utf-8", "replace")
    return text_of(json.loads(data, strict=False)["blocks"], before)


# --- whether it is enough --------------------------------------------------------------------------------------------


def _needs_ocr(page: Any, text: str) -> bool:
    signs = signs_in(text)
    layer = layer_of(text) if signs else Layer.DOUBTFUL
    if layer is Layer.GARBLED:
        return True
    if layer is Layer.TEXT and signs >= _SHORT_CHARS:
        return False
    painted = page.get_bboxlog()
    if not signs and any(kind.endswith("-text") and kind != "ignore-text" for kind, _ in painted):
        return True  # letters are painted, but nothing tells which they are
    if _image_cover(page, painted) >= (_COVER if signs else _COVER_WITHOUT_TEXT):
        return True
    if signs >= _SHORT_CHARS:
        return False
    return is_outlined((box for kind, box in painted if kind == "fill-path"), signs)


def _image_cover(page: Any, painted: list[Any]) -> float:
    """The share of the page that images are painted on, 0 to 1; where they overlap, they count twice."""
    # What is painted is measured on the sheet as it was before it was turned.
    rect = page.rect * page.derotation_matrix if page.rotation else page.rect
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


def _with_running_lines(pdf: Any, state: _Reading, ocr: bool) -> list[Page]:
    """The pages with their headers, footers and labels. Where they hold little else, a page is looked at again: what
    stands on each page of a scan is a stamp, however long."""
    try:
        labels = labels_of(pdf)
    except TROUBLE:
        labels = []
    found = []
    for index, (page, running) in enumerate(zip(state.pages, running_lines(state.pages), strict=True)):
        label = labels[index] if index < len(labels) else ""
        if not page.needs_ocr and (running.header or running.footer) and _is_only_stamped(pdf, index, page, running):
            page = _waiting(page, pdf.load_page(index), state, ocr)
        found.append(marked(page, running, label))
    return found


def _is_only_stamped(pdf: Any, index: int, page: Page, running: Running) -> bool:
    own = "\n".join(running.own(page.text))
    if signs_in(own) >= _SHORT_CHARS or signs_in(page.text) < _SHORT_CHARS:
        return False
    try:
        # Asked first, for a twentieth of the price: on most pages with little of their own there is no picture.
        if not pdf.get_page_images(index, full=True):
            return False
        sheet = pdf.load_page(index)
        return _image_cover(sheet, sheet.get_bboxlog()) >= _COVER_OF_SCAN
    except TROUBLE:
        return False


# --- what is not on the page -----------------------------------------------------------------------------------------


def _extras(page: Any, text: str, state: _Reading) -> str:
    """What form fields hold and comments say, where the page does not show it as text. Files pinned to the page are
    taken as parts."""
    pieces: list[str] = []
    try:
        pieces += islice(_filled_in(page), _MAX_EXTRAS)
        if page.first_annot is not None:
            for annot in islice(page.annots(), _MAX_EXTRAS):
                pieces.append(annot.info.get("content", ""))
                if annot.type[0] == pymupdf.PDF_ANNOT_FILE_ATTACHMENT:
                    _attach(state, partial(getattr, annot, "file_info"), annot.get_file)
    except TROUBLE:
        return ""
    if not pieces:
        return ""
    shown = " ".join(text.split())
    hidden = dict.fromkeys(flat for piece in pieces if (flat := " ".join(piece.split())) and flat not in shown)
    return "\n".join(hidden)[:_EXTRA_CHARS]


def _filled_in(page: Any) -> Iterator[str]:
    """What stands in the fields of forms for text and choices. PyMuPDF's own iterator begins at the first for each."""
    mupdf = pymupdf.mupdf
    widget = mupdf.pdf_first_widget(mupdf.pdf_page_from_fz_page(page.this))
    while widget.m_internal:
        field_object = mupdf.pdf_annot_obj(widget)
        if mupdf.pdf_field_type(field_object) in _SAYING:
            yield mupdf.pdf_field_value(field_object) or ""
        widget = mupdf.pdf_next_widget(widget)


def _attachments(pdf: Any, state: _Reading) -> None:
    """The files that are embedded in the PDF, as far as they can be unpacked and are of a reasonable size."""
    try:
        count = pdf.embfile_count()
    except TROUBLE:
        state.parts.left_out += 1
        return
    taken = min(count, MAX_PARTS, _MOST_NAMES // max(1, count))
    for index in range(taken):
        _attach(state, partial(pdf.embfile_info, index), partial(pdf.embfile_get, index))
    state.parts.left_out += max(0, count - taken)


def _attach(state: _Reading, inform: Callable[[], dict[str, Any]], unpack: Callable[[], bytes]) -> None:
    """One attached file becomes a part. What cannot is counted; its name is listed all the same."""
    name = ""
    state.attempts += 1
    if state.attempts > MAX_PARTS:
        state.parts.left_out += 1
        return
    try:
        info = inform()
        name = line(str(info.get("ufilename") or info.get("filename") or info.get("name") or ""), _NAME_CHARS)
        state.attached[name] = None
        if state.parts.is_full():
            state.parts.left_out += 1
            return
        size = max(info.get("length", 0), info.get("size", 0))
        if size > _ATTACHMENT_BYTES:
            raise ValueError(f"{size} bytes, more than {_ATTACHMENT_BYTES}")
        data = unpack()
    except TROUBLE as error:
        state.parts.left_out += 1
        state.not_taken.append(f"{name or 'one without a name'} ({told(error)})")
        return
    state.parts.add(name, media_type_of(data[:HEAD_BYTES], name), data)


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
    if state.not_taken:
        listed = ", ".join(state.not_taken[:20]) + (", ..." if len(state.not_taken) > 20 else "")
        notes.append(f"attachments that were not taken: {listed}")
    if len(state.pages) < count:
        notes.append(f"pages {len(state.pages) + 1} to {count} were left out")
    return notes
