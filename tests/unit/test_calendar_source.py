"""Calendars: which events there are, by which keys they are known, and the calendar that is written for each."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import SourceUnavailable
from engine.model import Kind, Listed
from engine.ports import FetchFailed
from engine.reasons import Reason
from engine.sources import beneath
from engine.sources.calendar import CalendarSource
from engine.sources.rules import Rules

BERLIN = """BEGIN:VTIMEZONE
TZID:Europe/Berlin
BEGIN:STANDARD
DTSTART:19961027T030000
RRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
END:STANDARD
END:VTIMEZONE
"""


def source(path: Path, **rules: Any) -> CalendarSource:
    """The file or folder as a source."""
    return CalendarSource(f"ics:{path}", str(path), Rules(**rules))


def listed(path: Path, **rules: Any) -> list[Listed]:
    """All items of a complete listing; no key comes twice."""
    items = [item for page in source(path, **rules).list("") for item in page]
    assert len({item.key for item in items}) == len(items)
    assert all(item.kind is Kind.EVENT for item in items)
    return items


def trouble(path: Path, found: list[Listed] | None = None) -> SourceUnavailable:
    """How a listing ends that does not end well; what was found before is added to `found`."""
    items = (item for page in source(path).list("") for item in page)
    with pytest.raises(SourceUnavailable) as caught:
        (found if found is not None else []).extend(items)
    return caught.value


def prints(path: Path) -> dict[str, str]:
    """The fingerprint of every event by its key."""
    return {item.key: item.fingerprint for item in listed(path)}


def fetch(path: Path, item: Listed, **rules: Any) -> str:
    """The calendar that arrives, checked against what is said of it."""
    target = path.parent / "copy"
    fetched = source(path, **rules).fetch(item.locator, target)
    data = target.read_bytes()
    assert (fetched.size_bytes, fetched.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert fetched.fingerprint == item.fingerprint
    target.unlink()
    return data.decode()


def refused(path: Path, item: Listed) -> Reason:
    """Why an item is not copied. Nothing is left of the attempt."""
    target = path.parent / "copy"
    with pytest.raises(FetchFailed) as caught:
        source(path).fetch(item.locator, target)
    assert not target.exists()
    return caught.value.failure.reason


def event(uid: str | None = "1", *lines: str) -> str:
    """An event of these lines."""
    named = [f"UID:{uid}"] if uid is not None else []
    return "\n".join(["BEGIN:VEVENT", *named, *lines, "END:VEVENT", ""])


def calendar(*components: str) -> bytes:
    """A calendar of these components, with the line ends of RFC 5545."""
    text = "BEGIN:VCALENDAR\nVERSION:2.0\n" + "".join(components) + "END:VCALENDAR\n"
    return text.replace("\n", "\r\n").encode()


def unfolded(text: str) -> list[str]:
    """Lines put together again (RFC 5545, 3.1)."""
    return re.sub(r"\r?\n[ \t]", "", text).splitlines()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the calendar file is."""
    return tmp_path / "calendar.ics"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for calendars."""
    place = tmp_path / "calendars"
    place.mkdir()
    return place


# --- which events there are ------------------------------------------------------------------------------------------


def test_each_event_is_an_item_with_a_calendar_of_its_own(file: Path) -> None:
    """As many items as events, in order; to-dos and journals are none; the calendar written holds one event whole."""
    alarm = "BEGIN:VALARM\nTRIGGER:-PT5M\nDESCRIPTION:Now\nEND:VALARM"
    events = [
        event("a", "DTSTART:20240229T120000Z", "SUMMARY:Tea", alarm),
        event("b", "DTSTART;VALUE=DATE:20240301", "SUMMARY:Leap"),
        "BEGIN:VTODO\nUID:t\nSUMMARY:Wash up\nEND:VTODO\n",
        event("c", "SUMMARY:No start"),
    ]
    file.write_bytes(calendar(*events))
    os.utime(file, (1e9, 1e9))
    items = listed(file)
    assert [(item.path, item.modified) for item in items] == [
        ("calendar.ics#1", 1709164800), ("calendar.ics#2", 1709251200), ("calendar.ics#3", 1e9),
    ]  # fmt: skip
    texts = [fetch(file, item) for item in items]
    assert texts[0] == (
        "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Nightmill//one event//EN\r\n"
        + events[0].replace("\n", "\r\n")
        + "END:VCALENDAR\r\n"
    )
    assert all(text.count("BEGIN:VEVENT") == text.count("END:VEVENT") == 1 for text in texts)


def test_real_calendars_are_taken_apart_and_lose_nothing(corpus: Path, tmp_path: Path) -> None:
    """Every event of the real files, with every line of it, is in the calendar that is written for it."""
    seen = 0
    for path in sorted(corpus.glob("*/*.ics")):
        data = path.read_bytes()
        if not re.search(rb"(?m)^BEGIN:VCALENDAR\r?$", data):
            continue
        blocks = re.findall(rb"(?ms)^BEGIN:VEVENT\r?\n.*?^END:VEVENT\r?\n", data)
        file = tmp_path / path.name
        file.write_bytes(data)
        items = listed(file)
        assert len(items) == len(blocks)
        for item, block in zip(items, blocks, strict=True):
            if item.skip is None:
                assert block in _raw(file, item)
                seen += 1
    assert seen > 10


def _raw(path: Path, item: Listed) -> bytes:
    target = path.parent / "copy"
    source(path).fetch(item.locator, target)
    data = target.read_bytes()
    target.unlink()
    return data


def test_time_zones_come_along_where_they_are_named(file: Path) -> None:
    """Those that the event names, and no others; by the name as a parameter and as escaped text."""
    outlook = BERLIN.replace("Europe/Berlin", r"(UTC+01:00) Amsterdam\, Berlin")
    rome = BERLIN.replace("Berlin", "Rome")
    file.write_bytes(
        calendar(
            BERLIN,
            event("a", "DTSTART;TZID=Europe/Berlin:20240229T120000", "DTEND;TZID=Europe/Rome:20240229T120000"),
            event("b", 'DTSTART;X-A="b:c;d";TZID="(UTC+01:00) Amsterdam, Berlin":20240301T120000'),
            event("c", "dtstart;value=date-time;tzid=Eur\n ope/Berlin:20240302T120000"),
            event("d", "DTSTART:20240303T120000Z", "DESCRIPTION:not ;TZID=Europe/Berlin here"),
            outlook,
            rome,
        )
    )
    a, b, c, d = listed(file)
    assert [item.modified for item in (a, b, c, d)] == [1709164800, 1709251200, 1709337600, 1709424000]
    assert re.findall("TZID:(.*)\r", fetch(file, a)) == ["Europe/Berlin", "Europe/Rome"]
    assert re.findall("TZID:(.*)\r", fetch(file, b)) == [r"(UTC+01:00) Amsterdam\, Berlin"]
    assert re.findall("TZID:(.*)\r", fetch(file, c)) == ["Europe/Berlin"]
    assert "VTIMEZONE" not in fetch(file, d)
    assert BERLIN.replace("\n", "\r\n") in fetch(file, c)


def test_folded_lines_are_one(file: Path) -> None:
    """A folded UID is the same UID, and a folded line that reads like a boundary is text."""
    file.write_bytes(
        calendar(event("long-identity", "DESCRIPTION:see\n BEGIN:VEVENT\n END:VEVENT\n\tEND:VCALENDAR"), event("2"))
    )
    whole = listed(file)
    assert len(whole) == 2
    assert "see\r\n BEGIN:VEVENT\r\n END:VEVENT\r\n\tEND:VCALENDAR\r\nEND:VEVENT\r\n" in fetch(file, whole[0])
    file.write_bytes(calendar(event("long-id\n ent\n\tity"), event("2")))
    assert [item.key for item in listed(file)] == [item.key for item in whole]


def test_what_stands_in_an_alarm_is_not_the_events(file: Path) -> None:
    """Its own UID, start and folded lines are those of the alarm."""
    alarm = "BEGIN:VALARM\nUID:alarm\nDTSTART:19700101T000000\nRRULE:FREQ=DAILY\nSUMMARY:x\n UID:folded\nEND:VALARM"
    file.write_bytes(calendar(event(None, alarm, "UID:real", "DTSTART:20240229T120000Z")))
    (item,) = listed(file, since=1.8e9)
    assert item.modified == 1709164800
    assert item.skip is Reason.TOO_OLD
    file.write_bytes(calendar(event("real")))
    assert [item.key] == [other.key for other in listed(file)]


@pytest.mark.parametrize("start", ["\ufeff", "\r\n", "begin:vcalendar\nend:vcalendar\n", "X" * 200_000 + "\n"])
def test_what_stands_before_the_calendar_does_no_harm(file: Path, start: str) -> None:
    """A byte order mark, blank lines, another calendar, a line of any length."""
    file.write_bytes(start.encode() + calendar(event("a")).lower().replace(b"uid:a", b"UID:a"))
    (item,) = listed(file)
    assert "uid:a" in fetch(file, item).lower()


@pytest.mark.parametrize("end", ["", "BEGIN:VALARM\nTRIGGER:-PT5M\n", "BEGIN:VALARM\nX-NO-LINE-END:1"])
def test_a_file_that_is_cut_off_gives_what_is_there(file: Path, end: str) -> None:
    """The last event ends with the file, and the calendar that is written for it is closed."""
    file.write_bytes(
        calendar(event("a")).removesuffix(b"END:VCALENDAR\r\n") + b"BEGIN:VEVENT\r\nUID:b\r\n" + end.encode()
    )
    items = listed(file)
    assert len(items) == 2
    lines = fetch(file, items[1]).splitlines()
    assert lines.count("END:VEVENT") == lines.count("BEGIN:VEVENT") == 1
    assert lines.count("END:VALARM") == lines.count("BEGIN:VALARM")
    assert lines[-1] == "END:VCALENDAR"


@pytest.mark.parametrize(
    "text",
    [
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:a\nEND:VCALENDAR\nBEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:b\nEND:VEVENT\nEND:VCALENDAR\n",
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:a\nBEGIN:VEVENT\nUID:b\nEND:VEVENT\nEND:VCALENDAR\n",
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:a\nBEGIN:VALARM\nEND:VEVENT\nBEGIN:VEVENT\nUID:b\nEND:VEVENT\nEND:VCALENDAR\n",
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:a\nBEGIN:VCALENDAR\nBEGIN:VEVENT\nUID:b\nEND:VEVENT\nEND:VCALENDAR\n",
        "BEGIN:VCALENDAR\nBEGIN:VTIMEZONE\nTZID:x\nBEGIN:VEVENT\nUID:a\nEND:VEVENT\nEND:X\nBEGIN:VEVENT\nUID:b\nEND:VEVENT\n",
    ],
)
def test_an_event_that_is_not_closed_is_not_lost(file: Path, text: str) -> None:
    """It ends where the next begins or its calendar ends."""
    file.write_text(text)
    items = listed(file)
    assert [re.findall("UID:(.)", fetch(file, item)) for item in items] == [["a"], ["b"]]
    assert all(fetch(file, item).splitlines()[-2] == "END:VEVENT" for item in items)
    assert all(fetch(file, item).count("END:VCALENDAR") == 1 for item in items)


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"<html>BEGIN:VCALENDAR</html>", b"PK\x03\x04\0\0\n\0\n"])
def test_a_file_that_is_no_calendar_is_refused(file: Path, data: bytes) -> None:
    """The sign-in page that was saved under the name: nothing is listed, as something or as nothing."""
    file.write_bytes(data)
    error = trouble(file)
    assert error.reason == Reason.SOURCE_UNREADABLE
    assert "it has no line BEGIN:VCALENDAR; check the path" in str(error)


def test_a_missing_calendar_is_said_at_once(tmp_path: Path) -> None:
    """Missing, a broken link, a named pipe that nobody writes to."""
    assert trouble(tmp_path / "absent").reason == Reason.SOURCE_MISSING
    (tmp_path / "link").symlink_to("nowhere")
    assert trouble(tmp_path / "link").reason == Reason.SOURCE_MISSING
    os.mkfifo(tmp_path / "pipe")
    assert trouble(tmp_path / "pipe").reason == Reason.SOURCE_UNREADABLE


def test_an_empty_calendar_is_complete_and_empty(file: Path) -> None:
    """A calendar of which everything was deleted is no error."""
    file.write_bytes(calendar())
    assert listed(file) == []


_LINES = (
    *("BEGIN:VEVENT\r\n", "END:VEVENT\r\n", "BEGIN:VALARM\n", "END:VALARM\n", "BEGIN:VTIMEZONE\n", "END:VTIMEZONE\n"),
    *("BEGIN:VCALENDAR\n", "END:VCALENDAR\n", "END:\n", "BEGIN:\n", "UID:1\r\n", "UID:\r\n", " x\r\n", "DTSTAMP:1\n"),
    *("TZID:a\n", "DTSTART;TZID=a:20240101\n", 'DTSTART;TZID="a:2024\n', "DTSTART:20249999\n", "RRULE:x\n"),
    *("\n", "\r", ":", "x", "X" * 120 + "\n"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(_LINES), max_size=25), st.sampled_from([3, 50, 1 << 20]))
def test_every_event_can_be_copied_whatever_a_file_holds(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], block: int
) -> None:
    """Each thing that is listed arrives with the fingerprint that was listed, however broken the file."""
    file = tmp_path_factory.mktemp("ics", numbered=True) / "file.ics"
    file.write_bytes(("BEGIN:VCALENDAR\n" + "".join(pieces)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beneath, "BLOCK_BYTES", block)
        items = listed(file)
        for item in items:
            lines = [line.rstrip() for line in fetch(file, item).split("\n")]
            assert lines[-2:] == ["END:VCALENDAR", ""]
            assert lines.count("BEGIN:VEVENT") == 1
    events = sum(line.rstrip() == b"BEGIN:VEVENT" for line in file.read_bytes().split(b"\n"))
    assert len(items) == events


def test_a_hostile_calendar_is_listed_in_reasonable_time(file: Path) -> None:
    """Components within components, lines that never end, quotes that never close: linear in the size of the file."""
    nested = "".join(f"BEGIN:X{n}\nEND:Y{n}\n" for n in range(50_000))
    endless = 'DTSTART;TZID="' + "a;b=" * 100_000 + "\n" + "DTSTART" + ";X=a" * 30_000 + '"\n' + " x\n" * 50_000
    file.write_bytes(calendar(event("a", nested), event("b", endless), "BEGIN:VEVENT\n" * 5_000))
    began = time.process_time()
    items = listed(file)
    assert len(items) == 5_002
    fetch(file, items[0])
    fetch(file, items[1])
    assert time.process_time() - began < 5


# --- keys and fingerprints -------------------------------------------------------------------------------------------


def test_repetitions_that_were_changed_are_items_of_their_own(file: Path) -> None:
    """A RECURRENCE-ID names which repetition an event replaces; both keep their keys whatever the order."""
    rule = event("a", "DTSTART:20200101T120000Z", "RRULE:FREQ=WEEKLY")
    override = event("a", "RECURRENCE-ID:20240103T120000Z", "DTSTART:20240103T150000Z")
    file.write_bytes(calendar(rule, override))
    known = prints(file)
    file.write_bytes(calendar(override, rule))
    assert prints(file) == known
    assert not any(key.endswith("-2") for key in known)


def test_a_repeating_event_is_not_old(file: Path) -> None:
    """It began long ago and is still to come; one that began and ended then is too old."""
    file.write_bytes(
        calendar(
            event("a", "DTSTART:20100101T120000Z", "RRULE:FREQ=WEEKLY"),
            event("b", "DTSTART:20100101T120000Z", "RDATE:20300101T120000Z"),
            event("c", "DTSTART:20100101T120000Z", "X-RRULE:FREQ=WEEKLY"),
            event("d", "DTSTART:20240101T120000Z"),
        )
    )
    assert [item.skip for item in listed(file, since=1.5e9)] == [None, None, Reason.TOO_OLD, None]


def test_the_time_of_the_export_is_no_change(file: Path) -> None:
    """DTSTAMP moves with every download of a calendar; anything else is a change, also in an alarm."""

    def seen(stamp: str, *lines: str) -> set[str]:
        file.write_bytes(calendar(event("a", stamp, *lines)))
        return set(prints(file).values())

    before = seen("DTSTAMP:20240101T000000Z", "SUMMARY:Tea")
    assert seen("DTSTAMP:20240102T000000Z", "SUMMARY:Tea") == before
    assert seen("dtstamp;X=1:2024\n 0103T000000Z", "SUMMARY:Tea") == before
    assert seen("DTSTAMPED:20240102T000000Z", "SUMMARY:Tea") != before
    assert seen("DTSTAMP:20240101T000000Z", "SUMMARY:Toast") != before
    alarm = seen("DTSTAMP:1", "BEGIN:VALARM\nTRIGGER:-PT5M\nEND:VALARM")
    assert seen("DTSTAMP:1", "BEGIN:VALARM\nTRIGGER:-PT9M\nEND:VALARM") != alarm


def test_events_without_a_uid_keep_their_keys(file: Path) -> None:
    """What they say is their name; an empty UID is none, or the keys would follow the order."""
    events = [event(None, "SUMMARY:a"), event("", "SUMMARY:b"), event("", "SUMMARY:c"), event("1", "SUMMARY:d")]
    file.write_bytes(calendar(*events))
    known = prints(file)
    file.write_bytes(calendar(events[2], events[0], events[3]))
    assert prints(file).items() < known.items()
    assert not any(key.endswith("-2") for key in known)


def test_the_same_uid_twice_is_two_items(file: Path) -> None:
    """As broken exports have it."""
    file.write_bytes(calendar(event("1", "SUMMARY:a"), event("1", "SUMMARY:b")))
    first, second = listed(file)
    assert second.key == first.key + "-2"


# --- folders ---------------------------------------------------------------------------------------------------------


def test_the_calendars_of_a_folder_are_listed_together(folder: Path) -> None:
    """Only .ics files, in any case and depth; one that holds no calendar is an item for a worker to judge."""
    (folder / "deep").mkdir()
    (folder / "a.ics").write_bytes(calendar(event("a"), event("b")))
    (folder / "deep" / "c.ICS").write_bytes(calendar(event("c")))
    (folder / "page.ics").write_bytes(b"<html>")
    (folder / "readme.txt").write_bytes(calendar(event("x")))
    (folder / "link.ics").symlink_to("a.ics")
    os.mkfifo(folder / "pipe.ics")
    items = {item.path: item for item in listed(folder)}
    assert {path: item.skip for path, item in items.items()} == {
        "a.ics#1": None, "a.ics#2": None, "deep/c.ICS#1": None, "page.ics": None,
        "link.ics": Reason.SYMBOLIC_LINK, "pipe.ics": Reason.NOT_A_FILE,
    }  # fmt: skip
    assert "UID:c" in fetch(folder, items["deep/c.ICS#1"])
    assert fetch(folder, items["page.ics"]) == "<html>"
    assert refused(folder, items["link.ics"]) is Reason.SYMBOLIC_LINK
    assert refused(folder, items["pipe.ics"]) is Reason.NOT_A_FILE


def test_rules_apply_to_a_folder_of_calendars(folder: Path) -> None:
    """Excluded files and folders, large events, and large files that are no calendars."""
    (folder / "old").mkdir()
    (folder / "old" / "a.ics").write_bytes(calendar(event("a")))
    (folder / "skip.ics").write_bytes(calendar(event("b")))
    (folder / "big.ics").write_bytes(calendar(event("c", "X:" + "x" * 100), event("d")))
    (folder / "page.ics").write_bytes(b"x" * 101)
    found = {item.path: item.skip for item in listed(folder, exclude=("old", "skip*"), max_size_bytes=100)}
    assert found == {
        "skip.ics": Reason.EXCLUDED, "big.ics#1": Reason.TOO_LARGE, "big.ics#2": None, "page.ics": Reason.TOO_LARGE,
    }  # fmt: skip


def test_what_cannot_be_read_makes_the_listing_incomplete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is listed, and nothing is taken for removed: a file that vanished, a folder, an error of the device."""
    for name in ("a.ics", "b.ics"):
        (folder / name).write_bytes(calendar(event(name)))
    (folder / "deep").mkdir()
    whole = {item.path for item in listed(folder)}
    real_open, real_pread = os.open, os.pread

    def closed(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        if name in ("b.ics", "deep"):
            raise PermissionError(13, "Permission denied")
        return real_open(name, flags, *rest, **more)

    def broken(descriptor: int, length: int, offset: int) -> bytes:
        data = real_pread(descriptor, length, offset)
        if b"UID:b.ics" in data:
            raise OSError(5, "Input/output error")
        return data

    for name, replacement in (("open", closed), ("pread", broken)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, replacement)
            found: list[Listed] = []
            assert trouble(folder, found).reason == Reason.SOURCE_INCOMPLETE
            assert {item.path for item in found} == {"a.ics#1"} < whole


def test_a_disk_that_cannot_be_read_is_an_unreadable_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the device never looks like the end of the calendar."""
    file.write_bytes(calendar(event("a")))

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    error = trouble(file)
    assert error.reason == Reason.SOURCE_UNREADABLE
    assert "Input/output error" in str(error)


# --- what changes meanwhile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_folder", [False, True])
def test_unchanged_calendars_are_known_without_reading(file: Path, folder: Path, as_folder: bool) -> None:
    """Sizes, times and inodes of all files: any change, also a file more or less, means to look."""
    data = calendar(event("a"))
    path, changing = (folder, folder / "a.ics") if as_folder else (file, file)
    changing.write_bytes(data)
    first = source(path)
    assert not first.unchanged_since("")
    list(first.list(""))
    cursor = first.cursor()
    assert source(path).unchanged_since(cursor)
    changing.write_bytes(data.replace(b"UID:a", b"UID:b"))
    os.utime(changing, (1, 1))
    assert not source(path).unchanged_since(cursor)
    if as_folder:
        list(first.list(""))
        cursor = first.cursor()
        (folder / "b.ics").write_bytes(data)
        assert not source(path).unchanged_since(cursor)
    changing.unlink()
    assert not source(path).unchanged_since(cursor)


def test_a_calendar_rewritten_during_the_listing_is_not_complete(file: Path) -> None:
    """Half of the old state and half of the new one say nothing of what is gone."""
    file.write_bytes(calendar(*(event(str(number)) for number in range(1500))))
    calendars = source(file)
    pages = calendars.list("")
    next(pages)
    file.write_bytes(calendar(event("new")))
    with pytest.raises(SourceUnavailable) as caught:
        list(pages)
    assert caught.value.reason == Reason.SOURCE_INCOMPLETE
    assert calendars.cursor() == ""


def test_a_calendar_rewritten_before_the_copy_is_noticed(file: Path) -> None:
    """The bytes at the old place are another event, or half of one, or nothing: never copied as the one listed."""
    file.write_bytes(calendar(event("a"), event("b")))
    first, second = listed(file)
    file.write_bytes(calendar(event("x" * 30), event("b")))
    assert refused(file, first) is Reason.CHANGED_WHILE_READING
    assert refused(file, second) is Reason.CHANGED_WHILE_READING
    file.write_bytes(b"")
    assert refused(file, second) is Reason.CHANGED_WHILE_READING
    file.unlink()
    assert refused(file, second) is Reason.VANISHED
    os.mkfifo(file)
    assert refused(file, second) is Reason.NOT_A_FILE
