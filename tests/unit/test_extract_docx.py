"""DOCX: everything that is written in one, in order and once; and packages that are none."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docx
import pytest

from engine.reasons import Reason
from engine.workers import archive
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


def package(body: str, namespaces: str = W, **others: str) -> bytes:
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


def test_an_entry_with_a_password_is_encrypted(desk: Desk) -> None:
    """Not what Word does, but what ZIP programs do."""
    data = bytearray(package(paragraph("x")))
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        offset = opened.getinfo("word/document.xml").header_offset
    data[offset + 6] |= 1
    central = data.rfind(b"word/document.xml") - 46
    data[central + 8] |= 1
    assert desk.refusal(bytes(data), "a.docx")[0] is Reason.ENCRYPTED
