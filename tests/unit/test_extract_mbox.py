"""Mailboxes that lie among other files: a part for every mail, however many and however large."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model import Kind
from engine.reasons import Reason
from engine.workers import read_mbox
from tests.unit.extraction import Desk, text_of

LINE = b"From ann@mill.example Thu Jan  1 00:00:00 2026\n"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def mail(number: int, body: bytes = b"Nothing rests.") -> bytes:
    return b"From: ann@mill.example\nTo: bob@mill.example\nSubject: letter %d\n\n%s\n" % (number, body)


def mailbox(*mails: bytes) -> bytes:
    return b"".join(LINE + each + b"\n" for each in mails)


@pytest.mark.parametrize("name", ["post", "post.mbox", "2026-January.txt", "post.eml"])
def test_every_mail_of_a_mailbox_is_a_part(desk: Desk, name: str) -> None:
    """Whatever it is called, each can be read by itself."""
    document = desk.read(mailbox(*(mail(number) for number in (1, 2, 3))), name)
    assert (document.kind, document.media_type, document.title) == (Kind.FILE, "application/mbox", name)
    assert text_of(document) == "A mailbox of 3 messages."
    assert [(part.name, part.media_type) for part in document.parts] == [
        (f"message {number}.eml", "message/rfc822") for number in (1, 2, 3)
    ]
    assert [part.file for part in document.parts] == ["p7.part1", "p7.part2", "p7.part3"]
    assert desk.part(document, 1) == mail(2)
    assert desk.heard[-1][0] <= desk.heard[-1][1]


def test_quoted_lines_are_as_they_were_written(desk: Desk) -> None:
    """As from a source `mbox:`."""
    document = desk.read(mailbox(mail(1, b">From here on\n>>From there"), mail(2)), "post")
    assert desk.part(document, 0) == mail(1, b"From here on\n>From there")


def test_the_second_mail_may_be_far_behind(desk: Desk) -> None:
    """Not within what is looked at to tell other types."""
    document = desk.read(mailbox(mail(1, b"word " * 400_000), mail(2)), "post")
    assert len(document.parts) == 2
    assert document.parts[0].size_bytes > 2_000_000


@pytest.mark.parametrize("body", [b"Nothing rests.", b"\nFrom here on it is easy.\n\nFrom: nobody\n"])
def test_one_mail_that_kept_its_line_is_a_mail(desk: Desk, body: bytes) -> None:
    """Mail programs save them so; "From" at the start of a paragraph is a word."""
    document = desk.read(mailbox(mail(1, body)), "saved")
    assert (document.kind, document.title, document.parts) == (Kind.MAIL, "letter 1", ())


def test_one_mail_is_a_mailbox_when_it_is_called_so(desk: Desk) -> None:
    """A folder of a mail program that holds a single one."""
    document = desk.read(mailbox(mail(1)), "Sent.mbox")
    assert (document.media_type, len(document.parts), document.notes) == ("application/mbox", 1, ())
    assert text_of(document) == "A mailbox of 1 message."


def test_a_mail_is_a_mail_where_the_source_says_so(desk: Desk) -> None:
    """A mail of a maildir, or a part of a mailbox, is never split once more."""
    assert desk.read(mailbox(mail(1), mail(2)), "1", kind="mail").media_type == "message/rfc822"


def test_more_mails_than_parts_are_counted(desk: Desk) -> None:
    """The first thousand are read; the note says how many are not, and what reads them."""
    document = desk.read(mailbox(*(mail(number) for number in range(1, 1_004))), "post")
    assert len(document.parts) == 1_000
    (note,) = document.notes
    assert note.startswith("partial: 3 of 1003 messages were left out")
    assert "`mbox:`" in note
    assert text_of(document) == "A mailbox of 1003 messages."


def test_a_mail_is_written_block_by_block(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With quoted lines across the blocks."""
    monkeypatch.setattr(read_mbox, "_BLOCK_BYTES", 7)
    body = b"\n".join([b">From one", b"two", b">From three"] * 50)
    document = desk.read(mailbox(mail(1, body), mail(2)), "post")
    assert desk.part(document, 0) == mail(1, body.replace(b">From", b"From"))


def test_a_mailbox_that_is_called_so_and_is_none(desk: Desk) -> None:
    """Text stays text, nothing stays nothing."""
    assert desk.read(b"only words\n", "notes.mbox").media_type == "text/plain"
    assert desk.refusal(b"", "notes.mbox")[0] is Reason.EMPTY
