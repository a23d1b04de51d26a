"""Texts: of any encoding and language, tables, pages of the web, and lengths that hurt."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.reasons import Reason
from engine.workers.decoding import decode
from tests.unit.extraction import Desk, text_of

SAMPLES = {
    "german": "Sehr geehrte Damen und Herren, für die Übersendung der Unterlagen möchten wir uns herzlich bedanken.",
    "greek": "Αγαπητοί συνάδελφοι, αύριο θα γίνει η συνάντηση του τμήματος πωλήσεων.",
    "russian": "Уважаемые коллеги, завтра состоится собрание отдела продаж в десять часов утра.",
    "arabic": "السادة الزملاء، سيعقد اجتماع القسم غدا في الساعة العاشرة صباحا",
    "hindi": "प्रिय साथियों, कल सुबह दस बजे बैठक होगी।",
    "japanese": "会議は明日の午前十時に行われます。よろしくお願いいたします。",
    "chinese": "各位同事，明天上午十点召开销售部门会议，请准时参加。",
}
LEGACY = [
    ("german", "cp1252"),
    ("german", "latin-1"),
    ("greek", "cp1253"),
    ("russian", "cp1251"),
    ("russian", "koi8-r"),
    ("arabic", "cp1256"),
    ("japanese", "cp932"),
    ("japanese", "iso2022_jp"),
    ("chinese", "gb18030"),
]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("language", SAMPLES)
def test_every_language_is_read_in_every_unicode_form(desk: Desk, language: str, encoding: str) -> None:
    """Byte for byte, without a trace of the byte order mark."""
    document = desk.read(SAMPLES[language].encode(encoding), "a.txt")
    assert text_of(document) == SAMPLES[language]
    assert not document.notes


@pytest.mark.parametrize(("language", "encoding"), LEGACY)
def test_older_encodings_are_recognised(desk: Desk, language: str, encoding: str) -> None:
    """From one sentence, with nothing that declares them."""
    assert text_of(desk.read(SAMPLES[language].encode(encoding), "a.txt")) == SAMPLES[language]


def test_utf16_without_a_mark_is_seen_by_its_nuls(desk: Desk) -> None:
    """As some Windows programs write it."""
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert text_of(desk.read(SAMPLES["german"].encode(encoding), "a.txt")) == SAMPLES["german"]


def test_an_accent_after_a_long_plain_beginning_is_right(desk: Desk) -> None:
    """The sample for detection is taken where the first one stands."""
    data = b"plain words only, line after line\n" * 10_000 + "Größe: fünf Türen".encode("cp1252")
    assert text_of(desk.read(data, "a.txt")).endswith("Größe: fünf Türen")


def test_a_few_broken_bytes_do_not_make_utf8_something_else(desk: Desk) -> None:
    """They are replaced, and a note says so."""
    document = desk.read(SAMPLES["russian"].encode() + b"\xff" + SAMPLES["greek"].encode(), "a.txt")
    assert SAMPLES["russian"] in text_of(document)
    assert any("replaced" in note for note in document.notes)


@pytest.mark.parametrize("declared", ["utf-8", "nonsense", "base64", "unicode_escape", "idna", "", "x" * 500])
def test_a_declared_charset_is_believed_only_when_it_fits(declared: str) -> None:
    """Nor is it ever run."""
    assert decode(b"caf\xe9 \\u0041", declared).text == "café \\u0041"


def test_a_declared_charset_settles_what_detection_cannot() -> None:
    """Short words fit many encodings."""
    assert decode("会議".encode("euc_jp"), "EUC-JP").text == "会議"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_rows_of_a_table_are_lines_of_cells(desk: Desk, delimiter: str) -> None:
    """Quotes and line breaks within cells are resolved."""
    rows = [["name", "town", "age"], ["Ann", '"Ulm\nDonau"', "3"], ["Bob", "Bonn", "4"]]
    data = "\n".join(delimiter.join(row) for row in rows).encode()
    assert text_of(desk.read(data, "a.csv")).splitlines() == [
        "name | town | age",
        "Ann | Ulm Donau | 3",
        "Bob | Bonn | 4",
    ]


def test_a_web_page_is_its_words(desk: Desk) -> None:
    """No script, no style; a title; lines and rows where a browser shows them."""
    page = """<!DOCTYPE html><html><head><title>Mills &amp; more</title><style>p {color: red}</style>
    <script>var hidden = 1;</script></head><body><h1>Mills</h1><p>One
    two<br>three</p><ul><li>first</li><li>second</li></ul><table><tr><th>a</th><th>b</th></tr><tr><td>1</td>
    <td>2</td></tr></table><img alt="a wheel"><noscript>hidden</noscript></body></html>"""
    document = desk.read(page.encode(), "a.html")
    lines = [line for line in text_of(document).splitlines() if line]
    assert document.title == "Mills & more"
    assert lines == ["Mills", "One two", "three", "- first", "- second", "a | b", "1 | 2", "a wheel"]


def test_a_web_page_says_its_encoding(desk: Desk) -> None:
    """In a tag, which is believed before any guess."""
    page = '<html><head><meta charset="koi8-r"></head><body><p>мир</p></body></html>'
    assert "мир" in text_of(desk.read(page.encode("koi8-r"), "a.html"))


@pytest.mark.parametrize("tag", ["<div>", "<b>", "<table><tr><td>", "<ul><li>", "<p "])
def test_depth_does_not_matter(desk: Desk, tag: str) -> None:
    """100,000 tags within each other; the word at the bottom is found, or nothing is, and nobody is hurt."""
    text = text_of(desk.read(b"<html><body>" + tag.encode() * 100_000 + b">bottom", "a.html"))
    assert "bottom" in text or tag == "<p "


def test_the_length_of_a_line_does_not_matter(tmp_path: Path) -> None:
    """One of ten million characters is read up to the limit only."""
    document = Desk(tmp_path, {"max_text_chars": 1_000_000}).read(b"word " * 2_000_000, "a.txt")
    assert len(text_of(document)) == 1_000_000
    assert document.notes == ("the text was cut at 1000000 characters",)


def test_xml_is_its_words_and_its_entities_stay_closed(desk: Desk) -> None:
    """A billion laughs are none."""
    rows = "".join(f'<!ENTITY l{at} "{f"&l{at - 1};" * 10}">' for at in range(1, 10))
    data = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "ha">{rows}]><a><b>one</b><c>two &l9;</c></a>'
    text = text_of(desk.read(data.encode(), "a.xml"))
    assert text.split()[:2] == ["one", "two"]
    assert len(text) < 100


def test_xml_reads_no_other_file(desk: Desk, tmp_path: Path) -> None:
    """An entity that points to a secret stays what it is."""
    (tmp_path / "secret").write_text("the password")
    data = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY s SYSTEM "file://{tmp_path}/secret">]><a>so &s; it is</a>'
    assert "password" not in text_of(desk.read(data.encode(), "a.xml"))


def test_blanks_only_are_a_document_without_text(desk: Desk) -> None:
    """The file is not empty: it has bytes."""
    assert text_of(desk.read(b" \n\n", "a.txt")).strip() == ""
    assert desk.refusal(b"", "a.txt")[0] is Reason.EMPTY
