"""iCalendar (RFC 5545) -> a document of kind event: one event in full, or many as a list.

Rule: lenient. Lines are unfolded and split as section 3.1 says; an unknown property is passed over, a broken value is
shown as it stands. Nothing is expanded: a rule that repeats for ever stays one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from engine.document import Document, Page
from engine.model import Kind
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.decoding import decode_stream
from engine.workers.reading import Budget, Material, tidy

#: Characters of a file that are read; a calendar of 20 years of meetings has some 10 million.
_FILE_CHARS: Final = 64_000_000
#: Characters of one property: pictures are attached inline, and are not read.
_VALUE_CHARS: Final = 1_000_000
#: Time zones of one file; there are some 600. One that nobody knows takes a fifth of a millisecond to be looked for.
_MAX_ZONES: Final = 1_000
#: Events of one file: twenty a day for nearly thirty years.
MAX_EVENTS: Final = 200_000
_EVENTS: Final = frozenset({"VEVENT", "VTODO", "VJOURNAL"})
#: Only these are kept.
_WANTED: Final = frozenset(
    {
        *("SUMMARY", "DESCRIPTION", "LOCATION", "DTSTART", "DTEND", "DUE", "DURATION", "RRULE", "STATUS", "UID"),
        *("ORGANIZER", "ATTENDEE", "CATEGORIES", "URL"),
    }
)
_MAX_ATTENDEES: Final = 200

_DAYS: Final = dict(
    zip(
        ("MO", "TU", "WE", "TH", "FR", "SA", "SU"),
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        strict=True,
    )
)
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_UNITS: Final = {
    "SECONDLY": "second",
    "MINUTELY": "minute",
    "HOURLY": "hour",
    "DAILY": "day",
    "WEEKLY": "week",
    "MONTHLY": "month",
    "YEARLY": "year",
}
_PARAMETER = re.compile(r';([A-Za-z0-9-]{1,40})=("[^"]*"|[^;:"]*)(?:,(?:"[^"]*"|[^;:,"]*))*')
_ESCAPED = re.compile(r"\\([\\;,nN])")
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(?:T(\d\d)(\d\d)(\d\d)?(Z)?)?$")
_DURATION = re.compile(
    r"([+-]?)P(?:(\d{1,9})W)?(?:(\d{1,9})D)?(?:T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9})S)?)?$", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Property:
    value: str
    parameters: Mapping[str, str]


@dataclass(slots=True)
class _Event:
    """Properties by name, in the order in which they stand."""

    properties: dict[str, list[_Property]] = field(default_factory=dict)

    def first(self, name: str) -> _Property | None:
        found = self.properties.get(name)
        return found[0] if found else None

    def text(self, name: str) -> str:
        found = self.first(name)
        return _unescaped(found.value).strip() if found else ""


def read(material: Material) -> Document:
    """One event: its title, facts and description. More: a list. Raises StageFailed(DAMAGED) if it is no calendar."""
    with open(material.path, "rb") as file:
        found = decode_stream(file, limit_chars=_FILE_CHARS)
    calendar = _parsed(found.text)
    budget = Budget(limit=material.max_text_bytes)
    notes = found.notes() + ([f"partial: the calendar was cut at {_FILE_CHARS} characters"] if found.cut else [])
    notes += [] if calendar.events else ["a calendar without events"]
    if calendar.left_out:
        notes.append(f"{calendar.left_out} events beyond the first {MAX_EVENTS} were left out")
    if len(calendar.events) == 1:
        event = calendar.events[0]
        text, title, facts = budget.take(tidy(event.text("DESCRIPTION"))), event.text("SUMMARY"), _facts(event)
    else:
        text, title, facts = _listed(calendar, budget, material), calendar.name, {}
        facts["events"] = str(len(calendar.events))
    return material.document(
        kind=Kind.EVENT,
        title=title,
        pages=[Page(number=0, text=text)],
        facts=facts,
        notes=notes + budget.notes(),
    )


@dataclass(slots=True)
class _Calendar:
    name: str = ""
    events: list[_Event] = field(default_factory=list)
    left_out: int = 0
    zones: set[str] = field(default_factory=set)

    def known_zone(self, parameters: Mapping[str, str]) -> Mapping[str, str]:
        """The parameters, without a zone when there have been too many."""
        zone = parameters.get("TZID")
        if zone is None or zone in self.zones:
            return parameters
        if len(self.zones) < _MAX_ZONES:
            self.zones.add(zone)
            return parameters
        return {name: value for name, value in parameters.items() if name != "TZID"}


def _parsed(text: str) -> _Calendar:
    calendar, stack, event = _Calendar(), list[str](), _Event()
    seen = False
    for entry in _unfolded(text):
        name, parameters, value = _split(entry)
        if name == "BEGIN":
            stack = [*stack[-20:], value.strip().upper()]
            seen = seen or stack[-1] == "VCALENDAR"
            if stack[-1] in _EVENTS:
                event = _Event()
                if len(calendar.events) < MAX_EVENTS:
                    calendar.events.append(event)
                else:
                    calendar.left_out += 1
        elif name == "END":
            if value.strip().upper() in stack:
                while stack.pop() != value.strip().upper():
                    pass
        elif stack and stack[-1] in _EVENTS and name in _WANTED:
            kept = event.properties.setdefault(name, [])
            if len(kept) < _MAX_ATTENDEES:
                kept.append(_Property(value=value, parameters=calendar.known_zone(parameters)))
        elif name == "X-WR-CALNAME" and not calendar.name:
            calendar.name = _unescaped(value)
    if not seen:
        raise StageFailed(Reason.DAMAGED, "not a calendar: it has no line BEGIN:VCALENDAR")
    return calendar


def _unfolded(text: str) -> Iterator[str]:
    """Content lines: a line that begins with a blank continues the one before (RFC 5545, 3.1)."""
    pieces: list[str] = []
    length = 0
    for match in re.finditer(r"[^\r\n]+", text):
        entry = match.group()
        if entry[0] in " \t":
            if length < _VALUE_CHARS:
                pieces.append(entry[1:])
                length += len(entry)
            continue
        if pieces:
            yield "".join(pieces)
        pieces, length = [entry[:_VALUE_CHARS]], len(entry)
    if pieces:
        yield "".join(pieces)


def _split(entry: str) -> tuple[str, Mapping[str, str], str]:
    """(name, parameters, raw value) of a content line; names in capitals, first values of parameters only."""
    at = re.match(r"[A-Za-z0-9-]{1,60}", entry)
    if at is None:
        return "", {}, ""
    name, end = at.group().upper(), at.end()
    parameters: dict[str, str] = {}
    while len(parameters) < 30 and (match := _PARAMETER.match(entry, end)):
        parameters[match.group(1).upper()] = match.group(2).strip('"')
        end = match.end()
    value = entry[end:]
    return name, parameters, value[1:] if value.startswith(":") else value.partition(":")[2]


def _unescaped(value: str) -> str:
    return _ESCAPED.sub(lambda match: "\n" if match.group(1) in "nN" else match.group(1), value)


def _facts(event: _Event) -> dict[str, str]:
    rrule = event.first("RRULE")
    return {
        "start": _moment(event.first("DTSTART")),
        "end": _end(event),
        "location": event.text("LOCATION"),
        "organizer": _person(event.first("ORGANIZER")),
        "attendees": ", ".join(filter(None, map(_person, event.properties.get("ATTENDEE", [])))),
        "recurrence": recurrence(rrule.value) if rrule else "",
        "rrule": rrule.value.strip() if rrule else "",
        "status": event.text("STATUS").lower(),
        "categories": ", ".join(_unescaped(each.value) for each in event.properties.get("CATEGORIES", [])),
        "url": event.text("URL"),
        "uid": event.text("UID"),
    }


def _listed(calendar: _Calendar, budget: Budget, material: Material) -> str:
    """A paragraph for each event: title and time, where and who, and what it is about."""
    pieces: list[str] = []
    for number, event in enumerate(calendar.events, start=1):
        facts = _facts(event)
        when = " to ".join(filter(None, (facts["start"], facts["end"])))
        head = ", ".join(filter(None, (event.text("SUMMARY"), when, facts["recurrence"])))
        who = [facts[name] for name in ("location", "organizer", "attendees")]
        entry = "\n".join(filter(None, (head, *who, event.text("DESCRIPTION"))))
        pieces.append(budget.take(entry + "\n\n"))
        if budget.left <= 0:
            budget.cut = True
            break
        material.place.progress(number, len(calendar.events))
    return "".join(pieces).rstrip("\n")


def _person(found: _Property | None) -> str:
    """ "Name <address>", or whichever of the two is there."""
    if found is None:
        return ""
    address = re.sub(r"^mailto:", "", found.value.strip(), flags=re.IGNORECASE)
    name = found.parameters.get("CN", "").strip()
    return f"{name} <{address}>" if name and address and name != address else name or address


def _moment(found: _Property | None) -> str:
    """ISO 8601: a date; a floating time; or a time with its offset, and the zone's name in brackets (RFC 9557)."""
    if found is None:
        return ""
    parsed = _parsed_time(found)
    return found.value.strip() if parsed is None else _shown(parsed, found.parameters.get("TZID", ""))


def _parsed_time(found: _Property) -> date | datetime | None:
    match = _TIME.match(found.value.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second, utc = match.groups()
    try:
        if hour is None:
            return date(int(year), int(month), int(day))
        # A leap second is a second that no clock here has.
        moment = datetime(int(year), int(month), int(day), int(hour), int(minute), min(59, int(second or 0)))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC if utc else _zone(found.parameters.get("TZID", "")))


@lru_cache(maxsize=_MAX_ZONES)  # the library remembers those that there are, not those that it has not found
def _zone(name: str) -> ZoneInfo | None:
    """The zone, or None when the name is a private one or this machine has no data for it."""
    try:
        return ZoneInfo(name.strip().lstrip("/")) if name else None
    except (ValueError, OSError, LookupError):
        return None


def _shown(moment: date | datetime, zone: str) -> str:
    if not isinstance(moment, datetime) or not zone or moment.tzinfo is UTC:
        return moment.isoformat()
    return f"{moment.isoformat()}[{zone}]"


def _end(event: _Event) -> str:
    """DTEND or DUE as they are, else start plus DURATION."""
    for name in ("DTEND", "DUE"):
        if event.first(name):
            return _moment(event.first(name))
    start, duration = event.first("DTSTART"), event.first("DURATION")
    match = _DURATION.match(duration.value.strip()) if duration else None
    begun = _parsed_time(start) if start else None
    if start is None or match is None or begun is None:
        return ""
    weeks, days, hours, minutes, seconds = (int(number or 0) for number in match.groups()[1:])
    try:
        span = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        return _shown(begun - span if match.group(1) == "-" else begun + span, start.parameters.get("TZID", ""))
    except OverflowError:
        return ""


def recurrence(rule: str) -> str:
    """An RRULE as a sentence: "every 2 weeks on Monday, Friday until 2026-12-31"; what it does not know it leaves out.

    Returns "" for a rule without a known FREQ.
    """
    parts = dict(part.partition("=")[::2] for part in rule.strip().upper().split(";")[:30])
    unit = _UNITS.get(parts.get("FREQ", ""))
    if unit is None:
        return ""
    interval = _number(parts.get("INTERVAL", "1"))
    words = [f"every {unit}" if interval in (None, 0, 1) else f"every {interval} {unit}s"]
    days = [_weekday(day) for day in parts.get("BYDAY", "").split(",")[:50] if _weekday(day)]
    positions = [_ordinal(number) for part in parts.get("BYSETPOS", "").split(",") if (number := _number(part))]
    if days:
        words.append(f"on the {', '.join(positions)} of {', '.join(days)}" if positions else f"on {', '.join(days)}")
    month_days = [_ordinal(number) for part in parts.get("BYMONTHDAY", "").split(",")[:40] if (number := _number(part))]
    if month_days:
        words.append(f"on the {', '.join(month_days)} day")
    numbers = [_number(part) or 0 for part in parts.get("BYMONTH", "").split(",")[:12]]
    months = [_MONTHS[number - 1] for number in numbers if 1 <= number <= 12]
    if months:
        words.append(f"in {', '.join(months)}")
    count = _number(parts.get("COUNT", ""))
    if count:
        words.append("once" if count == 1 else f"{count} times")
    until = re.match(r"(\d{4})(\d\d)(\d\d)", parts.get("UNTIL", ""))
    if until:
        words.append("until {}-{}-{}".format(*until.groups()))
    return " ".join(words)


def _weekday(day: str) -> str:
    match = re.fullmatch(r"([+-]?\d{1,2})?(MO|TU|WE|TH|FR|SA|SU)", day.strip())
    if match is None:
        return ""
    place = int(match.group(1) or 0)
    name = _DAYS[match.group(2)]
    return f"the {_ordinal(place)} {name}" if place else name


def _ordinal(number: int) -> str:
    """1 -> "1st", -1 -> "last", -2 -> "2nd last"."""
    if number == -1:
        return "last"
    size = abs(number)
    ending = "th" if 10 <= size % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(size % 10, "th")
    return f"{size}{ending}" + (" last" if number < 0 else "")


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?\d{1,6}", text.strip()) else None
