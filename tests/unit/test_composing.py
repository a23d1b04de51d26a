"""Mails and events written from mappings: read back as they were meant, and never more than was given."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.composing import CannotComposeError, compose_event, compose_mail
from engine.document import Document
from engine.model import Kind
from tests.unit.extraction import Desk

INJECTION = "Hello\r\nBcc: victim@example\r\n\r\nA body of my own\u2028X-Line: 1\x0bX-Tab: 1\x85X-Next: 1\x00"
MAIL_HEADERS = {
    *("from", "to", "cc", "bcc", "subject", "date", "message-id", "in-reply-to", "references", "x-thread-id"),
    *("content-type", "mime-version", "content-transfer-encoding"),
}


def read_mail(place: Path, content: bytes) -> Document:
    """As a worker reads it."""
    return Desk(place / "desk").read(content, "m1", Kind.MAIL)


def read_event(place: Path, content: bytes) -> Document:
    """As a worker reads it."""
    return Desk(place / "desk").read(content, "e1", Kind.EVENT)


def test_a_mapping_is_read_as_the_mail_that_it_says(tmp_path: Path) -> None:
    """Every field arrives, in any language, with commas in names and the attachment's own bytes."""
    made = compose_mail(
        {
            "id": "m1",
            "subject": "Grüße — 船",
            "from": "Jörg Müller <joerg@example.com>",
            "to": ["ann@example.com", {"name": 'Doe, "Jane"', "email": "jane@example.com"}],
            "cc": "ben@example.com, Çelik <celik@example.com>",
            "date": datetime(2025, 2, 3, 9, 15, tzinfo=timezone(timedelta(hours=1))),
            "body": "From here on\n.\nthe avocet sails.\u2029",
            "html": "<p>not this one</p>",
            "message_id": "<one@example>",
            "attachments": [{"name": "näme\r\nX: y.csv", "content": b"a,b\n1,2\n"}],
        }
    )
    assert (made.space, made.id, made.path) == ("id", "m1", "m1")
    assert made.modified == datetime(2025, 2, 3, 8, 15, tzinfo=UTC).timestamp()
    document = read_mail(tmp_path, made.content)
    assert document.title == "Grüße — 船"
    assert document.facts["sender"] == "Jörg Müller <joerg@example.com>"
    assert document.facts["recipients"] == "ann@example.com, Doe, 'Jane' <jane@example.com>"
    assert document.facts["cc"] == "ben@example.com, Çelik <celik@example.com>"
    assert document.facts["date"] == "2025-02-03T09:15:00+01:00"
    assert document.facts["message_id"] == "<one@example>"
    assert "the avocet sails." in document.pages[0].text
    assert "not this one" not in document.pages[0].text
    assert [part.name for part in document.parts] == ["näme X: y.csv"]


def test_the_same_value_gives_the_same_bytes() -> None:
    """No clock and no luck in it, or nothing would ever be unchanged."""
    mail = {"subject": "a", "body": "b", "html": "<b>c</b>", "attachments": [{"name": "d", "content": b"e"}]}
    event = {"summary": "a", "start": "2025-02-03"}
    assert compose_mail(mail) == compose_mail(dict(mail))
    assert compose_event(event) == compose_event(dict(event))
    assert compose_mail(mail).id != compose_mail({**mail, "body": "c"}).id


def test_nobody_writes_a_header_of_his_own() -> None:
    """Line ends in a subject, an address, a name or an id end no header: nobody is addressed who was not."""
    made = compose_mail(
        {
            **dict.fromkeys(
                ("subject", "from", "to", "message_id", "thread_id", "in_reply_to", "references"), INJECTION
            ),
            "id": INJECTION,
            "date": INJECTION,
            "cc": [{"name": INJECTION, "email": INJECTION}],
            "body": "The body",
            "attachments": [{"name": INJECTION, "content": b"x"}],
        }
    )
    parsed = email.message_from_bytes(made.content, policy=email.policy.compat32)
    assert {name.lower() for name in parsed} == MAIL_HEADERS - {"bcc", "content-transfer-encoding"}
    for part in parsed.walk():
        assert {name.lower() for name in part.keys()} <= {*MAIL_HEADERS, "content-disposition"}  # noqa: SIM118
    assert not made.path.count("\n")


_WORDS = st.one_of(st.none(), st.text(max_size=40), st.integers(), st.binary(max_size=5), st.floats(), st.booleans())
_VALUES = st.one_of(_WORDS, st.lists(_WORDS, max_size=3), st.dictionaries(st.text(max_size=9), _WORDS, max_size=3))
_MAIL_KEYS = ("id", "subject", "from", "to", "cc", "date", "body", "html", "raw", "attachments", "thread_id")
_EVENT_KEYS = (
    "id",
    "summary",
    "start",
    "end",
    "location",
    "description",
    "attendees",
    "organizer",
    "recurrence",
    "url",
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_MAIL_KEYS), _VALUES))
def test_any_mapping_is_a_mail_or_refused(mapping: Mapping[str, Any]) -> None:
    """Whatever a product hands over: bytes without strange headers, or a ValueError that says why."""
    try:
        made = compose_mail(mapping)
    except (ValueError, OverflowError):
        return
    if mapping.get("raw") is None:
        parsed = email.message_from_bytes(made.content, policy=email.policy.compat32)
        assert {name.lower() for name in parsed} <= MAIL_HEADERS
        assert not parsed.defects


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_EVENT_KEYS), _VALUES))
def test_any_mapping_is_an_event_or_refused(mapping: Mapping[str, Any]) -> None:
    """Content lines of 75 octets at most, of properties that we write, in one event."""
    try:
        made = compose_event(mapping)
    except (ValueError, OverflowError):
        return
    physical = made.content.split(b"\r\n")
    assert all(len(line) <= 75 and b"\n" not in line and b"\r" not in line for line in physical)
    names = [line.split(b":")[0].split(b";")[0] for line in made.content.replace(b"\r\n ", b"").split(b"\r\n")]
    known = b"BEGIN VERSION PRODID DTSTART DTEND SUMMARY LOCATION DESCRIPTION STATUS URL CATEGORIES ORGANIZER ATTENDEE"
    assert set(names) <= {*known.split(), b"RRULE", b"UID", b"DTSTAMP", b"END", b""}
    assert names.count(b"BEGIN") == names.count(b"END") == 2


def test_a_message_object_and_raw_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    """Without an id the bytes are the identity, and a hit shows the Message-ID."""
    message = EmailMessage()
    message["Subject"], message["Message-ID"] = "The knot", "<knot@example>"
    message.set_content("A wader.")
    made = compose_mail(message)
    assert made.path == "<knot@example>"
    assert read_mail(tmp_path, made.content).title == "The knot"
    assert compose_mail(bytes(message)) == made
    twin = compose_mail(bytes(message).replace(b"A wader.", b"A ship. "))
    assert (twin.path, twin.id == made.id) == (made.path, False), "a stranger's Message-ID replaces nothing"
    gmail = compose_mail({"id": "17", "raw": "U3ViamVjdDog8J-mqQ0KDQpo"})
    assert (gmail.id, gmail.content) == ("17", "Subject: 🦩\r\n\r\nh".encode())


@pytest.mark.parametrize(
    ("mail", "said"),
    [
        (5, "not of type int"),
        (b"  ", "the mail is empty"),
        ({}, "nothing to search for"),
        ({"id": "1", "body": 5}, "its body is of type int; give a text"),
        ({"id": 1.5, "body": "x"}, "its id is of type float"),
        ({"id": "x" * 1001, "body": "x"}, "its id has 1,001 characters"),
        ({"id": "1", "body": "x", "attachments": [{"name": "a"}]}, "its content is of type NoneType; give bytes"),
        ({"id": "1", "body": "x", "attachments": "a"}, "give a list of mappings"),
        ({"id": "1", "body": "x", "to": 5}, "its to is of type int"),
        ({"id": "1", "raw": "?"}, "no base64url"),
        ({"id": "1", "body": "x", "date": []}, "its date is of type list"),
    ],
)
def test_what_is_no_mail_is_refused_with_the_reason(mail: object, said: str) -> None:
    """The field, what was found in it, and what to give."""
    with pytest.raises(CannotComposeError, match=said.replace(";", ".")):
        compose_mail(mail)


@pytest.mark.parametrize(
    ("start", "shown"),
    [
        (date(2025, 2, 3), "2025-02-03"),
        ("2025-02-03", "2025-02-03"),
        ({"date": "2025-02-03"}, "2025-02-03"),
        (datetime(2025, 2, 3, 9, 0), "2025-02-03T09:00:00"),
        ("2025-02-03T09:00:00", "2025-02-03T09:00:00"),
        ("2025-02-03T09:00:00+01:00", "2025-02-03T08:00:00+00:00"),
        ("2025-02-03T09:00:00Z", "2025-02-03T09:00:00+00:00"),
        (1738573200, "2025-02-03T09:00:00+00:00"),
        (datetime(2025, 7, 3, 9, 0, tzinfo=ZoneInfo("Europe/Berlin")), "2025-07-03T09:00:00+02:00[Europe/Berlin]"),
        (
            {"dateTime": "2025-02-03T09:00:00+01:00", "timeZone": "America/New_York"},
            "2025-02-03T03:00:00-05:00[America/New_York]",
        ),
        ({"dateTime": "2025-02-03T09:00:00+01:00", "timeZone": "Nowhere/../x"}, "2025-02-03T08:00:00+00:00"),
        ({"dateTime": "2025-02-03T09:00:00", "timeZone": "UTC"}, "2025-02-03T09:00:00+00:00"),
    ],
)
def test_a_time_is_the_same_time_in_whatever_form(tmp_path: Path, start: object, shown: str) -> None:
    """Dates, floating times, offsets, zones, and the mappings of Google's API."""
    made = compose_event({"id": "e1", "summary": "Tide", "start": start})
    assert read_event(tmp_path, made.content).facts["start"] == shown


def test_an_event_is_read_as_it_was_given(tmp_path: Path) -> None:
    """Commas, semicolons, backslashes, lines and long texts in any language; attendees with names; the rule."""
    text = "Bring; the, x-ray\\n\nand " + "ü船" * 60
    made = compose_event(
        {
            "id": "e1",
            "title": "Dentist; tooth, pain",
            "start": "2025-02-03T09:00:00Z",
            "end": "2025-02-03T10:00:00Z",
            "location": "Room Heron",
            "description": text,
            "organizer": {"email": "ann@example.com", "displayName": 'Ann "A" Other'},
            "attendees": ["Ben <ben@example.com>", {"email": "c@example.com"}, "d@example.com\r\nX-EVIL:1"],
            "recurrence": ["RRULE:FREQ=WEEKLY;BYDAY=MO", "EXDATE:20250210"],
            "status": "confirmed",
        }
    )
    document = read_event(tmp_path, made.content)
    assert document.title == "Dentist; tooth, pain"
    assert document.pages[0].text == text
    assert document.facts["organizer"] == "Ann 'A' Other <ann@example.com>"
    assert document.facts["attendees"] == "Ben <ben@example.com>, c@example.com, d@example.comX-EVIL:1"
    assert (document.facts["location"], document.facts["recurrence"]) == ("Room Heron", "every week on Monday")
    assert b"\r\nX-EVIL" not in made.content


def test_a_calendar_is_named_by_the_uid_of_its_only_event() -> None:
    """An event that was moved is the same event; a calendar of several is known by its bytes."""
    one = "BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:tide\n @example\nSUMMARY:{}\nEND:VEVENT\nEND:VCALENDAR\n"
    assert compose_event(one.format("a")).id == compose_event(one.format("b")).id == "tide@example"
    assert compose_event(one.format("a") * 2).space == "content"
    with pytest.raises(CannotComposeError, match="BEGIN:VCALENDAR"):
        compose_event("hello")


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (None, "not of type NoneType"),
        ({"id": "1", "summary": "x"}, "it has no start"),
        ({"id": "1", "start": "soon"}, "'soon' is no date or time"),
        ({"id": "1", "start": True}, "its start is of type bool"),
        ({"id": "1", "start": {"when": 1}}, "its start is of type dict"),
        ({"id": "1", "start": "2025-01-01", "attendees": 5}, "its attendees is of type int; give a list"),
        ({"id": "1", "start": "2025-01-01", "summary": 5}, "its summary is of type int; give a text"),
        ({"id": "1", "start": 1e300}, "is no time"),
    ],
)
def test_what_is_no_event_is_refused_with_the_reason(event: object, said: str) -> None:
    """The field, what was found in it, and what to give."""
    with pytest.raises(CannotComposeError, match=said):
        compose_event(event)
