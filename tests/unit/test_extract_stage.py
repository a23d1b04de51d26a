"""The stage `extract` as a whole: what it returns, and the reason it gives for everything that it does not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import clearing
from engine.document import Document
from engine.model import Kind
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import extract, types
from engine.workers.writing import open_result
from tests import bombs
from tests.files import mail
from tests.unit.extraction import Desk, drawing, encoded, ole_of, pdf_of, text_of, zip_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_text_becomes_a_document(desk: Desk) -> None:
    """The result names a file in the outbox and says what is in it."""
    document = desk.read(b"Nothing rests.\n", "notes/today.txt")
    assert document.kind is Kind.FILE
    assert document.title == "today.txt"
    assert [page.number for page in document.pages] == [0]
    assert text_of(document).strip() == "Nothing rests."
    assert desk.result == {"document": "p7.document.json", "pages": 1, "needs_ocr": [], "media_type": "text/plain"}


@pytest.fixture
def opened(desk: Desk) -> Callable[[], list[tuple[str, int]]]:
    """What has been opened in the outbox since: (name, flags)."""
    _outboxes[:] = [str(desk.outbox)]
    _opened.clear()
    if not _hooked:
        sys.addaudithook(_note_opened)
        _hooked.append(True)
    return lambda: list(_opened)


_outboxes: list[str] = []
_opened: list[tuple[str, int]] = []
_hooked: list[bool] = []


def _note_opened(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and _outboxes and str(args[0]).startswith(_outboxes[0]):
        assert isinstance(args[2], int)
        _opened.append((Path(str(args[0])).name, args[2]))


def test_results_are_written_into_files_that_were_emptied(
    desk: Desk, opened: Callable[[], list[tuple[str, int]]]
) -> None:
    """The same inodes, whatever they held; and nothing makes ext4 believe that a file is replaced: it would write each
    small result to the disk, and everybody would wait for it."""
    stage = extract.open_stage({"ocr": True, "cut": {"measure": "words", "max_tokens": 200}})
    order = {"file": "1", "name": "a.eml", "kind": "mail", "prefix": "again0"}
    data = mail("Long", "All that was said. " * 500, ("a.txt", b"of another " * 1000, "text/plain"))
    (desk.inbox / "1").write_bytes(data)
    stage.run(order, desk)
    clearing.empty(desk.outbox)
    inodes = {entry.name: entry.inode() for entry in os.scandir(desk.outbox)}
    assert set(inodes) == {"again0.document.json", "again0.chunks.json", "again0.part1"}
    # Not emptied, as after an order that failed within the unit.
    (desk.outbox / "again0.document.json").write_bytes(b"x" * 100_000)
    (desk.inbox / "1").write_bytes(mail("Short", "Nothing.", ("b.txt", b"mine", "text/plain")))
    before = len(opened())
    result = stage.run(order, desk)
    assert {name for name, _ in opened()[before:]} == set(inodes)
    assert not any(flags & os.O_TRUNC for _, flags in opened()[before:])
    assert {entry.name: entry.inode() for entry in os.scandir(desk.outbox)} == inodes
    document = Document.from_json(json.loads((desk.outbox / result["document"]).read_bytes()))
    assert document.title == "Short"
    assert (desk.outbox / document.parts[0].file).read_bytes() == b"mine"
    lines = (desk.outbox / result["chunks"]).read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == result["count"] > 0


def test_a_result_is_not_written_through_a_link(tmp_path: Path) -> None:
    """Wherever it leads."""
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / "result").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        open_result(tmp_path / "result")
    assert (tmp_path / "other").read_bytes() == b"kept"


def test_the_file_in_the_outbox_is_what_the_coordinator_accepts(desk: Desk) -> None:
    """Reading it back loses nothing."""
    document = desk.read(b"a,b\n1,2\n", "t.csv")
    written = json.loads((desk.outbox / "p7.document.json").read_bytes())
    assert Document.from_json(written) == document
    assert document.to_json() == Document.from_json(written).to_json()


def test_an_item_without_a_name_has_a_title(desk: Desk) -> None:
    """A title is never empty."""
    assert desk.read(b"text").title == "untitled"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("notes/back\\slash.txt", "back\\slash.txt"),
        ("notes/line\\x0abreak.txt", "line\\x0abreak.txt"),
        ("notes/line\nbreak.txt", "line break.txt"),
        ("C:\\notes\\a.txt", "C:\\notes\\a.txt"),
        ("notes/", "notes"),
        ("/", "untitled"),
    ],
)
def test_only_a_slash_separates_in_an_items_own_name(desk: Desk, name: str, title: str) -> None:
    """A backslash may be in any name, and stands for control characters in those that are shown."""
    assert desk.read(b"text", name).title == title


def test_text_beyond_the_limit_is_cut_and_said_so(tmp_path: Path) -> None:
    """Never silently, whatever kind it is; and it is listed as partial."""
    desk = Desk(tmp_path, {"ocr": True, "max_text_bytes": 100})
    words = "word " * 40
    mail = "From: a@b.c\nSubject: s\n"
    events = "".join(f"BEGIN:VEVENT\nSUMMARY:{words}\nEND:VEVENT\n" for _ in range(3))
    for data, name in (
        (b"x" * 101, "a.txt"),
        (b"a,b\nc,d\n" * 20, "a.csv"),
        (f"<html><body><p>{words}".encode(), "a.html"),
        (f"<?xml version='1.0'?><a><b>{words}</b></a>".encode(), "a.xml"),
        (pdf_of(words, "more"), "a.pdf"),
        (bombs.docx([f"<w:p><w:r><w:t>{words}</w:t></w:r></w:p>".encode()]), "a.docx"),
        (f"{mail}\n{words}".encode(), "a.eml"),
        (f"{mail}Content-Type: text/html\n\n<p>{words}".encode(), "a.eml"),
        (f"BEGIN:VCALENDAR\n{events}END:VCALENDAR\n".encode(), "a.ics"),
    ):
        document = desk.read(data, name)
        assert 90 < sum(len(page.text) for page in document.pages) <= 100, name
        assert any(note.startswith("partial: the text was cut at 100 B") for note in document.notes), name
    assert not desk.read(b"x" * 100, "a.txt").notes


def test_the_limit_counts_bytes_and_parts_no_letter(tmp_path: Path) -> None:
    """A megabyte of Japanese is a third as many characters as one of English."""
    desk = Desk(tmp_path, {"max_text_bytes": 100})
    document = desk.read("粉挽き".encode() * 12, "a.txt")
    assert text_of(document) == "粉挽き" * 11
    assert document.notes == ("partial: the text was cut at 100 B; the file has 108 B",)
    assert not desk.read("粉挽き".encode() * 11, "a.txt").notes


def test_the_pages_beyond_the_limit_are_named(tmp_path: Path) -> None:
    """Also where the limit falls between two pages."""
    desk = Desk(tmp_path, {"max_text_bytes": 9})
    document = desk.read(pdf_of("page one", "page two", "page three"), "a.pdf")
    assert [page.text for page in document.pages] == ["page one", "p"]
    assert document.notes == ("partial: the text was cut at 9 B", "pages 3 to 3 were left out")
    desk = Desk(tmp_path / "b", {"max_text_bytes": 8})
    document = desk.read(pdf_of("page one", "page two"), "a.pdf")
    assert document.notes == ("partial: the text was cut at 8 B", "pages 2 to 2 were left out")


def test_the_lines_between_the_parts_of_a_text_count_too(tmp_path: Path) -> None:
    """Two bodies that fit just so do not fit with what parts them."""
    desk = Desk(tmp_path, {"max_text_bytes": 10})
    head = b"From: a@b.c\nContent-Type: multipart/mixed; boundary=x\n\n"
    mail = (
        head + b"".join(b"--x\nContent-Type: text/plain\n\n%b\n" % body for body in (b"12345", b"12345")) + b"--x--\n"
    )
    document = desk.read(mail, "a.eml")
    assert text_of(document) == "12345\n\n123"
    assert document.notes == ("partial: the text was cut at 10 B",)


def test_what_cannot_be_stored_does_not_leave_the_stage(desk: Desk) -> None:
    """NULs, other control characters and lone surrogates are taken out."""
    dirty = "a\x01b\rc\r\nd\x85e" + " and so on" * 20
    assert text_of(desk.read(dirty.encode(), "a.txt")).startswith("ab\nc\nd\ne and so on")
    text_of(desk.read("lone \ud800 surrogate".encode("utf-8", "surrogatepass"), "a.txt")).encode()


# --- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a.pdf", "a.txt"])
def test_nothing_at_all_is_empty(desk: Desk, name: str) -> None:
    """Whatever it is called."""
    assert desk.refusal(b"", name)[0] is Reason.EMPTY


def test_bytes_without_meaning_are_of_unknown_type(desk: Desk) -> None:
    """The detail says what the name had promised."""
    reason, detail = desk.refusal(bytes(range(256)) * 40, "report.pdf")
    assert reason is Reason.UNKNOWN_TYPE
    assert "application/pdf" in detail


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (zip_of({"[Content_Types].xml": "<a/>", "xl/workbook.xml": "<a/>"}), types.named_type("a.xlsx")),
        (zip_of({"[Content_Types].xml": "<a/>", "ppt/presentation.xml": "<a/>"}), types.named_type("a.pptx")),
        (zip_of({"mimetype": "application/vnd.oasis.opendocument.text"}), types.named_type("a.odt")),
        (zip_of({"mimetype": "application/epub+zip"}), "application/epub+zip"),
        (zip_of({"a.txt": "x"}), "application/zip"),
        (b"{\\rtf1 hello}", "application/rtf"),
        (ole_of("Root Entry", "WordDocument"), "application/msword"),
        (ole_of("Root Entry", "Workbook"), "application/vnd.ms-excel"),
        (ole_of("Root Entry", "__properties_version1.0"), "application/vnd.ms-outlook"),
        (b"ID3\x03\0\0\0", "audio/mpeg"),
        (b"\x7fELF\x02\x01\x01\0", "application/x-elf"),
        (b"\0\x01\0\0\0\x0c\0\x80", "font/ttf"),
        (b"\x1f\x8b\x08\0", "application/gzip"),
    ],
)
def test_known_types_that_are_not_read_are_named(desk: Desk, data: bytes, media_type: str) -> None:
    """The media type is the start of the detail; the name has no say."""
    reason, detail = desk.refusal(data, "whatever.pdf")
    assert reason is Reason.UNSUPPORTED_TYPE
    assert detail.split()[0] == media_type


def test_an_office_file_with_a_password_is_encrypted(desk: Desk) -> None:
    """It is an OLE2 container with the package inside."""
    assert desk.refusal(ole_of("Root Entry", "EncryptionInfo", "EncryptedPackage"), "a.docx")[0] is Reason.ENCRYPTED


def test_a_name_that_lies_is_noted(desk: Desk) -> None:
    """The content decides, and the reader is told."""
    document = desk.read(encoded(drawing("x"), "PNG"), "scan.pdf")
    assert document.media_type == "image/png"
    assert "the name says application/pdf, the content is image/png" in document.notes
    assert not desk.read(b"plain", "a.log").notes


HTML = b"<html><body><table><tr><td>heron</td><td>mill</td></tr></table></body></html>"
ROWS = b"heron,mill,river\n1,2,3\n4,5,6\n7,8,9\n"
WEB_ARCHIVE = b"MIME-Version: 1.0\r\nContent-Type: multipart/related; boundary=x\r\n\r\n--x\r\n"
WEB_ARCHIVE += b"Content-Type: text/html\r\n\r\n<p>heron</p>\r\n--x--\r\n"
NO_TYPE = "binary content of no known type; the name says text/plain"
WORKBOOK = b'<?xml version="1.0"?>\n<?mso-application progid="Excel.Sheet"?>\n<Workbook><Data>heron</Data></Workbook>'


def _docx() -> bytes:
    return bombs.docx([b"<w:p><w:r><w:t>heron</w:t></w:r></w:p>"])


@pytest.mark.parametrize(
    ("name", "make", "media_type"),
    [
        ("a.doc", lambda: HTML, types.HTML),
        ("a.doc", _docx, types.DOCX),
        ("a.doc", lambda: WEB_ARCHIVE, types.MAIL),
        ("a.pdf", lambda: b"\r\n<!DOCTYPE html>" + HTML, types.HTML),
        ("a.pdf", _docx, types.DOCX),
        ("a.docx", lambda: pdf_of("heron"), types.PDF),
        ("a.xls", lambda: HTML, types.HTML),
        ("a.xls", lambda: ROWS, types.CSV),
        ("a.xls", lambda: ROWS.replace(b",", b"\t"), types.TSV),
        ("a.xls", lambda: WORKBOOK, types.XML),
        ("a.txt", lambda: mail("heron", "heron"), types.MAIL),
        ("a.txt", lambda: pdf_of("heron"), types.PDF),
        ("a.txt", lambda: HTML, types.HTML),
        ("a.msg", lambda: mail("heron", "heron"), types.MAIL),
        ("a.jpg", lambda: b"heron\n", types.PLAIN),
        ("a.docx", lambda: b"heron", types.PLAIN),
        ("a.ics", lambda: b"heron\n", types.PLAIN),
    ],
)
def test_what_is_called_something_else_is_read_as_what_it_is(
    desk: Desk, name: str, make: Callable[[], bytes], media_type: str
) -> None:
    """The word in it is found, the type stands in the result, and a note says what the name had promised."""
    document = desk.read(make(), name)
    assert "heron" in text_of(document)
    assert document.media_type == desk.result["media_type"] == media_type
    assert document.notes[0] == f"the name says {types.named_type(name)}, the content is {media_type}"


@pytest.mark.parametrize(
    ("name", "file_format"),
    [("a.jpg", "PNG"), ("a.jpg", "WEBP"), ("a.png", "JPEG"), ("a.heic", "JPEG"), ("a.pdf", "TIFF")],
)
def test_pictures_change_their_names_most(desk: Desk, name: str, file_format: str) -> None:
    """Web pages and telephones call them what they like."""
    document = desk.read(encoded(drawing("x"), file_format), name)
    said, found = types.named_type(name), f"image/{file_format.lower()}"
    assert document.notes == (f"the name says {said}, the content is {found}",)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.csv", ROWS.replace(b",", b"\t"), "heron | mill | river"),
        ("a.csv", "Ärger;Größe\n1;2\n3;4\n".encode("utf-16"), "Ärger | Größe"),
        ("a.txt", "heron über dem Fluss\n".encode("utf-16"), "heron über dem Fluss"),
        ("a.html", "<html><body>Größe</body></html>".encode("utf-16"), "Größe"),
        ("a", b"heron\n", "heron"),
        ("README", b"heron", "heron"),
        ("a.unknown", b"heron", "heron"),
        ("", HTML, "heron | mill"),
        ("a", pdf_of("heron"), "heron"),
        ("a", b"junk " * 150 + pdf_of("heron"), "heron"),
        ("a.pdf", b"HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n\r\n" + pdf_of("heron"), "heron"),
        ("a.pdf", bytes(900) + pdf_of("heron"), "heron"),
        ("a.txt", b"x", "x"),
        ("", b"x", "x"),
        ("a.json", b"{", "{"),
        ("a.txt", b"\xe9", "é"),
        ("a.txt", b"\n", ""),
    ],
)
def test_what_the_name_leaves_open_the_content_says(desk: Desk, name: str, data: bytes, text: str) -> None:
    """No ending, junk before the mark, one byte, tabs in a CSV: no lie, and read."""
    document = desk.read(data, name)
    assert text_of(document).strip().startswith(text)
    assert not any("name says" in note for note in document.notes)


@pytest.mark.parametrize(
    ("name", "data", "reason", "detail"),
    [
        ("a.doc", b"{\\rtf1 hello}", Reason.UNSUPPORTED_TYPE, "application/rtf (the name says application/msword)"),
        ("a.rtf", b"{\\rtf1 hello}", Reason.UNSUPPORTED_TYPE, "application/rtf"),
        ("a.docx", zip_of({"a.txt": "x"}), Reason.UNSUPPORTED_TYPE, f"application/zip (the name says {types.DOCX})"),
        (
            "a.txt",
            bytes(range(256)) * 9,
            Reason.UNKNOWN_TYPE,
            "binary content of no known type; the name says text/plain",
        ),
        ("a.txt", b"\0", Reason.UNKNOWN_TYPE, NO_TYPE),
    ],
)
def test_what_is_not_read_says_both_types(desk: Desk, name: str, data: bytes, reason: Reason, detail: str) -> None:
    """What it is, and what its name had promised."""
    found, said = desk.refusal(data, name)
    assert found is reason
    assert said.startswith(detail)


def test_the_word_of_a_source_decides_between_texts(desk: Desk) -> None:
    """What lies in a mailbox is a mail, even without a header; a PDF that lies there is a PDF."""
    document = desk.read(b"only a body\n", "1", kind="mail")
    assert (document.kind, document.media_type) == (Kind.MAIL, types.MAIL)
    assert desk.read(pdf_of("in the wrong place"), "1", kind="mail").media_type == types.PDF
    assert desk.refusal(b"no calendar", "a.ics", kind="event")[0] is Reason.DAMAGED


def test_a_worker_of_texts_loads_no_heavy_library() -> None:
    """PyMuPDF alone takes 150 ms and 47 MB."""
    program = (
        "import sys; from engine.workers import extract; extract.open_stage({'ocr': True});"
        "import engine.workers.tessdata;"
        "print([n for n in ('pymupdf', 'PIL', 'lxml', 'docx', 'tesserocr', 'numpy', 'email') if n in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.corpus
def test_every_real_file_is_read_or_skipped_by_type(corpus: Path, tmp_path: Path) -> None:
    """Valid files: a document each, or a type that is not read. Nothing else escapes, and most are read."""
    desk = Desk(tmp_path)
    outcomes: Counter[str] = Counter()
    unread = {"doc", "xls", "ppt", "msg", "xlsx", "pptx", "odt", "ods", "odp", "rtf", "epub"}
    for file in sorted((corpus / "mixed").iterdir()):
        ending = file.suffix[1:].lower()
        try:
            reason = None if desk.read(file.read_bytes(), file.name).title else Reason.EMPTY
        except StageFailed as error:
            reason = error.failure.reason
        outcomes[str(reason)] += 1
        # One file named .pdf is an AppleSingle container around a PDF.
        may_fail = ending in unread or "AppleSingle" in file.name
        assert reason is None or (may_fail and reason is Reason.UNSUPPORTED_TYPE), file.name
    assert outcomes.total() >= 200
    assert outcomes["None"] >= 0.65 * outcomes.total()


@pytest.mark.corpus
def test_every_real_mail_becomes_a_document(corpus: Path, tmp_path: Path) -> None:
    """Test suites of mail parsers and spam: malformed in every way, and none of it is refused."""
    desk = Desk(tmp_path)
    for file in sorted((corpus / "mail").iterdir()):
        document = desk.read(file.read_bytes(), file.name, kind="mail")
        assert document.kind is Kind.MAIL
        assert document.title


def test_options_have_defaults() -> None:
    """A limit above the document's own is no limit."""
    assert isinstance(extract.open_stage({}), extract.ExtractStage)
    assert isinstance(extract.open_stage({"ocr": False, "max_text_bytes": 10**12}), extract.ExtractStage)
