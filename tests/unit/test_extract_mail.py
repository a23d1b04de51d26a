"""Mails: headers as facts, the body once, attachments as parts; and nothing that is sent is refused."""

from __future__ import annotations

from email.message import EmailMessage
from pathlib import Path

import pytest

from engine.model import Kind
from engine.workers import read_mail
from tests.unit.extraction import Desk, pdf_of, text_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def mail(body: str = "Nothing rests.", **headers: str) -> EmailMessage:
    message = EmailMessage()
    known = {"From": "Ann <ann@example.com>", "To": "bob@example.com", "Subject": "Hello"}
    for name, value in (known | headers).items():
        message[name.replace("_", "-")] = value
    message.set_content(body)
    return message


def test_headers_become_facts(desk: Desk) -> None:
    """The date keeps the sender's offset; the subject is the title."""
    message = mail(
        From="Ann Müller <ann@example.com>",
        To="Bob <bob@example.com>, cyd@example.com",
        Cc="Dee <dee@example.com>",
        Subject="Grüße aus Köln",
        Date="Sun, 01 Mar 2026 09:30:00 +0100",
        Message_ID="<1@example.com>",
        In_Reply_To="<0@example.com>",
        References="<a@example.com> <0@example.com>",
    )
    document = desk.read(message.as_bytes(), "a.eml")
    assert document.kind is Kind.MAIL
    assert document.media_type == "message/rfc822"
    assert document.title == "Grüße aus Köln"
    assert document.facts == {
        "sender": "Ann Müller <ann@example.com>",
        "recipients": "Bob <bob@example.com>, cyd@example.com",
        "cc": "Dee <dee@example.com>",
        "date": "2026-03-01T09:30:00+01:00",
        "message_id": "<1@example.com>",
        "in_reply_to": "<0@example.com>",
        "references": "<a@example.com> <0@example.com>",
    }
    assert text_of(document) == "Nothing rests."


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Sun, 01 Mar 2026 09:30:00 -0000", "2026-03-01T09:30:00+00:00"),
        ("1 Mar 2026 09:30 EST", "2026-03-01T09:30:00-05:00"),
        ("yesterday", None),
        ("Sun, 99 Mar 99999 99:99:99 +9999", None),
    ],
)
def test_dates_are_iso_or_absent(desk: Desk, written: str, expected: str | None) -> None:
    """What is no date is no fact."""
    data = f"From: a@b.c\nDate: {written}\nSubject: s\n\nbody".encode()
    assert desk.read(data, "a.eml").facts.get("date") == expected


def test_without_a_date_the_last_hop_says_when(desk: Desk) -> None:
    """The first Received header is the newest."""
    data = b"Received: from a by b; Sun, 1 Mar 2026 09:30:00 +0000\nFrom: a@b.c\nTo: d@e.f\n\nbody"
    assert desk.read(data, "a.eml").facts["date"] == "2026-03-01T09:30:00+00:00"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"=?utf-8?b?5Lya6K2w?=", "会議"),
        (b"=?utf-8?b?5Lya6A==?= =?utf-8?b?rbA=?=", "会議"),
        (b"=?iso-8859-1?q?K=F6ln_und?= mehr", "Köln und mehr"),
        (b"=?utf-8?q?a?=\r\n =?utf-8?q?b?= c", "ab c"),
        ("Grüße".encode(), "Grüße"),
        ("Größe: fünf".encode("cp1252"), "Größe: fünf"),
        (b"=?nonsense?b?aGVsbG8=?=", "hello"),
        (b"=?utf-8?b?!!!?= x", "x"),
        (b"=?utf-8?b?aGVsbG8", "=?utf-8?b?aGVsbG8"),
        (b"folded\r\n  line", "folded line"),
    ],
)
def test_subjects_are_decoded_leniently(desk: Desk, raw: bytes, expected: str) -> None:
    """Encoded words, also split within a letter; raw bytes; and rubbish as it stands."""
    assert desk.read(b"From: a@b.c\r\nTo: d@e.f\r\nSubject: " + raw + b"\r\n\r\nbody", "a.eml").title == expected


def test_a_comma_within_a_name_does_not_split_it(desk: Desk) -> None:
    """Quoted, or hidden in an encoded word."""
    data = b'From: a@b.c\nTo: "Doe, Ann" <ann@x.y>, =?utf-8?q?M=C3=BCller=2C_Bob?= <bob@x.y>\nSubject: s\n\nx'
    assert desk.read(data, "a.eml").facts["recipients"] == "Doe, Ann <ann@x.y>, Müller, Bob <bob@x.y>"


def test_more_recipients_than_a_fact_holds_are_counted(desk: Desk) -> None:
    """Cut between two, never within one."""
    people = ", ".join(f"person{number}@example.com" for number in range(1000))
    said = desk.read(f"From: a@b.c\nTo: {people}\nSubject: s\n\nx".encode(), "a.eml").facts["recipients"]
    assert said.startswith("person0@example.com, ")
    shown, more = said.rsplit(", and ", 1)
    assert len(shown.split(", ")) + int(more.split()[0]) == 1000


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_plain_text_is_preferred_and_said_once(desk: Desk) -> None:
    """The HTML form of the same is not read too."""
    message = mail("the plain form")
    message.add_alternative("<p>the <b>HTML</b> form</p>", subtype="html")
    assert text_of(desk.read(message.as_bytes(), "a.eml")) == "the plain form"


def test_html_is_read_where_plain_text_says_nothing(desk: Desk) -> None:
    """Many senders leave it blank."""
    message = mail(" ")
    message.add_alternative("<p>the <b>HTML</b> form</p><script>x</script>", subtype="html")
    assert text_of(desk.read(message.as_bytes(), "a.eml")) == "the HTML form"


def test_html_around_pictures_is_the_same_text(desk: Desk) -> None:
    """multipart/related inside multipart/alternative: the picture is kept, the text is not repeated."""
    message = mail("the plain form")
    message.add_alternative("<p>the HTML form</p>", subtype="html")
    message.get_payload(1).add_related(b"\x89PNG\r\n\x1a\n", "image", "png", cid="<x>", filename="logo.png")  # type: ignore[union-attr]
    document = desk.read(message.as_bytes(), "a.eml")
    assert text_of(document) == "the plain form"
    assert [part.name for part in document.parts] == ["logo.png"]


def test_a_web_page_saved_in_one_file_is_its_words(desk: Desk) -> None:
    """Browsers keep the page's styles beside it, as parts that nothing calls attached."""
    page = EmailMessage()
    page["From"], page["Subject"] = "<Saved by Blink>", "The mill"
    page.set_content("<p>It turns.</p>", subtype="html")
    page.add_related(b"p { color: red }", "text", "css", cid="<style>", disposition="inline")
    document = desk.read(page.as_bytes(), "mill.mhtml")
    assert (document.title, text_of(document)) == ("The mill", "It turns.")


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "us-ascii", "nonsense"])
def test_a_charset_that_lies_costs_nothing(desk: Desk, charset: str) -> None:
    """Raw bytes under any declaration."""
    head = f"From: a@b.c\nTo: d@e.f\nSubject: s\nContent-Type: text/plain; charset={charset}\n\n".encode()
    assert text_of(desk.read(head + "Größe: fünf Türen".encode("cp1252"), "a.eml")) == "Größe: fünf Türen"


@pytest.mark.parametrize("transfer", ["base64", "quoted-printable", "x-uuencode", "binary", "rubbish", ""])
def test_a_transfer_encoding_that_lies_costs_nothing(desk: Desk, transfer: str) -> None:
    """Nothing is raised, whatever comes of it."""
    data = f"From: a@b.c\nTo: d@e.f\nSubject: s\nContent-Transfer-Encoding: {transfer}\n\n=ZZ not, really!\n".encode()
    assert desk.read(data, "a.eml").title == "s"


def test_a_mail_without_a_body_is_its_headers(desk: Desk) -> None:
    """Found by its subject."""
    document = desk.read(b"From: a@b.c\nTo: d@e.f\nSubject: only this\n\n", "a.eml")
    assert (document.title, text_of(document)) == ("only this", "")


def test_a_mail_without_a_subject_has_a_title(desk: Desk) -> None:
    """As mail programs show it."""
    assert desk.read(b"From: a@b.c\nTo: d@e.f\n\nbody", "a.eml").title == "(no subject)"


# --- attachments -----------------------------------------------------------------------------------------------------


def test_attachments_become_parts(desk: Desk) -> None:
    """Byte for byte, with their names and types; an attached text is no body."""
    invoice = pdf_of("to pay")
    message = mail()
    message.add_attachment(invoice, "application", "pdf", filename="Rechnung für März.pdf")
    message.add_attachment("a note", filename="note.txt")
    message.add_attachment(b"BEGIN:VCALENDAR\r\nEND:VCALENDAR", "text", "calendar")
    document = desk.read(message.as_bytes(), "a.eml")
    assert text_of(document) == "Nothing rests."
    assert [(part.name, part.media_type) for part in document.parts] == [
        ("Rechnung für März.pdf", "application/pdf"),
        ("note.txt", "text/plain"),
        ("part 4.ics", "text/calendar"),
    ]
    assert [part.file for part in document.parts] == ["p7.part1", "p7.part2", "p7.part3"]
    assert desk.part(document, 0) == invoice


@pytest.mark.parametrize(("main", "sub"), [("application", "pdf"), ("text", "plain"), ("text", "calendar")])
def test_an_empty_attachment_is_a_part_of_no_bytes(desk: Desk, main: str, sub: str) -> None:
    """It was sent, so it is listed; whoever reads it says that it is empty."""
    message = mail()
    message.add_attachment(b"", main, sub, filename="nothing")
    document = desk.read(message.as_bytes(), "a.eml")
    assert [(part.name, part.size_bytes) for part in document.parts] == [("nothing", 0)]
    assert desk.part(document, 0) == b""
    assert text_of(document) == "Nothing rests."


def test_a_guessed_charset_of_the_body_is_noted(desk: Desk) -> None:
    """Not one that is declared and fits."""
    body = "Größe: fünf Türen, Länge: drei Meter".encode("cp1252")
    head = b"From: a@b.c\nTo: d@e.f\nSubject: s\n"
    assert desk.read(head + b"\n" + body, "a.eml").notes == ("the encoding of the body was guessed: windows-1252",)
    assert not desk.read(head + b"Content-Type: text/plain; charset=iso-8859-1\n\n" + body, "a.eml").notes


def test_a_forwarded_mail_is_a_part(desk: Desk) -> None:
    """It can be read by itself, its own attachments with it."""
    inner = mail("the inner body", Subject="inner")
    inner.add_attachment(b"data", "application", "x-thing", filename="deep.bin")
    outer = mail("see below", Subject="outer")
    outer.add_attachment(inner)
    document = desk.read(outer.as_bytes(), "a.eml")
    assert [(part.name, part.media_type) for part in document.parts] == [("inner.eml", "message/rfc822")]
    forwarded = desk.read(desk.part(document, 0), "inner.eml")
    assert (forwarded.title, text_of(forwarded)) == ("inner", "the inner body")
    assert [part.name for part in forwarded.parts] == ["deep.bin"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\Windows\\evil.exe", "a\x00b", "x" * 5000, ""])
def test_names_of_attachments_are_only_names(desk: Desk, name: str) -> None:
    """No path of a sender's choice, and none that is too long."""
    data = (
        b"From: a@b.c\nTo: d@e.f\nSubject: s\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: "
        b'application/x-thing\nContent-Disposition: attachment; filename="' + name.encode() + b'"\n\ndata\n--b--\n'
    )
    (part,) = desk.read(data, "a.eml").parts
    assert part.file == "p7.part1"
    assert part.name
    assert len(part.name) <= 255
    assert "/" not in part.name
    assert "\\" not in part.name


# --- hostile ---------------------------------------------------------------------------------------------------------


def test_endless_headers_are_cut(desk: Desk) -> None:
    """A folded header of 3 MB takes the standard library two gigabytes when it is understood."""
    data = b"From: a@b.c\nSubject: first\nX-Long: x\n" + b" folded\n" * 400_000 + b"\nthe body"
    document = desk.read(data, "a.eml")
    assert document.title == "first"
    assert text_of(document) == "the body"
    assert any("headers were cut" in note for note in document.notes)


@pytest.mark.parametrize("junk", [b"=?utf-8?b?aGVsbG8=?= ", b"=?", b'"\\', b"<", b"(", b"=?x?q?" + b"=" * 50, b"a@b, "])
def test_headers_made_to_be_slow_are_not(desk: Desk, junk: bytes) -> None:
    """A quarter of a megabyte of each is read in well under a second; quadratic work would take minutes."""
    filler = (junk * 260_000)[:120_000]
    data = b"From: " + filler + b"\nTo: d@e.f\nSubject: " + filler + b"\n\nbody"
    assert desk.read(data, "a.eml").kind is Kind.MAIL


def test_parts_within_parts_without_end_are_read_as_text(desk: Desk) -> None:
    """A thousand levels; the word at the bottom is still found."""
    data = b"From: a@b.c\nSubject: s\n"
    for level in range(1000):
        data += b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level)
    document = desk.read(data + b"\nbottom", "a.eml")
    assert "bottom" in text_of(document)
    assert any("nested too deeply" in note for note in document.notes)


def test_more_parts_than_allowed_are_counted(desk: Desk) -> None:
    """A thousand are kept, and a note says how many are not."""
    part = b"--b\nContent-Type: application/x-thing; name=f\n\nx\n"
    data = b"From: a@b.c\nSubject: s\nContent-Type: multipart/mixed; boundary=b\n\n" + part * 1_005
    document = desk.read(data, "a.eml")
    assert len(document.parts) == 1_000
    assert any(note.startswith("5 parts were left out") for note in document.notes)


def test_a_flood_of_boundaries_is_read_as_text(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part would take two kilobytes of memory."""
    monkeypatch.setattr(read_mail, "MAX_BOUNDARIES", 10)
    data = b"From: a@b.c\nSubject: s\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nword\n" * 20
    document = desk.read(data, "a.eml")
    assert text_of(document).count("word") == 20
    assert not document.parts
