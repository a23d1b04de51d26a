"""Readers keep their bounds: what multiplies is counted before it is made, and work grows with size, not its square."""

from __future__ import annotations

import random
import re
import resource
import struct
import tracemalloc
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path
from zoneinfo import ZoneInfo

import pymupdf
import pytest
from PIL import Image

from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import image_heads, markup, pdf_lines, read_docx, read_event, read_mail, read_pdf
from engine.workers.archive import open_archive
from engine.workers.ocr import open_stage
from engine.workers.reading import tidy
from tests import bombs
from tests.unit.extraction import Desk, encoded, ole_of, raw_pdf, stream_of, text_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- memory that is known to be needed --------------------------------------------------------------------------------


def test_a_picture_that_needs_more_memory_than_is_left_is_refused_before_it_is_decoded(desk: Desk) -> None:
    """Both numbers are said; a JPEG, which is decoded small, needs next to none."""
    desk.memory_bytes = 30_000_000
    picture = Image.new("RGB", (3_000, 2_500), "white")
    assert desk.refusal(encoded(picture, "PNG"), "a.png") == (
        Reason.OUT_OF_MEMORY,
        "decoding 3000 x 2500 pixels takes about 30 MB of memory; 30 MB are left",
    )
    assert desk.read(encoded(picture, "JPEG"), "a.jpg").pages[0].needs_ocr
    desk.memory_bytes = 60_000_000
    assert desk.read(encoded(picture, "PNG"), "a.png").pages[0].needs_ocr


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_is_measured_before_its_library_opens_it(desk: Desk, mode: str, lossless: bool) -> None:
    """It takes memory at once, and says that the file is damaged where there is none."""
    desk.memory_bytes = 30_000_000
    picture = Image.new(mode, (1_600, 1_000), (0, 0, 0, 0)[: len(mode)])
    data = encoded(picture, "WEBP", lossless=lossless)
    assert desk.refusal(data, "a.webp") == (
        Reason.OUT_OF_MEMORY,
        "decoding 1600 x 1000 pixels takes about 26 MB of memory; 30 MB are left",
    )
    desk.memory_bytes = 40_000_000
    assert desk.read(data, "a.webp").pages[0].needs_ocr


def test_a_webp_of_too_many_pixels_is_not_opened(desk: Desk) -> None:
    """Its header is all that is looked at, and here all that there is."""
    head = b"RIFF\x16\0\0\0WEBPVP8L\x09\0\0\0\x2f\xff\xff\xff\x0f"
    assert desk.refusal(head, "a.webp") == (
        Reason.BOMB,
        "a picture of 16384 x 16384 pixels; at most 100000000 in all",
    )


def test_texts_in_a_picture_that_unpack_to_too_much_are_called_a_bomb(desk: Desk) -> None:
    """The picture claims nothing that is not so: it is not damaged."""
    text = bombs._chunk(b"iTXt", b"k\0\1\0\0\0" + bombs.squeezed([b"a" * 2_000_000]))
    assert desk.refusal(bombs.png(99, 99, more=text), "a.png")[0] is Reason.BOMB


def test_a_picture_in_a_pdf_is_refused_before_the_page_is_painted(desk: Desk) -> None:
    """The text of the page is read all the same; what it would take is a byte for each colour of a pixel."""
    pytest.importorskip("tesserocr")
    data = bombs.painted(30_000, 30_000, b"/ColorSpace/DeviceRGB/BitsPerComponent 8", [b"\0" * 1000])
    assert desk.read(data, "a.pdf").pages[0].needs_ocr
    desk.memory_bytes = 500_000_000
    with pytest.raises(StageFailed) as raised:
        open_stage({"languages": ["eng"]}).run(
            {"file": "1", "media_type": "application/pdf", "page": 1, "prefix": "p"}, desk
        )
    assert raised.value.failure.reason is Reason.OUT_OF_MEMORY
    assert raised.value.failure.detail.startswith("decoding a picture of 30000 x 30000 pixels takes about 2700 MB")


def test_a_picture_that_lacks_memory_is_not_damaged(desk: Desk) -> None:
    """More of it may be had for another attempt."""
    data = bombs.tiff(1, 9_900, 9_900, depth=16)  # 196 MB, and as much for its only strip
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + (210 << 20), limits[1]))
    try:
        with pytest.raises(MemoryError):
            desk.read(data, "a.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def test_a_picture_that_lacks_memory_is_no_blank_page(desk: Desk) -> None:
    """OpenJPEG says something else where it gets none, and MuPDF paints the page without the picture."""
    pytest.importorskip("tesserocr")
    assert desk.read(bombs.jpeg_2000(9_000, 9_000), "a.pdf").pages[0].needs_ocr
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    stage = open_stage({"languages": ["eng"]})
    resource.setrlimit(resource.RLIMIT_DATA, (held + (100 << 20), limits[1]))
    try:
        with pytest.raises(MemoryError, match="a picture has no memory"):
            stage.run({"file": "1", "media_type": "application/pdf", "page": 1, "prefix": "p"}, desk)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def test_names_of_embedded_files_are_gone_through_so_many_times(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is looked for among all."""
    monkeypatch.setattr(read_pdf, "_MOST_NAMES", 40 * 10)
    document = desk.read(bombs.attachments(40, 21), "a.pdf")
    assert (len(document.parts), document.notes) == (10, ("30 parts were left out: too many, too large or damaged",))


def test_passes_of_a_picture_in_a_pdf_are_counted(desk: Desk) -> None:
    """As those of a picture that is a file of its own."""
    pytest.importorskip("tesserocr")
    order = {"file": "1", "media_type": "application/pdf", "page": 1, "prefix": "p"}
    assert desk.read(bombs.jpeg_of_many_scans(64, 64, image_heads.MAX_SCANS + 1), "a.pdf").pages[0].needs_ocr
    with pytest.raises(StageFailed) as raised:
        open_stage({"languages": ["eng"]}).run(order, desk)
    assert raised.value.failure.reason is Reason.BOMB
    desk.read(bombs.jpeg_of_many_scans(64, 64, 100), "a.pdf")
    open_stage({"languages": ["eng"]}).run(order, desk)


def test_what_a_pdf_has_against_itself_is_not_kept(desk: Desk) -> None:
    """PyMuPDF keeps each complaint of MuPDF's until it is told not to."""
    wrong = [stream_of(b"".join(b"%b%d " % (b"x" * page, number) for number in range(50))) for page in (1, 2, 3)]
    kids = [b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents %d 0 R>>" % (6 + page) for page in range(3)]
    pages = b"<</Type/Pages/Kids[3 0 R 4 0 R 5 0 R]/Count 3>>"
    desk.read(raw_pdf(b"<</Type/Catalog/Pages 2 0 R>>", pages, *kids, *wrong), "a.pdf")
    assert len(pymupdf.TOOLS.mupdf_warnings().splitlines()) < 5


def test_a_mail_that_needs_more_memory_than_is_left_is_refused_before_it_is_taken_apart(desk: Desk) -> None:
    """What it takes is told by its lines. One that has no parts is never taken apart, whatever its lines are."""
    desk.memory_bytes = 20_000_000
    lines = b"a\n" * 300_000
    reason, detail = desk.refusal(bombs.MIXED + b"--b\n\n" + lines, "a.eml")
    assert reason is Reason.OUT_OF_MEMORY
    assert detail.startswith("taking apart a mail of")
    assert len(text_of(desk.read(bombs.MAIL + b"\n" + lines, "a.eml"))) == len(lines) - 1


@pytest.mark.parametrize(("name", "data"), [("a.eml", bombs.MAIL + b"\nHello\n"), ("a.doc", ole_of("WordDocument"))])
def test_a_small_file_asks_for_little_memory(desk: Desk, name: str, data: bytes) -> None:
    """What is asked for counts under the limit of a worker, whether it is used or not."""
    with suppress(StageFailed):
        desk.read(data, name)  # What is imported for it is not counted.
    (desk.inbox / "1").unlink()
    tracemalloc.start()
    try:
        with suppress(StageFailed):
            desk.read(data, name)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# --- what multiplies --------------------------------------------------------------------------------------------------


def test_rows_of_a_zip_directory_are_counted_before_it_is_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few the end of the file claims; and a directory of any size is not read in the first place."""
    monkeypatch.setattr(zipfile, "ZipInfo", None)  # what is made of a row
    honest = bombs.many_entries(30_000)
    lying = honest[:-22] + b"PK\x05\x06" + struct.pack("<HHHH", 0, 0, 3, 3) + honest[-10:]
    large = bombs.many_entries(150, b"n" * 60_000)
    for data, words in ((honest, "30000 entries"), (lying, "30000 entries"), (large, "a directory of")):
        path = tmp_path / "a.zip"
        path.write_bytes(data)
        with pytest.raises(StageFailed, match=words) as raised, open_archive(path):
            pass
        assert raised.value.failure.reason is Reason.BOMB


@pytest.mark.parametrize(
    "entries",
    [
        [("[Content_Types].xml", [bombs.TYPES]), ("xl/worksheets/sheet1.xml", [b"<row/>" * 4_000_000])],
        [("[Content_Types].xml", [bombs.TYPES]), ("ppt/slides/slide1.xml", [b"<a:p/>" * 4_000_000])],
        [("mimetype", [b"application/vnd.oasis.opendocument.text"]), ("content.xml", [b"<p/>" * 6_000_000])],
        [("mimetype", [b"application/epub+zip"]), ("OEBPS/1.html", [b"<p/>" * 6_000_000])],
    ],
    ids=["xlsx", "pptx", "odt", "epub"],
)
def test_documents_that_are_not_read_are_measured_too(desk: Desk, entries: list[tuple[str, list[bytes]]]) -> None:
    """A spreadsheet, presentation, text or book that unpacks to hundreds of times its size is called what it is."""
    assert desk.refusal(bombs.packed(entries), "a")[0] is Reason.BOMB


def test_one_embedded_file_under_many_names_does_not_fill_the_outbox(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are written up to a bound in all; the rest is said to be left out."""
    monkeypatch.setattr("engine.document.MAX_PARTS_BYTES", 5_000_000)
    document = desk.read(bombs.attachments(40, 1_050_000), "a.pdf")
    assert len(document.parts) == 4
    assert document.notes == ("36 parts were left out: too many, too large or damaged",)
    assert sum(path.stat().st_size for path in desk.outbox.glob("*.part*")) == sum(p.size_bytes for p in document.parts)


@pytest.mark.parametrize(
    "data",
    [
        bombs.MAIL + b"Content-Type: message/delivery-status\n\n" + b"a: b\n\n" * 500,
        bombs.MIXED + b"--b\r\r" * 500,
        bombs.MIXED + b"--b\n" + b"a:\n" * 500 + b"\nhi",
    ],
    ids=["blocks of a delivery report", "boundaries of an old Mac", "headers of a part"],
)
def test_whatever_a_mail_makes_parts_or_headers_from_is_counted(
    desk: Desk, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound the mail is read as plain text; within it, as ever."""
    note = "the parts are too many or nested too deeply: the mail was read as plain text"
    assert note not in desk.read(data, "a.eml").notes
    monkeypatch.setattr(read_mail, "MAX_BOUNDARIES", 400)
    monkeypatch.setattr(read_mail, "MAX_HEADERS", 400)
    document = desk.read(data, "a.eml")
    assert note in document.notes
    assert document.title == "corn"


def test_what_a_header_of_a_part_says_is_cut(desk: Desk) -> None:
    """The library takes the square of its length to take it apart; a long name in an old manner of writing fits."""
    name = "".join(f"%{byte:02X}" for byte in ("\u6c34" * 240).encode()).encode()
    part = (
        b"--b\nContent-Disposition: attachment; filename*=utf-8''" + name + b".txt" + b";a" * 5_000 + b"\n\nx\n--b--\n"
    )
    assert desk.read(bombs.MIXED + part, "a.eml").parts[0].name == "\u6c34" * 240 + ".txt"
    policy = read_mail._Counting()
    long = "x" * 10_000
    assert policy.header_source_parse([f"Content-Type: {long}\n"])[1] == long[: read_mail.MAX_PART_HEADER_CHARS]
    assert policy.header_source_parse([f"Subject: {long}\n"])[1] == long


def test_zones_of_a_calendar_are_looked_for_once_and_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that nobody knows too; beyond the bound a time has none. A duration of any length is no error."""
    sought: list[str] = []

    def find(name: str) -> ZoneInfo:
        sought.append(name)
        raise LookupError(name)

    read_event._zone.cache_clear()
    monkeypatch.setattr(read_event, "ZoneInfo", find)
    monkeypatch.setattr(read_event, "_MAX_ZONES", 3)
    event = b"BEGIN:VEVENT\r\nDTSTART;TZID=Far/%d:20260302T080000\r\nDURATION:P" + b"9" * 5_000 + b"D\r\n"
    text = text_of(desk.read(b"BEGIN:VCALENDAR\r\n" + b"".join(event % n for n in (0, 1, 2, 3, 0, 1, 2, 3)), "a.ics"))
    read_event._zone.cache_clear()
    assert sought == ["Far/0", "Far/1", "Far/2"]
    assert text.split() == [
        f"2026-03-02T08:00:00[Far/{n}]" if n < 3 else "2026-03-02T08:00:00" for n in (0, 1, 2, 3) * 2
    ]


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ('a,b\n1,"x",y\n,"' + '"' * 2_000 + "x\n", ["a | b", "1 | x | y", " | " + '"' * 1_000 + "x"]),
        ("name;sum\nAnn;1,5\nBob;2,5\n", ["name | sum", "Ann | 1,5", "Bob | 2,5"]),
        ("name,\ttown\nAnn,\tUlm\n", ["name, | town", "Ann, | Ulm"]),
        ("a, 'b, c'\nd, 'e, f'\n", ["a | b, c", "d | e, f"]),
        ("a, \"b, 'c\"\nd, 'e\n", ["a | b, 'c", "d | 'e"]),
        ("one\ntwo\n", ["one", "two"]),
    ],
    ids=["quotes", "decimal commas", "tabs", "single quotes", "apostrophes", "one column"],
)
def test_what_parts_the_cells_of_a_table_is_found_in_one_pass(desk: Desk, table: str, rows: list[str]) -> None:
    """The first of these took the library's own expressions the fourth power of its length: for ever."""
    assert text_of(desk.read(table.encode(), "a.csv")).splitlines() == rows


def test_events_of_a_calendar_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are read, and a note says how many more there were."""
    monkeypatch.setattr(read_event, "MAX_EVENTS", 3)
    events = b"".join(b"BEGIN:VEVENT\r\nSUMMARY:day %d\r\nEND:VEVENT\r\n" % day for day in range(5))
    document = desk.read(b"BEGIN:VCALENDAR\r\n" + events, "a.ics")
    assert document.notes == ("2 events beyond the first 3 were left out",)
    assert "day 2" in text_of(document)
    assert "day 3" not in text_of(document)


def test_a_page_that_eats_all_memory_costs_that_page(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it had more than any page takes; with less, it is the item's turn to get more. Without another page that can
    be read the file is a bomb."""

    def needs_ocr(page: object, text: str) -> bool:
        if "heron" not in text:
            raise RuntimeError("code=1: malloc (1000 bytes) failed")  # as MuPDF says it
        return False

    monkeypatch.setattr(read_pdf, "_needs_ocr", needs_ocr)
    document = desk.read(bombs.crowded(520, pages=2), "a.pdf")
    assert text_of(document).strip() == "heron"
    assert document.notes == ("pages that could not be read: 1 (page 1 takes more than 400 MiB of memory)",)
    assert desk.refusal(bombs.crowded(520), "a.pdf")[0] is Reason.BOMB
    desk.memory_bytes = 100 << 20
    with pytest.raises(MemoryError):
        desk.read(bombs.crowded(520, pages=2), "a.pdf")


def test_lines_of_a_page_are_counted_before_they_are_looked_at(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound its words are there all the same, as they come; so are the attachments that are tried."""
    texts = [(20 + 40 * (n % 9), 30 + 15 * (n // 9), f"w{n}") for n in range(200)]
    with pymupdf.open() as pdf:
        page = pdf.new_page()
        for x, y, word in texts:
            page.insert_text((x, y), word, fontsize=8)
        for number in range(3):
            page.add_file_annot((500, 50 * number), b"oats", f"{number}.txt")
        data = pdf.tobytes()
    whole = desk.read(data, "a.pdf")
    assert "w0\tw1\tw2" in text_of(whole)
    assert len(whole.parts) == 3
    monkeypatch.setattr(read_pdf, "_LAID_OUT_BYTES", 10_000)
    monkeypatch.setattr(read_pdf, "MAX_PARTS", 2)
    cut = desk.read(data, "a.pdf")
    assert sorted(text_of(cut).split()) == sorted(text_of(whole).split())
    assert len(cut.parts) == 2
    assert cut.notes == ("1 parts were left out: too many, too large or damaged",)


def test_broken_words_of_a_page_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are joined; looking for each of any number in the whole of a page would take its square."""
    monkeypatch.setattr(pdf_lines, "_MOST_BROKEN", 2)
    box = {"x": 0, "y": 0, "w": 9, "h": 9}
    lines = [
        {"text": f"mil{'lstone ' * (n > 0)}bar-" if n < 4 else "ley", "bbox": box | {"y": 20 * n}} for n in range(5)
    ]
    assert pdf_lines.text_of([{"lines": lines}]).count("-") == 2


def test_frames_and_passes_of_a_picture_are_counted_without_pillow(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directories of a TIFF, in either order of bytes and in the large form, and scans of a progressive JPEG."""
    path = tmp_path / "a.tif"
    for order, saving in (("II", {}), ("MM", {}), ("II", {"big_tiff": True})):
        frames = [Image.new("I;16B" if order == "MM" else "L", (40, 40)) for _ in range(4)]
        path.write_bytes(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:], **saving))
        assert path.read_bytes()[:2] == order.encode()
        for bound, many in ((3, True), (4, False)):
            monkeypatch.setattr(image_heads, "MAX_FRAMES", bound)
            with pytest.raises(StageFailed) if many else nullcontext():
                image_heads.refuse_many_frames(path)
    path.write_bytes(bombs.tiff(3, 40, 40, loop=True))
    image_heads.refuse_many_frames(path)  # in a circle each counts once
    monkeypatch.setattr(image_heads, "MAX_ENTRIES", 3 * 8 + 3 * 5)
    path.write_bytes(bombs.tiff_of_strips(3, 5))
    image_heads.refuse_many_frames(path)
    assert desk.refusal(bombs.tiff_of_strips(3, 6), "a.tif") == (
        Reason.BOMB,
        "a picture of more than 39 strips or tags",
    )
    few, most = bombs.many_scans(64, 64, 1), bombs.many_scans(64, 64, 600)
    assert desk.read(few, "a.jpg").pages[0].needs_ocr
    assert desk.refusal(most, "a.jpg") == (Reason.BOMB, "a picture in 605 passes; at most 500")


# --- work that must not grow with the square --------------------------------------------------------------------------


def test_blanks_are_tidied_as_ever_but_in_one_pass() -> None:
    """The same as the plain pattern gives for any text; a million blanks without a line's end do not hang it."""
    luck = random.Random(5)
    for _ in range(5_000):
        text = "".join(luck.choices(" \t\n\na\xa0\u2028\x1c", k=luck.randrange(14)))
        plain = re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+\n", "\n", text)).strip("\n")
        assert tidy(text) == plain
    long = " " * 1_000_000
    assert tidy(f"a{long}b{long}\n") == f"a{long}b"


def test_a_comment_that_never_ends_is_left_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ones go, closed or not, wherever they begin; short ones are left to the parser."""
    monkeypatch.setattr(markup, "_COMMENT_CHARS", 10)
    for given, left in (
        ("a<!-- -->b", "a<!-- -->b"),
        ("a<!-- 1234567890 -->b<!-- 1 -->c<!-- 1234567890 -->d", "ab<!-- 1 -->cd"),
        ("a<!-- <!-- <!-- <!-- <!-- <!--", "a"),
        ("a<!-- 1", "a<!-- 1"),
    ):
        assert markup._without_long_comments(given) == left


def test_abbreviations_that_never_end_are_looked_for_once(desk: Desk) -> None:
    """What is whole goes; behind the last of them nothing is searched through for each that begins."""
    xml = b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'><!ENTITY c 'd'>]><x>corn &a; rye</x>"
    assert text_of(desk.read(xml, "a.xml")).split() == ["corn", "rye"]
    assert text_of(desk.read(b"<?xml version='1.0'?>" + b"<!ENTITY " * 400_000, "a.xml"))


def test_what_no_document_is_packed_with_is_not_unpacked(desk: Desk) -> None:
    """Its size is only said, and one block of it may be gigabytes."""
    refusal = (Reason.DAMAGED, "word/document.xml in the ZIP container is packed as no document is")
    assert desk.refusal(bombs.understated(1), "a.docx") == refusal
    odt = bombs.packed([("mimetype", [b"application/vnd.oasis.opendocument.text"])], method=zipfile.ZIP_BZIP2)
    assert "application/zip" in desk.refusal(odt, "a.odt")[1]


def test_breaks_and_empty_paragraphs_take_no_room(desk: Desk) -> None:
    """What says nothing is not gathered, and what is said around it reads as ever."""
    html = b"<html><body>one" + b"<p><br>" * 2_000 + b"two</body></html>"
    assert text_of(desk.read(html, "a.html")) == "one\n\ntwo"
    words = [b"<w:p><w:r><w:t>%b</w:t></w:r></w:p>" % word for word in (b"one", b"two")]
    table = b"<w:tbl>" + b"<w:tr><w:tc><w:p/></w:tc></w:tr>" * 500 + b"</w:tbl>"
    docx = bombs.docx([words[0], b"<w:p/>" * 2_000, table, words[1]])
    assert text_of(desk.read(docx, "a.docx")) == "one\n\ntwo"
    page, story = markup._Page(100), read_docx._Story(10_000, {})
    page.data("one")
    for _ in range(1_000):
        page.start("p", {})
        page.start("br", {})
        story.start(f"{read_docx._SPACES['w'][0]} p", {})
        story.end(f"{read_docx._SPACES['w'][0]} p")
    assert len(page._pieces) == len(story._frames[0].pieces) == 2
    page.start("li", {})
    for _ in range(1_000):
        page.data(" ")
        page.start("p", {})  # beside its bullet it breaks no line
    assert len(page._pieces) == 3


def test_a_part_of_a_document_is_read_once_by_whatever_names(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that differ in capitals are one name, and one part is of one kind."""
    unpacked: list[str] = []
    blocks_of = read_docx.blocks_of
    monkeypatch.setattr(read_docx, "blocks_of", lambda *given: (unpacked.append(given[1]), blocks_of(*given))[1])
    kinds = ("header", "footer", "footnotes")
    story = [bombs.WORD, b"<w:p><w:r><w:t>again</w:t></w:r></w:p>", bombs.WORD_END]
    assert text_of(desk.read(bombs.many_names(kinds, "many.xml", 16, story), "a.docx")) == "again"
    assert unpacked.count("word/many.xml") == 1
    document = desk.read(bombs.many_names(("package", "oleObject"), "many.bin", 16, [b"some words\n"]), "a.docx")
    assert (len(document.parts), unpacked.count("word/many.bin")) == (1, 1)


def test_lines_in_frames_in_frames_are_not_taken_apart_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that is alone in its row hands its lines on, however deep it lies."""
    added: list[str] = []
    add = read_docx._add
    monkeypatch.setattr(read_docx, "_add", lambda lines, text: (added.append(text), add(lines, text))[1])
    line = b"<w:p><w:r><w:t>a<w:br/>b</w:t></w:r></w:p>"
    docx = bombs.docx([b"<w:tbl><w:tr><w:tc>" * 50, line * 1_000, b"</w:tc></w:tr></w:tbl>" * 50])
    assert text_of(desk.read(docx, "a.docx")) == "\n".join(["a\nb"] * 1_000)
    assert len(added) < 2_000
