"""What the content is taken for: by its first bytes, and by the name only where texts look alike."""

from __future__ import annotations

import pytest

from engine.workers import types

PDF_HEAD = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n"


@pytest.mark.parametrize(
    ("head", "name", "expected"),
    [
        (PDF_HEAD, "a.pdf", types.PDF),
        (PDF_HEAD, "a.txt", types.PDF),
        (b"\x00\x01junk" + PDF_HEAD, "a", types.PDF),
        (b"1 0 obj <</Type /Catalog>> endobj", "lost-its-mark.pdf", types.PDF),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a.jpg", "image/png"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "", "audio/wav"),
        (b"{\\rtf1\\ansi", "a.doc", "application/rtf"),
        (b"PK\x03\x04\x14\0", "a.docx", types.ZIP),
        (b"\x7fELF\x02\x01\x01", "a", "application/x-elf"),
        (b"wOF2\0\1\0\0", "a", "font/woff2"),
        (b"\0\0\0 ftypisom\0\0\2\0", "a.mp4", "video/mp4"),
        (b"From: ann@example.com\nTo: bob@example.com\nSubject: hello\n\nbody\n", "", types.MAIL),
        (b"From ann@example.com Thu Jan  1 00:00:00 2026\nReceived: x\nSubject: y\n\n", "", types.MAIL),
        (b"From ann@example.com Thu Jan  1 00:00:00 2026\nX-Odd: x\n\nbody\n", "", types.MAIL),
        (b"From 10:30 on, it says.\nNote: the gate is shut.\n", "", types.PLAIN),
        (b"Date: 5 May\nSubject: budget\nAttendees: Ann, Bob\n\nAnn opened.\n", "minutes.txt", types.PLAIN),
        (b"To: all\nFrom: Ann\nRe: keys\n\nThe keys are back.\n", "memo.md", "text/markdown"),
        (b"From: a@b.example\nSubject: hello\nMIME-Version: 1.0\n\nbody\n", "saved.txt", types.MAIL),
        (b"From: a@b.example\nContent-Type: text/html\n\n<p>body\n", "saved.txt", types.MAIL),
        (b"\r\nBEGIN:VCALENDAR\r\nVERSION:2.0\r\n", "a.txt", types.CALENDAR),
        (b"<!DOCTYPE html>\n<html><body>x</body></html>", "", types.HTML),
        (b"<!-- made by hand -->\n<p>One</p><p>Two</p>", "", types.HTML),
        (b'<?xml version="1.0"?><article/>', "", types.XML),
        (b'<?xml version="1.0"?><html xmlns="x"><body/></html>', "", types.HTML),
        (b"name;town;age\nann;Ulm;3\nbob;Bonn;4\ncyd;Kiel;5\n", "", types.CSV),
        (b"name,town\nann,Ulm\n", "list.csv", types.CSV),
        (b"name\ttown\nann\tUlm\nbob\tBonn\ncyd\tKiel\n", "", types.TSV),
        (b"Dear all, I am late, sorry.\nYours, Ann\nPS: no cake, please, for me\n", "", types.PLAIN),
        (b"Note: the gate is shut.\nDate: yesterday\n", "", types.PLAIN),
        (b"# Title\n\n<div>raw</div>\n", "a.md", "text/markdown"),
        ("Grüße".encode("utf-16"), "a.txt", types.PLAIN),
        ("Grüße aus Köln".encode("utf-16-be"), "a.txt", types.PLAIN),
        ("Grüße aus Köln".encode("utf-32-le"), "a.txt", types.PLAIN),
        ("Grüße aus Köln".encode("cp1252"), "a.txt", types.PLAIN),
        ("Привет всем, вот новости.\n".encode("utf-16-le") * 3, "a.txt", types.PLAIN),
        (b"The mill turns.\r\n" + b"\x1a" * 111, "readme", types.PLAIN),
        (bytes(range(1, 256)) * 4, "a.txt", types.UNKNOWN),
        (bytes(range(0, 256, 2)) * 40, "a", types.UNKNOWN),
        (b"".join(number.to_bytes(2, "little") for number in range(0, 60_000, 7)), "a", types.UNKNOWN),
        (bytes(range(256)) * 4, "a.pdf", types.UNKNOWN),
        (bytes(range(256)) * 4, "a.txt", types.UNKNOWN),
    ],
)
def test_the_content_says_what_it_is(head: bytes, name: str, expected: str) -> None:
    """Marks first, then what text looks like, then the name."""
    assert types.media_type_of(head, name) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", "image/heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "image/heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "image/avif"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1avif", "image/heic"),
        (b"\0\0\0\x1cftypavis\0\0\0\0avifmsf1", "image/avif"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41avif", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video/quicktime"),
        (b"P6\n# CREATOR: a camera\n640 480\n255\n\0\0", "image/x-portable-anymap"),
        (b"P4 64 40\n\0\0", "image/x-portable-anymap"),
        (b"P6 is the last of six.\n", types.PLAIN),
        (b"P6" + b" \n" * 20_000 + b"is far above", types.PLAIN),
    ],
)
def test_still_pictures_are_told_from_films_and_words(head: bytes, expected: str) -> None:
    """HEIC, AVIF and films are kept in one container, and say what they are by its brands."""
    assert types.media_type_of(head, "") == expected


@pytest.mark.parametrize(
    "word",
    ["MZ", "ID3", "OTTO", "BZh", "wOFF", "RIFF", "OggS", "MThd", "GIF89a", "DDS ", "fLaC", "ttcf", "BLP1", "#!AMR"],
)
def test_a_text_that_begins_with_the_letters_of_a_mark_is_a_text(word: str) -> None:
    """Files with such a mark have other bytes soon. What says that it is a PDF is one, but in a text of that name."""
    text = f"{word} is how it begins.\n".encode()
    assert types.media_type_of(text, "a.txt") == types.PLAIN
    assert types.media_type_of(text + b"\0\1", "a.txt") != types.PLAIN
    assert types.media_type_of(b"%PDF-1.4 is the mark of a PDF.\n", "a.txt") == types.PLAIN
    assert types.media_type_of(b"%PDF-1.4\n", "a.pdf") == types.PDF
    assert types.media_type_of(b"%PDF-1.4\n1 0 obj<<>>endobj\n", "a.txt") == types.PDF


@pytest.mark.parametrize(
    ("entries", "mimetype", "expected"),
    [
        ({"[Content_Types].xml", "word/document.xml"}, b"", types.DOCX),
        ({"[Content_Types].xml", "xl/workbook.xml"}, b"", types.named_type("a.xlsx")),
        ({"[Content_Types].xml", "ppt/presentation.xml"}, b"", types.named_type("a.pptx")),
        ({"mimetype", "content.xml"}, b"application/vnd.oasis.opendocument.text", types.named_type("a.odt")),
        ({"mimetype", "OEBPS/a.xhtml"}, b"application/epub+zip\n", "application/epub+zip"),
        ({"META-INF/MANIFEST.MF", "a.class"}, b"", "application/java-archive"),
        ({"a.txt"}, b"", types.ZIP),
        ({"a.txt", "mimetype"}, b"../../etc; rm", types.ZIP),
    ],
)
def test_zip_containers_are_told_apart_by_their_entries(entries: set[str], mimetype: bytes, expected: str) -> None:
    """A DOCX is a ZIP, and so is an EPUB."""
    assert types.zip_media_type(entries, mimetype) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"Root Entry", "WordDocument"}, "application/msword"),
        ({"Workbook"}, "application/vnd.ms-excel"),
        ({"PowerPoint Document"}, "application/vnd.ms-powerpoint"),
        ({"__properties_version1.0", "__substg1.0_0037001F"}, "application/vnd.ms-outlook"),
        ({"EncryptedPackage", "EncryptionInfo"}, types.ENCRYPTED_OFFICE),
        ({"something"}, types.OLE),
        (set[str](), types.OLE),
    ],
)
def test_ole_containers_are_told_apart_by_their_directory(names: set[str], expected: str) -> None:
    """Old Office files, Outlook messages, and new Office files with a password share one container."""
    assert types.ole_media_type(names) == expected


@pytest.mark.parametrize("data", [b"", b"\xd0\xcf\x11\xe0" * 200, b"\xff" * 5000, bytes(4096)])
def test_a_broken_directory_has_no_names(data: bytes) -> None:
    """Garbage ends the walk; nothing is raised."""
    assert types.ole_names(data) == frozenset()


def test_kinds_of_plain_text_are_no_lie() -> None:
    """A .log that looks like CSV deceives nobody; a .pdf that is a picture does."""
    assert not types.name_lies("a.txt", types.CSV)
    assert not types.name_lies("a", types.PDF)
    assert types.name_lies("a.pdf", "image/png")
    assert types.name_lies("a.txt", types.HTML)
