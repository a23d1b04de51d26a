"""PDFs: pages with their numbers, the decision for OCR page by page, and every way in which a PDF is no good."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from engine.document import Method, Page
from engine.reasons import Reason
from engine.workers import read_pdf
from tests.unit.extraction import Desk, drawing, encoded, numbers, pdf_of, raw_pdf, stream_of, text_of

PROSE = "The mill grinds at night, when nobody is waiting for it, and in the morning all is done. " * 4
SCAN = encoded(drawing("A page that was scanned", 800, 1000), "PNG")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_pages_are_numbered_from_one_and_reported(desk: Desk) -> None:
    """Each page is a sign of life."""
    document = desk.read(pdf_of("first page " + PROSE, "second page " + PROSE), "a.pdf")
    assert [page.number for page in document.pages] == [1, 2]
    assert "second page" in document.pages[1].text
    assert all(page.method is Method.TEXT for page in document.pages)
    assert desk.heard == [(1, 2), (2, 2)]


def test_ocr_is_decided_page_by_page(desk: Desk) -> None:
    """Text, scan, blank, scan, text: only the scans wait for OCR."""
    document = desk.read(pdf_of(PROSE, SCAN, None, SCAN, PROSE), "mixed.pdf")
    assert numbers(document.pages) == [2, 4]
    assert desk.result["needs_ocr"] == [2, 4]
    # 400 x 500 points, at 200 dpi; what is not to be recognised has no sheet.
    assert [page.pixels for page in document.pages][:2] == [0, int(400 * 500 * (200 / 72) ** 2)]
    assert document.pages[2].method is Method.NONE
    assert not document.notes


def test_a_stamp_on_a_scan_does_not_make_it_text(desk: Desk) -> None:
    """A few words over a picture that covers the page; they are kept until OCR has read the page."""
    pdf = pymupdf.open(stream=pdf_of(SCAN))
    pdf[0].insert_text((30, 30), "RECEIVED 12 MAY 2026")
    document = desk.read(pdf.tobytes(), "a.pdf")
    assert numbers(document.pages) == [1]
    assert "RECEIVED" in document.pages[0].text


def test_a_figure_does_not_make_a_page_of_text_a_scan(desk: Desk) -> None:
    """The page has letters enough."""
    pdf = pymupdf.open(stream=pdf_of(PROSE))
    pdf[0].insert_image(pymupdf.Rect(10, 200, 390, 490), stream=SCAN, keep_proportion=False)
    assert numbers(desk.read(pdf.tobytes(), "a.pdf").pages) == []


def test_a_small_logo_on_an_empty_page_is_not_read(desk: Desk) -> None:
    """It covers a few percent of the page."""
    pdf = pymupdf.open()
    pdf.new_page(width=400, height=500).insert_image(pymupdf.Rect(10, 10, 60, 60), stream=SCAN)
    assert numbers(desk.read(pdf.tobytes(), "a.pdf").pages) == []


def test_letters_without_meaning_need_ocr(desk: Desk) -> None:
    """Glyphs that map to the private-use area are no text, whatever else is on the page; a few of them are icons."""
    assert numbers(desk.read(_mapped(b"(AAAA AAAA AAAA) Tj"), "a.pdf").pages) == [1]
    assert numbers(desk.read(_mapped(b"(plain words AA) Tj"), "a.pdf").pages) == []


def _mapped(showing: bytes) -> bytes:
    """A page whose font says that "A" is U+E001."""
    table = b"1 begincodespacerange <00> <FF> endcodespacerange\n"
    table += b"2 beginbfrange <20> <40> <0020> <42> <7E> <0042> endbfrange"
    return raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 500]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        stream_of(b"BT /F 12 Tf 20 400 Td " + showing + b" ET"),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>",
        stream_of(b"begincmap\n" + table + b"\n1 beginbfchar <41> <E001> endbfchar\nendcmap"),
    )


def test_without_ocr_the_pages_are_counted_in_a_note(tmp_path: Path) -> None:
    """Nothing is left out silently."""
    document = Desk(tmp_path, {"ocr": False}).read(pdf_of(PROSE, SCAN, SCAN), "a.pdf")
    assert numbers(document.pages) == []
    assert "2 pages were not read: OCR is off" in document.notes


def test_title_and_author_come_from_the_metadata(desk: Desk) -> None:
    """If they say anything."""
    pdf = pymupdf.open(stream=pdf_of(PROSE))
    pdf.set_metadata({"title": "Annual report", "author": "Ann", "creationDate": "D:20260301093000+01'00'"})
    document = desk.read(pdf.tobytes(), "scan0001.pdf")
    assert document.title == "Annual report"
    assert document.facts["author"] == "Ann"
    assert document.facts["date"] == "2026-03-01T09:30:00+01:00"


@pytest.mark.parametrize("title", ["untitled", "Microsoft Word - letter.doc", "  ", "x.indd"])
def test_a_title_that_says_nothing_is_not_used(desk: Desk, title: str) -> None:
    """The file's own name says more."""
    pdf = pymupdf.open(stream=pdf_of(PROSE))
    pdf.set_metadata({"title": title})
    assert desk.read(pdf.tobytes(), "letters/to-bob.pdf").title == "to-bob.pdf"


def test_form_fields_and_comments_are_read(desk: Desk) -> None:
    """They are what people wrote into the page."""
    pdf = pymupdf.open(stream=pdf_of(PROSE))
    widget = pymupdf.Widget()
    widget.field_name, widget.field_type, widget.field_value = "name", pymupdf.PDF_WIDGET_TYPE_TEXT, "Zacharias"
    widget.rect = pymupdf.Rect(20, 300, 200, 320)
    pdf[0].add_widget(widget)
    pdf[0].add_text_annot((50, 400), "ask the miller")
    text = text_of(desk.read(pdf.tobytes(), "a.pdf"))
    assert text.count("Zacharias") == 1
    assert "ask the miller" in text


def test_embedded_files_become_parts(desk: Desk) -> None:
    """An invoice that travels inside a PDF is an item of its own."""
    pdf = pymupdf.open(stream=pdf_of(PROSE))
    pdf.embfile_add("invoice", b"<?xml version='1.0'?><invoice/>", filename="invoice.xml")
    document = desk.read(pdf.tobytes(), "a.pdf")
    assert [(part.name, part.media_type) for part in document.parts] == [("invoice.xml", "application/xml")]
    assert desk.part(document, 0).startswith(b"<?xml")


def test_an_empty_embedded_file_is_a_part_and_a_broken_one_costs_itself(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of no bytes, or counted as left out; the others are there."""
    pdf = pymupdf.open(stream=pdf_of(PROSE))
    for name, data in (("a", b""), ("b", b"broken"), ("c", b"whole")):
        pdf.embfile_add(name, data, filename=f"{name}.txt")
    whole = pymupdf.Document.embfile_get

    def get(self: pymupdf.Document, item: int) -> bytes:
        data: bytes = whole(self, item)
        if data == b"broken":
            raise RuntimeError("zlib error")
        return data

    monkeypatch.setattr(pymupdf.Document, "embfile_get", get)
    document = desk.read(pdf.tobytes(), "a.pdf")
    assert [(part.name, part.size_bytes) for part in document.parts] == [("a.txt", 0), ("c.txt", 5)]
    assert any(note.startswith("1 parts were left out") for note in document.notes)


# --- no good ---------------------------------------------------------------------------------------------------------


def test_a_password_is_asked_for(desk: Desk) -> None:
    """A user password bars the reader; an owner password alone does not."""
    closed = pdf_of(PROSE, encryption=pymupdf.PDF_ENCRYPT_AES_256, owner_pw="o", user_pw="u")
    assert desk.refusal(closed, "a.pdf")[0] is Reason.ENCRYPTED
    readable = pdf_of(PROSE, encryption=pymupdf.PDF_ENCRYPT_AES_256, owner_pw="o", user_pw="")
    assert "mill grinds" in text_of(desk.read(readable, "a.pdf"))


def test_a_pdf_that_lost_its_end_is_repaired_or_damaged(desk: Desk) -> None:
    """Without its last kilobyte the pages are still found; of its first 200 bytes nothing is left to read."""
    whole = pdf_of(*[f"page {number} {PROSE}" for number in range(20)])
    document = desk.read(whole[: -len(whole) // 10], "a.pdf")
    assert "page 3" in text_of(document)
    assert any("repaired" in note for note in document.notes)
    assert desk.refusal(whole[:200], "a.pdf")[0] is Reason.DAMAGED


def test_a_pdf_that_claims_too_many_pages_is_a_bomb(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is looked at before a page is."""
    from engine.workers import read_pdf

    monkeypatch.setattr(read_pdf, "MAX_PAGES", 2)
    reason, detail = desk.refusal(pdf_of("a", "b", "c"), "a.pdf")
    assert reason is Reason.BOMB
    assert "3 pages" in detail


def test_a_page_that_cannot_be_read_costs_that_page(desk: Desk) -> None:
    """The others stay, and the note names it."""
    pdf = pymupdf.open(stream=pdf_of("one " + PROSE, "two " + PROSE, "three " + PROSE))
    pdf.xref_set_key(pdf[1].xref, "Type", "/Nonsense")
    pdf.update_stream(pdf[1].get_contents()[0], b"q " * 300 + b"BT (broken Tj")
    kids = pdf.xref_get_key(pdf.pdf_catalog(), "Pages")[1].split()[0]
    pdf.xref_set_key(int(kids), "Kids", f"[{pdf[0].xref} 0 R {kids} 0 R {pdf[2].xref} 0 R]")
    stream = io.BytesIO()
    pdf.save(stream)
    document = desk.read(stream.getvalue(), "a.pdf")
    assert "one The mill" in text_of(document)
    assert any("could not be read: 2" in note for note in document.notes)


def test_memory_that_runs_out_is_not_damage() -> None:
    """MuPDF says so in words; the worker has to hear it as what it is."""
    from engine.workers import read_pdf

    assert isinstance(read_pdf.refused(RuntimeError("code=2: malloc (123 bytes) failed"), "x"), MemoryError)


@pytest.mark.parametrize(
    ("start", "per_page", "allowed", "shrinks"),
    [
        pytest.param(1000, 10, 0, 2, id="every 32 MiB"),
        pytest.param(1000, 10, 500, 2, id="more was allowed on the way: counted from there"),
        pytest.param(40, 4, 0, 3, id="half of what is left, where that is less"),
        pytest.param(1000, 0, 0, 0, id="nothing was taken"),
    ],
)
def test_fonts_and_pictures_are_let_go_of_by_the_memory_they_take(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, start: int, per_page: int, allowed: int, shrinks: int
) -> None:
    """Of ten pages, whatever happens to the limit meanwhile; and once at the end."""
    shrunk: list[int] = []
    monkeypatch.setattr(read_pdf, "_STORE_BYTES", 32 << 20)
    monkeypatch.setattr(pymupdf.TOOLS, "store_shrink", shrunk.append)
    real_page = read_pdf._page

    def page_that_takes(pdf: Any, index: int, *more: Any) -> Page:
        desk.memory_bytes -= per_page << 20
        if index == 4:
            desk.memory_bytes += allowed << 20
        return real_page(pdf, index, *more)

    monkeypatch.setattr(read_pdf, "_page", page_that_takes)
    desk.memory_bytes = start << 20
    desk.read(pdf_of(*["Words enough to be read."] * 10))
    assert len(shrunk) == shrinks + 1


def test_fonts_and_pictures_are_let_go_of_where_nobody_counts(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not say what a process takes: every so many pages."""
    shrunk: list[int] = []
    monkeypatch.setattr(pymupdf.TOOLS, "store_shrink", shrunk.append)
    monkeypatch.setattr(read_pdf, "_STORE_PAGES", 3)
    desk.read(pdf_of(*["Words enough to be read."] * 10))
    assert len(shrunk) == 3 + 1


def test_a_file_read_at_once_is_the_same_document(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read from memory, larger ones from the disk: also one with words before and after the PDF."""
    data = b"From: a fax\n" + pdf_of("One page of words.", "And another one.") + b"\n" * 1000
    at_once = desk.read(data)
    monkeypatch.setattr(read_pdf, "_IN_MEMORY_BYTES", 0)
    assert desk.read(data) == at_once
