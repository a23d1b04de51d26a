"""The text of PDF pages: rows of tables, columns, broken words, running headers, printed numbers, all scripts."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pymupdf
import pytest

from engine.document import Document, Page
from engine.reasons import Reason
from engine.workers.pdf_about import labels_of
from engine.workers.pdf_lines import text_of
from engine.workers.pdf_running import marked, running_lines
from tests.unit.extraction import Desk, pdf_of, raw_pdf, stream_of

DEJAVU = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
PROSE = "The mill grinds at night, when nobody is waiting for it, and in the morning all is done. " * 4


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def page_of(*texts: tuple[float, float, str]) -> bytes:
    """A page with texts at (x, y), in the order in which they are given."""
    with pymupdf.open() as pdf:
        page = pdf.new_page(width=500, height=700)
        for x, y, text in texts:
            page.insert_text((x, y), text, fontsize=9)
        data: bytes = pdf.tobytes()
        return data


def text_from(desk: Desk, data: bytes) -> str:
    document: Document = desk.read(data, "a.pdf")
    return document.pages[0].text


# --- rows and columns ------------------------------------------------------------------------------------------------

ROWS = [("corn", "miller", "sacks"), ("barley", "Ann", "12"), ("rye", "Ben", "7"), ("oats", "", "31")]


def test_cells_of_a_row_stand_on_one_line(desk: Desk) -> None:
    """A tab between them; an empty cell leaves nothing."""
    cells = [(50 + 120 * x, 80 + 16 * y, cell) for y, row in enumerate(ROWS) for x, cell in enumerate(row) if cell]
    text = text_from(desk, page_of((50, 50, "Of the year"), *cells))
    assert text.splitlines() == ["Of the year", "corn\tmiller\tsacks", "barley\tAnn\t12", "rye\tBen\t7", "oats\t31"]


def test_a_table_that_is_written_column_by_column_is_read_row_by_row(desk: Desk) -> None:
    """As spreadsheets are sometimes printed."""
    rows = [("corn", "miller", "sacks"), ("barley", "Ann", "12"), ("rye", "Ben", "7"), ("oats", "Cid", "31")]
    cells = [(50 + 120 * x, 80 + 16 * y, rows[y][x]) for x in range(3) for y in range(4)]
    assert text_from(desk, page_of(*cells)).splitlines() == ["\t".join(row) for row in rows]


LEFT = [f"the left column goes on from line {number}" for number in range(8)]
RIGHT = [f"and the right one follows it on line {number}" for number in range(8)]


def test_columns_of_prose_are_read_one_after_the_other(desk: Desk) -> None:
    """Whether the file has them so, or line by line across the page."""
    left = [(40, 80 + 12 * y, text) for y, text in enumerate(LEFT)]
    right = [(260, 80 + 12 * y, text) for y, text in enumerate(RIGHT)]
    assert text_from(desk, page_of(*left, *right)).splitlines() == LEFT + RIGHT
    across = [cell for row in zip(left, right, strict=True) for cell in row]
    assert text_from(desk, page_of(*across)).splitlines() == LEFT + RIGHT


def test_what_is_printed_over_itself_is_read_once(desk: Desk) -> None:
    """To make it bold, or as its shadow, at once or when the paragraph is done; what stands elsewhere is another."""
    heading = [(50 + at / 3, 60 + at / 3, "Of the mill") for at in range(3)]
    shadow = [(50 + at, 100 + 14 * y, f"line {y} of the text") for at in (0, 1) for y in range(2)]
    names = [(50, 160, "Ann"), (110, 160, "Ann"), (50, 174, "Ann")]
    text = text_from(desk, page_of(*heading, *shadow, *names))
    assert text.splitlines() == ["Of the mill", "line 0 of the text", "line 1 of the text", "Ann\tAnn", "Ann"]


@pytest.mark.parametrize("degrees", [90, 270])
def test_lines_that_run_up_the_page_are_no_cells(desk: Desk, degrees: int) -> None:
    """Printed across the sheet, they stand one after the other, words broken at their ends whole."""
    pdf = pymupdf.open()
    page = pdf.new_page()
    box = pymupdf.Rect(72, 72, 520, 770)
    said = (
        "The wheel of the mill turns in the evening and no-",
        "body hears it.",
        "Nothing rests at night, as the mil-",
        "ler says.",
    )
    page.insert_textbox(box, "\n".join(said), rotate=degrees)
    document = desk.read(pdf.tobytes(), "a.pdf")
    assert document.pages[0].text == (
        "The wheel of the mill turns in the evening and nobody\nhears it.\nNothing rests at night, as the miller\nsays."
    )


@pytest.mark.parametrize(
    ("spaced", "closed"),
    [
        ("S u m m e r  n i g h t", "Summer night"),
        ('  n e t :  " h o s t "  ', 'net: "host"'),
        ("M Ü H L E N", "MÜHLEN"),
        ("目 次 と 索 引", "目次と索引"),
        ("1 2 3 4 5 6", "1 2 3 4 5 6"),
        ("a b c", "a b c"),
        ("I am a mill", "I am a mill"),
        ("a  b  c  d  e  f", "a b c d e f"),
    ],
)
def test_letters_that_are_set_apart_are_words(spaced: str, closed: str) -> None:
    """Headings; not numbers beside each other, and not the few letters of a list."""
    assert text_of(lines(spaced)) == closed


def test_no_word_of_a_page_is_lost_or_made_up(desk: Desk) -> None:
    """Whatever stands beside what."""
    texts = [(20 + 37 * n % 450, 30 + 53 * n % 640, f"word{n}") for n in range(200)]
    assert sorted(text_from(desk, page_of(*texts)).split()) == sorted(text for _, _, text in texts)


# --- broken words ----------------------------------------------------------------------------------------------------


def lines(*texts: str) -> list[dict[str, Any]]:
    """One block, as MuPDF writes it."""
    return [
        {"lines": [{"text": text, "bbox": {"x": 50, "y": 20 * y, "w": 300, "h": 12}} for y, text in enumerate(texts)]}
    ]


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (("a piece of infor-", "mation for you"), "a piece of information\nfor you"),
        (("a piece of infor\u2010", "mation"), "a piece of information"),
        (("a piece of infor\u00ad", "mation, so\u00adto say"), "a piece of information,\nsoto say"),
        (("a well-", "known miller"), "a well-known\nmiller"),
        (("a hard-", "working miller, as hard-working as any"), "a hard-working\nmiller, as hard-working as any"),
        (("the flour-", "mill stands by the flourmill"), "the flourmill\nstands by the flourmill"),
        (("Jean-", "Paul came"), "Jean-Paul\ncame"),
        (("an OP-", "TIONAL field; OPTIONAL"), "an OPTIONAL\nfield; OPTIONAL"),
        (("in 2019-", "2020 it rained"), "in 2019-2020\nit rained"),
        (("state-of-", "the-art mills"), "state-of-the-art\nmills"),
        (("the un-", "for-", "tunate miller"), "the unfortunate\nmiller"),
        (("pre-", "and post-war mills"), "pre-\nand post-war mills"),
        (("Vor-", "und Nachteile"), "Vor-\nund Nachteile"),
        (("thous-", "and sacks; a thousand"), "thousand\nsacks; a thousand"),
        (("the list:", "- barley", "-", "rye -", "oats"), "the list:\n- barley\n-\nrye -\noats"),
        (("de la main-", "d’œuvre"), "de la main-d’œuvre"),
        (("по-", "нимание"), "понимание"),
        (("ends with in-",), "ends with in-"),
        (("goes on over-", "12"), "goes on over-\n12"),
        (("a case of COVID-", "19 in spring"), "a case of COVID-19\nin spring"),
        (("COVID-19 and COVID-", "19"), "COVID-19 and COVID-19"),
    ],
)
def test_words_that_a_lines_end_broke_are_whole(texts: tuple[str, ...], whole: str) -> None:
    """And those that have a hyphen keep it, as far as the text tells; soft hyphens go."""
    assert text_of(lines(*texts)) == whole


def test_where_words_are_not_broken_a_hyphen_at_a_lines_end_is_one() -> None:
    """If both halves are words of the page. Where many lines end so, it is a broken word unless told otherwise."""
    plain = [f"line {number} of the village and its centre" for number in range(60)]
    assert "the centre-village\n" in text_of(lines(*plain, "the centre-", "village is small"))
    assert "the centrevillage\n" in text_of(lines(*plain[:5], "the centre-", "village is small"))


def test_the_pages_before_tell_how_a_word_is_written(desk: Desk) -> None:
    """What stands whole there is joined, or not, as it stands there."""
    broken = "a stone-\nmill was built"
    for before, whole in (("The stone-mill burnt.", "a stone-mill\nwas"), ("The stonemill burnt.", "a stonemill\nwas")):
        assert whole in desk.read(pdf_of(before, broken), "a.pdf").pages[1].text


# --- running headers, footers, numbers -------------------------------------------------------------------------------


def book(count: int, first: int = 1) -> bytes:
    """Pages with a header left and right, a text, and the page's number below."""
    with pymupdf.open() as pdf:
        for number in range(first, first + count):
            page = pdf.new_page(width=400, height=500)
            page.insert_text((20, 20), "The Mill" if number % 2 else "Chapter of Corn")
            words = random.Random(number).sample(PROSE.split(), 60)
            page.insert_textbox(pymupdf.Rect(20, 60, 380, 440), f"Sack {number} {' '.join(words)}")
            page.insert_text((190, 480), f"- {number} -")
        data: bytes = pdf.tobytes()
        return data


def test_running_headers_and_page_numbers_are_known(desk: Desk) -> None:
    """They stay in the text; the number is the page's label."""
    pages = desk.read(book(6, first=41), "a.pdf").pages
    assert [(page.header, page.footer, page.label) for page in pages] == [(1, 1, str(n)) for n in range(41, 47)]
    assert pages[1].text.startswith("Chapter of Corn\nSack 42")
    assert pages[1].text.endswith("\n- 42 -")
    assert all(page.header == page.footer == 0 for page in desk.read(book(2), "a.pdf").pages)


def running(*texts: str) -> list[tuple[int, int, str]]:
    pages = [Page(number=number, text=text) for number, text in enumerate(texts, start=1)]
    found = [marked(page, lines, "") for page, lines in zip(pages, running_lines(pages), strict=True)]
    return [(page.header, page.footer, page.label) for page in found]


def test_a_number_that_does_not_count_the_pages_makes_no_header() -> None:
    """ "Table 3" on page 7 and "Table 9" on page 8 are what the pages are about."""
    tables = [f"Table {number}\nof page {'abcde'[n]}\nand {'vwxyz'[n]}" for n, number in enumerate((3, 9, 10, 20, 22))]
    assert running(*tables) == [(0, 0, "")] * 5


def test_numbers_are_found_in_roman_and_among_words() -> None:
    """Prefaces count so; "Page 3 of 9" says both."""
    roman = [f"the preface {'abcd'[n]}\n{numeral}" for n, numeral in enumerate(("iii", "iv", "v", "vi"))]
    assert running(*roman) == [(0, 1, numeral) for numeral in ("iii", "iv", "v", "vi")]
    of = [f"Page {number} of 4\nthe text of {'abcd'[number - 1]}" for number in (1, 2, 3, 4)]
    assert running(*of) == [(1, 0, str(number)) for number in (1, 2, 3, 4)]


def test_pages_of_nothing_but_what_repeats_keep_it() -> None:
    """It is what they say."""
    assert running(*["always the same"] * 4) == [(0, 0, "")] * 4


def test_labels_that_the_file_gives_come_first(desk: Desk) -> None:
    """Roman for the preface, a prefix for the appendix."""
    with pymupdf.open(stream=book(7)) as pdf:
        pdf.set_page_labels(
            [
                {"startpage": 0, "prefix": "", "style": "r", "firstpagenum": 3},
                {"startpage": 2, "prefix": "", "style": "D", "firstpagenum": 1},
                {"startpage": 5, "prefix": "A-", "style": "A", "firstpagenum": 26},
            ]
        )
        document = desk.read(pdf.tobytes(), "a.pdf")
    assert [page.label for page in document.pages] == ["iii", "iv", "1", "2", "3", "A-Z", "A-AA"]


def test_roman_labels_are_those_of_a_preface() -> None:
    class Prefaced:
        page_count = 3_999

        def get_page_labels(self) -> list[dict[str, Any]]:
            return [{"startpage": 0, "style": "r"}]

    labels = labels_of(Prefaced())
    assert labels[:12] == ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"]
    assert [labels[number - 1] for number in (14, 49, 95, 444, 1994, 3999)] == [
        *("xiv", "xlix", "xcv", "cdxliv", "mcmxciv", "mmmcmxcix")
    ]
    assert len(set(labels)) == len(labels)


def test_labels_of_any_size_are_bounded() -> None:
    """A number in Roman numerals is as long as it is great."""

    class Pdf:
        page_count = 2

        def get_page_labels(self) -> list[dict[str, Any]]:
            return [{"startpage": 0, "prefix": "<FEFF0042002D>", "style": self.style, "firstpagenum": 10**9}]

    pdf = Pdf()
    for style, first in (("D", "B-1000000000"), ("r", "B-"), ("a", "B-")):
        pdf.style = style
        assert labels_of(pdf)[0] == first


# --- attachments, and files that do not open --------------------------------------------------------------------------


def test_all_attachments_are_named_even_those_that_are_not_taken(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded, or pinned to a page; one that is too large is told from the rest."""
    from engine.workers import read_pdf

    monkeypatch.setattr(read_pdf, "_ATTACHMENT_BYTES", 1_000)
    with pymupdf.open(stream=pdf_of(PROSE)) as pdf:
        pdf[0].add_file_annot((50, 300), b"oats,12\n", "harvest.csv")
        pdf.embfile_add("invoice", b"<?xml version='1.0'?><invoice/>", filename="invoice.xml")
        pdf.embfile_add("disk", b"0123456789" * 500, filename="disk.img")
        document = desk.read(pdf.tobytes(), "a.pdf")
    assert document.facts["attachments"] == "harvest.csv, invoice.xml, disk.img"
    assert [(part.name, desk.part(document, at)[:4]) for at, part in enumerate(document.parts)] == [
        ("harvest.csv", b"oats"),
        ("invoice.xml", b"<?xm"),
    ]
    assert document.notes == (
        "attachments that were not taken: disk.img (5000 bytes, more than 1000)",
        "1 parts were left out: too many, too large or damaged",
    )


def test_a_manner_of_encryption_that_nobody_knows_is_encryption(desk: Desk) -> None:
    """Certificates, servers of rights: the file is whole, and closed."""
    data = raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 500]/Contents 4 0 R>>",
        stream_of(b"BT ET"),
        b"<</Filter/Adobe.PubSec/SubFilter/adbe.pkcs7.s5/V 4>>",
    )
    data = data.replace(b"/Root 1 0 R", b"/Root 1 0 R/Encrypt 5 0 R/ID[<00><00>]")
    reason, detail = desk.refusal(data, "a.pdf")
    assert reason is Reason.ENCRYPTED
    assert "unknown encryption handler" in detail
    assert "code=" not in detail


# --- scripts ---------------------------------------------------------------------------------------------------------

TEXTS = {
    "German": ("Größe, Öl und Übermaß: die Straße führt zur Mühle", None),
    "Greek": ("Ο μύλος αλέθει τη νύχτα", None),
    "Russian": ("Мельница мелет ночью", None),
    "Japanese": ("水車小屋は夜に粉をひく", "japan"),
    "Chinese": ("磨坊在夜里磨粉", "china-s"),
    "Korean": ("방앗간은 밤에 빻는다", "korea"),
}


@pytest.mark.parametrize("language", TEXTS)
def test_all_scripts_come_through_whole(desk: Desk, language: str) -> None:
    """As they were written, and none of them is sent to OCR."""
    text, font = TEXTS[language]
    if font is None and not DEJAVU.exists():
        pytest.skip(f"{DEJAVU} is not installed")
    file = {"fontname": "given", "fontfile": str(DEJAVU)} if font is None else {"fontname": font}
    with pymupdf.open() as pdf:
        page = pdf.new_page()
        for y in range(30):
            page.insert_text((50, 60 + 20 * y), f"{text} {y}", **file)
        found = desk.read(pdf.tobytes(), "a.pdf").pages[0]
    assert found.text.splitlines() == [f"{text} {y}" for y in range(30)]
    assert not found.needs_ocr


@pytest.mark.parametrize(
    ("language", "text"), [("Arabic", "تطحن الطاحونة ليلا عندما لا ينتظر أحد"), ("Hebrew", "הטחנה טוחנת בלילה")]
)
def test_what_is_written_from_the_right_is_read_in_its_own_order(desk: Desk, language: str, text: str) -> None:
    """Not letter by letter as it stands from left to right."""
    if not DEJAVU.exists():
        pytest.skip(f"{DEJAVU} is not installed")
    css = "@font-face {font-family: d; src: url(DejaVuSans.ttf);} * {font-family: d;}"
    with pymupdf.open() as pdf:
        page = pdf.new_page()
        archive = pymupdf.Archive(str(DEJAVU.parent))
        page.insert_htmlbox(pymupdf.Rect(50, 50, 500, 200), f"<p dir='rtl'>{text}</p>", css=css, archive=archive)
        found = desk.read(pdf.tobytes(), "a.pdf").pages[0].text
    assert unicodedata.normalize("NFKC", found).split() == text.split()


@pytest.mark.parametrize(
    "text",
    [
        "चक्की रात को पीसती है जब कोई प्रतीक्षा नहीं करता और सुबह सब कुछ तैयार रहता है",
        "โรงสีบดแป้งในเวลากลางคืนเมื่อไม่มีใครรอและในตอนเช้าทุกอย่างก็เสร็จ",
    ],
    ids=["Hindi", "Thai"],
)
def test_vowel_signs_stay_where_they_were_written(desk: Desk, text: str) -> None:
    """A font whose codes are named by a table, as all fonts of such scripts are; no such font is needed for it."""
    codes = {letter: 0x21 + at for at, letter in enumerate(dict.fromkeys(text.replace(" ", "")))}
    table = b"".join(b"<%02X> <%04X>\n" % (code, ord(letter)) for letter, code in codes.items())
    shown = b"".join(b"%02X" % codes.get(letter, 0x20) for letter in text)
    rows = b"".join(b"1 0 0 1 20 %d Tm <%s> Tj " % (480 - 14 * y, shown) for y in range(9))
    pdf = raw_pdf(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 900 500]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
        stream_of(b"BT /F 9 Tf " + rows + b"ET"),
        b"<</Type/Font/Subtype/Type1/BaseFont/Given/FirstChar 32/LastChar %d/Widths[300 %s]/ToUnicode 6 0 R>>"
        % (
            max(codes.values()),
            b" ".join(b"0" if unicodedata.category(letter) == "Mn" else b"600" for letter in codes),
        ),
        stream_of(
            b"begincmap\n1 begincodespacerange <00> <FF> endcodespacerange\n%d beginbfchar\n" % (len(codes) + 1)
            + table
            + b"<20> <0020>\nendbfchar\nendcmap"
        ),
    )
    found = desk.read(pdf, "a.pdf").pages[0]
    assert found.text.splitlines() == [text] * 9
    assert not found.needs_ocr
