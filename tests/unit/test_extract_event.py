"""Calendars: one event in full, many as a list, and the rules of their repetition in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model import Kind
from engine.reasons import Reason
from engine.workers.read_event import recurrence
from tests.unit.extraction import Desk, text_of


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def calendar(*events: str) -> bytes:
    lines = "\r\n".join(f"BEGIN:VEVENT\r\n{event.strip()}\r\nEND:VEVENT" for event in events)
    return f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\n{lines}\r\nEND:VCALENDAR\r\n".encode()


MEETING = """UID:1@example.com
SUMMARY:Sales\\, weekly
DTSTART;TZID=Europe/Berlin:20260302T090000
DTEND;TZID=Europe/Berlin:20260302T100000
LOCATION:Room 4\\; second floor
ORGANIZER;CN="Müller, Ann":mailto:ann@example.com
ATTENDEE;ROLE=REQ-PARTICIPANT;CN=Bob:MAILTO:bob@example.com
ATTENDEE:mailto:cyd@example.com
RRULE:FREQ=WEEKLY;BYDAY=MO,FR;UNTIL=20261231T000000Z
STATUS:CONFIRMED
BEGIN:VALARM
DESCRIPTION:a reminder
END:VALARM
DESCRIPTION:First line\\nsecond line that is very
  long and folded""".replace("\n", "\r\n")


def test_one_event_is_told_in_full(desk: Desk) -> None:
    """Times in ISO 8601 with the name of their zone; escapes resolved; the reminder's text is not the event's."""
    document = desk.read(calendar(MEETING), "a.ics", kind="event")
    assert document.kind is Kind.EVENT
    assert document.title == "Sales, weekly"
    assert text_of(document) == "First line\nsecond line that is very long and folded"
    assert document.facts == {
        "start": "2026-03-02T09:00:00+01:00[Europe/Berlin]",
        "end": "2026-03-02T10:00:00+01:00[Europe/Berlin]",
        "location": "Room 4; second floor",
        "organizer": "Müller, Ann <ann@example.com>",
        "attendees": "Bob <bob@example.com>, cyd@example.com",
        "rrule": "FREQ=WEEKLY;BYDAY=MO,FR;UNTIL=20261231T000000Z",
        "recurrence": "every week on Monday, Friday until 2026-12-31",
        "status": "confirmed",
        "uid": "1@example.com",
    }


@pytest.mark.parametrize(
    ("lines", "start", "end"),
    [
        (
            "DTSTART:20260302T080000Z\r\nDTEND:20260302T090000Z",
            "2026-03-02T08:00:00+00:00",
            "2026-03-02T09:00:00+00:00",
        ),
        ("DTSTART;VALUE=DATE:20260302", "2026-03-02", None),
        ("DTSTART:20260302T080000\r\nDURATION:PT1H30M", "2026-03-02T08:00:00", "2026-03-02T09:30:00"),
        ("DTSTART;TZID=Our Own Zone:20260302T080000", "2026-03-02T08:00:00[Our Own Zone]", None),
        ("DTSTART;TZID=../../etc/passwd:20260302T080000", "2026-03-02T08:00:00[../../etc/passwd]", None),
        ("DTSTART:next week", "next week", None),
        ("DTSTART:20269999T080000", "20269999T080000", None),
        ("DTSTART:99991231T235959\r\nDURATION:P9999999D", "9999-12-31T23:59:59", None),
        ("SUMMARY:x", None, None),
    ],
)
def test_times_are_iso_or_as_they_stand(desk: Desk, lines: str, start: str | None, end: str | None) -> None:
    """UTC, all day, floating, by duration, of unknown zones, and rubbish."""
    facts = desk.read(calendar(lines), "a.ics").facts
    assert (facts.get("start"), facts.get("end")) == (start, end)


def test_many_events_are_a_list(desk: Desk) -> None:
    """An attachment or a file: one document that names them all."""
    document = desk.read(calendar(MEETING, "SUMMARY:Lunch\r\nDTSTART:20260303T120000"), "team.ics")
    assert document.kind is Kind.EVENT
    assert document.title == "team.ics"
    assert document.facts == {"events": "2"}
    text = text_of(document)
    assert text.index("Sales, weekly") < text.index("Lunch, 2026-03-03T12:00:00")
    assert "second line that is very long and folded" in text
    assert desk.heard[-1] == (2, 2)


def test_a_calendar_without_events_is_a_document(desk: Desk) -> None:
    """With a note."""
    document = desk.read(b"BEGIN:VCALENDAR\nX-WR-CALNAME:Holidays\nEND:VCALENDAR\n", "a.ics")
    assert document.title == "Holidays"
    assert document.notes == ("a calendar without events",)


def test_what_is_no_calendar_is_damaged(desk: Desk) -> None:
    """When the source says that it should be one."""
    assert desk.refusal(b"BEGIN:VEVENT\nSUMMARY:x\nEND:VEVENT\n", "a.ics", kind="event")[0] is Reason.DAMAGED


def test_a_calendar_that_was_cut_off_is_read_as_far_as_it_goes(desk: Desk) -> None:
    """Its last event is not closed."""
    assert desk.read(calendar(MEETING)[:300], "a.ics").title == "Sales, weekly"


@pytest.mark.parametrize(
    "junk", ['ATTENDEE;A="' + "x" * 50_000, "ATTENDEE" + ';A="b"' * 20_000, ":" * 50_000, "X" * 50_000]
)
def test_lines_made_to_be_slow_are_not(desk: Desk, junk: str) -> None:
    """Passed over, in linear time."""
    assert desk.read(calendar(f"{junk}\r\nSUMMARY:still here"), "a.ics").title == "still here"


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("FREQ=WEEKLY;BYDAY=MO,FR;UNTIL=20261231T000000Z", "every week on Monday, Friday until 2026-12-31"),
        ("FREQ=DAILY", "every day"),
        ("FREQ=DAILY;INTERVAL=3;COUNT=10", "every 3 days 10 times"),
        ("FREQ=MONTHLY;BYDAY=2TU", "every month on the 2nd Tuesday"),
        ("FREQ=MONTHLY;BYDAY=-1FR", "every month on the last Friday"),
        ("FREQ=MONTHLY;BYMONTHDAY=1,15", "every month on the 1st, 15th day"),
        ("FREQ=MONTHLY;BYDAY=MO,TU;BYSETPOS=-1", "every month on the last of Monday, Tuesday"),
        ("FREQ=YEARLY;BYMONTH=3;BYMONTHDAY=22", "every year on the 22nd day in March"),
        ("freq=weekly;interval=2", "every 2 weeks"),
        ("FREQ=SOMETIMES", ""),
        ("FREQ=DAILY;BYDAY=XX;COUNT=many;BYMONTH=99;INTERVAL=0", "every day"),
        ("", ""),
        (";;;===", ""),
    ],
)
def test_a_rule_is_a_sentence(rule: str, sentence: str) -> None:
    """What it does not know it leaves out."""
    assert recurrence(rule) == sentence
