"""DOCX: everything that is written in one, in order and once; and packages that are none."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docx
import pytest
from lxml import etree
from PIL import Image

from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import archive, extract
from engine.workers import ole as ole_module
from tests import bombs
from tests.unit.extraction import Desk, text_of, zip_of

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
STRICT = 'xmlns:w="http://purl.oclc.org/ooxml/wordprocessingml/main"'
CONTENT_TYPES = '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
RELATIONS = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def written(fill: Callable[[Any], None]) -> bytes:
    """What python-docx saves after `fill` has worked on a new document."""
    document = docx.Document()
    fill(document)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def package(body: str, namespaces: str = W, **others: str | bytes) -> bytes:
    """A minimal package with a hand-written body; `others` are further parts by the last word of their relation."""
    links = "".join(
        f'<Relationship Id="r{at}" Type="http://x/{kind}" Target="{kind}.xml"/>' for at, kind in enumerate(others)
    )
    return zip_of(
        {
            "[Content_Types].xml": CONTENT_TYPES,
            "_rels/.rels": RELATIONS.format(
                '<Relationship Id="a" Type="x/officeDocument" Target="/word/document.xml"/>'
            ),
            "word/_rels/document.xml.rels": RELATIONS.format(links),
            "word/document.xml": f"<w:document {namespaces}><w:body>{body}</w:body></w:document>",
            **{f"word/{kind}.xml": data for kind, data in others.items()},
        }
    )


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_paragraphs_and_tables_come_in_their_order(desk: Desk) -> None:
    """A table stands where it was written, a row on a line."""

    def fill(document: Any) -> None:
        document.add_heading("Mills", 1)
        document.add_paragraph("before the table")
        table = document.add_table(2, 3)
        for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
            cell.text = f"cell {number}"
        document.add_paragraph("after the table")

    lines = text_of(desk.read(written(fill), "a.docx")).splitlines()
    assert lines == [
        "Mills",
        "before the table",
        "cell 0\tcell 1\tcell 2",
        "cell 3\tcell 4\tcell 5",
        "after the table",
    ]


def test_merged_cells_are_read_once(desk: Desk) -> None:
    """python-docx repeats them for every column and row that they span."""

    def fill(document: Any) -> None:
        table = document.add_table(3, 3)
        table.cell(0, 0).merge(table.cell(0, 2)).text = "wide"
        table.cell(1, 0).merge(table.cell(2, 0)).text = "tall"
        table.cell(2, 2).text = "corner"

    text = text_of(desk.read(written(fill), "a.docx"))
    assert [text.count(word) for word in ("wide", "tall", "corner")] == [1, 1, 1]


def test_a_table_within_a_cell_stays_in_its_row(desk: Desk) -> None:
    """One line, nothing lost."""

    def fill(document: Any) -> None:
        table = document.add_table(1, 2)
        table.cell(0, 0).text = "outer"
        table.cell(0, 1).add_table(1, 2).cell(0, 1).text = "inner"

    (line,) = text_of(desk.read(written(fill), "a.docx")).splitlines()
    assert "outer" in line
    assert "inner" in line


def test_headers_and_footers_are_read_once(desk: Desk) -> None:
    """Also when every section repeats them."""

    def fill(document: Any) -> None:
        document.add_paragraph("the body")
        document.sections[0].header.paragraphs[0].text = "a header"
        document.sections[0].footer.paragraphs[0].text = "a footer"
        second = document.add_section()
        second.header.is_linked_to_previous = False
        second.header.paragraphs[0].text = "a header"

    text = text_of(desk.read(written(fill), "a.docx"))
    assert text.index("the body") < text.index("a header") < text.index("a footer")
    assert text.count("a header") == 1


def test_notes_and_comments_are_read_after_the_body(desk: Desk) -> None:
    """Footnotes, endnotes and comments; who wrote these is a fact. No word is added."""
    data = package(
        paragraph("body"),
        footnotes=f'<w:footnotes {W}><w:footnote w:id="1">{paragraph("a foot note")}</w:footnote></w:footnotes>',
        endnotes=f'<w:endnotes {W}><w:endnote w:id="1">{paragraph("an end note")}</w:endnote></w:endnotes>',
        comments=f'<w:comments {W}><w:comment w:author="Ann">{paragraph("not so")}</w:comment></w:comments>',
    )
    document = desk.read(data, "a.docx")
    assert text_of(document) == "body\n\na foot note\n\nan end note\n\nnot so"
    assert document.facts["comments by"] == "Ann"


def test_a_text_box_is_read_once_and_after_its_paragraph(desk: Desk) -> None:
    """Word writes it twice: as a drawing, and as a picture for versions that know no drawings."""
    box = f"<w:txbxContent>{paragraph('in the box')}</w:txbxContent>"
    body = f"""<w:p><w:r><w:t>before</w:t></w:r><w:r><mc:AlternateContent><mc:Choice Requires="wps"><w:drawing>{box}
        </w:drawing></mc:Choice><mc:Fallback><w:pict>{box}</w:pict></mc:Fallback></mc:AlternateContent></w:r>
        <w:r><w:t xml:space="preserve"> and after</w:t></w:r></w:p>{paragraph("next")}"""
    spaces = f'{W} xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    lines = text_of(desk.read(package(body, spaces), "a.docx")).splitlines()
    assert lines == ["before and after", "in the box", "next"]


def test_what_was_struck_out_is_not_read(desk: Desk) -> None:
    """Deleted and moved-away runs are no text of the document, inserted ones are; nor are field codes."""
    body = """<w:p><w:del><w:r><w:delText>deleted</w:delText></w:r></w:del><w:ins><w:r><w:t>inserted</w:t></w:r></w:ins>
        <w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom><w:r><w:instrText>PAGE</w:instrText></w:r></w:p>"""
    assert text_of(desk.read(package(body), "a.docx")).split() == ["inserted"]


def test_tabs_and_line_breaks_are_kept_apart_from_tab_stops(desk: Desk) -> None:
    """Words do not run together."""
    body = """<w:p><w:pPr><w:tabs><w:tab w:val="left" w:pos="720"/></w:tabs></w:pPr>
        <w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p>"""
    assert text_of(desk.read(package(body), "a.docx")) == "a\tb\nc"


def test_strict_documents_are_read_too(desk: Desk) -> None:
    """ISO 29500 Strict has other namespaces for the same."""
    assert text_of(desk.read(package(paragraph("strictly"), STRICT), "a.docx")) == "strictly"


def test_title_author_and_date_are_facts(desk: Desk) -> None:
    """From the core properties."""

    def fill(document: Any) -> None:
        document.add_paragraph("x")
        document.core_properties.title = "On mills"
        document.core_properties.author = "Ann"
        document.core_properties.modified = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)

    document = desk.read(written(fill), "x.docx")
    assert document.title == "On mills"
    assert document.facts["author"] == "Ann"
    assert document.facts["date"] == "2026-03-01T09:30:00+00:00"


def test_an_empty_document_is_a_document(desk: Desk) -> None:
    """It is found by its name."""
    document = desk.read(package(""), "plans.docx")
    assert (document.title, text_of(document)) == ("plans.docx", "")


# --- all of it, once --------------------------------------------------------------------------------------------------


def test_a_document_of_nothing_but_pictures_says_so(desk: Desk) -> None:
    """Scans that were put into Word; beside text they are taken for what goes with it."""
    picture = io.BytesIO()
    Image.new("L", (64, 64)).save(picture, "PNG")
    document = desk.read(written(lambda word: word.add_picture(picture)), "a.docx")
    assert document.notes == ("it has no text, but pictures, which are not read: 1",)

    def illustrate(word: Any) -> None:
        word.add_paragraph("the mill")
        word.add_picture(picture)

    assert desk.read(written(illustrate), "a.docx").notes == ()


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def drop_down(chosen: str, shown: str = "") -> str:
    """A field of a form as Word made them before there were content controls; other programs write what it shows."""
    entries = "".join(f'<w:listEntry w:val="{town}"/>' for town in ("Ulm", "Bonn", "Kiel"))
    return (
        f'{run("Town: ")}<w:r><w:fldChar w:fldCharType="begin"><w:ffData><w:ddList>{chosen}{entries}</w:ddList>'
        "</w:ffData></w:fldChar></w:r><w:r><w:instrText> FORMDROPDOWN </w:instrText></w:r>"
        f'<w:r><w:fldChar w:fldCharType="separate"/></w:r>{shown}<w:r><w:fldChar w:fldCharType="end"/></w:r>{run(".")}'
    )


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (f'<w:hyperlink r:id="x" xmlns:r="u">{run("a link")}</w:hyperlink>', "a link"),
        (
            f'<w:sdt><w:sdtPr><w:alias w:val="no"/></w:sdtPr><w:sdtContent>{run("a control")}</w:sdtContent></w:sdt>',
            "a control",
        ),
        (f'<w:fldSimple w:instr="PAGE">{run("7")}</w:fldSimple>', "7"),
        (
            f'<w:r><w:fldChar w:fldCharType="begin"/><w:instrText>REF a</w:instrText></w:r>{run("result")}'
            '<w:r><w:fldChar w:fldCharType="end"/></w:r>',
            "result",
        ),
        (drop_down('<w:result w:val="1"/>'), "Town: Bonn."),
        (drop_down('<w:result w:val="0"/><w:default w:val="2"/>'), "Town: Ulm."),
        (drop_down('<w:default w:val="2"/>'), "Town: Kiel."),
        (drop_down(""), "Town: Ulm."),
        (drop_down('<w:result w:val="1"/>', run("Bonn")), "Town: Bonn."),
        (drop_down('<w:result w:val="9"/>'), "Town: ."),
        (f"<w:smartTag>{run('tag')}</w:smartTag>", "tag"),
        (f"<w:moveTo>{run('moved here')}</w:moveTo>", "moved here"),
        (f"{run('a')}<w:del>{run('as some programs write it')}</w:del>{run('b')}", "ab"),
        ("<w:r><w:t>Donau</w:t><w:softHyphen/><w:t>dampf</w:t></w:r>", "Donaudampf"),
        ("<w:r><w:t>twenty</w:t><w:noBreakHyphen/><w:t>one</w:t></w:r>", "twenty-one"),
        ("<w:r><w:t>a</w:t><w:cr/><w:t>b</w:t><w:ptab/><w:t>c</w:t></w:r>", "a\nb\tc"),
        ('<w:r><w:sym w:font="Symbol" w:char="F061"/><w:t>-rays</w:t></w:r>', "α-rays"),
        ('<w:r><w:t>a</w:t><w:sym w:font="Wingdings" w:char="F0E8"/><w:t>b</w:t></w:r>', "a b"),
        ('<w:r><w:sym w:font="Arial" w:char="00E9"/><w:sym w:font="Arial" w:char="no number"/></w:r>', "é"),
        (
            "<w:ruby><w:rt><w:r><w:t>とう</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>東</w:t></w:r></w:rubyBase></w:ruby>"
            "<w:ruby><w:rt><w:r><w:t>きょう</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>京</w:t></w:r></w:rubyBase></w:ruby>",
            "東京\nとう きょう",
        ),
        (
            "<m:oMath><m:f><m:num><m:r><m:t>m</m:t></m:r></m:num><m:den><m:r><m:t>n</m:t></m:r></m:den></m:f>"
            "<m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>",
            "m/n x^2",
        ),
        (
            '<w:r><mc:AlternateContent><mc:Choice Requires="s"><s:symEx s:font="Emoji" s:char="1F60A"/></mc:Choice>'
            "<mc:Fallback><w:t>😊</w:t></mc:Fallback></mc:AlternateContent></w:r>",
            "😊",
        ),
        (
            f"<mc:AlternateContent><mc:Choice>{run('first')}</mc:Choice><mc:Choice>{run('second')}</mc:Choice>"
            f"</mc:AlternateContent>{run(' after')}",
            "first after",
        ),
        (
            f"<w:r><a:txBody>{''.join(f'<a:p><a:r><a:t>{word}</a:t></a:r></a:p>' for word in ('one', 'two'))}"
            f"</a:txBody></w:r>{run('around')}",
            "around\none\ntwo",
        ),
        ("<w:r><w:t>a &lt; b &#x26; c</w:t></w:r>", "a < b & c"),
        ("<w:pPr><w:rPr><w:del/></w:rPr></w:pPr>" + run("its end is struck out"), "its end is struck out"),
    ],
)
def test_what_a_paragraph_may_hold(desk: Desk, inside: str, text: str) -> None:
    """What is shown is read, in its place; what only steers is not."""
    spaces = (
        f'{W} xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
        'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
        'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
        'xmlns:s="http://schemas.microsoft.com/office/word/2015/wordml/symex"'
    )
    document = desk.read(package(f"<w:p>{inside}</w:p>{paragraph('next')}", spaces), "a.docx")
    assert text_of(document) == f"{text}\nnext"
    assert not document.notes


def test_a_table_of_one_column_keeps_its_lines(desk: Desk) -> None:
    """Such a table is a frame around text: its paragraphs, and the rows of a table within it, stay apart."""

    def fill(document: Any) -> None:
        cell = document.add_table(1, 1).cell(0, 0)
        cell.text = "one\ntwo"
        cell.add_paragraph("three")
        inner = cell.add_table(2, 2)
        for number, each in enumerate(each for row in inner.rows for each in row.cells):
            each.text = str(number)

    assert text_of(desk.read(written(fill), "a.docx")).split("\n") == ["one", "two", "three", "0\t1", "2\t3"]


def test_a_text_box_in_a_cell_stays_in_its_row(desk: Desk) -> None:
    """The row is a line all the same."""
    box = f"<w:r><w:pict><w:txbxContent>{paragraph('in the box')}</w:txbxContent></w:pict></w:r>"
    row = f"<w:tr><w:tc><w:p>{run('a')}{box}</w:p></w:tc><w:tc><w:p>{run('b')}</w:p></w:tc></w:tr>"
    assert text_of(desk.read(package(f"<w:tbl>{row}</w:tbl>"), "a.docx")) == "a in the box\tb"


def test_charts_and_diagrams_say_their_words_and_not_their_numbers(desk: Desk) -> None:
    """Titles and names; a name that every series repeats comes once."""
    c = 'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart"'
    a = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
    cx = 'xmlns:cx="http://schemas.microsoft.com/office/drawing/2014/chartex"'
    series = (
        "<c:ser><c:tx><c:strCache><c:v>{}</c:v></c:strCache></c:tx><c:cat><c:strCache><c:v>May</c:v></c:strCache></c:cat>"
        "<c:val><c:numCache><c:v>17</c:v></c:numCache></c:val></c:ser>"
    )
    data = package(
        paragraph("body"),
        chart=f"<c:chart {c} {a}><a:p><a:t>Rye</a:t></a:p>{series.format('north')}{series.format('south')}</c:chart>",
        chartEx=f"<cx:d {cx}><cx:strDim><cx:pt>east</cx:pt></cx:strDim><cx:numDim><cx:pt>4</cx:pt></cx:numDim></cx:d>",
        diagramData=f"<d {a}><a:p><a:t>from </a:t><a:t>here</a:t></a:p><a:p><a:t>to</a:t></a:p></d>",
    )
    assert text_of(desk.read(data, "a.docx")) == "body\n\nfrom here\nto\n\nRye\nnorth\nMay\nsouth\n\neast"


def test_parts_are_found_by_their_relations_wherever_they_lie(desk: Desk) -> None:
    """Other folders, other letters (names are compared without regard to case), escaped names; macros and templates."""
    content_type = "application/vnd.ms-word.template.macroEnabledTemplate.main+xml"
    main = f'<Override PartName="/a b/Main.xml" ContentType="{content_type}"/>'
    data = zip_of(
        {
            "[Content_Types].xml": CONTENT_TYPES.replace("/>", f">{main}</Types>"),
            "_rels/.rels": RELATIONS.format('<Relationship Id="a" Type="x/officeDocument" Target="/A%20b/main.xml"/>'),
            "a b/_rels/Main.xml.rels": RELATIONS.format(
                '<Relationship Id="n" Type="x/footnotes" Target="../notes/n.xml"/>'
                '<Relationship Id="e" Type="x/header" Target="http://x/h.xml" TargetMode="External"/>'
            ),
            "a b/Main.xml": f"<w:document {W}><w:body>{paragraph('body')}</w:body></w:document>",
            "notes/n.xml": f"<w:footnotes {W}><w:footnote>{paragraph('note')}</w:footnote></w:footnotes>",
        }
    )
    document = desk.read(data, "a.dotm")
    assert text_of(document) == "body\n\nnote"
    assert not document.notes


def test_a_part_that_is_named_and_missing_is_noted(desk: Desk) -> None:
    """The rest is read, and listed as partial."""
    data = package(paragraph("body"), footer=f"<w:ftr {W}>{paragraph('foot')}</w:ftr>", header="")
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        data = zip_of({name: opened.read(name) for name in opened.namelist() if name != "word/header.xml"})
    document = desk.read(data, "a.docx")
    assert text_of(document) == "body\n\nfoot"
    assert document.notes == ("partial: header: 1 of 1 parts are missing",)


def test_files_that_lie_inside_become_parts(desk: Desk) -> None:
    """A spreadsheet behind a table, a page that Word was told to include: items of their own, known by content."""
    sheet = zip_of({"[Content_Types].xml": CONTENT_TYPES, "xl/workbook.xml": "<a/>"})
    document = desk.read(package(paragraph("body"), package=sheet, aFChunk="<html>words</html>"), "a")
    assert [part.media_type for part in document.parts] == ["application/zip", "text/html"]
    assert desk.part(document, 1) == b"<html>words</html>"


def ole(**streams: bytes) -> bytes:
    """An OLE2 file as programs write it: small streams in one of their own, others in sectors of 512 bytes."""
    small, small_table, sectors, table, places = b"", [], b"", [], {}

    def laid(data: bytes) -> int:
        nonlocal sectors
        first, count = len(table), -(-len(data) // 512)
        sectors += data.ljust(count * 512, b"\0")
        table.extend([*range(first + 1, first + count), 0xFFFFFFFE] if count else [])
        return first if count else 0xFFFFFFFE

    for name, data in streams.items():
        if len(data) < 4096:
            first, count = len(small_table), -(-len(data) // 64)
            small += data.ljust(count * 64, b"\0")
            small_table.extend([*range(first + 1, first + count), 0xFFFFFFFE])
            places[name] = first
        else:
            places[name] = laid(data)
    rows = [("Root Entry", 5, laid(small), len(small))]
    rows += [(name.replace("Ole10", "\1Ole10"), 2, places[name], len(data)) for name, data in streams.items()]
    directory = b""
    for name, kind, first, size in rows:
        raw = name.encode("utf-16-le") + b"\0\0"
        directory += raw.ljust(64, b"\0") + struct.pack("<HB49xIII", len(raw), kind, first, size, 0)
    at_directory = laid(directory)
    at_small_table = laid(struct.pack(f"<{len(small_table)}I", *small_table)) if small_table else 0xFFFFFFFE
    count = next(count for count in range(1, 110) if count * 128 >= len(table) + count)
    numbers = [*range(len(table), len(table) + count)]
    table.extend([0xFFFFFFFD] * count)
    sectors += struct.pack(f"<{len(table)}I", *table).ljust(count * 512, b"\xff")
    header = (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        + b"\0" * 16
        + struct.pack("<HHHHH6xIIII", 62, 3, 0xFFFE, 9, 6, 0, count, at_directory, 0)
    )
    header += struct.pack("<IIIII", 4096, at_small_table, 1 if small_table else 0, 0xFFFFFFFE, 0)
    return header + struct.pack("<109I", *numbers, *[0xFFFFFFFF] * (109 - count)) + sectors


def packaged(name: str, data: bytes) -> bytes:
    """What Windows writes for a file that is dragged into a document."""
    path = f"C:\\{name}".encode("cp1252") + b"\0"
    inner = b"\2\0" + name.encode("cp1252") + b"\0" + path + b"\0\0\3\0" + struct.pack("<I", len(path)) + path
    inner += struct.pack("<I", len(data)) + data
    return struct.pack("<I", len(inner)) + inner


@pytest.mark.parametrize("size", [10, 63, 64, 65, 4095, 5_000, 100_000])
def test_a_file_that_was_put_into_the_document_becomes_a_part(desk: Desk, size: int) -> None:
    """Under its own name, byte by byte, whether it is small or large."""
    data = (b"words of the file " * 6_000)[:size]
    document = desk.read(package(paragraph("body"), oleObject=ole(Ole10Native=packaged("Käse.txt", data))), "a.docx")
    assert [(part.name, part.media_type) for part in document.parts] == [("Käse.txt", "text/plain")]
    assert desk.part(document, 0) == data


def test_objects_of_programs_become_parts_where_they_are_files(desk: Desk) -> None:
    """A PDF, an old spreadsheet; a formula is none."""
    pdf = b"%PDF-1.4\n1 0 obj\n" + b"x" * 9_000
    for streams, kinds in (
        ({"ObjInfo": b"...", "CONTENTS": pdf}, ["application/pdf"]),
        ({"Workbook": b"x" * 5_000}, ["application/vnd.ms-excel"]),
        ({"Equation Native": b"\x1c\0\0\0"}, []),
        ({"Ole10Native": packaged("a.bin", b"\0\1\2\xff" * 100)}, []),
    ):
        document = desk.read(package(paragraph("body"), oleObject=ole(**streams)), "a.docx")
        assert [part.media_type for part in document.parts] == kinds
        assert not document.notes


def test_a_damaged_object_costs_nothing_but_itself(desk: Desk) -> None:
    """Wherever a byte is another: chains in a circle, sizes without end, sectors that are not there."""
    whole = ole(Ole10Native=packaged("a.txt", b"words " * 10), CONTENTS=b"%PDF-1.4 " + b"x" * 5_000)
    for at in (
        *range(24, 90),
        *range(len(whole) - 512, len(whole) - 400),
        *range(len(whole) - 1_600, len(whole) - 512, 7),
    ):
        for value in (0, 1, 0x7F, 0xFF):
            ole_module.file_inside(whole[:at] + bytes([value]) + whole[at + 1 :])
    for length in range(0, len(whole), 37):
        ole_module.file_inside(whole[:length])
    broken = package(paragraph("body"), oleObject=whole[:700])
    assert text_of(desk.read(broken, "a.docx")) == "body"


def counted(file: Path | io.BytesIO) -> Counter[str]:
    """The words of a DOCX by another way than the reader's: trees of all its parts that hold paragraphs, without what
    stands twice, was struck out or only steers."""
    words: Counter[str] = Counter()
    with zipfile.ZipFile(file) as opened:
        for name in opened.namelist():
            if re.fullmatch(r"word/(document|footnotes|endnotes|comments|header\d*|footer\d*)\.xml", name):
                for line in _lines(etree.fromstring(opened.read(name))):
                    words.update(re.findall(r"\w+", line))
    return words


def _lines(root: Any) -> Iterator[str]:
    """A text for each paragraph, without the text of those in it."""
    for each in root.iter("{*}p"):
        pieces = []
        for event, inner in etree.iterwalk(
            each, ("start", "end"), ("{*}t", "{*}tab", "{*}br", "{*}den", "{*}sup", "{*}f")
        ):
            around = [etree.QName(outer).localname for outer in inner.iterancestors()]
            if not {"Fallback", "del", "moveFrom"} & set(around) and next(inner.iterancestors("{*}p")) is each:
                if etree.QName(inner).localname != "t":
                    pieces.append(" ")
                elif event == "start":
                    pieces.append(inner.text or "")
        yield "".join(pieces)


def test_every_docx_of_the_corpus_yields_the_words_of_its_parts_exactly_once(corpus: Path, tmp_path: Path) -> None:
    """By a count that goes another way. Charts and diagrams are parts too, and hold words beyond those."""
    desk, read = Desk(tmp_path), 0
    for file in sorted((*(corpus / "mixed").glob("*.doc[xm]"), *(corpus / "hostile").glob("*.doc[xm]"))):
        try:
            document = desk.read(file.read_bytes(), file.name)
        except StageFailed:
            continue
        if not document.media_type.endswith("wordprocessingml.document"):
            continue
        got, wanted = Counter(re.findall(r"\w+", text_of(document))), counted(file)
        with zipfile.ZipFile(file) as opened:
            drawn = any(re.search(r"/(charts|diagrams)/", name) for name in opened.namelist())
        assert not wanted - got, file.name
        assert drawn or got == wanted, file.name
        read += 1
    assert read > 30


def test_a_made_document_yields_every_word_exactly_once(desk: Desk) -> None:
    """Numbers in all places that python-docx can put them, in merged and nested tables too."""

    def fill(document: Any) -> None:
        number = iter(range(1_000, 10_000))
        for _ in range(20):
            document.add_paragraph(f"word{next(number)} word{next(number)}").add_run(
                f" word{next(number)}\tword{next(number)}"
            )
            table = document.add_table(4, 4)
            for row in table.rows:
                for cell in row.cells:
                    cell.text = f"word{next(number)}\nword{next(number)}"
            table.cell(0, 0).merge(table.cell(1, 2))
            table.cell(3, 3).add_table(2, 2).cell(1, 1).text = f"word{next(number)}"
            section = document.add_section()
            for place in (section.header, section.footer, section.first_page_header, section.even_page_footer):
                place.is_linked_to_previous = False
                place.add_paragraph(f"word{next(number)}")

    data = written(fill)
    got = Counter(re.findall(r"\w+", text_of(desk.read(data, "a.docx"))))
    assert set(got.values()) == {1}
    assert got == counted(io.BytesIO(data))


# --- no good ---------------------------------------------------------------------------------------------------------


def test_a_truncated_package_is_damaged(desk: Desk) -> None:
    """Its directory is at its end."""
    whole = package(paragraph("x" * 1000))
    assert desk.refusal(whole[: len(whole) // 2], "a.docx")[0] is Reason.DAMAGED


def test_a_body_that_is_no_xml_is_damaged(desk: Desk) -> None:
    """The detail names the part."""
    reason, detail = desk.refusal(package("<w:p><w:t>never closed"), "a.docx")
    assert reason is Reason.DAMAGED
    assert "word/document.xml" in detail


def test_a_flipped_bit_is_damage(desk: Desk) -> None:
    """ZIP keeps a checksum of every entry."""
    whole = bytearray(package(paragraph("abc " * 3000)))
    at = whole.find(b"word/document.xml") + 60
    whole[at] ^= 0xFF
    assert desk.refusal(bytes(whole), "a.docx")[0] is Reason.DAMAGED


def test_a_missing_part_is_damage(desk: Desk) -> None:
    """A package without a body is no document."""
    data = zip_of({"[Content_Types].xml": CONTENT_TYPES, "word/styles.xml": "<a/>"})
    assert desk.refusal(data, "a.docx")[0] is Reason.DAMAGED


def test_a_broken_footnote_costs_the_footnotes(desk: Desk) -> None:
    """The body stays, and a note says what does not."""
    document = desk.read(package(paragraph("body"), footnotes="<w:footnotes"), "a.docx")
    assert text_of(document) == "body"
    assert any("footnotes could not be read" in note for note in document.notes)


def test_a_part_that_unpacks_to_hundreds_of_times_its_size_is_a_bomb(desk: Desk) -> None:
    """Seen in the directory, before a byte is unpacked."""
    reason, detail = desk.refusal(package(paragraph("x" * (20 << 20))), "a.docx")
    assert reason is Reason.BOMB
    assert "times its size" in detail


def test_too_many_entries_are_a_bomb(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory alone could fill the memory."""
    monkeypatch.setattr(archive, "MAX_ENTRIES", 3)
    assert desk.refusal(package(""), "a.docx")[0] is Reason.BOMB


def test_entities_that_multiply_are_a_bomb(desk: Desk) -> None:
    """A billion laughs."""
    rows = "".join(f'<!ENTITY l{at} "{f"&l{at - 1};" * 10}">' for at in range(1, 10))
    body = f'<!DOCTYPE w [<!ENTITY l0 "ha">{rows}]><w:document {W}><w:body>{paragraph("&l9;")}</w:body></w:document>'
    data = zip_of({"[Content_Types].xml": CONTENT_TYPES, "word/document.xml": body})
    assert desk.refusal(data, "a.docx")[0] is Reason.BOMB


def test_entities_are_not_even_declared(desk: Desk) -> None:
    """One that does not multiply stands for a text that nobody sees in the document."""
    body = f'<!DOCTYPE w [<!ENTITY l0 "ha">]><w:document {W}><w:body>{paragraph("&l0;")}</w:body></w:document>'
    data = zip_of({"[Content_Types].xml": CONTENT_TYPES, "word/document.xml": body})
    assert desk.refusal(data, "a.docx")[0] is Reason.BOMB


def test_an_entry_with_a_password_is_encrypted(desk: Desk) -> None:
    """Not what Word does, but what ZIP programs do."""
    data = bytearray(package(paragraph("x")))
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        offset = opened.getinfo("word/document.xml").header_offset
    data[offset + 6] |= 1
    central = data.rfind(b"word/document.xml") - 46
    data[central + 8] |= 1
    assert desk.refusal(bytes(data), "a.docx")[0] is Reason.ENCRYPTED


# --- bounds ----------------------------------------------------------------------------------------------------------


def unpacked(pieces: Iterator[bytes]) -> bytes:
    """A DOCX with that body, which is hardly packed at all, so that no ratio betrays it."""
    return bombs.packed(
        [
            ("[Content_Types].xml", [CONTENT_TYPES.encode()]),
            ("word/document.xml", [bombs.WORD, *pieces, bombs.WORD_END]),
        ],
        method=zipfile.ZIP_STORED,
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"<w:sdt>" * 300 + b"<w:p/>" * 60_000 + b"</w:sdt>" * 300, id="elements in elements"),
        pytest.param(b"<w:p><w:txbxContent>" * 300 + b"</w:txbxContent></w:p>" * 300, id="boxes in boxes"),
        pytest.param(b"".join(b"<w:n%d/>" % at for at in range(40_000)), id="names without end"),
        pytest.param(b"".join(b'<w:p xmlns:n%d="u"/>' % at for at in range(40_000)), id="prefixes without end"),
        pytest.param(b'<w:p x="' + b"a" * 11_000_000 + b'"/>', id="a tag of 11 MB"),
        pytest.param(b"<!--" + b"a" * 11_000_000 + b"-->", id="a comment of 11 MB"),
    ],
)
def test_what_no_document_needs_is_a_bomb(desk: Desk, body: bytes) -> None:
    """The parser would keep it in memory for as long as it reads."""
    assert desk.refusal(unpacked(iter([body])), "a.docx")[0] is Reason.BOMB


def test_a_long_part_takes_the_memory_of_its_text_only(tmp_path: Path) -> None:
    """Five times the tags around the same text take no more (expat's memory is counted too: it is Python's)."""
    peaks = []
    for repeat in (2, 10):
        tags = b"<w:bookmarkStart w:id='1'/><w:proofErr w:type='x'/><w:sdt><w:sdtPr/></w:sdt>" * repeat * 40
        data = unpacked(b"<w:p>" + tags + b"<w:r><w:t>%d</w:t></w:r></w:p>" % at for at in range(150))
        desk = Desk(tmp_path / str(repeat))
        (desk.inbox / "1").write_bytes(data)
        stage = extract.open_stage({})
        tracemalloc.start()
        stage.run({"file": "1", "prefix": "p"}, desk)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(data) > 400_000 * repeat
    assert max(peaks) < min(peaks) + 500_000


def test_a_text_that_just_fits_is_whole(tmp_path: Path) -> None:
    """Line ends and tabs count as they are written, and what takes no room does not."""
    rows = "".join(f"<w:tr><w:tc>{paragraph('a')}</w:tc><w:tc>{paragraph('b')}</w:tc></w:tr>" for _ in range(5))
    body = paragraph("one") + "<w:p/>" * 50 + f"<w:tbl>{rows}</w:tbl>"
    text = "one\n\n" + "\n".join(["a\tb"] * 5)
    for limit, notes in ((len(text) + 2, ()), (len(text) - 1, ("partial: the text was cut at 23 B",))):
        document = Desk(tmp_path / str(limit), {"max_text_bytes": limit}).read(package(body), "a.docx")
        assert text_of(document) == text[:limit].rstrip()
        assert document.notes == notes
